/* SPDX-License-Identifier: Apache-2.0
 *
 * Sequences on an embedded client, one rule a test: who may write where, what is copied, what is
 * counted, what a refused call leaves.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "client/seq.h"
#include "support/scripted.h"

struct scene {
    struct kvmem_client *client;
    struct kvmem_space *space;
    struct kvmem_geometry geometry;
};

static void begin_with(struct scene *s, uint32_t block_tokens, uint32_t seq_limit, uint32_t reserve)
{
    struct kvmem_embed_options embed = {.size = sizeof(embed),
                                        .device_bytes = 1 << 20,
                                        .granule_bytes = 4096,
                                        .outbox_records = 1024};
    struct kvmem_space_options options = kvt_small_space("seq");

    options.block_tokens = block_tokens;
    options.seq_limit = seq_limit;
    cr_assert(kvmem_client_embed(&embed, &s->client) == 0, "%s", kvmem_error_detail()->text);
    cr_assert(kvmem_space_open(s->client, &options, &s->space) == 0, "%s",
              kvmem_error_detail()->text);
    s->geometry.size = sizeof(s->geometry);
    cr_assert(kvmem_space_geometry(s->space, 0, &s->geometry) == 0);
    cr_assert(kvmem_space_reserve(s->space, reserve, 0) == 0, "%s", kvmem_error_detail()->text);
}

static void begin(struct scene *s)
{
    begin_with(s, 4, 0, 64);
}

static void end(struct scene *s)
{
    cr_assert(kvmem_client_check(s->client) == 0, "%s", kvmem_error_detail()->text);
    kvmem_client_close(s->client);
}

static struct kvmem_fence none(void)
{
    return kvmem_fence_none();
}

static struct kvmem_seq seq_of(struct scene *s, uint32_t tokens)
{
    struct kvmem_seq seq;

    cr_assert(kvmem_seq_create(s->space, &seq) == 0);
    cr_assert(kvmem_seq_append(s->space, seq, tokens, none()) == 0);
    return seq;
}

static int32_t block_of(struct scene *s, struct kvmem_seq seq, uint32_t at)
{
    const int32_t *view;

    cr_assert(kvmem_table_view(s->space, 0, seq, &view) > (int)at);
    return view[at];
}

static const char *bytes_of(struct scene *s, int32_t block)
{
    return (const char *)kvmem_space_base(s->space, 0, 0) +
           (uint64_t)block * s->geometry.index_stride_bytes;
}

static void fill(struct scene *s, int32_t block, int byte)
{
    memset((char *)kvmem_space_write_base(s->space, 0, 0) +
               (uint64_t)block * s->geometry.index_stride_bytes,
           byte, s->geometry.block_bytes);
}

static struct kvmem_seq_info info(struct scene *s, struct kvmem_seq seq)
{
    struct kvmem_seq_info out = {.size = sizeof(out)};

    cr_assert(kvmem_seq_info(s->space, seq, &out) == 0);
    return out;
}

static uint64_t copies(struct scene *s)
{
    struct kvmem_space_stats out = {.size = sizeof(out)};

    cr_assert(kvmem_space_stats(s->space, &out) == 0);
    return out.tail_copies;
}

static uint64_t used(struct scene *s)
{
    struct kvmem_capacity out = {.size = sizeof(out)};

    cr_assert(kvmem_space_capacity(s->space, &out) == 0);
    return out.used_blocks;
}

static void publish(struct scene *s, struct kvmem_seq seq, uint32_t count)
{
    static uint8_t number;
    struct kvmem_name names[64];

    memset(names, 0, sizeof(names));
    for (uint32_t i = 0; i < count; i++)
        names[i].bytes[0] = ++number;
    cr_assert(kvmem_seq_commit(s->space, seq, count * s->geometry.block_tokens) == 0);
    cr_assert(kvmem_seq_publish(s->space, seq, 0, count, names, none()) == 0);
    cr_assert(kvmem_client_dispatch(s->client, 0) >= 0);
}

Test(seq, a_shared_tail_is_copied_by_whoever_writes_first)
{
    struct kvmem_seq parent, child;
    struct scene s;

    begin(&s);
    parent = seq_of(&s, 6);
    fill(&s, block_of(&s, parent, 1), 0x5a);
    cr_assert(kvmem_seq_fork(s.space, parent, &child) == 0);
    cr_assert(info(&s, parent).shared_blocks == 2 && used(&s) == 2);
    cr_assert(kvmem_seq_append(s.space, child, 1, none()) == 0);
    cr_assert(copies(&s) == 1 && used(&s) == 3);
    cr_assert(block_of(&s, child, 0) == block_of(&s, parent, 0));
    cr_assert(block_of(&s, child, 1) != block_of(&s, parent, 1));
    cr_assert(!memcmp(bytes_of(&s, block_of(&s, child, 1)), bytes_of(&s, block_of(&s, parent, 1)),
                      s.geometry.block_bytes));
    cr_assert(kvmem_seq_append(s.space, parent, 1, none()) == 0);
    cr_assert(copies(&s) == 1, "the tail is its own again");
    end(&s);
}

Test(seq, a_full_tail_is_not_copied)
{
    struct kvmem_seq parent, child;
    struct scene s;

    begin(&s);
    parent = seq_of(&s, 8);
    cr_assert(kvmem_seq_fork(s.space, parent, &child) == 0);
    cr_assert(kvmem_seq_append(s.space, child, 1, none()) == 0);
    cr_assert(copies(&s) == 0 && used(&s) == 3);
    end(&s);
}

Test(seq, the_last_of_a_batch_keeps_the_tail)
{
    struct kvmem_seq all[4];
    uint32_t free_blocks;
    struct scene s;

    begin(&s);
    all[0] = seq_of(&s, 2);
    cr_assert(kvmem_seqs_fork(s.space, all[0], 3, all + 1) == 0);
    free_blocks = (uint32_t)kvi_pool_free_blocks(&s.space->pool);
    seq_of(&s, (free_blocks - 3) * 4);
    cr_assert(kvmem_space_can_append(s.space, 4, all, NULL) == 1, "3 copies fit");
    cr_assert(kvmem_seqs_append(s.space, 4, all, NULL, none()) == 0);
    cr_assert(copies(&s) == 3 && kvi_pool_free_blocks(&s.space->pool) == 0);
    end(&s);
}

Test(seq, all_or_nothing)
{
    struct kvmem_seq all[3], gone;
    uint32_t counts[3] = {5, 1, 1};
    struct scene s;

    begin(&s);
    for (int i = 0; i < 3; i++)
        all[i] = seq_of(&s, 3);
    gone = all[2];
    cr_assert(kvmem_seq_free(s.space, gone, none()) == 0);
    cr_assert(kvmem_seqs_append(s.space, 3, all, counts, none()) == KVMEM_E_STALE);
    cr_assert(kvmem_seqs_commit(s.space, 3, all, NULL) == KVMEM_E_STALE);
    cr_assert(info(&s, all[0]).committed_tokens == 0);
    cr_assert(kvmem_seqs_free(s.space, 3, all, none()) == KVMEM_E_STALE);
    all[2] = all[0];
    cr_assert(kvmem_seqs_append(s.space, 3, all, counts, none()) == KVMEM_E_INVALID);
    cr_assert(kvmem_seqs_free(s.space, 3, all, none()) == KVMEM_E_INVALID);
    counts[1] = 400;
    cr_assert(kvmem_space_can_append(s.space, 2, all, counts) == 0);
    cr_assert(kvmem_seqs_append(s.space, 2, all, counts, none()) == KVMEM_E_REFILL_PENDING);
    for (int i = 0; i < 2; i++)
        cr_assert(info(&s, all[i]).appended_tokens == 3 && info(&s, all[i]).block_count == 1);
    end(&s);
}

Test(seq, a_sealed_block_is_never_written)
{
    struct kvmem_seq seq;
    int32_t sealed;
    struct scene s;

    begin(&s);
    seq = seq_of(&s, 8);
    publish(&s, seq, 2);
    cr_assert(info(&s, seq).published_blocks == 2);
    sealed = block_of(&s, seq, 1);
    fill(&s, sealed, 7);
    cr_assert(kvmem_seq_truncate(s.space, seq, 6, none()) == 0);
    cr_assert(block_of(&s, seq, 1) == sealed, "it stays readable");
    cr_assert(info(&s, seq).committed_tokens == 6);
    cr_assert(kvmem_seq_append(s.space, seq, 1, none()) == 0);
    cr_assert(block_of(&s, seq, 1) != sealed && copies(&s) == 1);
    cr_assert(bytes_of(&s, block_of(&s, seq, 1))[0] == 7);
    cr_assert(info(&s, seq).published_blocks == 1);
    end(&s);
}

Test(seq, a_block_on_its_way_to_be_published_is_sealed)
{
    struct kvmem_name name = {{200}};
    struct kvmem_seq seq;
    int32_t sealed;
    struct scene s;

    begin(&s);
    seq = seq_of(&s, 4);
    cr_assert(kvmem_seq_publish(s.space, seq, 0, 1, &name, none()) == KVMEM_E_INVALID);
    cr_assert(kvmem_seq_commit(s.space, seq, 4) == 0);
    cr_assert(kvmem_seq_publish(s.space, seq, 0, 1, &name, none()) == 0);
    sealed = block_of(&s, seq, 0);
    cr_assert(kvmem_seq_truncate(s.space, seq, 3, none()) == 0);
    cr_assert(kvmem_seq_append(s.space, seq, 1, none()) == 0);
    cr_assert(block_of(&s, seq, 0) != sealed);
    cr_assert(kvmem_client_check(s.client) == 0, "%s", kvmem_error_detail()->text);
    cr_assert(kvmem_client_dispatch(s.client, 0) >= 0);
    end(&s);
}

Test(seq, truncate_and_append_in_place)
{
    struct kvmem_seq seq;
    int32_t tail;
    struct scene s;

    begin(&s);
    seq = seq_of(&s, 11);
    tail = block_of(&s, seq, 2);
    for (uint32_t i = 0; i < 20; i++) {
        cr_assert(kvmem_seq_truncate(s.space, seq, 9 + i % 3, none()) == 0);
        cr_assert(kvmem_client_check(s.client) == 0, "%s", kvmem_error_detail()->text);
        cr_assert(kvmem_seq_append(s.space, seq, 1, none()) == 0);
        cr_assert(kvmem_client_check(s.client) == 0, "%s", kvmem_error_detail()->text);
        cr_assert(kvmem_seq_append(s.space, seq, 12 - (10 + i % 3), none()) == 0);
        cr_assert(block_of(&s, seq, 2) == tail && copies(&s) == 0);
    }
    cr_assert(kvmem_seq_truncate(s.space, seq, 0, none()) == 0);
    cr_assert(used(&s) == 0 && info(&s, seq).block_count == 0);
    end(&s);
}

Test(seq, reserve_covers_the_copy_too)
{
    struct kvmem_seq seq, child, eater;
    struct scene s;

    begin(&s);
    seq = seq_of(&s, 6);
    cr_assert(kvmem_seq_fork(s.space, seq, &child) == 0);
    cr_assert(kvmem_seq_reserve(s.space, seq, 10) == 0);
    cr_assert(info(&s, seq).block_count == 2 + 2 + 1);
    cr_assert(kvmem_seq_reserve(s.space, seq, 10) == 0);
    cr_assert(info(&s, seq).block_count == 5, "reserved already");
    eater = seq_of(&s, (uint32_t)kvi_pool_free_blocks(&s.space->pool) * 4);
    cr_assert(kvmem_seq_append(s.space, eater, 1, none()) == KVMEM_E_REFILL_PENDING);
    for (int i = 0; i < 10; i++)
        cr_assert(kvmem_seq_append(s.space, seq, 1, none()) == 0, "token %d", i);
    cr_assert(info(&s, seq).block_count == 4 && copies(&s) == 1);
    cr_assert(kvmem_seq_append(s.space, seq, 1, none()) == KVMEM_E_REFILL_PENDING);
    end(&s);
}

Test(seq, fork_leaves_what_is_reserved)
{
    struct kvmem_seq seq, child;
    struct scene s;

    begin(&s);
    seq = seq_of(&s, 4);
    cr_assert(kvmem_seq_reserve(s.space, seq, 8) == 0);
    cr_assert(kvmem_seq_fork(s.space, seq, &child) == 0);
    cr_assert(info(&s, seq).block_count == 3 && info(&s, child).block_count == 1);
    cr_assert(kvmem_seq_truncate(s.space, seq, 4, none()) == 0);
    cr_assert(info(&s, seq).block_count == 1, "truncate drops what is reserved");
    end(&s);
}

Test(seq, ids_go_stale)
{
    struct kvmem_seq seq, next;
    struct kvmem_seq_info out = {.size = sizeof(out)};
    struct scene s;

    begin_with(&s, 4, 2, 8);
    seq = seq_of(&s, 1);
    cr_assert(kvmem_seq_free(s.space, seq, none()) == 0);
    cr_assert(kvmem_seq_create(s.space, &next) == 0);
    cr_assert(next.index == seq.index && next.generation != seq.generation);
    cr_assert(kvmem_seq_append(s.space, seq, 1, none()) == KVMEM_E_STALE);
    cr_assert(kvmem_seq_fork(s.space, seq, &next) == KVMEM_E_STALE);
    cr_assert(kvmem_seq_info(s.space, seq, &out) == KVMEM_E_STALE);
    seq.generation++;
    cr_assert(kvmem_seq_info(s.space, seq, &out) == KVMEM_E_STALE);
    seq.index = UINT32_MAX;
    cr_assert(kvmem_seq_truncate(s.space, seq, 0, none()) == KVMEM_E_STALE);
    cr_assert(kvmem_seq_create(s.space, &seq) == 0);
    cr_assert(kvmem_seq_create(s.space, &seq) == KVMEM_E_LIMIT);
    end(&s);
}

Test(seq, block_tokens_of_any_size)
{
    static const uint32_t sizes[] = {1, 2, 3, 5, 12, 16, 4};

    for (uint32_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct kvmem_seq seq, child;
        struct scene s;

        begin_with(&s, sizes[i], 0, 20);
        seq = seq_of(&s, sizes[i] * 3 + 1);
        cr_assert(info(&s, seq).block_count == 4);
        cr_assert(kvmem_seq_fork(s.space, seq, &child) == 0);
        for (uint32_t t = 0; t < sizes[i] * 4; t++)
            cr_assert(kvmem_seq_append(s.space, child, 1, none()) == 0);
        cr_assert(info(&s, child).appended_tokens == sizes[i] * 7 + 1);
        cr_assert(copies(&s) == (sizes[i] > 1));
        end(&s);
    }
}

/* More leases than the outbox has records: the call sends while it goes. */
Test(seq, a_sequence_larger_than_the_outbox_can_be_freed)
{
    struct kvmem_embed_options embed = {.size = sizeof(embed),
                                        .device_bytes = 64 << 20,
                                        .granule_bytes = 4096,
                                        .outbox_records = 1024};
    struct kvmem_space_options options = kvt_small_space("large");
    struct kvmem_name *names = calloc(12000, sizeof(*names));
    struct kvmem_seq seq;
    struct scene s;

    cr_assert(kvmem_client_embed(&embed, &s.client) == 0);
    cr_assert(kvmem_space_open(s.client, &options, &s.space) == 0);
    cr_assert(kvmem_space_reserve(s.space, 12000, 0) == 0);
    seq = seq_of(&s, 48000);
    cr_assert(kvmem_seq_commit(s.space, seq, 48000) == 0);
    for (uint32_t i = 0; i < 12000; i++)
        memcpy(names[i].bytes, &i, sizeof(i));
    for (uint32_t i = 0; i < 12000; i += 1000) {
        cr_assert(kvmem_seq_publish(s.space, seq, i, 1000, names + i, none()) == 0);
        cr_assert(kvmem_seq_publish(s.space, seq, (i + 1000) % 12000, 1000,
                                    names + (i + 1000) % 12000,
                                    none()) == (i == 11000 ? 0 : KVMEM_E_OUTBOX_FULL));
        cr_assert(kvmem_client_dispatch(s.client, 0) > 0);
    }
    cr_assert(info(&s, seq).published_blocks == 12000);
    cr_assert(kvmem_seq_truncate(s.space, seq, 4000 * 4, none()) == 0);
    cr_assert(kvmem_seq_free(s.space, seq, none()) == 0);
    cr_assert(kvmem_client_dispatch(s.client, 0) >= 0);
    cr_assert(used(&s) == 0);
    free(names);
    end(&s);
}

