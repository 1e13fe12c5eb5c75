/* SPDX-License-Identifier: Apache-2.0
 *
 * Victims and their witness.
 */
#include "support/gpu/kills.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "support/gpu/cases.h"

#define POOL          "1GiB"
#define POOL_BLOCKS   512u
#define VICTIM_BLOCKS 128u
#define AHEAD         4u /* victims that have their contexts and wait */
#define WARM_UP       3u
#define CHECKS        8u
#define PAGE_BYTES    4096u
#define WRITE_NS      UINT64_C(30000000000)
#define BACK_LIMIT    KVT_MS(5000)

/* ---- the victim ---- */

/* SOCKET, and a page as a gift: rounds[0] is what its kernel counts; blocks behind it. */
int kvt_kills_role(char **arguments)
{
    struct kvt_gpu_engine_options options = {.socket_path = arguments[0], .name = "victim"};
    uint64_t *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, KVT_GIFT_FD, 0);
    struct kvt_gpu_engine engine;
    char line[KVT_LINE_BYTES];
    struct kvt_gpu_part part;
    struct kvmem_seq seq;

    if (page == MAP_FAILED)
        kvt_die("mmap of the page");
    kvt_gpu_host_pin(page, PAGE_BYTES);
    kvt_role_say("ready");
    if (!kvt_role_hear(line))
        return 0;
    kvt_gpu_engine_open(&engine, &options);
    seq = kvt_gpu_seq_new(&engine, VICTIM_BLOCKS);
    part = kvt_gpu_part_of(&engine, seq, VICTIM_BLOCKS, 0);
    memcpy(page + 1, part.blocks, VICTIM_BLOCKS * sizeof(int32_t));
    kvt_gpu_scribble(&part, WRITE_NS, page, engine.stream);
    kvt_role_say("writing");
    (void)kvt_gpu_try_sync(engine.stream);
    kvt_die("the victim was not killed in time");
}

struct victim {
    struct kvt_process process;
    uint64_t *page;
};

static void victim_start(struct victim *victim, const char *socket_path)
{
    int fd = memfd_create("kvmem-test-victim", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, PAGE_BYTES))
        kvt_die("memfd for a victim");
    victim->page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (victim->page == MAP_FAILED)
        kvt_die("mmap for a victim");
    kvt_role_spawn(&victim->process, fd, KVT_KILLS_ROLE, socket_path, NULL);
    close(fd);
}

static uint64_t rounds_of(const struct victim *victim)
{
    return __atomic_load_n(victim->page, __ATOMIC_ACQUIRE);
}

/* Its kernel counts on: it is writing now. */
static void expect_writing(const struct victim *victim)
{
    uint64_t end_ns = kvt_now_ns() + (uint64_t)KVT_ANSWER_LIMIT, first = rounds_of(victim);

    while (rounds_of(victim) < first + 2)
        KVT_REQUIRE(kvt_now_ns() < end_ns, "the victim does not write: %" PRIu64 " rounds",
                    rounds_of(victim));
}

/* ---- the witness ---- */

struct witness {
    struct kvt_daemon daemon;
    struct kvt_gpu_engine engine;
    struct kvt_gpu_verdict *verdict;
    struct victim victims[AHEAD];
    uint64_t prefix;
};

/* All of the pool is its own: the moment at which it was. */
static uint64_t take_all(struct witness *witness, struct kvmem_seq *seq)
{
    struct kvt_gpu_engine *engine = &witness->engine;
    int rc = kvt_gpu_reserve(engine, POOL_BLOCKS, BACK_LIMIT);
    uint64_t now_ns = kvt_now_ns();

    kvt_gpu_must(rc, "the whole pool");
    *seq = kvt_gpu_seq_new(engine, POOL_BLOCKS);
    return now_ns;
}

/* Fill all, and look several times whether anybody else writes there. */
static void watch(struct witness *witness, struct kvmem_seq seq, struct kvt_kills *out)
{
    struct kvt_gpu_engine *engine = &witness->engine;
    struct kvt_gpu_part part = kvt_gpu_part_of(engine, seq, POOL_BLOCKS, ++witness->prefix);
    struct kvt_gpu_verdict seen;

    kvt_gpu_verdict_clear(witness->verdict, engine->stream);
    kvt_gpu_fill(&part, engine->stream);
    for (uint32_t i = 0; i < CHECKS; i++) {
        kvt_gpu_check(&part, witness->verdict, engine->stream);
        kvt_gpu_sync(engine->stream);
        kvt_sleep_ns(KVT_MS(1));
    }
    seen = kvt_gpu_verdict_read(witness->verdict, engine->stream);
    out->checked_words += seen.checked;
    out->stray_words += seen.wrong;
    if (seen.wrong)
        printf("  %llu wrong words; at %#llx: %#llx, not %#llx\n", seen.wrong, seen.where,
               seen.found, seen.expected);
}

