/* SPDX-License-Identifier: Apache-2.0
 *
 * Fences between processes on the host device: a producer publishes with a promise what it has not
 * written yet; a consumer finds it, waits in the page that both have mapped, and reads right bytes
 * at once. A producer that is killed before leaves nobody waiting and nothing that looks right.
 *
 * The test process is the consumer (the reader); producers are helper processes.
 */
#include <criterion/criterion.h>
#include <kvmem.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "client/guard.h"
#include "support/daemon.h"
#include "support/engine.h"
#include "support/shell.h"

#define STREAM     7u
#define BLOCKS     4u
#define TIME_LIMIT (KVT_SLOWDOWN * 60)

static struct kvt_daemon daemon_;
static struct kvt_engine reader;
static struct kvt_process producer;
static struct kvt_self before;

static void open_scene(void)
{
    struct kvt_engine_options options = {.socket_path = NULL, .name = "reader"};

    before = kvt_self_count();
    kvt_daemon_start_observed(&daemon_, "4MiB", "4KiB");
    options.socket_path = daemon_.socket_path;
    kvt_must(kvt_engine_open(&reader, &options), "open");
    kvt_shell_start(&producer, &daemon_, "producer", "shared");
    kvt_must(kvmem_space_reserve(reader.space, 16, KVT_MS(2000)), "reserve");
}

static void close_scene(void)
{
    cr_assert_eq(kvmem_client_check(reader.client), 0, "%s", kvmem_error_detail()->text);
    kvt_engine_close(&reader);
    kvt_daemon_end_observed(&daemon_);
    cr_assert(kvt_self_is(&before));
}

static int peek(uint64_t stream, uint32_t blocks)
{
    struct kvmem_name names[64];

    kvt_engine_names(&reader, stream, blocks, names);
    return kvt_must(kvmem_prefix_peek(reader.space, blocks, names), "peek");
}

/* Look the stream up and attach what is there: hits, and what to wait for. */
static int attach(uint64_t stream, uint32_t blocks, struct kvmem_seq *seq,
                  struct kvmem_fence *ready)
{
    struct kvmem_name names[64];
    int32_t found[64];
    int hits;

    kvt_engine_names(&reader, stream, blocks, names);
    hits = kvt_must(kvmem_prefix_lookup(reader.space, blocks, names, found, ready), "lookup");
    kvt_must(kvmem_seq_create(reader.space, seq), "create");
    kvt_must(kvmem_seq_attach(reader.space, *seq, (uint32_t)hits, found), "attach");
    return hits;
}

static int publish(struct kvmem_seq seq, uint64_t stream, uint32_t blocks)
{
    struct kvmem_name names[64];

    kvt_engine_names(&reader, stream, blocks, names);
    return kvmem_seq_publish(reader.space, seq, 0, blocks, names, kvmem_fence_none());
}

static uint64_t wrong_tokens(struct kvmem_seq seq, uint64_t stream, uint32_t blocks)
{
    return kvt_engine_wrong(&reader, seq, stream, 0, (uint64_t)blocks * KVT_BLOCK_TOKENS);
}

static void let_go(struct kvmem_seq seq)
{
    kvt_must(kvmem_seq_free(reader.space, seq, kvmem_fence_none()), "free");
    kvt_must(kvmem_client_dispatch(reader.client, 0), "dispatch");
}

Test(timeline, a_consumer_reads_right_behind_the_producer, .timeout = TIME_LIMIT)
{
    struct kvmem_fence ready, again;
    struct kvmem_seq seq;
    char line[KVT_LINE_BYTES];

    open_scene();
    for (uint64_t stream = STREAM; stream < STREAM + 50; stream++) {
        kvt_shell(&producer, "ok", "late %lu %u", (unsigned long)stream, BLOCKS);
        cr_assert_eq(attach(stream, BLOCKS, &seq, &ready), BLOCKS);
        cr_assert_eq(ready.kind, KVMEM_FENCE_TIMELINE);
        cr_assert_eq(kvmem_fence_poll(reader.client, &ready), 0);
        cr_assert_eq(wrong_tokens(seq, stream, BLOCKS), BLOCKS * KVT_BLOCK_TOKENS);
        kvt_must(kvt_engine_append(&reader, seq, stream, KVT_BLOCK_TOKENS, KVT_MS(2000)), "append");
        cr_assert_eq(publish(seq, stream, BLOCKS + 1), KVMEM_E_BUSY);
        kvt_tell(&producer, "fulfil %lu", (unsigned long)stream);
        cr_assert_eq(kvmem_fence_wait(reader.client, &ready, KVT_ANSWER_LIMIT), 0);
        cr_assert_eq(wrong_tokens(seq, stream, BLOCKS), 0);
        cr_assert_eq(publish(seq, stream, BLOCKS + 1), 0, "%s", kvmem_error_detail()->text);
        cr_assert_eq(kvt_hear(&producer, line, KVT_ANSWER_LIMIT), 1);
        let_go(seq);
        cr_assert_eq(attach(stream, BLOCKS, &seq, &again), BLOCKS);
        cr_assert_eq(again.kind, KVMEM_FENCE_NONE, "nothing is under way any more");
        let_go(seq);
    }
    kvt_shell_end(&producer);
    close_scene();
}

