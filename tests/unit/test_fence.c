/* SPDX-License-Identifier: Apache-2.0
 *
 * Fences and cooling on an embedded client of the host device: promises in and out of order, every
 * code, and what is held back until a promise is fulfilled.
 */
#include <criterion/criterion.h>
#include <kvmem/blocks.h>
#include <string.h>

#include "client/space.h"
#include "support/scripted.h"

struct scene {
    struct kvmem_client *client;
    struct kvmem_space *space;
    struct kvmem_geometry geometry;
    uint32_t fds;
};

static void begin_with(struct scene *s, uint64_t device_bytes, uint32_t reserve)
{
    struct kvmem_embed_options embed = {.size = sizeof(embed),
                                        .device_bytes = device_bytes,
                                        .granule_bytes = 4096,
                                        .outbox_records = 1024};
    struct kvmem_space_options options = kvt_small_space("fence");

    memset(s, 0, sizeof(*s));
    s->fds = kvt_open_fds();
    cr_assert(kvmem_client_embed(&embed, &s->client) == 0, "%s", kvmem_error_detail()->text);
    s->client->timeout_ns = 20000000;
    cr_assert(kvmem_space_open(s->client, &options, &s->space) == 0, "%s",
              kvmem_error_detail()->text);
    s->geometry.size = sizeof(s->geometry);
    cr_assert(kvmem_space_geometry(s->space, 0, &s->geometry) == 0);
    cr_assert(s->geometry.blocks_per_segment == 4);
    cr_assert(kvmem_space_reserve(s->space, reserve, 0) == 0, "%s", kvmem_error_detail()->text);
}

static void begin(struct scene *s)
{
    begin_with(s, 64 * 4096, 32);
}

static void check(struct scene *s)
{
    cr_assert(kvmem_client_check(s->client) == 0, "%s", kvmem_error_detail()->text);
}

static void end(struct scene *s)
{
    check(s);
    kvmem_client_close(s->client);
    cr_assert(kvt_open_fds() == s->fds, "%u descriptors, before %u", kvt_open_fds(), s->fds);
}

static struct kvmem_fence promise(struct scene *s)
{
    struct kvmem_fence fence;

    cr_assert(kvmem_fence_promise(s->client, &fence) == 0, "%s", kvmem_error_detail()->text);
    return fence;
}

static void fulfil(struct scene *s, struct kvmem_fence fence)
{
    cr_assert(kvmem_fence_fulfil(s->client, &fence) == 0, "%s", kvmem_error_detail()->text);
}

static int poll_of(struct scene *s, struct kvmem_fence fence)
{
    return kvmem_fence_poll(s->client, &fence);
}

static struct kvmem_space_stats stats(struct scene *s)
{
    struct kvmem_space_stats out = {.size = sizeof(out)};

    cr_assert(kvmem_space_stats(s->space, &out) == 0);
    return out;
}

static struct kvmem_capacity capacity(struct scene *s)
{
    struct kvmem_capacity out = {.size = sizeof(out)};

    cr_assert(kvmem_space_capacity(s->space, &out) == 0);
    return out;
}

static struct kvmem_seq seq_of(struct scene *s, uint32_t tokens)
{
    struct kvmem_seq seq;

    cr_assert(kvmem_seq_create(s->space, &seq) == 0);
    cr_assert(kvmem_seq_append(s->space, seq, tokens, kvmem_fence_none()) == 0, "%s",
              kvmem_error_detail()->text);
    cr_assert(kvmem_seq_commit(s->space, seq, tokens) == 0);
    return seq;
}

static void dispatch(struct scene *s)
{
    cr_assert(kvmem_client_dispatch(s->client, 0) >= 0, "%s", kvmem_error_detail()->text);
    check(s);
}

static bool names_it(const char *what)
{
    return strstr(kvmem_error_detail()->text, what) != NULL;
}

