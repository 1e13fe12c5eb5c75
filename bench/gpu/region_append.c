/* SPDX-License-Identifier: Apache-2.0
 *
 * region_append: tokens appended one by one to a sequence with a region, as a model that makes one
 * every 200 µs; the appends that cross into the next block, on the calling thread. Limit 2 µs, and
 * none that had to wait for a mapping. Afterwards what was written by blocks is read by the view,
 * and the other way round.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "common.h"

#define TOKENS  8192u
#define BLOCKS  (TOKENS / KVT_GPU_BLOCK_TOKENS)
#define WARM_UP 64u /* tokens */
#define STEP_NS 200000u

struct run {
    struct kvt_gpu_engine engine;
    struct kvmem_region *region;
    struct kvmem_seq seq;
};

static double append_ns(struct run *run)
{
    uint64_t start = kvb_now_ns(), end;

    kvt_gpu_must(
        kvmem_seq_append(run->engine.space, run->seq, 1, kvmem_fence_stream(run->engine.stream)),
        "seq_append");
    end = kvb_now_ns();
    kvt_gpu_must(kvmem_seq_commit(run->engine.space, run->seq, 1), "seq_commit");
    kvt_gpu_must(kvmem_client_dispatch(run->engine.client, 0), "client_dispatch");
    return (double)(end - start);
}

static struct kvmem_region_info info_of(const struct run *run)
{
    struct kvmem_region_info info = {.size = sizeof(info)};

    kvt_gpu_must(kvmem_region_info(run->region, &info), "region_info");
    return info;
}

static void write_and_read(const struct run *run, const struct kvt_gpu_part *written,
                           const struct kvt_gpu_part *read)
{
    kvt_gpu_fill(written, run->engine.stream);
    if (kvt_gpu_wrong(read, run->engine.stream))
        kvt_die("the view and the blocks show different bytes");
}

static void verify(struct run *run)
{
    struct kvt_gpu_part blocks = kvt_gpu_part_of(&run->engine, run->seq, BLOCKS, 1), range = blocks;
    struct kvmem_region_info info = info_of(run);
    struct kvt_gpu_shape view = run->engine.shape;
    static int32_t in_order[BLOCKS];

    if (info.mapped_tokens < TOKENS)
        kvt_die("%" PRIu64 " tokens are mapped", info.mapped_tokens);
    for (int32_t i = 0; i < (int32_t)BLOCKS; i++)
        in_order[i] = i;
    view.base = info.base;
    view.write_base = info.write_base;
    view.stride_bytes = info.block_bytes;
    range.shape = &view;
    range.blocks = in_order;
    write_and_read(run, &blocks, &range);
    blocks.seed = ++range.seed;
    write_and_read(run, &range, &blocks);
}

static void begin(struct run *run)
{
    struct kvmem_region_options options = {.size = sizeof(options), .token_limit = TOKENS + 1024};

    kvt_gpu_must(kvt_gpu_reserve(&run->engine, BLOCKS + 64, KVT_ANSWER_LIMIT), "space_reserve");
    kvt_gpu_must(kvmem_seq_create(run->engine.space, &run->seq), "seq_create");
    kvt_gpu_must(kvmem_region_open(run->engine.space, run->seq, &options, &run->region),
                 "region_open");
}

static void append_all(struct run *run, struct kvb_samples *crossing)
{
    for (uint32_t token = 0; token < TOKENS; token++) {
        uint64_t next_ns = kvb_now_ns() + STEP_NS;
        double ns = append_ns(run);

        if (token >= WARM_UP && token % KVT_GPU_BLOCK_TOKENS == 0)
            kvb_add(crossing, ns);
        while (kvb_now_ns() < next_ns)
            ;
    }
}

int main(int argc, char **argv)
{
    static struct kvb_row row = {.bench = "region_append",
                                 .metric = "ns for an append into the next block",
                                 .limit = 2000,
                                 .limit_kind = KVB_LIMIT_MEDIAN_MAX};
    struct kvt_gpu_engine_options options = {.name = "region",
                                             .seed = 0x52454749,
                                             .client_flags = KVMEM_CLIENT_HELPER,
                                             .space_flags = KVMEM_SPACE_REGIONS,
                                             .layout = KVMEM_LAYOUT_TOKEN_MAJOR,
                                             .low_water_blocks = 16,
                                             .refill_blocks = BLOCKS + 64};
    static struct run run;
    struct kvt_daemon daemon;
    double waits;
    int missed;

    kvb_gpu_begin(argc, argv, NULL);
    kvt_gpu_daemon_start(&daemon, NULL, "4GiB", NULL);
    options.socket_path = daemon.socket_path;
    kvt_gpu_engine_open(&run.engine, &options);
    begin(&run);
    append_all(&run, &row.own);
    waits = (double)info_of(&run).waits;
    verify(&run);
    kvt_gpu_must(kvmem_region_close(run.region, kvmem_fence_none()), "region_close");
    kvt_gpu_seq_free(&run.engine, run.seq, kvmem_fence_none());
    kvt_gpu_engine_close(&run.engine);
    kvt_daemon_end_observed(&daemon);
    missed = kvb_report(&row);
    missed += kvb_gpu_figure("region_append", "appends of 8,192 that mapped a block themselves",
                             waits, 0);
    return missed > 0;
}
