/* SPDX-License-Identifier: Apache-2.0
 *
 * SIGKILL of clients whose kernels write (support/gpu/kills.h), KVMEM_KILLS of them (300): no
 * stray write in what is granted again, memory back within 200 ms of the exit, and the driver's
 * free bytes as before. With --mps on, where a process' exit proves nothing, nothing it could
 * write is granted again: its segments are released and created afresh.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/gpu/cases.h"
#include "support/gpu/kills.h"

#define BACK_LIMIT_US 200000.0
#define MPS_KILLS     20u

static double worst(const double *values, uint32_t count)
{
    double worst_value = 0;

    for (uint32_t i = 0; i < count; i++)
        worst_value = values[i] > worst_value ? values[i] : worst_value;
    return worst_value;
}

static void expect_clean(const struct kvt_kills *kills)
{
    printf("  %u kills: %" PRIu64 " words checked, %" PRIu64 " stray; %" PRIu64
           " blocks granted again; exit at most %.1f ms after the signal, usable %.1f ms after "
           "that; free bytes %" PRIu64 " before, %" PRIu64 " after; segments created %" PRIu64
           ", released %" PRIu64 "\n",
           kills->count, kills->checked_words, kills->stray_words, kills->reused_blocks,
           worst(kills->exit_us, kills->count) / 1e3, worst(kills->usable_us, kills->count) / 1e3,
           kills->free_bytes_before, kills->free_bytes_after,
           kills->stats_after.created_segments - kills->stats_before.created_segments,
           kills->stats_after.released_segments - kills->stats_before.released_segments);
    fflush(stdout);
    KVT_REQUIRE(kills->stray_words == 0, "%" PRIu64 " stray words", kills->stray_words);
    KVT_REQUIRE(worst(kills->usable_us, kills->count) <= BACK_LIMIT_US, "back after %.1f ms",
                worst(kills->usable_us, kills->count) / 1e3);
    KVT_REQUIRE(kills->free_bytes_after == kills->free_bytes_before,
                "%" PRId64 " bytes of the device are missing",
                (int64_t)(kills->free_bytes_before - kills->free_bytes_after));
}

static void case_killed_while_writing(void)
{
    struct kvt_kills_options options = {
        .count = kvt_count_from_env("KVMEM_KILLS", kvt_gpu_is_fake() ? 10 : 300, 1),
        .seed = kvt_seed("killed_while_writing")};
    static struct kvt_kills kills;

    kvt_kills_run(&options, &kills);
    expect_clean(&kills);
    KVT_REQUIRE(kills.reused_blocks > 0, "no block of a victim was granted again");
    KVT_REQUIRE(kills.stats_after.created_segments == kills.stats_before.created_segments,
                "segments were created");
}

static void case_killed_under_mps(void)
{
    static const char *const mps[] = {"--mps", "on", NULL};
    struct kvt_kills_options options = {.count = kvt_gpu_rounds(MPS_KILLS),
                                        .daemon_options = mps,
                                        .seed = kvt_seed("killed_under_mps")};
    static struct kvt_kills kills;
    uint64_t created, released;

    kvt_kills_run(&options, &kills);
    expect_clean(&kills);
    created = kills.stats_after.created_segments - kills.stats_before.created_segments;
    released = kills.stats_after.released_segments - kills.stats_before.released_segments;
    KVT_REQUIRE(created >= kills.count && released >= kills.count,
                "after %u kills %" PRIu64 " segments were created and %" PRIu64 " released",
                kills.count, created, released);
}

int main(int argc, char **argv)
{
    static const struct kvt_case cases[] = {
        {"killed_while_writing", case_killed_while_writing, 400},
        {"killed_under_mps", case_killed_under_mps, 0},
        {NULL, NULL, 0}};
    static const struct kvt_role roles[] = {{KVT_KILLS_ROLE, kvt_kills_role}, {NULL, NULL}};

    return kvt_cases_main(argc, argv, cases, roles);
}