/* What the producer gives up keeps its bytes for others, and what it waits for keeps its segment.
 */
Test(timeline, a_producer_ends_its_session, .timeout = TIME_LIMIT)
{
    struct kvmem_fence ready;
    struct kvmem_seq seq;

    open_scene();
    kvt_shell(&producer, "ok", "late %u %u", STREAM, BLOCKS);
    kvt_shell(&producer, "ok", "late %u %u", STREAM + 1, BLOCKS);
    cr_assert_eq(attach(STREAM, BLOCKS, &seq, &ready), BLOCKS);
    kvt_shell(&producer, "ok", "fulfil %u", STREAM);
    kvt_shell(&producer, "ok", "fulfil %u", STREAM + 1);
    kvt_shell_end(&producer);
    cr_assert_eq(kvmem_fence_poll(reader.client, &ready), 1, "reached before the end");
    cr_assert_eq(wrong_tokens(seq, STREAM, BLOCKS), 0);
    let_go(seq);
    cr_assert_eq(peek(STREAM, BLOCKS), BLOCKS);
    cr_assert_eq(attach(STREAM + 1, BLOCKS, &seq, &ready), BLOCKS);
    cr_assert_eq(ready.kind, KVMEM_FENCE_NONE);
    cr_assert_eq(wrong_tokens(seq, STREAM + 1, BLOCKS), 0);
    let_go(seq);
    close_scene();
}

Test(timeline, a_killed_producer_leaves_a_miss, .timeout = TIME_LIMIT)
{
    struct kvmem_fence ready;
    struct kvmem_seq seq, fork;

    open_scene();
    for (int round = 0; round < 10; round++) {
        if (round)
            kvt_shell_start(&producer, &daemon_, "producer", "shared");
        kvt_shell(&producer, "ok", "put %u %u", STREAM + 1, BLOCKS);
        kvt_shell(&producer, "ok", "late %u %u", STREAM, BLOCKS);
        cr_assert_eq(attach(STREAM, BLOCKS, &seq, &ready), BLOCKS);
        kvt_must(kvmem_seq_fork(reader.space, seq, &fork), "fork");
        cr_assert_eq(kvmem_fence_poll(reader.client, &ready), 0);
        kvt_kill(&producer);
        cr_assert_eq(kvmem_fence_wait(reader.client, &ready, KVT_ANSWER_LIMIT), KVMEM_E_STALE);
        kvt_reap(&producer, KVT_ANSWER_LIMIT);
        cr_assert_eq(peek(STREAM, BLOCKS), 0, "it would be wrong bytes");
        cr_assert_eq(peek(STREAM + 1, BLOCKS), BLOCKS, "that was written");
        cr_assert_eq(publish(seq, STREAM, BLOCKS), KVMEM_E_STALE);
        cr_assert_eq(publish(fork, STREAM, BLOCKS), KVMEM_E_STALE);
        let_go(seq);
        let_go(fork);
        cr_assert_eq(kvmem_client_check(reader.client), 0, "%s", kvmem_error_detail()->text);
    }
    close_scene();
}

/* A prefix of two producers: a joint fence, that breaks when one of them dies. */
Test(timeline, two_producers, .timeout = TIME_LIMIT)
{
    struct kvmem_fence ready;
    struct kvt_process second;
    struct kvmem_seq seq;

    open_scene();
    kvt_shell_start(&second, &daemon_, "second", "shared");
    kvt_shell(&producer, "ok", "late %u %u", STREAM, BLOCKS / 2);
    kvt_shell(&second, "ok", "late %u %u", STREAM, BLOCKS);
    cr_assert_eq(attach(STREAM, BLOCKS, &seq, &ready), BLOCKS);
    cr_assert_eq(ready.timeline, KVI_TIMELINE_JOINT);
    kvt_shell(&second, "ok", "fulfil %u", STREAM);
    cr_assert_eq(kvmem_fence_poll(reader.client, &ready), 0);
    kvt_shell(&producer, "ok", "fulfil %u", STREAM);
    cr_assert_eq(kvmem_fence_poll(reader.client, &ready), 1);
    cr_assert_eq(wrong_tokens(seq, STREAM, BLOCKS), 0);
    let_go(seq);

    kvt_shell(&producer, "ok", "late %u %u", STREAM + 1, BLOCKS / 2);
    kvt_shell(&second, "ok", "late %u %u", STREAM + 1, BLOCKS);
    cr_assert_eq(attach(STREAM + 1, BLOCKS, &seq, &ready), BLOCKS);
    kvt_shell(&producer, "ok", "fulfil %u", STREAM + 1);
    kvt_kill(&second);
    cr_assert_eq(kvmem_fence_wait(reader.client, &ready, KVT_ANSWER_LIMIT), KVMEM_E_STALE);
    kvt_reap(&second, KVT_ANSWER_LIMIT);
    cr_assert_eq(peek(STREAM + 1, BLOCKS), BLOCKS / 2);
    cr_assert_eq(publish(seq, STREAM + 1, BLOCKS), KVMEM_E_STALE);
    let_go(seq);
    kvt_shell_end(&producer);
    close_scene();
}
