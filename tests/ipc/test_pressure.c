/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory that changes hands: from an owner that has more than it needs (a pressure request, which
 * its dispatch answers), from one that does nothing any more (at once), and not from one that has
 * open blocks everywhere (a refusal after the deadline); and the limit of a space's quota.
 *
 * The pool has 1,024 blocks in 64 segments of 16. The test process is who asks; the one that has
 * is a helper process.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <kvmem.h>
#include <stdio.h>
#include <string.h>

#include "support/daemon.h"
#include "support/engine.h"
#include "support/shell.h"

#define POOL_BLOCKS 1024u
#define MOST_BLOCKS (POOL_BLOCKS / 10 * 9)
#define DEADLINE_NS KVT_MS(50) /* of a pressure request */
#define AT_ONCE_NS  (KVT_SLOWDOWN * KVT_MS(100))
#define TIME_LIMIT  (KVT_SLOWDOWN * 30)
#define ROUNDS      5

static struct kvt_daemon daemon_;
static struct kvt_process owner;
static struct kvt_self before;

/* `refill`: blocks that the owner wants to have free, as text; NULL leaves that to the library. */
static void open_scene(const char *refill)
{
    before = kvt_self_count();
    kvt_daemon_start_observed(&daemon_, "4MiB", "4KiB");
    kvt_shell_start_with(&owner, &daemon_, "owner", "owners", NULL, refill);
}

static void close_scene(void)
{
    kvt_shell_end(&owner);
    kvt_daemon_end_observed(&daemon_);
    cr_assert(kvt_self_is(&before));
}

static void open_asker(struct kvt_engine *asker, const char *space)
{
    struct kvt_engine_options options = {
        .socket_path = daemon_.socket_path, .name = "asker", .space = space};

    kvt_must(kvt_engine_open(asker, &options), "open");
}

static void close_asker(struct kvt_engine *asker)
{
    cr_assert_eq(kvmem_client_check(asker->client), 0, "%s", kvmem_error_detail()->text);
    kvt_engine_close(asker);
    cr_assert(kvt_wire_is_clean(daemon_.wire));
}

static struct kvi_msg_stats_reply daemon_stats(void)
{
    struct kvi_msg_stats_reply stats;

    kvt_wire_stats(daemon_.wire, &stats);
    return stats;
}

/* What reserve says, and how long it took: net of what asker, daemon and owner waited for a
 * processor. */
static int reserve(struct kvt_engine *asker, uint64_t blocks, struct kvt_time *time)
{
    struct kvt_stopwatch watch;
    int rc;

    kvt_stopwatch_start(&watch, daemon_.process.pid, owner.pid);
    rc = kvmem_space_reserve(asker->space, blocks, KVT_MS(5000));
    *time = kvt_stopwatch_read(&watch);
    return rc;
}

/* An owner that got no processor for the whole deadline could not answer: try again. */
static int reserve_patiently(struct kvt_engine *asker, uint64_t blocks, struct kvt_time *time,
                             int *tries)
{
    int rc;

    *tries = 0;
    do
        rc = reserve(asker, blocks, time);
    while (kvt_is_full(rc) && time->net_ns < (uint64_t)DEADLINE_NS / 2 && ++*tries < 20);
    return rc;
}

/* ---- an owner with free blocks that it does not use ---- */

static void take_from_wasteful(const char *space)
{
    struct kvi_msg_stats_reply stats;
    struct kvt_engine asker;
    struct kvt_time time;
    int tries;

    open_scene("4096");
    kvt_shell(&owner, "ok", "open 1 4"); /* one segment it needs */
    kvt_shell(&owner, "ok", "reserve %u 2000", POOL_BLOCKS - 4);
    cr_assert_eq(daemon_stats().owned_segments, 64);
    kvt_shell(&owner, "ok", "auto 1");
    open_asker(&asker, space);
    kvt_must(reserve_patiently(&asker, MOST_BLOCKS, &time, &tries), "reserve");
    stats = daemon_stats();
    printf("from a wasteful owner, into space %s: %u blocks after %.2f ms (net %.2f), %" PRIu64
           " pressure requests, %" PRIu64 " missed, %d tries for want of a processor\n",
           space, MOST_BLOCKS, (double)time.passed_ns / 1e6, (double)time.net_ns / 1e6,
           stats.pressure_requests, stats.pressure_missed, tries);
    cr_assert_geq(stats.pressure_requests, 1);
    cr_assert_leq(stats.pressure_missed, (uint64_t)tries);
    cr_assert_lt(time.net_ns, (uint64_t)(DEADLINE_NS * KVT_SLOWDOWN));
    cr_assert_geq(kvt_answer_number(kvt_shell(&owner, "ok", "stats"), "pressure"), 1);
    cr_assert_eq(kvt_answer_number(kvt_shell(&owner, "ok", "verify 1"), "wrong"), 0);
    close_asker(&asker);
    kvt_shell(&owner, "ok", "put 2 64"); /* and it gets some again */
    close_scene();
}

Test(ipc_pressure, free_blocks_of_an_owner_go_to_another_space, .timeout = TIME_LIMIT)
{
    take_from_wasteful("askers");
}

Test(ipc_pressure, free_blocks_of_an_owner_go_to_its_own_space, .timeout = TIME_LIMIT)
{
    take_from_wasteful("owners");
}

/* ---- an owner that does nothing any more ---- */

