/* SPDX-License-Identifier: Apache-2.0
 *
 * move_memory: 8 GiB in segments of 64 MiB, all that the daemon may have, go from a client that
 * has handed them in to another that asks for all of it: for the same space, and for another space
 * of the same sharing domain. From the ask until all blocks can be appended to; the taker is a new
 * process each time, so that it imports every segment. Limit: at least 100 GiB/s.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "common.h"

#define BLOCKS  4096u
#define GIB     8.0
#define SAMPLES 15u /* a second or so each */

/* All blocks, filled and checked, then handed in. */
static void use_all(struct kvt_gpu_engine *engine, uint64_t prefix)
{
    struct kvmem_seq seq = kvt_gpu_seq_new(engine, BLOCKS);
    struct kvt_gpu_part part = kvt_gpu_part_of(engine, seq, BLOCKS, prefix);

    kvt_gpu_fill(&part, engine->stream);
    if (kvt_gpu_wrong(&part, engine->stream))
        kvt_die("wrong bytes in memory that moved");
    kvt_gpu_seq_free(engine, seq, kvmem_fence_none());
    kvt_gpu_must(kvmem_client_dispatch(engine->client, 0), "client_dispatch");
    kvt_gpu_must(kvmem_space_trim(engine->space), "space_trim");
}

/* SOCKET SPACE SEED */
static int role_taker(char **arguments)
{
    struct kvt_gpu_engine_options options = {.socket_path = arguments[0],
                                             .name = "taker",
                                             .space = arguments[1],
                                             .seed = strtoull(arguments[2], NULL, 0)};
    struct kvt_gpu_engine engine;
    char line[KVT_LINE_BYTES];
    uint64_t start, end;

    kvt_gpu_engine_open(&engine, &options);
    kvt_role_say("ready");
    if (!kvt_role_hear(line))
        return 0;
    start = kvb_now_ns();
    kvt_gpu_must(kvmem_space_reserve(engine.space, BLOCKS, KVT_ANSWER_LIMIT), "space_reserve");
    end = kvb_now_ns();
    use_all(&engine, 2);
    kvt_gpu_engine_close(&engine);
    kvt_role_say("taken ns=%llu", (unsigned long long)(end - start));
    return 0;
}

/* GiB/s. */
static double sample(struct kvt_gpu_engine *giver, const struct kvt_daemon *daemon,
                     const char *space, const char *seed)
{
    struct kvt_process taker;
    double ns;

    kvt_role_spawn(&taker, 0, "taker", daemon->socket_path, space, seed, NULL);
    kvt_role_expect(&taker, "ready");
    kvt_gpu_must(kvt_gpu_reserve(giver, BLOCKS, KVT_ANSWER_LIMIT), "space_reserve");
    use_all(giver, 1);
    kvt_tell(&taker, "take");
    ns = (double)kvt_answer_number(kvt_role_expect(&taker, "taken"), "ns");
    kvt_role_end(&taker);
    return GIB / (ns / 1e9);
}

static int measure(struct kvt_gpu_engine *giver, const struct kvt_daemon *daemon, const char *space,
                   const char *metric)
{
    static struct kvb_row row;
    const char *seed = "0x4d4f5645";

    row = (struct kvb_row){
        .bench = "move_memory", .metric = metric, .limit = 100, .limit_kind = KVB_LIMIT_MEDIAN_MIN};
    sample(giver, daemon, space, seed);
    for (uint32_t i = kvb_gpu_samples(SAMPLES); i > 0; i--)
        kvb_add(&row.own, sample(giver, daemon, space, seed));
    return kvb_report(&row);
}

int main(int argc, char **argv)
{
    static const struct kvt_role roles[] = {{"taker", role_taker}, {NULL, NULL}};
    struct kvt_gpu_engine_options options = {.name = "giver", .seed = 0x4d4f5645};
    struct kvi_msg_stats_reply stats;
    struct kvt_gpu_engine giver;
    struct kvt_daemon daemon;
    int missed;

    kvb_gpu_begin(argc, argv, roles);
    kvt_gpu_daemon_start(&daemon, NULL, "8GiB", NULL);
    options.socket_path = daemon.socket_path;
    kvt_gpu_engine_open(&giver, &options);
    missed = measure(&giver, &daemon, "shared", "GiB/s to a new client of the same space");
    missed += measure(&giver, &daemon, "other", "GiB/s to a new client of another space");
    kvt_wire_stats(daemon.wire, &stats);
    /* A space without clients and entries ends, and what it had is released: that is where the
     * giver's memory comes from after a taker of another space, outside the figures. */
    fprintf(stderr, "move_memory: %" PRIu64 " segments, %" PRIu64 " created\n", stats.segment_count,
            stats.created_segments);
    kvt_gpu_engine_close(&giver);
    kvt_daemon_end_observed(&daemon);
    return missed > 0;
}