static const struct kvmem_name some_names[16] = {{{1}}, {{2}}, {{3}}, {{4}}, {{5}},
                                                 {{6}}, {{7}}, {{8}}, {{9}}, {{10}}};

/* ---- promises ---- */

Test(fence, promises_are_fulfilled_in_any_order)
{
    struct kvmem_fence f[3], again;
    struct scene s;

    begin(&s);
    for (int i = 0; i < 3; i++)
        f[i] = promise(&s);
    cr_assert(f[0].kind == KVMEM_FENCE_TIMELINE && !f[0].stream && f[0].timeline == f[2].timeline);
    fulfil(&s, f[2]);
    cr_assert(poll_of(&s, f[0]) == 0 && poll_of(&s, f[1]) == 0 && poll_of(&s, f[2]) == 0,
              "the counter passes no open promise");
    cr_assert(kvmem_fence_fulfil(s.client, &f[2]) == KVMEM_E_INVALID && names_it("fence.value"));
    fulfil(&s, f[0]);
    cr_assert(poll_of(&s, f[0]) == 1 && poll_of(&s, f[1]) == 0 && poll_of(&s, f[2]) == 0);
    fulfil(&s, f[1]);
    cr_assert(poll_of(&s, f[1]) == 1 && poll_of(&s, f[2]) == 1);
    cr_assert(kvmem_fence_fulfil(s.client, &f[1]) == KVMEM_E_INVALID);
    again = f[2];
    again.value++;
    cr_assert(kvmem_fence_fulfil(s.client, &again) == KVMEM_E_INVALID, "never promised");
    cr_assert(poll_of(&s, again) == KVMEM_E_INVALID && names_it("fence.value"));
    again = f[2];
    again.timeline++;
    cr_assert(kvmem_fence_fulfil(s.client, &again) == KVMEM_E_INVALID, "not a promise");
    end(&s);
}

Test(fence, a_window_of_promises)
{
    struct kvmem_fence f[1024], more;
    struct scene s;

    begin(&s);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 1024; i++)
            f[i] = promise(&s);
        cr_assert(kvmem_fence_promise(s.client, &more) == KVMEM_E_LIMIT);
        for (int i = 1; i < 1024; i++)
            fulfil(&s, f[i]);
        cr_assert(kvmem_fence_promise(s.client, &more) == KVMEM_E_LIMIT, "the oldest is open");
        cr_assert(poll_of(&s, f[1023]) == 0);
        fulfil(&s, f[0]);
        cr_assert(poll_of(&s, f[1023]) == 1);
    }
    end(&s);
}

Test(fence, codes_of_asking)
{
    struct kvmem_fence fence = kvmem_fence_none(), open;
    struct scene s;

    begin(&s);
    cr_assert(poll_of(&s, fence) == 1);
    fence.kind = KVMEM_FENCE_HOST;
    cr_assert(poll_of(&s, fence) == 1 && kvmem_fence_wait(s.client, &fence, -1) == 0);
    fence.kind = 4;
    cr_assert(poll_of(&s, fence) == KVMEM_E_INVALID && names_it("fence.kind: 4"));
    fence = kvmem_fence_stream(NULL);
    cr_assert(poll_of(&s, fence) == KVMEM_E_NOT_SUPPORTED && names_it("fence.kind"));
    fence = (struct kvmem_fence){KVMEM_FENCE_TIMELINE, 6400, 1, NULL};
    cr_assert(poll_of(&s, fence) == KVMEM_E_INVALID && names_it("fence.timeline: 6400"));
    cr_assert(kvmem_fence_fulfil(s.client, &fence) == KVMEM_E_INVALID);
    fence.timeline = 0;
    cr_assert(poll_of(&s, fence) == KVMEM_E_INVALID, "a joint fence of no look-up");
    open = promise(&s);
    cr_assert(kvmem_fence_wait(s.client, &open, 0) == KVMEM_E_TIMED_OUT);
    cr_assert(kvmem_fence_wait(s.client, &open, 3000000) == KVMEM_E_TIMED_OUT);
    fulfil(&s, open);
    cr_assert(kvmem_fence_wait(s.client, &open, -1) == 0);
    cr_assert(kvmem_fence_poll(NULL, &open) == KVMEM_E_INVALID && names_it("client"));
    cr_assert(kvmem_fence_wait(s.client, NULL, 0) == KVMEM_E_INVALID && names_it("fence"));
    cr_assert(kvmem_fence_promise(s.client, NULL) == KVMEM_E_INVALID);
    cr_assert(kvmem_fence_fulfil(NULL, &open) == KVMEM_E_INVALID);
    end(&s);
}

