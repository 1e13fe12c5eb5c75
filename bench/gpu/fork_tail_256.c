/* SPDX-License-Identifier: Apache-2.0
 *
 * fork_tail_256: 256 sequences are forked and each gets a token, so that 256 half full tails of
 * 2 MiB are copied behind the caller's stream. One launch, and one stream memory operation, which
 * is the fence behind which the old tails may be used again (counted as nodes of a captured graph);
 * 30 µs of CPU for fork and append, and on the GPU at most 1.15 of the time that cudaMemcpyAsync
 * takes for as many bytes inside the device, in turn: for forks of one parent, whose tail is read
 * 256 times, and of 256 parents.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "common.h"

#define FORKS   256u
#define TOKENS  40u /* of a parent: 2 blocks and a half */
#define SAMPLES 50u

struct run {
    struct kvt_gpu_engine engine;
    struct kvmem_seq parents[FORKS];
    struct kvmem_seq children[FORKS];
    uint32_t parent_count;
    void *from, *to; /* of the peer's copies */
    uint64_t bytes;
    double cpu_us;
};

static struct kvt_gpu_part tail_of(struct run *run, struct kvmem_seq seq, uint64_t number,
                                   const int32_t **block)
{
    struct kvt_gpu_part part;

    *block = kvt_gpu_table(&run->engine, seq, TOKENS / KVT_GPU_BLOCK_TOKENS + 1) +
             TOKENS / KVT_GPU_BLOCK_TOKENS;
    part = kvt_gpu_prefix_part(&run->engine, 1000 + number, *block, 1);
    part.end_token = TOKENS % KVT_GPU_BLOCK_TOKENS;
    return part;
}

static void make_parents(struct run *run)
{
    struct kvt_gpu_engine *engine = &run->engine;
    const int32_t *block;

    kvt_gpu_must(kvmem_seqs_create(engine->space, FORKS, run->parents), "seqs_create");
    for (uint32_t i = 0; i < FORKS; i++) {
        struct kvt_gpu_part part;

        kvt_gpu_must(kvmem_seq_append(engine->space, run->parents[i], TOKENS, kvmem_fence_none()),
                     "seq_append");
        kvt_gpu_must(kvmem_seq_commit(engine->space, run->parents[i], TOKENS), "seq_commit");
        part = tail_of(run, run->parents[i], i, &block);
        kvt_gpu_fill(&part, engine->stream);
    }
    kvt_gpu_sync(engine->stream);
}

/* Children of one parent, or one of each. */
static void fork_all(struct run *run)
{
    if (run->parent_count == 1)
        kvt_gpu_must(kvmem_seqs_fork(run->engine.space, run->parents[0], FORKS, run->children),
                     "seqs_fork");
    else
        for (uint32_t i = 0; i < FORKS; i++)
            kvt_gpu_must(kvmem_seq_fork(run->engine.space, run->parents[i], &run->children[i]),
                         "seq_fork");
}

static void append_all(struct run *run)
{
    kvt_gpu_must(kvmem_seqs_append(run->engine.space, FORKS, run->children, NULL,
                                   kvmem_fence_stream(run->engine.stream)),
                 "seqs_append");
}

static void free_all(struct run *run)
{
    kvt_gpu_must(kvmem_seqs_free(run->engine.space, FORKS, run->children, kvmem_fence_none()),
                 "seqs_free");
    kvt_gpu_must(kvmem_client_dispatch(run->engine.client, 0), "client_dispatch");
    kvt_gpu_must(kvt_gpu_reserve(&run->engine, FORKS, KVT_ANSWER_LIMIT), "space_reserve");
}

static double own_us(struct run *run)
{
    static struct kvb_gpu_timer timer;
    uint64_t start;
    double us;

    kvb_gpu_timer_begin(&timer, run->engine.stream);
    start = kvb_now_ns();
    fork_all(run);
    append_all(run);
    run->cpu_us = (double)(kvb_now_ns() - start) / 1e3;
    us = kvb_gpu_timer_end(&timer);
    free_all(run);
    return us;
}

static double peer_us(struct run *run)
{
    static struct kvb_gpu_timer timer;

    kvb_gpu_timer_begin(&timer, run->engine.stream);
    kvt_gpu_copy(run->to, run->from, run->bytes, run->engine.stream);
    return kvb_gpu_timer_end(&timer);
}

