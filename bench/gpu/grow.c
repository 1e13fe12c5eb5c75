/* SPDX-License-Identifier: Apache-2.0
 *
 * grow: a client takes one more segment of 64 MiB, newly created, from the ask until its blocks
 * can be appended to, while kernels of 1 ms run back to back on its stream: once ones that
 * compute, once ones that read and write memory. Limit 400 µs; and a step may take 2 % longer with
 * five such growths in a hundred steps than without, rounds of both in turn.
 */
#include <stdio.h>

#include "common.h"

#define STEPS        100u
#define GROW_EVERY   20u
#define STEP_US      1000.0
#define ROUNDS       30u
#define SEGMENT      (UINT64_C(64) << 20)
#define GROW_TIMEOUT KVT_MS(1000)

struct run {
    struct kvt_gpu_engine engine;
    struct kvt_gpu_busy busy;
    void *events[STEPS + 1];
    struct kvb_samples *grow_us;
};

static uint64_t free_blocks(const struct run *run)
{
    struct kvmem_capacity capacity = {.size = sizeof(capacity)};

    kvt_gpu_must(kvmem_space_capacity(run->engine.space, &capacity), "space_capacity");
    return capacity.free_blocks;
}

static double grow_us(struct run *run)
{
    uint64_t ask = free_blocks(run) + run->engine.geometry.blocks_per_segment, start = kvb_now_ns();

    kvt_gpu_must(kvmem_space_reserve(run->engine.space, ask, GROW_TIMEOUT), "space_reserve");
    return (double)(kvb_now_ns() - start) / 1e3;
}

/* A hundred steps, all enqueued at once; µs a step. */
static double round_us(struct run *run, bool is_growing)
{
    kvt_gpu_event_record(run->events[0], run->engine.stream);
    for (uint32_t i = 1; i <= STEPS; i++) {
        kvt_gpu_busy_step(&run->busy, run->engine.stream);
        kvt_gpu_event_record(run->events[i], run->engine.stream);
    }
    for (uint32_t i = GROW_EVERY / 2; is_growing && i < STEPS; i += GROW_EVERY) {
        kvt_gpu_event_sync(run->events[i]);
        kvb_add(run->grow_us, grow_us(run));
    }
    kvt_gpu_event_sync(run->events[STEPS]);
    return kvt_gpu_event_us(run->events[0], run->events[STEPS]) / STEPS;
}

/* All blocks that are free now hold what is written there. */
static void verify(struct run *run)
{
    uint32_t count = (uint32_t)free_blocks(run);
    struct kvmem_seq seq = kvt_gpu_seq_new(&run->engine, count);
    struct kvt_gpu_part part = kvt_gpu_part_of(&run->engine, seq, count, kvb_now_ns());

    kvt_gpu_fill(&part, run->engine.stream);
    if (kvt_gpu_wrong(&part, run->engine.stream))
        kvt_die("wrong bytes in new segments");
    kvt_gpu_seq_free(&run->engine, seq, kvmem_fence_none());
}

static int measure(struct run *run, enum kvt_gpu_busy_kind kind)
{
    static struct kvb_row grow, step;

    grow = (struct kvb_row){.bench = "grow",
                            .metric = kind == KVT_GPU_COMPUTE
                                          ? "us for a segment beside kernels that compute"
                                          : "us for a segment beside kernels that copy memory",
                            .limit = 400,
                            .limit_kind = KVB_LIMIT_MEDIAN_MAX};
    step = (struct kvb_row){.bench = "grow",
                            .metric = kind == KVT_GPU_COMPUTE
                                          ? "us a step that computes, growing"
                                          : "us a step that copies memory, growing",
                            .peer = "not growing",
                            .limit = 1.02,
                            .limit_kind = KVB_LIMIT_RATIO_MAX};
    run->grow_us = &grow.own;
    kvt_gpu_busy_init(&run->busy, kind, STEP_US);
    round_us(run, true);
    grow.own.count = 0; /* that was to warm up */
    for (uint32_t i = kvb_gpu_samples(ROUNDS); i > 0; i--) {
        kvb_add(&step.own, round_us(run, true));
        kvb_add(&step.peer_samples, round_us(run, false));
    }
    verify(run);
    kvt_gpu_busy_fini(&run->busy);
    return kvb_report(&grow) + kvb_report(&step);
}

int main(int argc, char **argv)
{
    struct kvt_gpu_engine_options options = {.name = "grow",
                                             .seed = 0x47524f57,
                                             .client_flags = KVMEM_CLIENT_HELPER,
                                             .low_water_blocks = 1,
                                             .refill_blocks = 1};
    static struct run run;
    struct kvt_daemon daemon;
    int missed;

    kvb_gpu_begin(argc, argv, NULL);
    kvt_gpu_daemon_start(&daemon, NULL, "32GiB", NULL);
    options.socket_path = daemon.socket_path;
    kvt_gpu_engine_open(&run.engine, &options);
    if (run.engine.geometry.segment_bytes != SEGMENT && !kvt_gpu_is_fake())
        kvt_die("segments of %llu bytes", (unsigned long long)run.engine.geometry.segment_bytes);
    for (uint32_t i = 0; i <= STEPS; i++)
        run.events[i] = kvt_gpu_event_new();
    verify(&run);
    missed = measure(&run, KVT_GPU_COMPUTE) + measure(&run, KVT_GPU_MEMORY);
    kvt_gpu_engine_close(&run.engine);
    kvt_daemon_end_observed(&daemon);
    return missed > 0;
}