Test(fence, streams_need_a_gpu)
{
    struct kvmem_fence fence = kvmem_fence_stream(NULL), open;
    struct kvmem_seq seq;
    struct scene s;

    begin(&s);
    seq = seq_of(&s, 4);
    cr_assert(kvmem_fence_record(s.space, NULL, &open) == KVMEM_E_NOT_SUPPORTED &&
              names_it("fence.kind"));
    cr_assert(kvmem_fence_record(NULL, NULL, &open) == KVMEM_E_INVALID);
    cr_assert(kvmem_fence_record(s.space, NULL, NULL) == KVMEM_E_INVALID);
    cr_assert(kvmem_seq_free(s.space, seq, fence) == KVMEM_E_NOT_SUPPORTED &&
              names_it("fence.kind"));
    cr_assert(kvmem_seq_append(s.space, seq, 1, fence) == KVMEM_E_NOT_SUPPORTED);
    cr_assert(kvmem_seq_truncate(s.space, seq, 1, fence) == KVMEM_E_NOT_SUPPORTED);
    cr_assert(kvmem_prefix_release(s.space, 0, NULL, fence) == KVMEM_E_NOT_SUPPORTED);
    cr_assert(kvmem_seq_publish(s.space, seq, 0, 1, some_names, fence) == KVMEM_E_NOT_SUPPORTED);
    cr_assert(kvmem_fence_order(s.space, NULL, &fence) == KVMEM_E_NOT_SUPPORTED);
    open = promise(&s);
    cr_assert(kvmem_fence_order(s.space, NULL, &open) == KVMEM_E_NOT_SUPPORTED &&
              names_it("kvmem_fence_wait"));
    fulfil(&s, open);
    cr_assert(kvmem_fence_order(s.space, NULL, &open) == 0);
    open = kvmem_fence_none();
    cr_assert(kvmem_fence_order(s.space, NULL, &open) == 0);
    cr_assert(kvmem_fence_order(s.space, NULL, NULL) == KVMEM_E_INVALID);
    end(&s);
}

/* An older daemon has no timelines. */
Test(fence, an_older_daemon)
{
    struct kvt_script *script = kvt_script_create(1 << 20, 4096);
    struct kvmem_fence fence;
    struct kvmem_client *client;

    script->welcome_version = 1;
    client = kvt_script_client(script);
    cr_assert(kvmem_fence_promise(client, &fence) == KVMEM_E_NOT_SUPPORTED &&
              names_it("fence.kind"));
    kvmem_client_close(client);
    kvt_script_destroy(script);
}

/* ---- cooling ---- */

Test(fence, a_freed_table_cools)
{
    struct kvmem_seq seqs[3];
    struct kvmem_fence open;
    struct scene s;

    begin(&s);
    open = promise(&s);
    for (int i = 0; i < 3; i++)
        seqs[i] = seq_of(&s, 9 + (uint32_t)i);
    cr_assert(kvmem_seqs_free(s.space, 3, seqs, open) == 0, "%s", kvmem_error_detail()->text);
    cr_assert(kvmem_seq_free(s.space, seqs[0], open) == KVMEM_E_STALE);
    cr_assert(stats(&s).cooling_blocks == 9 && stats(&s).live_seqs == 0);
    cr_assert(capacity(&s).used_blocks == 9);
    dispatch(&s);
    cr_assert(stats(&s).cooling_blocks == 9 && capacity(&s).used_blocks == 9);
    fulfil(&s, open);
    dispatch(&s);
    cr_assert(stats(&s).cooling_blocks == 0 && capacity(&s).used_blocks == 0);
    cr_assert(s.space->cooling.count == 0);
    end(&s);
}