/* Every child has its parent's tail in a block of its own. */
static void verify(struct run *run)
{
    const int32_t *block, *parent_block;

    fork_all(run);
    append_all(run);
    for (uint32_t i = 0; i < FORKS; i++) {
        uint32_t parent = run->parent_count == 1 ? 0 : i;
        struct kvt_gpu_part part = tail_of(run, run->children[i], parent, &block);

        (void)tail_of(run, run->parents[parent], parent, &parent_block);
        if (*block == *parent_block || kvt_gpu_wrong(&part, run->engine.stream))
            kvt_die("child %u: block %d", i, *block);
    }
    free_all(run);
}

static int launches(struct run *run)
{
    struct kvt_gpu_nodes nodes = {0};
    void *graph;

    fork_all(run);
    kvt_gpu_capture_begin(run->engine.stream);
    append_all(run);
    graph = kvt_gpu_capture_end(run->engine.stream, &nodes);
    kvt_gpu_graph_launch(graph, run->engine.stream);
    kvt_gpu_sync(run->engine.stream);
    kvt_gpu_graph_drop(graph);
    free_all(run);
    if (nodes.all == 0 && !kvt_gpu_is_fake())
        kvt_die("no launch was captured");
    return kvb_gpu_figure("fork_tail_256", "launches for 256 tails", (double)nodes.kernels, 1) +
           kvb_gpu_figure("fork_tail_256", "stream memory operations for 256 tails",
                          (double)(nodes.all - nodes.kernels), 1);
}

static int measure(struct run *run, uint32_t parent_count)
{
    static struct kvb_row cpu, gpu;

    run->parent_count = parent_count;
    cpu = (struct kvb_row){.bench = "fork_tail_256",
                           .metric = parent_count == 1 ? "us of CPU to fork one parent and append"
                                                       : "us of CPU to fork 256 and append",
                           .limit = 30,
                           .limit_kind = KVB_LIMIT_MEDIAN_MAX};
    gpu = (struct kvb_row){.bench = "fork_tail_256",
                           .metric = parent_count == 1 ? "us on the GPU, tails of one parent"
                                                       : "us on the GPU, 256 different tails",
                           .peer = "cudaMemcpyAsync",
                           .limit = 1.15,
                           .limit_kind = KVB_LIMIT_RATIO_MAX};
    verify(run);
    for (uint32_t i = 0; i < 3; i++) {
        own_us(run);
        peer_us(run);
    }
    for (uint32_t i = kvb_gpu_samples(SAMPLES); i > 0; i--) {
        kvb_add(&gpu.own, own_us(run));
        kvb_add(&cpu.own, run->cpu_us);
        kvb_add(&gpu.peer_samples, peer_us(run));
    }
    return kvb_report(&cpu) + kvb_report(&gpu) + launches(run);
}

int main(int argc, char **argv)
{
    struct kvt_gpu_engine_options options = {.name = "fork",
                                             .seed = 0x464f524b,
                                             .client_flags = KVMEM_CLIENT_HELPER,
                                             .low_water_blocks = 1,
                                             .refill_blocks = 2048};
    static struct run run;
    struct kvt_daemon daemon;
    int missed;

    kvb_gpu_begin(argc, argv, NULL);
    kvt_gpu_daemon_start(&daemon, NULL, "8GiB", NULL);
    options.socket_path = daemon.socket_path;
    kvt_gpu_engine_open(&run.engine, &options);
    kvt_gpu_must(kvt_gpu_reserve(&run.engine, 5 * FORKS, KVT_ANSWER_LIMIT), "space_reserve");
    run.bytes = FORKS * run.engine.geometry.block_bytes;
    run.from = kvt_gpu_alloc(run.bytes);
    run.to = kvt_gpu_alloc(run.bytes);
    kvb_gpu_fill(run.from, run.bytes, run.engine.stream);
    make_parents(&run);
    missed = measure(&run, 1) + measure(&run, FORKS);
    kvt_gpu_must(kvmem_seqs_free(run.engine.space, FORKS, run.parents, kvmem_fence_none()),
                 "seqs_free");
    kvt_gpu_engine_close(&run.engine);
    kvt_daemon_end_observed(&daemon);
    return missed > 0;
}
