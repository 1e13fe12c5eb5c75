/* SPDX-License-Identifier: Apache-2.0
 *
 * kv_write: K and V of 8,192 tokens into all 32 layers of Llama-3.1-8B (8 heads of 128, bf16),
 * blocks of 16 tokens in random places of a page-major pool, in one launch; against cudaMemcpyAsync
 * of as many bytes in one piece, in turn. At least 70 % of its speed: at most 1.43 of its time.
 *
 * Other ways are timed on stderr: with rotary embedding, to e4m3 and int8 with a scale a token and
 * head, 64 tokens into one layer. GB/s count what is read and what is written.
 */
#include <kvmem/attention_write.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"

#define TOKENS       8192u
#define LAYERS       32u
#define HEADS        8u
#define DIM          128u
#define BLOCK_TOKENS 16u
#define BLOCKS       2048u
#define SAMPLES      40u
#define ROW          (HEADS * DIM) /* elements of a token's K */
#define LAYER        (BLOCK_TOKENS * ROW)
#define CHECKED      16u /* tokens that are compared */

struct run {
    struct kva_write what;
    uint16_t *pool;
    uint16_t *k;
    uint16_t *v;
    int64_t *slots; /* pinned, the same for kernels */
    float *scales;
    void *peer_to;
    void *stream;
    uint32_t layers;
    uint64_t source_bytes;
};

static void make_slots(struct run *run)
{
    static uint32_t blocks[BLOCKS];
    uint64_t random = 0x51075;

    for (uint32_t i = 0; i < BLOCKS; i++)
        blocks[i] = i;
    for (uint32_t i = BLOCKS - 1; i > 0; i--) {
        uint32_t j = (uint32_t)(kvb_random(&random) % (i + 1));
        uint32_t block = blocks[i];

        blocks[i] = blocks[j];
        blocks[j] = block;
    }
    run->slots = kvt_gpu_host_alloc(sizeof(*run->slots) * TOKENS);
    for (uint32_t t = 0; t < TOKENS; t++)
        run->slots[t] = (int64_t)blocks[t / BLOCK_TOKENS] * BLOCK_TOKENS + t % BLOCK_TOKENS;
}

static void describe(struct run *run)
{
    int64_t *slots = kvt_gpu_alloc(sizeof(*slots) * TOKENS);

    kvt_gpu_copy(slots, run->slots, sizeof(*slots) * TOKENS, run->stream);
    run->what = (struct kva_write){.size = sizeof(run->what),
                                   .device = KVA_DEVICE_CUDA,
                                   .token_count = TOKENS,
                                   .dtype = KVMEM_DTYPE_BF16,
                                   .k_token_stride = ROW,
                                   .k_head_stride = DIM,
                                   .v_token_stride = ROW,
                                   .v_head_stride = DIM,
                                   .slots = slots,
                                   .cache = {.dtype = KVMEM_DTYPE_BF16,
                                             .block_tokens = BLOCK_TOKENS,
                                             .block_count = BLOCKS,
                                             .layer_count = LAYERS,
                                             .kv_head_count = HEADS,
                                             .head_dim_k = DIM,
                                             .head_dim_v = DIM,
                                             .k = run->pool,
                                             .v = run->pool + LAYER,
                                             .block_stride = 2 * LAYER * LAYERS,
                                             .layer_stride = 2 * LAYER,
                                             .k_head_stride = BLOCK_TOKENS * DIM,
                                             .k_token_stride = DIM,
                                             .v_head_stride = BLOCK_TOKENS * DIM,
                                             .v_token_stride = DIM}};
}

static void make_run(struct run *run)
{
    run->stream = kvt_gpu_stream_new();
    run->layers = LAYERS;
    run->source_bytes = (uint64_t)TOKENS * LAYERS * ROW * 2;
    run->pool = kvt_gpu_alloc((uint64_t)BLOCKS * 2 * LAYER * LAYERS * 2);
    run->k = kvt_gpu_alloc(run->source_bytes);
    run->v = kvt_gpu_alloc(run->source_bytes);
    run->peer_to = kvt_gpu_alloc(2 * run->source_bytes);
    run->scales = kvt_gpu_alloc((uint64_t)TOKENS * 8 * LAYERS * HEADS * 4);
    kvb_gpu_fill(run->k, run->source_bytes, run->stream);
    kvb_gpu_fill(run->v, run->source_bytes, run->stream);
    make_slots(run);
    describe(run);
}

static void write_all(struct run *run)
{
    uint64_t layer_stride = (uint64_t)run->what.token_count * ROW;

    if (kva_write_run(&run->what, 0, run->layers, run->k, layer_stride, run->v, layer_stride,
                      run->stream))
        kvt_die("kva_write_run: %s", kva_error());
}