/* Out of blocks: what has cooled is taken before a call says that it lacks some. */
Test(fence, a_call_that_lacks_blocks_looks)
{
    struct kvmem_seq seq, other, third;
    struct kvmem_fence open;
    int32_t scratch;
    struct scene s;

    begin_with(&s, 8 * 4096, 32);
    open = promise(&s);
    seq = seq_of(&s, 31 * 4);
    other = seq_of(&s, 4);
    cr_assert(capacity(&s).free_blocks == 0);
    cr_assert(kvmem_seq_free(s.space, seq, open) == 0);
    cr_assert(kvmem_space_can_append(s.space, 1, &other, NULL) == 0);
    cr_assert(kvmem_seq_append(s.space, other, 1, kvmem_fence_none()) == KVMEM_E_REFILL_PENDING);
    dispatch(&s); /* the device is full: the answer says so */
    while (kvmem_client_dispatch(s.client, 100000000) > 0)
        ;
    cr_assert(kvmem_seq_append(s.space, other, 1, kvmem_fence_none()) == KVMEM_E_REFILL_PENDING,
              "it comes back by itself");
    cr_assert(kvmem_seq_append(s.space, other, 200, kvmem_fence_none()) == KVMEM_E_OUT_OF_BLOCKS,
              "that would not be enough: %s", kvmem_error_detail()->text);
    fulfil(&s, open);
    cr_assert(kvmem_space_can_append(s.space, 1, &other, NULL) == 1);
    cr_assert(kvmem_seq_append(s.space, other, 1, kvmem_fence_none()) == 0);

    third = seq_of(&s, 30 * 4);
    cr_assert(capacity(&s).free_blocks == 0);
    open = promise(&s);
    cr_assert(kvmem_seq_truncate(s.space, third, 29 * 4, open) == 0);
    cr_assert(kvmem_space_scratch(s.space, 0) < 0);
    fulfil(&s, open);
    scratch = kvmem_space_scratch(s.space, 0);
    cr_assert(scratch >= 0);
    open = promise(&s);
    cr_assert(kvmem_seq_truncate(s.space, third, 20 * 4, open) == 0);
    cr_assert(kvmem_seq_reserve(s.space, other, 36) < 0);
    fulfil(&s, open);
    cr_assert(kvmem_seq_reserve(s.space, other, 36) == 0);
    check(&s);
    end(&s);
}

Test(fence, truncate_and_release_cool)
{
    struct kvmem_fence first, second;
    struct kvmem_seq seq;
    int32_t blocks[2];
    struct scene s;

    begin(&s);
    first = promise(&s);
    second = promise(&s);
    seq = seq_of(&s, 24);
    cr_assert(kvmem_seq_reserve(s.space, seq, 4) == 0);
    cr_assert(kvmem_seq_truncate(s.space, seq, 22, second) == 0);
    cr_assert(stats(&s).cooling_blocks == 1, "the reserved one");
    cr_assert(kvmem_seq_truncate(s.space, seq, 9, first) == 0);
    cr_assert(stats(&s).cooling_blocks == 4);
    check(&s);
    cr_assert(kvmem_seq_publish(s.space, seq, 0, 2, some_names, kvmem_fence_none()) == 0);
    dispatch(&s);
    cr_assert(kvmem_prefix_lookup(s.space, 2, some_names, blocks, NULL) == 2);
    cr_assert(kvmem_seq_free(s.space, seq, kvmem_fence_none()) == 0);
    cr_assert(kvmem_prefix_release(s.space, 2, blocks, second) == 0);
    cr_assert(kvmem_prefix_release(s.space, 2, blocks, second) == KVMEM_E_INVALID, "not held");
    cr_assert(stats(&s).cooling_blocks == 6 && stats(&s).leased_blocks == 2);
    fulfil(&s, second);
    dispatch(&s);
    cr_assert(stats(&s).cooling_blocks == 6, "the first one is open");
    fulfil(&s, first);
    dispatch(&s);
    cr_assert(stats(&s).cooling_blocks == 0 && stats(&s).leased_blocks == 0);
    cr_assert(capacity(&s).used_blocks == 0);
    end(&s);
}

