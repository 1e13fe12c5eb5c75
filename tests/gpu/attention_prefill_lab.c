/* SPDX-License-Identifier: Apache-2.0
 *
 * A laboratory for prefill on a GPU: each kernel that takes a shape is checked against attention in
 * double on sampled rows, then timed.
 *
 *   ... (no word)    small shapes, checks, and times a little: what a run of all tests does
 *   ... all          the ladder: every kernel at every shape
 *   ... SxT[+C] ...  those shapes: S sequences, the last T tokens of each are rows, C come before
 *
 *   KVMEM_HEADS=32/8  KVMEM_DIM=128  KVMEM_BLOCK=16  KVMEM_KERNEL=word   other models, one kernel
 *
 * bf16, causal; page-major blocks of 32 layers, shuffled. Medians of 30 events around one run.
 * Work is counted as FlashAttention does: 4 × head dim × heads × pairs of a row and a token it
 * sees. One line of JSON a row. Exit status 0, 77 without a device, 1 when a result was wrong.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../attention/internal.h"
#include "support/gpu/attention_truth.h"
#include "support/gpu/gpu.h"
#include "support/random.h"

#define SAMPLES 30
#define WARM    3
#define LAYERS  32u
#define CHECKED 96u
#define LIMIT   1.5 /* of kvt_gpu_attention_error: rounding of P and of the result */

struct shape {
    uint32_t seqs;
    uint32_t rows;
    uint32_t before;
};

struct lab {
    struct kva_attention what;
    void *stream;
    void *pool;
    void *q;
    void *out;
    int failed;
};

static uint32_t number_of(const char *name, uint32_t usual, uint32_t index)
{
    const char *text = getenv(name);

    if (text && index)
        text = strchr(text, '/') ? strchr(text, '/') + 1 : text;
    return text ? (uint32_t)atoi(text) : usual;
}

static int32_t *shuffled(uint32_t count, uint64_t seed)
{
    int32_t *list = malloc(count * sizeof(*list));

    for (uint32_t i = 0; i < count; i++)
        list[i] = (int32_t)i;
    for (uint32_t i = count; i > 1; i--) {
        uint32_t j = (uint32_t)(kvt_random(&seed) % i);
        int32_t held = list[i - 1];

        list[i - 1] = list[j];
        list[j] = held;
    }
    return list;
}

static void *sent(const void *from, uint64_t bytes)
{
    void *to = kvt_gpu_alloc(bytes);

    kvt_gpu_copy(to, from, bytes, NULL);
    kvt_gpu_sync(NULL);
    return to;
}

/* (block, layer, K|V, head, token, dim) */
static void describe(struct kva_attention *what, struct shape shape)
{
    uint32_t dim = number_of("KVMEM_DIM", 128, 0), block = number_of("KVMEM_BLOCK", 16, 0);
    uint32_t heads = number_of("KVMEM_HEADS", 32, 0), kv_heads = number_of("KVMEM_HEADS", 8, 1);
    uint32_t tokens = shape.rows + shape.before, stride = (tokens + block - 1) / block;
    struct kva_cache cache = {.dtype = KVMEM_DTYPE_BF16,
                              .block_tokens = block,
                              .block_count = stride * shape.seqs,
                              .layer_count = LAYERS,
                              .kv_head_count = kv_heads,
                              .head_dim_k = dim,
                              .head_dim_v = dim,
                              .k_token_stride = dim,
                              .v_token_stride = dim};

    cache.k_head_stride = cache.v_head_stride = (uint64_t)block * dim;
    cache.layer_stride = 2 * kv_heads * cache.k_head_stride;
    cache.block_stride = LAYERS * cache.layer_stride;
    *what = (struct kva_attention){.size = sizeof(*what),
                                   .device = KVA_DEVICE_CUDA,
                                   .flags = KVA_CAUSAL,
                                   .q_head_count = heads,
                                   .dtype = KVMEM_DTYPE_BF16,
                                   .q_token_stride = heads * dim,
                                   .q_head_stride = dim,
                                   .out_token_stride = heads * dim,
                                   .out_head_stride = dim,
                                   .cache = cache,
                                   .batch = {.seq_count = shape.seqs,
                                             .q_max = shape.rows,
                                             .q_total = shape.seqs * shape.rows,
                                             .kv_max = tokens,
                                             .table_stride = stride}};
}

static void begin(struct lab *lab, struct shape shape)
{
    struct kva_attention *what = &lab->what;
    uint64_t rows, pool;
    int32_t *list, *lengths = malloc(shape.seqs * sizeof(*lengths));

    describe(what, shape);
    rows = (uint64_t)what->batch.q_total * what->q_token_stride;
    pool = what->cache.block_count * what->cache.block_stride;
    list = shuffled(what->cache.block_count, 7);
    for (uint32_t n = 0; n < shape.seqs; n++)
        lengths[n] = (int32_t)what->batch.kv_max;
    lab->pool = kvt_gpu_alloc(pool * 2);
    lab->q = kvt_gpu_alloc(rows * 2);
    lab->out = kvt_gpu_alloc(rows * 2);
    kvt_gpu_fill_normal(KVMEM_DTYPE_BF16, lab->pool, pool, 1, lab->stream);
    kvt_gpu_fill_normal(KVMEM_DTYPE_BF16, lab->q, rows, 2, lab->stream);
    what->cache.k = lab->pool;
    what->cache.v = (char *)lab->pool + what->cache.layer_stride; /* half of it, in bytes */
    what->batch.tables = sent(list, what->cache.block_count * sizeof(*list));
    what->batch.kv_lengths = sent(lengths, shape.seqs * sizeof(*lengths));
    free(list);
    free(lengths);
}