/* A view stays valid while calls change nothing, refused ones included. */
Test(seq, refused_calls_leave_views_alone)
{
    struct kvmem_seq seqs[40];
    uint32_t counts[40];
    const int32_t *view;
    int32_t first;
    struct scene s;

    begin_with(&s, 4, 0, 60);
    seqs[0] = seq_of(&s, 64);
    cr_assert(kvmem_table_view(s.space, 0, seqs[0], &view) == 16);
    first = view[0];
    counts[0] = 40;
    cr_assert(kvmem_space_can_append(s.space, 1, seqs, counts) == 1);
    counts[0] = 600;
    cr_assert(kvmem_space_can_append(s.space, 1, seqs, counts) == 0);
    cr_assert(kvmem_seq_append(s.space, seqs[0], 600, none()) == KVMEM_E_REFILL_PENDING);
    cr_assert(block_of(&s, seqs[0], 0) == first && view[0] == first);
    cr_assert(view == s.space->seqs[seqs[0].index].blocks);
    cr_assert(kvmem_seqs_create(s.space, 39, seqs + 1) == 0);
    for (int i = 0; i < 40; i++)
        counts[i] = 1;
    cr_assert(kvmem_seqs_append(s.space, 40, seqs, counts, none()) == 0);
    for (int i = 0; i < 40; i++)
        cr_assert(info(&s, seqs[i]).block_count == (i ? 1 : 17));
    end(&s);
}