/* By value, not in the order of the calls. */
Test(fence, older_fences_do_not_wait_for_newer_ones)
{
    struct kvmem_fence f[4];
    struct kvmem_seq seqs[4];
    struct scene s;

    begin(&s);
    for (uint32_t i = 0; i < 4; i++)
        f[i] = promise(&s);
    for (uint32_t i = 0; i < 4; i++)
        seqs[i] = seq_of(&s, 4 * (i + 1));
    cr_assert(kvmem_seq_free(s.space, seqs[2], f[2]) == 0);
    cr_assert(kvmem_seq_free(s.space, seqs[0], f[0]) == 0);
    cr_assert(kvmem_seq_free(s.space, seqs[3], f[3]) == 0);
    cr_assert(kvmem_seq_free(s.space, seqs[1], f[1]) == 0);
    check(&s);
    for (uint32_t i = 0, left = 10; i < 4; i++) {
        fulfil(&s, f[i]);
        dispatch(&s);
        left -= i + 1;
        cr_assert(stats(&s).cooling_blocks == left);
    }
    end(&s);
}

Test(fence, a_full_ring_is_busy)
{
    struct kvmem_fence open;
    struct kvmem_seq seqs[3];
    struct scene s;

    begin(&s);
    open = promise(&s);
    for (uint32_t i = 0; i < 3; i++)
        seqs[i] = seq_of(&s, 8);
    s.space->cooling.limit = 2;
    cr_assert(kvmem_seqs_free(s.space, 3, seqs, open) == KVMEM_E_BUSY && names_it("0 of 2"));
    cr_assert(stats(&s).live_seqs == 3 && stats(&s).cooling_blocks == 0);
    cr_assert(kvmem_seqs_free(s.space, 2, seqs, open) == 0);
    cr_assert(kvmem_seq_truncate(s.space, seqs[2], 4, open) == KVMEM_E_BUSY && names_it("2 of 2"));
    cr_assert(kvmem_seq_publish(s.space, seqs[2], 0, 1, some_names, open) == KVMEM_E_BUSY);
    check(&s);
    fulfil(&s, open);
    open = promise(&s);
    cr_assert(kvmem_seq_truncate(s.space, seqs[2], 4, open) == 0, "what has passed makes room");
    fulfil(&s, open);
    s.space->cooling.limit = KVI_COOLING_MIN * 2;
    end(&s);
}

/* The outbox takes releases as it has room; the rest waits for the next dispatch. */
Test(fence, cooling_and_a_full_outbox)
{
    struct kvmem_fence open;
    struct kvmem_seq seq;
    struct scene s;

    begin(&s);
    seq = seq_of(&s, 32);
    cr_assert(kvmem_seq_publish(s.space, seq, 0, 8, some_names, kvmem_fence_none()) == 0);
    dispatch(&s);
    open = promise(&s);
    cr_assert(kvmem_seq_free(s.space, seq, open) == 0);
    fulfil(&s, open);
    s.client->outbox.limit = 3;
    dispatch(&s);
    cr_assert(stats(&s).cooling_blocks == 5, "%lu", (unsigned long)stats(&s).cooling_blocks);
    dispatch(&s);
    dispatch(&s);
    cr_assert(stats(&s).cooling_blocks == 0 && stats(&s).leased_blocks == 0);
    end(&s);
}