static void end(struct lab *lab)
{
    kvt_gpu_free((void *)(uintptr_t)lab->what.batch.tables);
    kvt_gpu_free((void *)(uintptr_t)lab->what.batch.kv_lengths);
    kvt_gpu_free(lab->pool);
    kvt_gpu_free(lab->q);
    kvt_gpu_free(lab->out);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Microseconds, the median; 0 when it failed. */
static double timed(struct lab *lab, uint32_t layer, void *workspace, uint64_t bytes)
{
    void *from = kvt_gpu_event_new(), *to = kvt_gpu_event_new();
    double us[SAMPLES];

    for (int i = -WARM; i < SAMPLES; i++) {
        kvt_gpu_event_record(from, lab->stream);
        if (kva_attention_run(&lab->what, layer, lab->q, lab->out, NULL, workspace, bytes,
                              lab->stream))
            return 0;
        kvt_gpu_event_record(to, lab->stream);
        kvt_gpu_event_sync(to);
        if (i >= 0)
            us[i] = kvt_gpu_event_us(from, to);
    }
    kvt_gpu_event_drop(from);
    kvt_gpu_event_drop(to);
    qsort(us, SAMPLES, sizeof(*us), by_size);
    return us[SAMPLES / 2];
}

static double work_of(const struct kva_attention *what)
{
    double rows = what->batch.q_max, before = what->batch.kv_max - rows;

    return 4.0 * what->cache.head_dim_k * what->q_head_count * what->batch.seq_count *
           (rows * before + rows * (rows + 1) / 2);
}

static void measure(struct lab *lab, struct shape shape)
{
    struct kva_info info = {.size = sizeof(info)};
    void *workspace;
    double error, us;

    if (kva_attention_info(&lab->what, &info)) {
        printf("{\"lab\": \"prefill\", \"refused\": \"%s\"}\n", kva_error());
        return;
    }
    workspace = kvt_gpu_alloc(info.workspace_bytes + 256);
    kvt_gpu_set(lab->out, 0xff, (uint64_t)lab->what.batch.q_total * lab->what.q_token_stride * 2,
                lab->stream);
    if (kva_attention_plan(&lab->what, workspace, info.workspace_bytes, lab->stream) ||
        kva_attention_run(&lab->what, LAYERS - 1, lab->q, lab->out, NULL, workspace,
                          info.workspace_bytes, lab->stream)) {
        printf("{\"lab\": \"prefill\", \"failed\": \"%s\"}\n", kva_error());
        lab->failed = 1;
        return;
    }
    kvt_gpu_sync(lab->stream);
    error = kvt_gpu_attention_error(&lab->what, LAYERS - 1, lab->q, lab->out, CHECKED);
    us = timed(lab, LAYERS - 1, workspace, info.workspace_bytes);
    printf("{\"lab\": \"prefill\", \"kernel\": \"%s\", \"shape\": \"%ux%u+%u\", \"us\": %.1f, "
           "\"tflops\": %.1f, \"error\": %.3f, \"right\": %s}\n",
           info.kernel, shape.seqs, shape.rows, shape.before, us, work_of(&lab->what) / (us * 1e6),
           error, error <= LIMIT ? "true" : "false");
    fflush(stdout);
    lab->failed |= !(error <= LIMIT) || us == 0;
    kvt_gpu_free(workspace);
}

static void climb(struct lab *lab, struct shape shape)
{
    const struct kva_kernel *const *list = kva_cuda_kernels();
    const char *word = getenv("KVMEM_KERNEL");

    begin(lab, shape);
    for (; *list; list++) {
        if (word && !strstr((*list)->name, word))
            continue;
        kva_only_kernel = (*list)->name;
        measure(lab, shape);
    }
    end(lab);
}

int main(int argc, char **argv)
{
    static const struct shape small[] = {{2, 300, 0}, {1, 200, 1000}};
    static const struct shape all[] = {{16, 1024, 0},  {8, 2048, 0},  {4, 4096, 0},
                                       {2, 8192, 0},   {1, 16384, 0}, {1, 2048, 30720},
                                       {1, 256, 16128}};
    bool is_all = argc > 1 && strcmp(argv[1], "all") == 0;
    struct lab lab = {0};

    if (kvt_gpu_missing() || kvt_gpu_is_fake()) {
        printf("%s\n", kvt_gpu_missing() ? kvt_gpu_missing() : "kernels need a real GPU");
        return 77;
    }
    kvt_gpu_use(kvt_gpu_ordinal());
    lab.stream = kvt_gpu_stream_new();
    for (int i = 1; i < argc && !is_all; i++) {
        struct shape shape = {0};

        if (sscanf(argv[i], "%ux%u+%u", &shape.seqs, &shape.rows, &shape.before) >= 2)
            climb(&lab, shape);
    }
    for (uint32_t i = 0; argc == 1 && i < sizeof(small) / sizeof(*small); i++)
        climb(&lab, small[i]);
    for (uint32_t i = 0; is_all && i < sizeof(all) / sizeof(*all); i++)
        climb(&lab, all[i]);
    return lab.failed;
}
