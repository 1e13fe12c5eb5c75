/* SPDX-License-Identifier: Apache-2.0
 *
 * Fences of streams, on the fake CUDA driver, whose streams stand still while they wait: what is
 * recorded, what is held back until a stream has passed, in what order tail copies are made, and
 * what a failing driver call leaves.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <kvmem/blocks.h>
#include <stdlib.h>
#include <string.h>

#include "backend/backend_fault.h"
#include "client/space.h"
#include "support/cuda_fake.h"
#include "support/scripted.h"

#define DEVICE_BYTES (64u * 4096u)

struct scene {
    struct kvt_script *script;
    struct kvi_backend *host; /* the script's first one */
    struct kvi_backend *cuda;
    struct kvi_backend *backend; /* a fault backend around it */
    struct kvmem_client *client;
    struct kvmem_space *space;
    struct kvmem_geometry geometry;
};

static void fail(const char *file, int line, const char *message)
{
    cr_assert_fail("%s:%d: %s", file, line, message);
}

static void begin(struct scene *s)
{
    struct kvi_client_options options = {.timeout_ns = 20000000, .outbox_records = 1024};
    struct kvmem_space_options space = kvt_small_space("cuda");

    memset(s, 0, sizeof(*s));
    if (!kvt_fake) {
        setenv("KVMEM_FAKE_CUDA", "granule=4096", 1);
        kvt_fake_open(fail);
    }
    s->script = kvt_script_create(DEVICE_BYTES, 4096);
    s->host = s->script->backend;
    cr_assert(kvt_cuda_open(DEVICE_BYTES, &s->script->backend) == 0, "%s",
              kvmem_error_detail()->text);
    cr_assert(kvt_cuda_open(0, &s->cuda) == 0, "%s", kvmem_error_detail()->text);
    cr_assert(kvi_backend_fault_create(s->cuda, &s->backend) == 0);
    options.backend = s->backend;
    cr_assert(kvi_client_create(&s->script->base, &kvi_alloc_libc, &options, &s->client) == 0);
    cr_assert(kvmem_space_open(s->client, &space, &s->space) == 0, "%s",
              kvmem_error_detail()->text);
    s->geometry.size = sizeof(s->geometry);
    cr_assert(kvmem_space_geometry(s->space, 0, &s->geometry) == 0);
    cr_assert(kvmem_client_dispatch(s->client, 0) == 0);
    kvt_script_grant(
        s->script, &s->geometry,
        ((const struct kvi_header *)kvt_script_find(s->script, KVI_OP_BLOCKS_REQUEST))->serial, 0,
        8, KVI_GRANT_LAST);
    cr_assert(kvmem_client_dispatch(s->client, 0) == 1);
    cr_assert(kvmem_space_reserve(s->space, 32, 0) == 0); /* they stay */
}

static void check(struct scene *s)
{
    cr_assert(kvmem_client_check(s->client) == 0, "%s", kvmem_error_detail()->text);
}

static void end(struct scene *s)
{
    kvi_backend_fault_disarm(s->backend);
    check(s);
    kvmem_client_close(s->client);
    kvi_backend_destroy(s->backend);
    kvi_backend_destroy(s->cuda);
    kvi_backend_destroy(s->script->backend);
    s->script->backend = s->host;
    kvt_script_destroy(s->script);
    kvt_fake_quiet();
}

/* Let the fake's streams go as far as they can. */
static void turn(void)
{
    int (*query)(kvi_cu_stream);

    kvt_fake_function(&query, "cuStreamQuery");
    query(NULL);
}

static void *stream_of(uint64_t number)
{
    return (void *)(uintptr_t)(number * 64);
}

static struct kvmem_fence hold(struct scene *s, void *stream)
{
    struct kvmem_fence open;

    cr_assert(kvmem_fence_promise(s->client, &open) == 0, "%s", kvmem_error_detail()->text);
    cr_assert(kvmem_fence_order(s->space, stream, &open) == 0, "%s", kvmem_error_detail()->text);
    return open;
}