/* A copy is made at once on the host: what it reads must be there. */
Test(fence, a_copy_waits_for_its_fence)
{
    struct kvmem_seq parent, child;
    struct kvmem_fence open;
    struct scene s;

    begin(&s);
    open = promise(&s);
    parent = seq_of(&s, 6);
    cr_assert(kvmem_seq_fork(s.space, parent, &child) == 0);
    cr_assert(kvmem_seq_append(s.space, child, 1, open) == KVMEM_E_BUSY);
    check(&s);
    cr_assert(stats(&s).tail_copies == 0);
    fulfil(&s, open);
    cr_assert(kvmem_seq_append(s.space, child, 1, open) == 0);
    open = promise(&s);
    cr_assert(kvmem_seq_append(s.space, child, 1, open) == 0, "nothing is copied");
    cr_assert(stats(&s).tail_copies == 1);
    fulfil(&s, open);
    end(&s);
}

/* A tail that only cools besides is written in place once it has cooled, copied before. */
Test(fence, a_cooling_tail_is_shared)
{
    struct kvmem_seq parent, child;
    struct kvmem_fence open;
    struct scene s;

    begin(&s);
    open = promise(&s);
    parent = seq_of(&s, 6);
    cr_assert(kvmem_seq_fork(s.space, parent, &child) == 0);
    cr_assert(kvmem_seq_free(s.space, parent, open) == 0);
    cr_assert(kvmem_seq_append(s.space, child, 1, kvmem_fence_none()) == 0);
    cr_assert(stats(&s).tail_copies == 1);
    fulfil(&s, open);
    dispatch(&s);
    cr_assert(kvmem_seq_fork(s.space, child, &parent) == 0);
    open = promise(&s);
    cr_assert(kvmem_seq_free(s.space, parent, open) == 0);
    fulfil(&s, open);
    dispatch(&s);
    cr_assert(kvmem_seq_append(s.space, child, 1, kvmem_fence_none()) == 0);
    cr_assert(stats(&s).tail_copies == 1);
    end(&s);
}

/* ---- publishing ---- */

Test(fence, a_publication_keeps_its_segment)
{
    struct kvmem_fence open, ready;
    struct kvmem_seq seq;
    int32_t blocks[4];
    struct scene s;

    begin(&s);
    open = promise(&s);
    seq = seq_of(&s, 16);
    cr_assert(kvmem_seq_publish(s.space, seq, 0, 4, some_names, open) == 0, "%s",
              kvmem_error_detail()->text);
    cr_assert(stats(&s).cooling_blocks == 4);
    dispatch(&s);
    dispatch(&s);
    cr_assert(stats(&s).published_blocks == 4 && stats(&s).leased_blocks == 4);
    cr_assert(kvmem_seq_free(s.space, seq, kvmem_fence_none()) == 0);
    cr_assert(stats(&s).leased_blocks == 4, "cooling holds them");
    cr_assert(kvmem_space_trim(s.space) == KVMEM_E_TIMED_OUT && names_it("4 blocks"));
    cr_assert(stats(&s).owned_segments == 8 && stats(&s).handed_in_segments == 0);
    cr_assert(kvmem_prefix_peek(s.space, 4, some_names) == 4);
    cr_assert(kvmem_prefix_lookup(s.space, 4, some_names, blocks, &ready) == 4);
    cr_assert(ready.kind == KVMEM_FENCE_TIMELINE && ready.value == open.value &&
              ready.timeline == open.timeline);
    cr_assert(poll_of(&s, ready) == 0);
    fulfil(&s, open);
    cr_assert(poll_of(&s, ready) == 1);
    cr_assert(kvmem_prefix_release(s.space, 4, blocks, ready) == 0);
    cr_assert(kvmem_prefix_lookup(s.space, 4, some_names, blocks, &ready) == 4);
    cr_assert(ready.kind == KVMEM_FENCE_NONE);
    cr_assert(kvmem_prefix_release(s.space, 4, blocks, ready) == 0);
    cr_assert(kvmem_space_trim(s.space) == 8);
    check(&s);
    end(&s);
}