static void take_from_idle(const char *space)
{
    struct kvi_msg_stats_reply stats;
    struct kvt_engine asker;
    struct kvt_time time, worst = {0, 0};

    open_scene(NULL);
    for (int round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < POOL_BLOCKS / 8; i++) {
            kvt_shell(&owner, "ok", "put %u 8", 1000 * (uint32_t)round + i);
            kvt_shell(&owner, "ok", "free %u", 1000 * (uint32_t)round + i);
        }
        for (int i = 0; i < 4; i++)
            kvt_shell(&owner, "ok", "dispatch 0");
        stats = daemon_stats();
        cr_assert_geq(stats.entry_blocks, MOST_BLOCKS, "%" PRIu64 " entries", stats.entry_blocks);
        open_asker(&asker, space);
        kvt_must(reserve(&asker, MOST_BLOCKS, &time), "reserve");
        worst = time.net_ns >= worst.net_ns ? time : worst;
        close_asker(&asker);
    }
    stats = daemon_stats();
    printf("from an idle owner, into space %s: %u blocks, slowest of %d after %.2f ms (net %.2f); "
           "%" PRIu64 " entries evicted, %" PRIu64 " segments released, %" PRIu64 " adopted\n",
           space, MOST_BLOCKS, ROUNDS, (double)worst.passed_ns / 1e6, (double)worst.net_ns / 1e6,
           stats.evicted_blocks, stats.evicted_segments, stats.adopted_segments);
    cr_assert_leq(worst.net_ns, (uint64_t)AT_ONCE_NS);
    cr_assert_eq(stats.pressure_missed, 0);
    cr_assert_geq(stats.evicted_blocks, ROUNDS * (MOST_BLOCKS - POOL_BLOCKS / 8));
    close_scene();
}

Test(ipc_pressure, an_idle_owners_entries_go_to_another_space_at_once, .timeout = TIME_LIMIT)
{
    take_from_idle("askers");
}

Test(ipc_pressure, an_idle_owners_entries_go_to_its_own_space_at_once, .timeout = TIME_LIMIT)
{
    take_from_idle("owners");
}

/* ---- an owner that needs everything ---- */

Test(ipc_pressure, open_blocks_are_not_taken, .timeout = TIME_LIMIT)
{
    struct kvi_msg_stats_reply stats;
    struct kvt_engine asker;
    struct kvt_time time;
    int rc, tries;

    open_scene(NULL);
    kvt_shell(&owner, "ok", "open 1 %u", POOL_BLOCKS / 2);
    kvt_shell(&owner, "ok", "open 2 %u", POOL_BLOCKS / 2);
    open_asker(&asker, "askers");
    for (uint32_t round = 1; round <= ROUNDS; round++) { /* the owner does not dispatch */
        rc = reserve(&asker, 16, &time);
        stats = daemon_stats();
        cr_assert(rc == KVMEM_E_OUT_OF_BLOCKS || rc == KVMEM_E_DEVICE_FULL, "%s",
                  kvmem_error_name(rc));
        cr_assert_geq(stats.pressure_missed, round);
        cr_assert_geq(stats.refusals, round);
        printf("refused after %.2f ms: %s\n", (double)time.passed_ns / 1e6, kvmem_error_name(rc));
        cr_assert(time.passed_ns >= (uint64_t)DEADLINE_NS * 9 / 10 &&
                  time.net_ns < 2 * (uint64_t)DEADLINE_NS * KVT_SLOWDOWN);
    }
    kvt_shell(&owner, "ok", "auto 1"); /* nor does it give what it cannot when it does */
    rc = reserve(&asker, 16, &time);
    cr_assert(rc == KVMEM_E_OUT_OF_BLOCKS || rc == KVMEM_E_DEVICE_FULL, "%s", kvmem_error_name(rc));
    cr_assert_eq(kvt_answer_number(kvt_shell(&owner, "ok", "verify 1"), "wrong"), 0);
    cr_assert_eq(kvt_answer_number(kvt_shell(&owner, "ok", "verify 2"), "wrong"), 0);
    kvt_shell(&owner, "ok", "free 2");
    kvt_must(reserve_patiently(&asker, POOL_BLOCKS / 2, &time, &tries), "reserve what was freed");
    cr_assert_eq(kvt_answer_number(kvt_shell(&owner, "ok", "verify 1"), "wrong"), 0);
    close_asker(&asker);
    close_scene();
}

/* ---- quota ---- */

#define QUOTA_BLOCKS 64u

Test(ipc_pressure, a_quota_limits_all_clients_of_its_space, .timeout = TIME_LIMIT)
{
    struct kvt_process first, second;

    open_scene(NULL);
    kvt_shell_start_with(&first, &daemon_, "first", "small", "262144", NULL);
    kvt_shell_start_with(&second, &daemon_, "second", "small", "262144", NULL);
    kvt_shell(&first, "error QUOTA", "reserve %u 2000", QUOTA_BLOCKS + 1);
    kvt_shell(&first, "ok", "reserve %u 2000", QUOTA_BLOCKS);
    kvt_shell(&first, "error QUOTA", "reserve %u 2000", QUOTA_BLOCKS + 1);
    kvt_shell(&second, "error QUOTA", "reserve 1 2000");
    cr_assert_eq(daemon_stats().owned_segments, 4);
    kvt_shell(&owner, "ok", "reserve 256 2000"); /* the device has memory for others */
    kvt_shell(&first, "ok", "open 1 20");
    kvt_shell(&first, "ok", "trim");
    kvt_shell(&second, "ok", "reserve 32 2000"); /* what the first has given back */
    kvt_shell(&second, "error QUOTA", "reserve 48 2000");
    cr_assert_eq(kvt_answer_number(kvt_shell(&first, "ok", "verify 1"), "wrong"), 0);
    kvt_shell_end(&first);
    kvt_shell_end(&second);
    cr_assert(kvt_wire_is_clean(daemon_.wire));
    close_scene();
}