static void let_go(struct scene *s, struct kvmem_fence open)
{
    cr_assert(kvmem_fence_fulfil(s->client, &open) == 0);
    turn();
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

static struct kvmem_space_stats stats(struct scene *s)
{
    struct kvmem_space_stats out = {.size = sizeof(out)};

    cr_assert(kvmem_space_stats(s->space, &out) == 0);
    return out;
}

static void dispatch(struct scene *s)
{
    cr_assert(kvmem_client_dispatch(s->client, 0) >= 0, "%s", kvmem_error_detail()->text);
    check(s);
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

static uint64_t calls(struct scene *s, enum kvi_backend_call call)
{
    return kvi_backend_fault_calls(s->backend, call);
}

/* ---- recording and ordering ---- */

Test(fence_cuda, a_record_passes_with_its_stream)
{
    void *one = stream_of(1), *other = stream_of(2);
    struct kvmem_fence open, first, second, behind;
    struct scene s;

    begin(&s);
    open = hold(&s, one);
    cr_assert(kvmem_fence_record(s.space, one, &first) == 0);
    cr_assert(kvmem_fence_record(s.space, one, &second) == 0);
    cr_assert(first.kind == KVMEM_FENCE_TIMELINE && first.timeline == second.timeline &&
              second.value == first.value + 1 && !first.stream);
    cr_assert(kvmem_fence_poll(s.client, &first) == 0);
    cr_assert(kvmem_fence_order(s.space, one, &second) == 0, "its own: nothing to wait for");
    cr_assert(calls(&s, KVI_BACKEND_CALL_FENCE_WAIT) == 1);
    cr_assert(kvmem_fence_order(s.space, other, &second) == 0);
    cr_assert(kvmem_fence_record(s.space, other, &behind) == 0);
    cr_assert(behind.timeline != first.timeline);
    turn();
    cr_assert(kvmem_fence_poll(s.client, &behind) == 0);
    let_go(&s, open);
    cr_assert(kvmem_fence_poll(s.client, &first) == 1 && kvmem_fence_poll(s.client, &second) == 1);
    cr_assert(kvmem_fence_poll(s.client, &behind) == 1);
    cr_assert(kvmem_fence_order(s.space, other, &second) == 0);
    cr_assert(calls(&s, KVI_BACKEND_CALL_FENCE_WAIT) == 2, "it has passed");
    cr_assert(calls(&s, KVI_BACKEND_CALL_HOST_PIN) == 1);
    end(&s);
}

/* A fence of a stream given to order is recorded first. */
Test(fence_cuda, a_stream_waits_for_a_stream)
{
    struct kvmem_fence open, behind, fence = kvmem_fence_stream(stream_of(1));
    struct scene s;

    begin(&s);
    open = hold(&s, stream_of(1));
    cr_assert(kvmem_fence_order(s.space, stream_of(2), &fence) == 0);
    cr_assert(kvmem_fence_record(s.space, stream_of(2), &behind) == 0);
    turn();
    cr_assert(kvmem_fence_poll(s.client, &behind) == 0);
    let_go(&s, open);
    cr_assert(kvmem_fence_poll(s.client, &behind) == 1);
    end(&s);
}

/* More streams than lanes: one that is idle is taken over, or a busy one is waited for. */
Test(fence_cuda, streams_take_turns)
{
    struct kvmem_fence open, fence, last, old;
    struct scene s;

    begin(&s);
    for (uint64_t i = 1; i < 200; i++) {
        cr_assert(kvmem_fence_record(s.space, stream_of(i), &fence) == 0);
        turn();
        cr_assert(kvmem_fence_poll(s.client, &fence) == 1);
    }
    cr_assert(calls(&s, KVI_BACKEND_CALL_FENCE_WAIT) == 0);
    cr_assert(kvmem_fence_promise(s.client, &open) == 0);
    for (uint64_t i = 201; i < 264; i++) {
        cr_assert(kvmem_fence_order(s.space, stream_of(i), &open) == 0);
        cr_assert(kvmem_fence_record(s.space, stream_of(i), i == 201 ? &old : &fence) == 0);
    }
    cr_assert(calls(&s, KVI_BACKEND_CALL_FENCE_WAIT) == 63);
    cr_assert(kvmem_fence_record(s.space, stream_of(300), &last) == 0);
    cr_assert(calls(&s, KVI_BACKEND_CALL_FENCE_WAIT) == 64, "all lanes are busy");
    turn();
    cr_assert(kvmem_fence_poll(s.client, &last) == 0 && kvmem_fence_poll(s.client, &old) == 0);
    let_go(&s, open);
    cr_assert(kvmem_fence_poll(s.client, &last) == 1 && kvmem_fence_poll(s.client, &old) == 1);
    end(&s);
}

/* A producer's page is pinned when a stream is to wait for it, and may go when the stream has
 * passed. */
Test(fence_cuda, a_stream_waits_for_a_producer)
{
    struct kvi_point point = {64 * 20 + 3, 5};
    struct kvmem_fence fence, behind;
    struct kvi_lane *lanes;
    struct scene s;

    begin(&s);
    lanes = kvt_script_timeline(s.script, 64 * 20);
    cr_assert(kvi_fence_producer_page(s.client, point.timeline) == 0);
    fence = kvi_fence_of(&point);
    cr_assert(calls(&s, KVI_BACKEND_CALL_HOST_PIN) == 0);
    cr_assert(kvmem_fence_order(s.space, stream_of(1), &fence) == 0, "%s",
              kvmem_error_detail()->text);
    cr_assert(calls(&s, KVI_BACKEND_CALL_HOST_PIN) == 2);
    cr_assert(kvmem_fence_record(s.space, stream_of(1), &behind) == 0);
    turn();
    cr_assert(kvmem_fence_poll(s.client, &behind) == 0);
    kvi_lane_reach(&lanes[3], 4);
    turn();
    cr_assert(kvmem_fence_poll(s.client, &behind) == 0);
    for (uint32_t i = 0; i < KVI_LANE_COUNT; i++)
        kvi_lane_break(&lanes[i]);
    turn();
    cr_assert(kvmem_fence_poll(s.client, &behind) == 1, "nobody waits for ever");
    cr_assert(kvmem_fence_poll(s.client, &fence) == KVMEM_E_STALE);
    cr_assert(kvmem_fence_order(s.space, stream_of(1), &fence) == KVMEM_E_STALE);
    end(&s);
}

/* The page of a dead producer stays while a stream has not passed its wait for it. */
Test(fence_cuda, a_page_stays_while_a_stream_waits)
{
    struct kvi_point point = {64 * 20 + 3, 5};
    struct kvmem_fence open, fence, behind;
    struct kvi_lane *lanes;
    struct scene s;

    begin(&s);
    lanes = kvt_script_timeline(s.script, 64 * 20);
    for (uint32_t i = 0; i <= KVI_PRODUCER_LIMIT; i++)
        kvt_script_timeline(s.script, 64 * (100 + i));
    cr_assert(kvi_fence_producer_page(s.client, point.timeline) == 0);
    fence = kvi_fence_of(&point);
    open = hold(&s, stream_of(1));
    cr_assert(kvmem_fence_order(s.space, stream_of(1), &fence) == 0);
    for (uint32_t i = 1; i < KVI_PRODUCER_LIMIT; i++)
        cr_assert(kvi_fence_producer_page(s.client, 64 * (100 + i)) == 0);
    for (uint32_t i = 0; i < KVI_LANE_COUNT; i++)
        kvi_lane_break(&lanes[i]);
    cr_assert(kvi_fence_producer_page(s.client, 64 * 100) == KVMEM_E_LIMIT);
    let_go(&s, open);
    cr_assert(kvi_fence_producer_page(s.client, 64 * 100) == KVMEM_E_LIMIT, "nothing tells yet");
    cr_assert(kvmem_fence_record(s.space, stream_of(1), &behind) == 0);
    turn();
    cr_assert(kvi_fence_producer_page(s.client, 64 * 100) == 0, "%s", kvmem_error_detail()->text);
    end(&s);
}

/* ---- giving up ---- */

Test(fence_cuda, what_is_freed_waits_for_its_stream)
{
    struct kvmem_fence open, fence = kvmem_fence_stream(stream_of(1));
    struct kvmem_seq seqs[3];
    struct scene s;

    begin(&s);
    open = hold(&s, stream_of(1));
    for (int i = 0; i < 3; i++)
        seqs[i] = seq_of(&s, 9);
    cr_assert(kvmem_seqs_free(s.space, 2, seqs, fence) == 0);
    cr_assert(calls(&s, KVI_BACKEND_CALL_FENCE_SIGNAL) == 1, "one for the batch");
    cr_assert(kvmem_seq_truncate(s.space, seqs[2], 1, fence) == 0);
    dispatch(&s);
    cr_assert(stats(&s).cooling_blocks == 8 && stats(&s).private_blocks == 9);
    let_go(&s, open);
    dispatch(&s);
    cr_assert(stats(&s).cooling_blocks == 0 && stats(&s).private_blocks == 1);
    end(&s);
}

Test(fence_cuda, a_publication_carries_its_lane)
{
    static const struct kvmem_name names[2] = {{{1}}, {{2}}};
    struct kvmem_fence open, mark, fence = kvmem_fence_stream(stream_of(1));
    const struct kvi_msg_publish *message;
    const struct kvi_rec_publication *rows;
    struct kvmem_seq seq;
    struct scene s;

    begin(&s);
    open = hold(&s, stream_of(1));
    cr_assert(kvmem_fence_record(s.space, stream_of(1), &mark) == 0);
    seq = seq_of(&s, 8);
    cr_assert(kvmem_seq_publish(s.space, seq, 0, 2, names, fence) == 0);
    dispatch(&s);
    message = kvt_script_find(s.script, KVI_OP_PUBLISH);
    cr_assert(message && message->record_count == 2);
    rows = kvi_wire_tail_const(message, 0);
    for (int i = 0; i < 2; i++)
        cr_assert(rows[i].fence_kind == KVMEM_FENCE_TIMELINE && rows[i].fence_lane == 1 &&
                  rows[i].fence_value == mark.value + 1);
    cr_assert(stats(&s).cooling_blocks == 2 && stats(&s).leased_blocks == 2);
    cr_assert(kvmem_seq_free(s.space, seq, kvmem_fence_none()) == 0);
    cr_assert(kvmem_space_trim(s.space) == KVMEM_E_TIMED_OUT);
    let_go(&s, open);
    cr_assert(kvmem_space_trim(s.space) == 8);
    end(&s);
}

/* ---- copies ---- */

static void fill_tail(struct scene *s, struct kvmem_seq seq, int byte)
{
    fill(s, block_of(s, seq, 1), byte);
}

Test(fence_cuda, tails_are_copied_on_the_stream)
{
    struct kvmem_fence open, fence = kvmem_fence_stream(stream_of(1));
    struct kvmem_seq seqs[4];
    int32_t old;
    struct scene s;

    begin(&s);
    seqs[0] = seq_of(&s, 6);
    old = block_of(&s, seqs[0], 1);
    fill_tail(&s, seqs[0], 'a');
    cr_assert(kvmem_seqs_fork(s.space, seqs[0], 3, seqs + 1) == 0);
    open = hold(&s, stream_of(1));
    cr_assert(kvmem_seqs_append(s.space, 3, seqs + 1, NULL, fence) == 0, "%s",
              kvmem_error_detail()->text);
    check(&s);
    cr_assert(calls(&s, KVI_BACKEND_CALL_BLOCKS) == 1 && stats(&s).tail_copies == 3);
    cr_assert(calls(&s, KVI_BACKEND_CALL_FENCE_SIGNAL) == 1);
    cr_assert(stats(&s).cooling_blocks == 3);
    cr_assert(kvmem_seq_free(s.space, seqs[0], kvmem_fence_none()) == 0);
    cr_assert(s.space->pool.state[old] == KVI_BLOCK_PRIVATE, "it is still read");
    fill_tail(&s, seqs[2], 'z');
    let_go(&s, open);
    for (int i = 1; i < 4; i++)
        cr_assert(bytes_of(&s, block_of(&s, seqs[i], 1))[0] == 'a');
    dispatch(&s);
    cr_assert(s.space->pool.state[old] == KVI_BLOCK_FREE);
    cr_assert(kvmem_seqs_append(s.space, 3, seqs + 1, NULL, fence) == 0);
    cr_assert(calls(&s, KVI_BACKEND_CALL_FENCE_SIGNAL) == 1, "without copies nothing is recorded");
    end(&s);
}

/* All who share a tail append at once: the last of them stays, and writes behind the copies. */
Test(fence_cuda, the_last_one_keeps_the_tail)
{
    struct kvmem_fence open, fence = kvmem_fence_stream(stream_of(1));
    struct kvmem_seq seqs[3];
    struct scene s;

    begin(&s);
    seqs[0] = seq_of(&s, 6);
    cr_assert(kvmem_seqs_fork(s.space, seqs[0], 2, seqs + 1) == 0);
    open = hold(&s, stream_of(1));
    cr_assert(kvmem_seqs_append(s.space, 3, seqs, NULL, fence) == 0);
    check(&s);
    cr_assert(stats(&s).tail_copies == 2 && stats(&s).cooling_blocks == 2);
    cr_assert(kvmem_seqs_append(s.space, 3, seqs, NULL, fence) == 0);
    cr_assert(stats(&s).tail_copies == 2);
    check(&s);
    let_go(&s, open);
    dispatch(&s);
    cr_assert(stats(&s).cooling_blocks == 0);
    end(&s);
}

/* A TIMELINE fence: the copy is on the default stream, behind it. */
Test(fence_cuda, a_copy_waits_for_a_promise)
{
    struct kvmem_seq parent, child;
    struct kvmem_fence open;
    struct scene s;

    begin(&s);
    parent = seq_of(&s, 6);
    cr_assert(kvmem_seq_fork(s.space, parent, &child) == 0);
    cr_assert(kvmem_fence_promise(s.client, &open) == 0);
    cr_assert(kvmem_seq_append(s.space, child, 1, open) == 0);
    fill_tail(&s, parent, 'p');
    let_go(&s, open);
    cr_assert(bytes_of(&s, block_of(&s, child, 1))[0] == 'p');
    dispatch(&s);
    cr_assert(stats(&s).cooling_blocks == 0);
    end(&s);
}

Test(fence_cuda, blocks_are_copied_on_a_stream)
{
    struct kvmem_fence open;
    struct kvmem_seq seq;
    int32_t from, to;
    struct scene s;

    begin(&s);
    seq = seq_of(&s, 8);
    from = block_of(&s, seq, 0);
    to = block_of(&s, seq, 1);
    open = hold(&s, stream_of(1));
    fill(&s, from, 'f');
    fill(&s, to, 't');
    cr_assert(kvmem_blocks_copy(s.space, 0, 1, &from, &to, stream_of(1)) == 0);
    cr_assert(kvmem_blocks_zero(s.space, 0, 1, &from, stream_of(1)) == 0);
    cr_assert(bytes_of(&s, to)[0] == 't' && bytes_of(&s, from)[0] == 'f');
    let_go(&s, open);
    cr_assert(bytes_of(&s, to)[0] == 'f' && bytes_of(&s, from)[0] == 0);
    end(&s);
}

/* ---- failures ---- */

/* Everything that a call may need of the device: each fails once, nothing has changed, the same
 * call then works. */
struct view {
    struct kvmem_capacity capacity;
    struct kvmem_space_stats stats;
    struct kvmem_seq_info seqs[2];
    int32_t tables[2][4];
};

static struct view look(struct scene *s, const struct kvmem_seq *seqs)
{
    struct view v;

    check(s);
    memset(&v, 0, sizeof(v));
    v.capacity.size = sizeof(v.capacity);
    cr_assert(kvmem_space_capacity(s->space, &v.capacity) == 0);
    v.stats = stats(s);
    for (int i = 0; i < 2; i++) {
        v.seqs[i].size = sizeof(v.seqs[i]);
        cr_assert(kvmem_seq_info(s->space, seqs[i], &v.seqs[i]) == 0);
        cr_assert(kvmem_table_padded(s->space, 0, 1, &seqs[i], 4, v.tables[i], NULL) == 0);
    }
    return v;
}

typedef int operation(struct scene *s, const struct kvmem_seq *seqs);

static int op_append(struct scene *s, const struct kvmem_seq *seqs)
{
    return kvmem_seqs_append(s->space, 1, seqs, NULL, kvmem_fence_stream(stream_of(1)));
}

static int op_free(struct scene *s, const struct kvmem_seq *seqs)
{
    return kvmem_seqs_free(s->space, 1, seqs, kvmem_fence_stream(stream_of(1)));
}

static int op_truncate(struct scene *s, const struct kvmem_seq *seqs)
{
    return kvmem_seq_truncate(s->space, seqs[0], 1, kvmem_fence_stream(stream_of(1)));
}

static int op_publish(struct scene *s, const struct kvmem_seq *seqs)
{
    static const struct kvmem_name name = {{1}};

    return kvmem_seq_publish(s->space, seqs[0], 0, 1, &name, kvmem_fence_stream(stream_of(1)));
}

static int op_record(struct scene *s, const struct kvmem_seq *seqs)
{
    struct kvmem_fence fence;

    (void)seqs;
    return kvmem_fence_record(s->space, stream_of(1), &fence);
}

static int op_order(struct scene *s, const struct kvmem_seq *seqs)
{
    struct kvmem_fence open;
    int code;

    (void)seqs;
    cr_assert(kvmem_fence_promise(s->client, &open) == 0);
    code = kvmem_fence_order(s->space, stream_of(1), &open);
    let_go(s, open);
    return code;
}

static int op_blocks(struct scene *s, const struct kvmem_seq *seqs)
{
    int32_t block = block_of(s, seqs[0], 0);

    return kvmem_blocks_zero(s->space, 0, 1, &block, stream_of(1));
}

static void fail_each(operation *op, const char *name, uint64_t expected)
{
    for (uint64_t n = 1; n <= expected + 1; n++) {
        struct view before, after;
        struct kvmem_seq seqs[2];
        struct scene s;
        int code;

        begin(&s);
        seqs[0] = seq_of(&s, 6);
        cr_assert(kvmem_seq_fork(s.space, seqs[0], &seqs[1]) == 0);
        before = look(&s, seqs);
        cr_assert(
            kvi_backend_fault_arm(s.backend, KVI_BACKEND_CALL_ANY, n, KVMEM_E_SYSTEM, false) == 0);
        code = op(&s, seqs);
        kvi_backend_fault_disarm(s.backend);
        if (n == expected + 1) {
            cr_assert(code == 0, "%s needs more calls than %" PRIu64, name, expected);
            end(&s);
            return;
        }
        cr_assert(code == KVMEM_E_SYSTEM, "%s, call %" PRIu64 ": %d", name, n, code);
        check(&s);
        turn();
        cr_assert(op_record(&s, seqs) == 0); /* what a copy may have been given has passed */
        turn();
        dispatch(&s);
        after = look(&s, seqs);
        after.capacity.is_refill_pending = before.capacity.is_refill_pending;
        cr_assert(!memcmp(&before, &after, sizeof(before)), "%s, call %" PRIu64, name, n);
        cr_assert(op(&s, seqs) == 0, "%s", kvmem_error_detail()->text);
        turn();
        end(&s);
    }
}

Test(fence_cuda, nth_call_of_each_operation)
{
    fail_each(op_append, "append", 3); /* pin, blocks, signal */
    fail_each(op_free, "free", 2);     /* pin, signal */
    fail_each(op_truncate, "truncate", 2);
    fail_each(op_publish, "publish", 2);
    fail_each(op_record, "record", 2);
    fail_each(op_order, "order", 2); /* pin, wait */
    fail_each(op_blocks, "blocks", 1);
}

/* Copies that may be under way keep their targets until the stream has passed them. */
Test(fence_cuda, targets_of_failed_copies_cool)
{
    struct kvmem_fence open, fence = kvmem_fence_stream(stream_of(1));
    struct kvmem_seq parent, children[2];
    struct scene s;

    begin(&s);
    parent = seq_of(&s, 6);
    cr_assert(kvmem_seqs_fork(s.space, parent, 2, children) == 0);
    open = hold(&s, stream_of(1));
    cr_assert(kvi_backend_fault_arm(s.backend, KVI_BACKEND_CALL_FENCE_SIGNAL, 1, KVMEM_E_SYSTEM,
                                    false) == 0);
    cr_assert(kvmem_seqs_append(s.space, 2, children, NULL, fence) == KVMEM_E_SYSTEM);
    cr_assert(stats(&s).cooling_blocks == 2 && stats(&s).tail_copies == 0);
    check(&s);
    let_go(&s, open);
    dispatch(&s);
    cr_assert(stats(&s).cooling_blocks == 2, "nothing tells that they are made");
    cr_assert(kvmem_fence_record(s.space, stream_of(1), &open) == 0);
    turn();
    dispatch(&s);
    cr_assert(stats(&s).cooling_blocks == 0);
    end(&s);
}
