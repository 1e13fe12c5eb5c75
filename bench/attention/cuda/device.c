/* SPDX-License-Identifier: Apache-2.0
 *
 * device.h: memory, checks and graphs.
 */
#include "device.h"

#include <kvmem/attention_merge.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/gpu/attention_truth.h"
#include "support/gpu/gpu.h"

#define MIB          (UINT64_C(1) << 20)
#define ROOM         (2048 * MIB) /* of all arrays but K and V */
#define LEFT         (4096 * MIB) /* to the checks and to other programs */
#define RUNS         32u          /* of a graph that takes turns with nobody */
#define LONG_RUNS    3u           /* of a graph of prefill */
#define CHECKED_ROWS 64u
#define ERROR_LIMIT  1.5 /* of kvt_gpu_attention_error: rounding of P and of the result */

/* ---- memory ---- */

static struct {
    char *base;
    uint64_t bytes;
    uint64_t used;
    void *stream;
} memory;

static void *cut(uint64_t bytes)
{
    uint64_t unit = bytes >= MIB ? 2 * MIB : 256, at = (memory.used + unit - 1) / unit * unit;

    if (bytes > memory.bytes || at > memory.bytes - bytes)
        kvb_fail("%llu MiB more than the %llu MiB of this GPU that are free: a smaller shape, or "
                 "--layers",
                 (unsigned long long)((at + bytes - memory.bytes) / MIB),
                 (unsigned long long)(memory.bytes / MIB));
    memory.used = at + bytes;
    return memory.base + at;
}

static void put(void *to, const void *from, uint64_t bytes)
{
    kvt_gpu_copy(to, from, bytes, memory.stream);
    kvt_gpu_sync(memory.stream);
}

static void fill(uint32_t dtype, void *array, uint64_t count, uint64_t seed)
{
    kvt_gpu_fill_normal(dtype, array, count, seed, memory.stream);
}

static const struct kvb_place gpu = {cut, put, fill};

void kvb_cuda_begin(void)
{
    const char *missing = kvt_gpu_missing();

    if (missing) {
        printf("%s\n", missing);
        exit(77);
    }
    kvt_gpu_use(kvt_gpu_ordinal());
    memory.stream = kvt_gpu_stream_new();
    fprintf(stderr, "%s\n", kvb_cuda_name());
}

void kvb_cuda_take(uint64_t bytes)
{
    uint64_t has = kvt_gpu_free_bytes() + memory.bytes;
    uint64_t most = has > LEFT + ROOM ? (has - LEFT) / (2 * MIB) * (2 * MIB) : ROOM;

    memory.used = 0;
    most = bytes < most ? bytes : most;
    if (memory.bytes && memory.bytes <= bytes && memory.bytes + ROOM >= most)
        return; /* the driver's own memory grows a little as kernels are loaded */
    if (memory.base)
        kvt_gpu_free(memory.base);
    memory.base = kvt_gpu_alloc(most);
    memory.bytes = most;
}

/* ---- graphs ---- */

static void drop(struct kvb_timed *timed)
{
    if (timed->graph)
        kvt_gpu_graph_drop(timed->graph);
    memset(timed, 0, sizeof(*timed));
}

static uint32_t runs_of(const struct kvb_problem *p)
{
    return p->shape.rows > KVB_CUDA_DECODE_ROWS ? LONG_RUNS : RUNS;
}

static void plan(struct kvb_problem *p)
{
    kvb_kva_check(
        kva_attention_plan(&p->what, p->workspace, p->info.workspace_bytes, memory.stream),
        "kva_attention_plan");
}

static void run(struct kvb_problem *p, uint32_t layer)
{
    kvb_kva_check(kva_attention_run(&p->what, layer, p->q, p->out, NULL, p->workspace,
                                    p->info.workspace_bytes, memory.stream),
                  "kva_attention_run");
}

static void capture(struct kvb_cuda_problem *own, uint32_t flags)
{
    struct kvb_problem *p = &own->problem;

    drop(&own->timed);
    own->timed.launches = runs_of(p);
    kvt_gpu_capture_begin(memory.stream);
    for (uint32_t i = 0; i < own->timed.launches; i++) {
        if (flags & KVB_CUDA_WITH_PLAN && i % p->shape.layers == 0)
            plan(p);
        run(p, i % p->shape.layers);
    }
    own->timed.graph = kvt_gpu_capture_end(memory.stream, NULL);
}

