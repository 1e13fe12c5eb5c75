/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention on a GPU: the grids of the CPU's tests (support/attention_grid.h), larger, on every
 * kernel of the list that takes a case; what must be equal to the last bit; pools that need 64-bit
 * addresses; graphs whose lengths change between replays.
 *
 *   KVMEM_KERNEL=word          only kernels whose name contains it
 *   KVMEM_ROUNDS_SHARE=n       an n-th of the cases
 *   KVMEM_COST=x               multiplications a case, at most (1e8)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "support/attention_equal.h"
#include "support/attention_grid.h"
#include "support/attention_scene.h"
#include "support/gpu/attention.h"
#include "support/gpu/cases.h"
#include "support/gpu/gpu.h"

#define CASES       160u
#define COST_LIMIT  1e8
#define TRUTH_LIMIT 4e6
#define GIB         (UINT64_C(1) << 30)
#define LIMIT_S     300
#define REPLAYS     4u
#define WORD        getenv("KVMEM_KERNEL")

static uint32_t share_of(uint32_t count)
{
    const char *share = getenv("KVMEM_ROUNDS_SHARE");

    return share ? count / (uint32_t)atoi(share) + 1 : count;
}

/* ---- grids ---- */

static void run_grid(const char *name)
{
    const char *cost = getenv("KVMEM_COST");
    void *stream = kvt_gpu_stream_new();
    struct kvt_memory memory = kvt_gpu_attention_memory(stream);
    struct kvt_attention_plan plan = {.memory = &memory,
                                      .kernel = WORD,
                                      .cost_limit = cost ? atof(cost) : COST_LIMIT,
                                      .truth_limit = TRUTH_LIMIT,
                                      .case_limit = share_of(CASES)};
    struct kvt_attention_count count = {0};

    kvt_attention_threads = (uint32_t)sysconf(_SC_NPROCESSORS_ONLN);
    for (const struct kvt_attention_grid *g = kvt_attention_grids; g->name; g++)
        if (!strcmp(g->name, name))
            kvt_attention_grid_run(g, &plan, &count);
    printf("%s: %u cases, %u runs, worst %.2f of the bound, %u refused, %u wrong%s%s\n", name,
           count.cases, count.runs, count.worst, count.refused, count.wrong,
           count.text[0] ? ": " : "", count.text);
    KVT_REQUIRE(count.wrong == 0, "%u of %u: %s", count.wrong, count.runs, count.text);
    KVT_REQUIRE(WORD || count.refused == 0, "%u of %u: %s", count.refused, count.cases, count.text);
    kvt_gpu_stream_drop(stream);
}

