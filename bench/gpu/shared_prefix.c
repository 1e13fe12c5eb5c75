/* SPDX-License-Identifier: Apache-2.0
 *
 * shared_prefix: two processes that serve the same 4 GiB prefix, each with a tail of its own. The
 * device memory that is used more than before, as the driver counts: one copy, and a segment of
 * 64 MiB for each tail; 1 % more is allowed for the driver's own tables. One run.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "common.h"

#define BLOCKS 2048u
#define PREFIX 1u
#define GIB    (double)(1u << 30)
#define GIBS   4.0

static struct kvt_gpu_engine_options options_of(char **arguments, const char *name)
{
    struct kvt_gpu_engine_options options = {.socket_path = arguments[0],
                                             .name = name,
                                             .seed = strtoull(arguments[1], NULL, 0),
                                             .low_water_blocks = 1,
                                             .refill_blocks = 1};

    return options;
}

/* A sequence of the prefix with a tail of 8 tokens, written. */
static struct kvmem_seq serve(struct kvt_gpu_engine *engine, const int32_t *blocks)
{
    struct kvt_gpu_part tail;
    struct kvmem_seq seq;

    kvt_gpu_must(kvmem_seq_create(engine->space, &seq), "seq_create");
    kvt_gpu_must(kvmem_seq_attach(engine->space, seq, BLOCKS, blocks), "seq_attach");
    kvt_gpu_must(kvt_gpu_reserve(engine, 1, KVT_ANSWER_LIMIT), "space_reserve");
    kvt_gpu_must(kvmem_seq_append(engine->space, seq, 8, kvmem_fence_none()), "seq_append");
    kvt_gpu_must(kvmem_seq_commit(engine->space, seq, 8), "seq_commit");
    tail = kvt_gpu_prefix_part(engine, 2, kvt_gpu_table(engine, seq, BLOCKS + 1) + BLOCKS, 1);
    tail.end_token = 8;
    kvt_gpu_fill(&tail, engine->stream);
    if (kvt_gpu_wrong(&tail, engine->stream))
        kvt_die("the tail is wrong");
    return seq;
}

static struct kvmem_seq find_and_serve(struct kvt_gpu_engine *engine)
{
    static int32_t blocks[BLOCKS];
    struct kvmem_fence ready;
    struct kvmem_seq seq;

    kvt_gpu_lookup_all(engine, PREFIX, BLOCKS, blocks, &ready);
    kvt_gpu_must(kvmem_fence_order(engine->space, engine->stream, &ready), "fence_order");
    seq = serve(engine, blocks);
    if (kvt_gpu_prefix_wrong(engine, PREFIX, blocks, BLOCKS))
        kvt_die("the shared prefix is wrong");
    return seq;
}

/* SOCKET SEED */
static int role_second(char **arguments)
{
    struct kvt_gpu_engine_options options = options_of(arguments, "second");
    struct kvt_gpu_engine engine;
    char line[KVT_LINE_BYTES];
    struct kvmem_seq seq;

    kvt_gpu_engine_open(&engine, &options);
    kvt_gpu_warm_up(&engine);
    kvt_role_say("ready");
    if (!kvt_role_hear(line))
        return 0;
    seq = find_and_serve(&engine);
    kvt_role_say("serving");
    (void)kvt_role_hear(line);
    kvt_gpu_seq_free(&engine, seq, kvmem_fence_none());
    kvt_gpu_engine_close(&engine);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct kvt_role roles[] = {{"second", role_second}, {NULL, NULL}};
    struct kvt_gpu_engine_options options;
    struct kvt_gpu_engine first;
    struct kvt_process second;
    struct kvt_daemon daemon;
    struct kvmem_seq put, seq;
    char *arguments[2], seed[] = "0x53484152";
    double used, meant;
    uint64_t before;

    kvb_gpu_begin(argc, argv, roles);
    kvt_gpu_daemon_start(&daemon, NULL, "8GiB", NULL);
    arguments[0] = daemon.socket_path;
    arguments[1] = seed;
    options = options_of(arguments, "first");
    kvt_gpu_engine_open(&first, &options);
    kvt_gpu_warm_up(&first);
    kvt_role_spawn(&second, 0, "second", daemon.socket_path, seed, NULL);
    kvt_role_expect(&second, "ready");
    before = kvt_gpu_free_bytes(); /* both processes have their contexts */
    put = kvt_gpu_put(&first, PREFIX, BLOCKS);
    seq = find_and_serve(&first);
    kvt_tell(&second, "serve");
    kvt_role_expect(&second, "serving");
    used = (double)(before - kvt_gpu_free_bytes()) / GIB;
    meant =
        (double)((BLOCKS * first.geometry.block_bytes) + 2 * first.geometry.segment_bytes) / GIB;
    if (used < GIBS && !kvt_gpu_is_fake())
        kvt_die("the driver counts %.3f GiB for a prefix of %.0f", used, GIBS);
    kvt_role_end(&second);
    kvt_gpu_seq_free(&first, seq, kvmem_fence_none());
    kvt_gpu_seq_free(&first, put, kvmem_fence_none());
    kvt_gpu_engine_close(&first);
    kvt_daemon_end_observed(&daemon);
    return kvb_gpu_figure("shared_prefix",
                          "GiB of the device for two processes; one copy and tails, and 1 %", used,
                          meant * 1.01);
}
