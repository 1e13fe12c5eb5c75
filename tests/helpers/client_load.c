/* SPDX-License-Identifier: Apache-2.0
 *
 * A client that works all the time: client_load SOCKET SPACE STREAMS BLOCKS LIVE SEED [REFILL]
 * Serves random streams of 0 .. STREAMS − 1 with 1 .. BLOCKS blocks each (so that the same
 * prefixes come again, from other clients as well), adds an unpublished tail, forks now and then,
 * keeps up to LIVE sequences and verifies every byte of each before it goes. Out of memory is
 * answered by freeing; any other error ends it with a complaint and status 1.
 *
 * Says "ok client=N", and "ok steps=N hits=N starved=N wrong=N" when it reads a line, and goes
 * on; at the end of stdin it leaves properly. When the daemon is lost it verifies what it holds,
 * says "lost call_ns=N ..." (how long the call took that said so), and leaves with status 3.
 */
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "support/engine.h"
#include "support/spawn.h"

#define LIVE_LIMIT 64

static struct kvt_engine engine;
static struct live {
    struct kvmem_seq seq;
    uint64_t stream, tokens;
} live[LIVE_LIMIT];
static uint32_t live_count;
static uint64_t steps, hit_blocks, starved, wrong;

static struct kvt_self before;
static uint64_t step_ns; /* when the step began */

static void say(const char *word)
{
    printf("%s call_ns=%" PRIu64 " steps=%" PRIu64 " hits=%" PRIu64 " starved=%" PRIu64
           " wrong=%" PRIu64 "\n",
           word, kvt_now_ns() - step_ns, steps, hit_blocks, starved, wrong);
    fflush(stdout);
}

/* The daemon is gone: what is mapped must still be there, and the end must not hang. */
static _Noreturn void lose(void)
{
    uint64_t lost_ns = kvt_now_ns() - step_ns;

    for (uint32_t i = 0; i < live_count; i++)
        wrong += kvt_engine_wrong(&engine, live[i].seq, live[i].stream, 0, live[i].tokens);
    if (kvmem_client_dispatch(engine.client, 0) != KVMEM_E_DAEMON_LOST)
        kvt_die("dispatch forgot that the daemon is lost");
    kvt_must(kvmem_client_check(engine.client), "client_check");
    kvt_engine_close(&engine);
    step_ns = kvt_now_ns() - lost_ns;
    say("lost");
    exit(wrong || !kvt_self_is(&before) ? 1 : 3);
}

static int must(int result, const char *what)
{
    if (result == KVMEM_E_DAEMON_LOST)
        lose();
    return kvt_must(result, what);
}

static void verify_and_free(uint32_t at)
{
    struct live *one = &live[at];

    wrong += kvt_engine_wrong(&engine, one->seq, one->stream, 0, one->tokens);
    must(kvt_engine_free(&engine, one->seq), "free");
    *one = live[--live_count];
}

/* A fork writes its own tail; the parent's must not change. */
static void fork_once(const struct live *one, uint64_t other_stream)
{
    struct kvmem_seq child;
    int rc;

    must(kvmem_seq_fork(engine.space, one->seq, &child), "fork");
    rc = kvmem_seq_append(engine.space, child, 1, kvmem_fence_none());
    if (rc == 0) {
        kvt_engine_write(&engine, child, other_stream, one->tokens, 1);
        must(kvmem_seq_commit(engine.space, child, 1), "commit");
        wrong += kvt_engine_wrong(&engine, child, one->stream, 0, one->tokens);
        wrong += kvt_engine_wrong(&engine, child, other_stream, one->tokens, 1);
    } else if (!kvt_is_full(rc)) {
        must(rc, "append to a fork");
    }
    must(kvt_engine_free(&engine, child), "free a fork");
}

static int start(uint64_t stream, uint32_t blocks, uint32_t tail)
{
    struct live *one = &live[live_count];
    int hits = kvt_engine_serve(&engine, stream, blocks, KVT_MS(20), &one->seq), rc;

    if (hits < 0)
        return hits;
    hit_blocks += (uint64_t)hits;
    one->stream = stream;
    one->tokens = blocks * KVT_BLOCK_TOKENS;
    live_count++;
    rc = tail ? kvt_engine_append(&engine, one->seq, stream, tail, 0) : 0;
    if (rc == 0)
        one->tokens += tail;
    return rc;
}

static void step(uint64_t streams, uint32_t blocks, uint32_t live_limit, uint64_t *random)
{
    uint32_t tail = (uint32_t)(kvt_random(random) % KVT_BLOCK_TOKENS);
    int rc;

    step_ns = kvt_now_ns();
    if (live_count == live_limit)
        verify_and_free((uint32_t)(kvt_random(random) % live_count));
    rc = start(kvt_random(random) % streams, 1 + (uint32_t)(kvt_random(random) % blocks), tail);
    if (kvt_is_full(rc)) {
        starved++;
        if (live_count)
            verify_and_free((uint32_t)(kvt_random(random) % live_count));
        else
            kvt_sleep_ns(KVT_MS(1));
    } else {
        must(rc, "serve");
        if (steps % 4 == 0)
            fork_once(&live[live_count - 1], UINT64_MAX - steps);
    }
    must(kvmem_client_dispatch(engine.client, 0), "dispatch");
    if (steps % 64 == 0)
        kvt_must(kvmem_client_check(engine.client), "client_check");
    steps++;
}

/* 0 at the end of stdin. */
static int report_if_asked(void)
{
    struct pollfd state = {.fd = STDIN_FILENO, .events = POLLIN};
    char byte;

    while (poll(&state, 1, 0) == 1) {
        if (read(STDIN_FILENO, &byte, 1) != 1)
            return 0;
        if (byte != '\n')
            continue;
        say("ok");
    }
    return 1;
}

int main(int argc, char **argv)
{
    struct kvt_engine_options options = {.name = "load"};
    uint64_t streams, random;
    uint32_t blocks, live_limit;

    if (argc < 7)
        kvt_die("usage: client_load SOCKET SPACE STREAMS BLOCKS LIVE SEED [REFILL]");
    options.socket_path = argv[1];
    options.space = argv[2];
    streams = strtoull(argv[3], NULL, 0);
    blocks = (uint32_t)strtoul(argv[4], NULL, 0);
    live_limit = (uint32_t)strtoul(argv[5], NULL, 0);
    random = strtoull(argv[6], NULL, 0);
    options.refill_blocks = argc > 7 ? (uint32_t)strtoul(argv[7], NULL, 0) : 0;
    if (!streams || !blocks || !live_limit || live_limit > LIVE_LIMIT)
        kvt_die("client_load: a number is out of its range");
    before = kvt_self_count();
    kvt_must(kvt_engine_open(&engine, &options), "open");
    printf("ok client=%u\n", engine.number);
    fflush(stdout);
    while (report_if_asked())
        step(streams, blocks, live_limit, &random);
    while (live_count)
        verify_and_free(0);
    kvt_must(kvmem_client_check(engine.client), "client_check");
    kvt_engine_close(&engine);
    return wrong || !kvt_self_is(&before);
}