#define GRID(name)                \
    static void grid_##name(void) \
    {                             \
        run_grid(#name);          \
    }
KVT_ATTENTION_GRIDS(GRID)

#define CASE(name) {#name, grid_##name, LIMIT_S},

/* ---- equal to the last bit ---- */

static const struct kvt_attention_case EQUALS[] = {
    {.seed = 1,
     .seq_count = 5,
     .row_count = 1,
     .length = 4000,
     .heads = 16,
     .kv_heads = 4,
     .dim_k = 128,
     .is_ragged = true,
     .row_step = 3,
     .flags = KVA_CAUSAL},
    {.seed = 2,
     .seq_count = 9,
     .row_count = 8,
     .length = 1500,
     .heads = 8,
     .kv_heads = 4,
     .dim_k = 64,
     .is_ragged = true,
     .flags = KVA_CAUSAL,
     .window_tokens = 500,
     .has_sinks = true,
     .dtype = KVMEM_DTYPE_FP16},
    {.seed = 3,
     .seq_count = 3,
     .row_count = 500,
     .length = 1000,
     .heads = 8,
     .kv_heads = 2,
     .dim_k = 128,
     .is_ragged = true,
     .flags = KVA_CAUSAL,
     .has_slopes = true,
     .row_step = 17},
    {.seed = 4,
     .seq_count = 3,
     .row_count = 5,
     .length = 1500,
     .heads = 8,
     .kv_heads = 2,
     .dim_k = 128,
     .has_tree = true,
     .cache_dtype = KVMEM_DTYPE_INT8,
     .scale_mode = KVMEM_SCALE_TOKEN_HEAD},
    {.seed = 5,
     .seq_count = 3,
     .row_count = 1,
     .length = 2000,
     .heads = 8,
     .kv_heads = 2,
     .dim_k = 128,
     .cache_dtype = KVMEM_DTYPE_FP8_E4M3,
     .scale_mode = KVMEM_SCALE_HEAD},
    {.seed = 6,
     .seq_count = 5,
     .row_count = 2,
     .length = 2000,
     .heads = 16,
     .kv_heads = 1,
     .dim_k = 576,
     .dim_v = 512,
     .is_latent = true,
     .block_tokens = 64,
     .flags = KVA_CAUSAL},
    {.seed = 7,
     .seq_count = 4,
     .row_count = 130,
     .length = 600,
     .heads = 4,
     .kv_heads = 4,
     .dim_k = 192,
     .dim_v = 128,
     .is_ragged = true,
     .flags = KVA_CAUSAL,
     .row_step = 7},
};

typedef const char *(*equal_fn)(const struct kvt_attention_case *c, const struct kvt_memory *memory,
                                const char *kernel, bool *refused);

static const char *again(const struct kvt_attention_case *c, const struct kvt_memory *memory,
                         const char *kernel, bool *refused)
{
    return kvt_attention_equal_again(c, memory, kernel, share_of(50), refused);
}

static void run_equal(equal_fn equal)
{
    void *stream = kvt_gpu_stream_new();
    struct kvt_memory memory = kvt_gpu_attention_memory(stream);
    const char *kernel;
    uint32_t compared = 0;

    kvt_attention_threads = (uint32_t)sysconf(_SC_NPROCESSORS_ONLN);
    for (uint32_t k = 0; (kernel = kvt_attention_kernel(KVA_DEVICE_CUDA, WORD, k)); k++)
        for (uint32_t i = 0; i < sizeof(EQUALS) / sizeof(*EQUALS); i++) {
            bool refused = false;
            const char *text = equal(&EQUALS[i], &memory, kernel, &refused);

            KVT_REQUIRE(!text || refused, "%s: %s", kernel, text);
            compared += !refused;
        }
    printf("%u kernels and cases compared\n", compared);
    KVT_REQUIRE(compared > 0, "%u: no kernel took any case", compared);
    kvt_gpu_stream_drop(stream);
}

static void equal_layouts(void)
{
    run_equal(kvt_attention_equal_layouts);
}

static void equal_alone(void)
{
    run_equal(kvt_attention_equal_alone);
}

static void equal_again(void)
{
    run_equal(again);
}

/* ---- far addresses ---- */

/* Blocks `stride` apart. Each kernel; those that refuse are named. */
static void run_far(uint64_t stride, uint64_t least_bytes)
{
    struct kvt_attention_case c = {.seed = 8,
                                   .seq_count = 3,
                                   .row_count = 1,
                                   .length = 150,
                                   .heads = 8,
                                   .kv_heads = 2,
                                   .dim_k = 128,
                                   .flags = KVA_CAUSAL,
                                   .block_stride_bytes = stride};
    void *stream = kvt_gpu_stream_new();
    struct kvt_memory memory = kvt_gpu_attention_far_memory(stream);
    struct kvt_attention_scene s;
    const char *kernel;

    if (!kvt_attention_begin(&s, &c, &memory))
        kvt_case_skip("%s", s.text);
    KVT_REQUIRE(s.pool[0].device_bytes >= least_bytes, "%llu bytes",
                (unsigned long long)s.pool[0].device_bytes);
    for (uint32_t k = 0; (kernel = kvt_attention_kernel(KVA_DEVICE_CUDA, WORD, k)); k++) {
        enum kvt_verdict verdict = kvt_attention_try(&s, kernel);

        KVT_REQUIRE(verdict != KVT_WRONG, "%s: %s", kernel, s.text);
        printf("%s: %s\n", kernel, verdict == KVT_REFUSED ? s.text : "right");
    }
    kvt_attention_end(&s);
    kvt_gpu_stream_drop(stream);
}

static void pool_over_4_gib(void)
{
    run_far(GIB / 4, 8 * GIB);
}

static void pool_over_100_gib(void)
{
    run_far(GIB * 13 / 4, 100 * GIB);
}

/* ---- graphs ---- */

/* Plan and run captured once; lengths shrink between replays, tables are the same. */
static void replay(struct kvt_attention_scene *s, void *graph)
{
    int32_t *lengths = s->lengths.host;

    for (uint32_t i = 0; i < REPLAYS; i++) {
        for (uint32_t n = 0; n < s->c.seq_count; n++)
            lengths[n] = (int32_t)(i == 1 && n == 0 ? 0 : (uint32_t)lengths[n] * 4 / 5);
        s->memory->put(s->lengths.device, lengths, s->lengths.bytes);
        s->memory->set(s->out.device, 0xff, s->out.bytes);
        s->memory->set(s->lse.device, 0xff, s->lse.bytes);
        kvt_attention_find_truth(s);
        kvt_gpu_graph_launch(graph, s->memory->stream);
        kvt_gpu_sync(s->memory->stream);
        s->memory->get(s->out.host, s->out.device, s->out.bytes);
        s->memory->get(s->lse.host, s->lse.device, s->lse.bytes);
        KVT_REQUIRE(kvt_attention_judge(s) == KVT_RIGHT, "replay %u: %s", i, s->text);
    }
}

static bool capture(struct kvt_attention_scene *s, const char *kernel)
{
    struct kva_info info = {.size = sizeof(info)};
    void *workspace, *graph;
    int code;

    kva_only_kernel = kernel;
    code = kva_attention_info(&s->device, &info);
    if (code == KVMEM_E_NOT_SUPPORTED) {
        kva_only_kernel = NULL;
        return false;
    }
    workspace = kvt_gpu_alloc(info.workspace_bytes);
    kvt_gpu_capture_begin(s->memory->stream);
    code = kva_attention_plan(&s->device, workspace, info.workspace_bytes, s->memory->stream);
    if (!code)
        code = kva_attention_run(&s->device, s->c.layers - 1, s->q.device,
                                 (char *)s->out.device + KVT_ATTENTION_GUARD,
                                 (float *)((char *)s->lse.device + KVT_ATTENTION_GUARD), workspace,
                                 info.workspace_bytes, s->memory->stream);
    KVT_REQUIRE(code == 0, "%s: %s", kernel, kva_error());
    graph = kvt_gpu_capture_end(s->memory->stream, NULL);
    kva_only_kernel = NULL;
    replay(s, graph);
    kvt_gpu_graph_drop(graph);
    kvt_gpu_free(workspace);
    return true;
}

static void graphs(void)
{
    void *stream = kvt_gpu_stream_new();
    struct kvt_memory memory = kvt_gpu_attention_memory(stream);
    const char *kernel;

    kvt_attention_threads = (uint32_t)sysconf(_SC_NPROCESSORS_ONLN);
    for (uint32_t k = 0; (kernel = kvt_attention_kernel(KVA_DEVICE_CUDA, WORD, k)); k++)
        for (uint32_t i = 0; i < sizeof(EQUALS) / sizeof(*EQUALS); i++) {
            struct kvt_attention_scene s;

            KVT_REQUIRE(kvt_attention_begin(&s, &EQUALS[i], &memory), "%s", s.text);
            printf("%s, case %u: %s\n", kernel, i,
                   capture(&s, kernel) ? "right in all replays" : "refused");
            kvt_attention_end(&s);
        }
    kvt_gpu_stream_drop(stream);
}

static const struct kvt_case CASE_LIST[] = {
    /* clang-format off */
    KVT_ATTENTION_GRIDS(CASE)
    /* clang-format on */
    {"equal_layouts", equal_layouts, LIMIT_S},
    {"equal_alone", equal_alone, LIMIT_S},
    {"equal_again", equal_again, LIMIT_S},
    {"pool_over_4_gib", pool_over_4_gib, LIMIT_S},
    {"pool_over_100_gib", pool_over_100_gib, LIMIT_S},
    {"graphs", graphs, LIMIT_S},
    {NULL, NULL, 0},
};

int main(int argc, char **argv)
{
    return kvt_cases_main(argc, argv, CASE_LIST, NULL);
}