static void give_back(struct witness *witness, struct kvmem_seq seq)
{
    kvt_gpu_seq_free(&witness->engine, seq, kvmem_fence_none());
    kvt_gpu_must(kvmem_client_dispatch(witness->engine.client, 0), "client_dispatch");
    kvt_gpu_must(kvmem_space_trim(witness->engine.space), "space_trim");
}

/* How many of the victim's blocks the sequence has. */
static uint32_t reused_of(struct witness *witness, const struct victim *victim,
                          struct kvmem_seq seq)
{
    const int32_t *blocks = kvt_gpu_table(&witness->engine, seq, POOL_BLOCKS);
    const int32_t *theirs = (const int32_t *)(victim->page + 1);
    uint32_t count = 0;

    for (uint32_t i = 0; i < VICTIM_BLOCKS; i++)
        for (uint32_t j = 0; j < POOL_BLOCKS; j++)
            count += theirs[i] == blocks[j];
    return count;
}

static void kill_one(struct witness *witness, struct victim *victim, struct kvt_kills *out)
{
    uint64_t killed_ns, gone_ns, usable_ns;
    struct kvmem_seq seq;

    kvt_role_expect(&victim->process, "ready");
    kvt_tell(&victim->process, "go");
    kvt_role_expect(&victim->process, "writing");
    expect_writing(victim);
    killed_ns = kvt_now_ns();
    kvt_kill(&victim->process);
    gone_ns = kvt_wait_gone(&victim->process, KVT_ANSWER_LIMIT);
    usable_ns = take_all(witness, &seq);
    out->exit_us[out->count] = (double)(gone_ns - killed_ns) / 1e3;
    out->usable_us[out->count++] = (double)(usable_ns - gone_ns) / 1e3;
    out->reused_blocks += reused_of(witness, victim, seq);
    watch(witness, seq, out);
    kvt_reap(&victim->process, KVT_ANSWER_LIMIT);
    munmap(victim->page, PAGE_BYTES);
    give_back(witness, seq);
}

/* `count` kills, with the next victims getting ready meanwhile; none is alive at the end. */
static void kill_many(struct witness *witness, uint32_t count, struct kvt_kills *out)
{
    uint32_t started = 0;

    for (; started < AHEAD && started < count; started++)
        victim_start(&witness->victims[started], witness->daemon.socket_path);
    for (uint32_t i = 0; i < count; i++) {
        kill_one(witness, &witness->victims[i % AHEAD], out);
        if (started < count)
            victim_start(&witness->victims[started++ % AHEAD], witness->daemon.socket_path);
    }
}

/* ---- counts ---- */

static int is_witness_alone(const struct kvi_msg_stats_reply *stats)
{
    return stats->client_count == 2; /* the observer, too */
}

/* The driver's free bytes once they no longer rise: what the last victim had comes back late. */
static uint64_t settled_free_bytes(void)
{
    uint64_t free_bytes = kvt_gpu_free_bytes(), last;

    do {
        last = free_bytes;
        kvt_sleep_ns(KVT_MS(300));
        free_bytes = kvt_gpu_free_bytes();
    } while (free_bytes > last);
    return free_bytes;
}

static uint64_t count_all(struct witness *witness, struct kvi_msg_stats_reply *stats)
{
    kvt_wire_wait(witness->daemon.wire, is_witness_alone, "the victims to be reclaimed",
                  KVT_DAEMON_LIMIT);
    kvt_wire_stats(witness->daemon.wire, stats);
    KVT_REQUIRE(kvt_wire_is_clean(witness->daemon.wire), "the directory is not clean");
    return settled_free_bytes();
}

void kvt_kills_run(const struct kvt_kills_options *options, struct kvt_kills *out)
{
    struct kvt_gpu_engine_options engine = {.name = "witness", .seed = options->seed};
    static struct witness witness;
    static struct kvt_kills warm_up;
    struct kvmem_seq seq;

    if (options->count + WARM_UP > KVT_KILLS_LIMIT)
        kvt_die("%u kills: at most %u", options->count, KVT_KILLS_LIMIT - WARM_UP);
    memset(out, 0, sizeof(*out));
    kvt_gpu_daemon_start(&witness.daemon, NULL, POOL, options->daemon_options);
    engine.socket_path = witness.daemon.socket_path;
    kvt_gpu_engine_open(&witness.engine, &engine);
    witness.verdict = kvt_gpu_verdict_new();
    take_all(&witness, &seq); /* now every segment is there */
    give_back(&witness, seq);
    kill_many(&witness, WARM_UP, &warm_up);
    out->free_bytes_before = count_all(&witness, &out->stats_before);
    kill_many(&witness, options->count, out);
    out->free_bytes_after = count_all(&witness, &out->stats_after);
    kvt_gpu_engine_close(&witness.engine);
    kvt_daemon_end_observed(&witness.daemon);
}