/* Its own work in progress does not keep a client from publishing what comes behind it. */
Test(fence, own_blocks_are_not_guarded)
{
    struct kvmem_fence open;
    struct kvmem_seq seq, reader, fork;
    int32_t blocks[2];
    struct scene s;

    begin(&s);
    open = promise(&s);
    seq = seq_of(&s, 8);
    cr_assert(kvmem_seq_publish(s.space, seq, 0, 2, some_names, open) == 0);
    dispatch(&s);
    cr_assert(kvmem_prefix_lookup(s.space, 2, some_names, blocks, NULL) == 2);
    cr_assert(kvmem_seq_create(s.space, &reader) == 0);
    cr_assert(kvmem_seq_attach(s.space, reader, 2, blocks) == 0);
    cr_assert(kvmem_seq_append(s.space, reader, 4, kvmem_fence_none()) == 0);
    cr_assert(kvmem_seq_commit(s.space, reader, 4) == 0);
    cr_assert(kvmem_seq_fork(s.space, reader, &fork) == 0);
    cr_assert(kvmem_seq_publish(s.space, reader, 0, 3, some_names, open) == 0);
    cr_assert(kvmem_seq_publish(s.space, fork, 0, 3, some_names, kvmem_fence_none()) == 0);
    cr_assert(stats(&s).cooling_blocks == 3);
    check(&s);
    fulfil(&s, open);
    end(&s);
}

Test(fence, a_fence_that_has_passed_publishes_at_once)
{
    struct kvmem_fence open;
    struct kvmem_seq seq;
    struct scene s;

    begin(&s);
    open = promise(&s);
    fulfil(&s, open);
    seq = seq_of(&s, 4);
    cr_assert(kvmem_seq_publish(s.space, seq, 0, 1, some_names, open) == 0);
    cr_assert(stats(&s).cooling_blocks == 0);
    dispatch(&s);
    open = promise(&s);
    cr_assert(kvmem_seq_publish(s.space, seq, 0, 1, some_names, open) == 0);
    cr_assert(stats(&s).cooling_blocks == 0, "it is an entry already");
    fulfil(&s, open);
    end(&s);
}

/* ---- the end ---- */

Test(fence, closing_a_space_waits)
{
    struct kvmem_fence open;
    struct scene s;

    begin(&s);
    open = promise(&s);
    cr_assert(kvmem_seq_free(s.space, seq_of(&s, 8), open) == 0);
    fulfil(&s, open);
    kvmem_space_close(s.space);
    cr_assert(!s.client->is_abandoned);
    end(&s);
}

/* What was never reached is left alone: no goodbye, nothing unmapped. */
Test(fence, closing_gives_up)
{
    struct kvt_script *script = kvt_script_create(1 << 20, 4096);
    struct kvmem_space_options options = kvt_small_space("scripted");
    struct kvmem_client *client = kvt_script_client(script);
    struct kvmem_geometry geometry = {.size = sizeof(geometry)};
    const struct kvi_header *request;
    struct kvmem_space *space;
    struct kvmem_fence open;
    struct kvmem_seq seq;
    const volatile char *base;

    cr_assert(kvmem_space_open(client, &options, &space) == 0);
    cr_assert(kvmem_space_geometry(space, 0, &geometry) == 0);
    cr_assert(kvmem_client_dispatch(client, 0) == 0);
    request = kvt_script_find(script, KVI_OP_BLOCKS_REQUEST);
    kvt_script_grant(script, &geometry, request->serial, 0, 1, KVI_GRANT_LAST);
    cr_assert(kvmem_client_dispatch(client, 0) == 1);
    cr_assert(kvmem_fence_promise(client, &open) == 0);
    cr_assert(kvmem_seq_create(space, &seq) == 0);
    cr_assert(kvmem_seq_append(space, seq, 4, kvmem_fence_none()) == 0);
    cr_assert(kvmem_seq_free(space, seq, open) == 0);
    base = kvmem_space_base(space, 0, 0);
    kvmem_space_close(space);
    kvmem_client_close(client);
    cr_assert(script->is_closed);
    cr_assert(!kvt_script_find(script, KVI_OP_SPACE_CLOSE));
    cr_assert(base[0] == 0, "still mapped");
    kvt_script_destroy(script);
}