/* Some tokens of all layers and heads, read back. */
static void verify(struct run *run)
{
    const struct kva_cache *c = &run->what.cache;
    uint16_t seen[DIM], right[DIM];

    write_all(run);
    for (uint32_t i = 0; i < CHECKED * LAYERS * 2; i++) {
        uint32_t t = i * 977 % TOKENS, l = i / 2 % LAYERS, g = i / 3 % HEADS, is_v = i % 2;
        uint64_t from = ((uint64_t)l * TOKENS + t) * ROW + g * DIM;
        uint64_t to = (uint64_t)run->slots[t] / BLOCK_TOKENS * c->block_stride +
                      l * c->layer_stride + g * c->k_head_stride +
                      (uint64_t)run->slots[t] % BLOCK_TOKENS * DIM + is_v * LAYER;

        kvt_gpu_copy(right, (is_v ? run->v : run->k) + from, sizeof(right), run->stream);
        kvt_gpu_copy(seen, run->pool + to, sizeof(seen), run->stream);
        kvt_gpu_sync(run->stream);
        if (memcmp(seen, right, sizeof(seen)) != 0)
            kvt_die("token %u, layer %u, head %u of %c is wrong", t, l, g, "KV"[is_v]);
    }
}

static double own_us(struct run *run)
{
    static struct kvb_gpu_timer timer;

    kvb_gpu_timer_begin(&timer, run->stream);
    write_all(run);
    return kvb_gpu_timer_end(&timer);
}

static double peer_us(struct run *run)
{
    static struct kvb_gpu_timer timer;

    kvb_gpu_timer_begin(&timer, run->stream);
    kvt_gpu_copy(run->peer_to, run->k, run->source_bytes, run->stream);
    kvt_gpu_copy((char *)run->peer_to + run->source_bytes, run->v, run->source_bytes, run->stream);
    return kvb_gpu_timer_end(&timer);
}

/* ---- the other ways, on stderr ---- */

static void note(struct run *run, const char *what, double bytes_written)
{
    static struct kvb_samples samples;
    double bytes = (double)run->what.token_count * run->layers * ROW * 2 * (2 + bytes_written);

    samples.count = 0;
    for (uint32_t i = 0; i < 12; i++)
        kvb_add(&samples, own_us(run));
    fprintf(stderr, "kv_write: %s: %.1f us, %.0f GB/s\n", what, kvb_quantile(&samples, 0.5),
            1e-3 * bytes / kvb_quantile(&samples, 0.5));
}

static void note_rotary(struct run *run)
{
    float *cos_sin = kvt_gpu_alloc((uint64_t)TOKENS * DIM * 4);
    int32_t *positions = kvt_gpu_host_alloc(sizeof(*positions) * TOKENS);
    void *device_positions = kvt_gpu_alloc(sizeof(*positions) * TOKENS);

    for (uint32_t t = 0; t < TOKENS; t++)
        positions[t] = (int32_t)t;
    kvt_gpu_copy(device_positions, positions, sizeof(*positions) * TOKENS, run->stream);
    kvt_gpu_set(cos_sin, 0x3f, (uint64_t)TOKENS * DIM * 4, run->stream);
    run->what.rotary_dim = DIM;
    run->what.rotary_limit = TOKENS;
    run->what.rotary_cos_sin = cos_sin;
    run->what.positions = device_positions;
    note(run, "bf16 with rotary embedding", 2);
}

static void note_quantised(struct run *run)
{
    struct kva_cache *c = &run->what.cache;

    c->scale_dtype = KVMEM_DTYPE_FP32;
    c->k_scale = c->v_scale = run->scales;
    c->scale_token_stride = 1;
    c->scale_head_stride = BLOCK_TOKENS;
    c->scale_layer_stride = BLOCK_TOKENS * HEADS;
    c->scale_block_stride = (uint64_t)BLOCK_TOKENS * HEADS * LAYERS;
    c->dtype = KVMEM_DTYPE_FP8_E4M3;
    note(run, "e4m3 with rotary embedding, a scale a token and head", 1);
    run->what.rotary_dim = 0;
    note(run, "e4m3, a scale a token and head", 1);
    c->dtype = KVMEM_DTYPE_INT8;
    note(run, "int8, a scale a token and head", 1);
}

int main(int argc, char **argv)
{
    static struct kvb_row row = {.bench = "kv_write",
                                 .metric = "us for 8,192 tokens of 32 layers",
                                 .peer = "cudaMemcpyAsync",
                                 .limit = 1 / 0.7,
                                 .limit_kind = KVB_LIMIT_RATIO_MAX};
    static struct run run;

    kvb_gpu_begin(argc, argv, NULL);
    make_run(&run);
    verify(&run);
    for (uint32_t i = 0; i < 3; i++) {
        own_us(&run);
        peer_us(&run);
    }
    for (uint32_t i = kvb_gpu_samples(SAMPLES); i > 0; i--) {
        kvb_add(&row.own, own_us(&run));
        kvb_add(&row.peer_samples, peer_us(&run));
    }
    snprintf(row.fields, sizeof(row.fields), "\"gbps\":%.4g",
             4e-3 * (double)run.source_bytes / kvb_quantile(&row.own, 0.5));
    run.what.token_count = 64;
    run.layers = 1;
    note(&run, "64 tokens of one layer", 2);
    run.layers = LAYERS;
    note(&run, "64 tokens of all layers", 2);
    run.what.token_count = TOKENS;
    note_rotary(&run);
    note_quantised(&run);
    return kvb_report(&row);
}
