/* SPDX-License-Identifier: Apache-2.0
 *
 * step_256: a decode step of 256 sequences in a steady state: a token appended to each, the block
 * tables on the device brought up to date. Sequences that reach 512 tokens make place for new ones
 * of 16, so that blocks come and go. CPU time of the two calls, limit 25 µs; and in 10,000 steps
 * (free, create and dispatch included) no driver call that maps or unmaps memory, counted on the
 * calling thread and on the helper.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"

#define ROWS         256u
#define FIRST_TOKENS 16u
#define LAST_TOKENS  512u
#define BLOCK_LIMIT  (LAST_TOKENS / KVT_GPU_BLOCK_TOKENS)
#define STEPS        10000u
#define WARM_UP      1000u
#define SAMPLE_EVERY 4u /* of the steps are kept */
#define CHECK_EVERY  500u
#define SYNC_EVERY   4u /* a model's step takes longer than an update */

struct run {
    struct kvt_gpu_engine engine;
    struct kvmem_device_table *table;
    struct kvmem_device_table_info info;
    struct kvmem_seq seqs[ROWS];
    uint32_t tokens[ROWS];
};

static void restart(struct run *run, uint32_t row, uint32_t tokens)
{
    struct kvmem_space *space = run->engine.space;

    kvt_gpu_must(kvmem_seq_create(space, &run->seqs[row]), "seq_create");
    kvt_gpu_must(kvmem_seq_append(space, run->seqs[row], tokens, kvmem_fence_none()), "seq_append");
    kvt_gpu_must(kvmem_seq_commit(space, run->seqs[row], tokens), "seq_commit");
    run->tokens[row] = tokens;
}

/* What lies between steps. */
static void between(struct run *run)
{
    struct kvmem_space *space = run->engine.space;

    kvt_gpu_must(kvmem_seqs_commit(space, ROWS, run->seqs, NULL), "seqs_commit");
    for (uint32_t i = 0; i < ROWS; i++) {
        if (++run->tokens[i] < LAST_TOKENS)
            continue;
        kvt_gpu_seq_free(&run->engine, run->seqs[i], kvmem_fence_stream(run->engine.stream));
        restart(run, i, FIRST_TOKENS);
    }
    kvt_gpu_must(kvmem_client_dispatch(run->engine.client, 0), "client_dispatch");
}

static double step_us(struct run *run)
{
    struct kvmem_fence fence = kvmem_fence_stream(run->engine.stream);
    uint64_t start = kvb_now_ns();

    kvt_gpu_must(kvmem_seqs_append(run->engine.space, ROWS, run->seqs, NULL, fence), "seqs_append");
    kvt_gpu_must(kvmem_device_table_update(run->table, ROWS, run->seqs, run->engine.stream),
                 "device_table_update");
    return (double)(kvb_now_ns() - start) / 1e3;
}

static void verify(struct run *run)
{
    static int32_t own[ROWS * BLOCK_LIMIT], device[ROWS * BLOCK_LIMIT];
    static int32_t own_lengths[ROWS], device_lengths[ROWS];

    kvt_gpu_copy(device, run->info.tables, sizeof(device), run->engine.stream);
    kvt_gpu_copy(device_lengths, run->info.lengths, sizeof(device_lengths), run->engine.stream);
    kvt_gpu_sync(run->engine.stream);
    kvt_gpu_must(
        kvmem_table_padded(run->engine.space, 0, ROWS, run->seqs, BLOCK_LIMIT, own, own_lengths),
        "table_padded");
    if (memcmp(own, device, sizeof(own)) ||
        memcmp(own_lengths, device_lengths, sizeof(own_lengths)))
        kvt_die("the table on the device is another");
}

static void steps(struct run *run, uint32_t count, struct kvb_samples *samples)
{
    for (uint32_t i = 0; i < count; i++) {
        double us = step_us(run);

        if (samples && i % SAMPLE_EVERY == 0)
            kvb_add(samples, us);
        if (i % CHECK_EVERY == 0)
            verify(run);
        between(run);
        if (i % SYNC_EVERY == 0)
            kvt_gpu_sync(run->engine.stream);
    }
}

static void begin(struct run *run)
{
    struct kvmem_device_table_options options = {
        .size = sizeof(options), .row_limit = ROWS, .block_limit = BLOCK_LIMIT};

    kvt_gpu_must(kvt_gpu_reserve(&run->engine, ROWS * BLOCK_LIMIT, KVT_ANSWER_LIMIT),
                 "space_reserve");
    kvt_gpu_must(kvmem_device_table_create(run->engine.space, &options, &run->table),
                 "device_table_create");
    run->info.size = sizeof(run->info);
    kvt_gpu_must(kvmem_device_table_info(run->table, &run->info), "device_table_info");
    for (uint32_t i = 0; i < ROWS; i++) /* so that few end in the same step */
        restart(run, i, FIRST_TOKENS + i * (LAST_TOKENS - FIRST_TOKENS) / ROWS);
}

int main(int argc, char **argv)
{
    static struct kvb_row row = {.bench = "step_256",
                                 .metric = "us of CPU to append to 256 and update the table",
                                 .limit = 25,
                                 .limit_kind = KVB_LIMIT_MEDIAN_MAX};
    struct kvt_gpu_engine_options options = {.name = "step",
                                             .seed = 0x53544550,
                                             .client_flags = KVMEM_CLIENT_HELPER,
                                             .low_water_blocks = 64,
                                             .refill_blocks = ROWS * BLOCK_LIMIT};
    static struct run run;
    struct kvt_daemon daemon;
    double calls;
    int missed;

    kvb_gpu_begin(argc, argv, NULL);
    kvt_gpu_daemon_start(&daemon, NULL, "17GiB", NULL);
    options.socket_path = daemon.socket_path;
    kvt_gpu_engine_open(&run.engine, &options);
    begin(&run);
    steps(&run, WARM_UP, NULL);
    calls = kvb_gpu_memory_calls(&run.engine);
    steps(&run, STEPS, &row.own);
    calls = kvb_gpu_memory_calls(&run.engine) - calls;
    kvmem_device_table_destroy(run.table);
    kvt_gpu_must(kvmem_seqs_free(run.engine.space, ROWS, run.seqs, kvmem_fence_none()),
                 "seqs_free");
    kvt_gpu_engine_close(&run.engine);
    kvt_daemon_end_observed(&daemon);
    missed = kvb_report(&row);
    missed += kvb_gpu_figure("step_256", "driver calls for memory in 10,000 steps", calls, 0);
    return missed > 0;
}