/* ---- blocks ---- */

Test(fence, blocks_are_copied_and_cleared)
{
    int32_t from[2], to[2], bad[2];
    const int32_t *view;
    struct kvmem_seq seq;
    struct scene s;
    const char *base;
    char *write_base;

    begin(&s);
    seq = seq_of(&s, 20);
    cr_assert(kvmem_table_view(s.space, 0, seq, &view) == 5);
    base = kvmem_space_base(s.space, 0, 0);
    write_base = kvmem_space_write_base(s.space, 0, 0);
    for (int i = 0; i < 5; i++)
        memset(write_base + (uint64_t)view[i] * s.geometry.index_stride_bytes, 'a' + i,
               s.geometry.block_bytes);
    memcpy(from, view, sizeof(from));
    memcpy(to, view + 3, sizeof(to));
    cr_assert(kvmem_blocks_copy(s.space, 0, 2, from, to, NULL) == 0);
    cr_assert(!memcmp(base + (uint64_t)from[1] * s.geometry.index_stride_bytes,
                      base + (uint64_t)to[1] * s.geometry.index_stride_bytes,
                      s.geometry.block_bytes));
    cr_assert(kvmem_blocks_zero(s.space, 0, 1, to, NULL) == 0);
    cr_assert(base[(uint64_t)to[0] * s.geometry.index_stride_bytes] == 0);
    cr_assert(kvmem_blocks_zero(s.space, 0, 0, NULL, NULL) == 0);
    cr_assert(kvmem_blocks_copy(s.space, 1, 2, from, to, NULL) == KVMEM_E_INVALID &&
              names_it("group"));
    cr_assert(kvmem_blocks_copy(s.space, 0, 2, from, NULL, NULL) == KVMEM_E_INVALID &&
              names_it("to"));
    cr_assert(kvmem_blocks_copy(s.space, 0, 2, from, to, &s) == KVMEM_E_NOT_SUPPORTED &&
              names_it("stream"));
    cr_assert(kvmem_blocks_copy(NULL, 0, 2, from, to, NULL) == KVMEM_E_INVALID);
    bad[0] = bad[1] = to[0];
    cr_assert(kvmem_blocks_zero(s.space, 0, 2, bad, NULL) == KVMEM_E_INVALID &&
              names_it("blocks[1]"));
    cr_assert(kvmem_blocks_copy(s.space, 0, 2, to, to, NULL) == KVMEM_E_INVALID &&
              names_it("from[0]"));
    bad[1] = -1;
    cr_assert(kvmem_blocks_copy(s.space, 0, 2, from, bad, NULL) == KVMEM_E_INVALID &&
              names_it("to[1]"));
    cr_assert(kvmem_blocks_copy(s.space, 0, 2, bad, to, NULL) == KVMEM_E_INVALID &&
              names_it("from"));
    bad[1] = INT32_MAX;
    cr_assert(kvmem_blocks_zero(s.space, 0, 2, bad, NULL) == KVMEM_E_INVALID);
    cr_assert(kvmem_seq_publish(s.space, seq, 0, 1, some_names, kvmem_fence_none()) == 0);
    cr_assert(kvmem_blocks_zero(s.space, 0, 1, from, NULL) == KVMEM_E_INVALID &&
              names_it("blocks"));
    cr_assert(kvmem_blocks_copy(s.space, 0, 2, from, to, NULL) == 0, "a source may be published");
    end(&s);
}