void kvb_cuda_reading(struct kvb_timed *timed, const struct kvb_cuda_problem *own)
{
    const struct kvb_problem *p = &own->problem;
    uint64_t layer_bytes = p->pool_bytes / p->shape.layers / 16 * 16;

    drop(timed);
    timed->launches = runs_of(p);
    kvt_gpu_capture_begin(memory.stream);
    for (uint32_t i = 0; i < timed->launches; i++)
        kvb_cuda_read((const char *)p->pool + i % p->shape.layers * layer_bytes, p->kv_bytes,
                      memory.stream);
    timed->graph = kvt_gpu_capture_end(memory.stream, NULL);
}

double kvb_timed_us(struct kvb_timed *timed)
{
    static void *from, *to;

    if (timed->peer)
        return kvb_peer_ask(timed->peer, timed->line);
    if (!from) {
        from = kvt_gpu_event_new();
        to = kvt_gpu_event_new();
    }
    if (timed->is_warmed)
        kvt_gpu_graph_launch(timed->graph, memory.stream);
    kvt_gpu_event_record(from, memory.stream);
    kvt_gpu_graph_launch(timed->graph, memory.stream);
    kvt_gpu_event_record(to, memory.stream);
    kvt_gpu_event_sync(to);
    return kvt_gpu_event_us(from, to) / timed->launches;
}

/* ---- problems ---- */

static void poison(struct kvb_problem *p)
{
    kvt_gpu_set(p->out, 0xff, p->out_bytes, memory.stream);
}

static void verify(const struct kvb_problem *p, const char *kernel)
{
    double error;

    kvt_gpu_sync(memory.stream);
    error = kvt_gpu_attention_error(&p->what, p->shape.layers - 1, p->q, p->out, CHECKED_ROWS);
    if (!(error <= ERROR_LIMIT))
        kvb_fail("%s: %s is wrong: %g times the unit of rounding, %g allowed",
                 kvb_shape_name(&p->shape), kernel, error, ERROR_LIMIT);
    fprintf(stderr, "%s, %u layers: %s, error %.2f of %.1f\n", kvb_shape_name(&p->shape),
            p->shape.layers, kernel, error, ERROR_LIMIT);
}

static void try_out(struct kvb_problem *p)
{
    poison(p);
    plan(p);
    run(p, p->shape.layers - 1);
    verify(p, p->info.kernel);
}

void kvb_cuda_problem(struct kvb_cuda_problem *own, const struct kvb_shape *shape, uint32_t flags)
{
    struct kvb_shape fitting = *shape;

    while (fitting.layers > 1 && kvb_shape_pool_bytes(&fitting) + ROOM > memory.bytes - memory.used)
        fitting.layers /= 2;
    kvb_problem_init(&own->problem, &fitting, &gpu);
    try_out(&own->problem);
    capture(own, flags);
}

void kvb_cuda_other_layout(struct kvb_cuda_problem *other, const struct kvb_cuda_problem *own,
                           uint32_t layout)
{
    other->problem = own->problem;
    kvb_problem_lay_out(&other->problem, layout);
    kvb_problem_workspace(&other->problem, &gpu);
    try_out(&other->problem);
    capture(other, 0);
}

void kvb_cuda_standard(struct kvb_timed *timed, struct kvb_cuda_problem *own, uint64_t *bytes)
{
    struct kvb_problem *p = &own->problem;
    struct kva_info info = {.size = sizeof(info)};
    void *scores;

    kvb_kva_check(kva_standard_info(&p->what, &info), "kva_standard_info");
    scores = cut(info.workspace_bytes);
    *bytes = info.workspace_bytes;
    drop(timed);
    timed->launches = 1;
    poison(p);
    for (int is_captured = 0; is_captured < 2; is_captured++) {
        if (is_captured)
            kvt_gpu_capture_begin(memory.stream);
        kvb_kva_check(kva_standard_run(&p->what, p->shape.layers - 1, p->q, p->out, scores,
                                       info.workspace_bytes, memory.stream),
                      "kva_standard_run");
        if (!is_captured)
            verify(p, info.kernel);
    }
    timed->graph = kvt_gpu_capture_end(memory.stream, NULL);
}
