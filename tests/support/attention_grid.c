/* SPDX-License-Identifier: Apache-2.0
 *
 * The grids of attention_grid.h. A case's number is read as digits, each the choice of one
 * property.
 */
#include "support/attention_grid.h"

#define COUNT(array)   (uint32_t)(sizeof(array) / sizeof(*(array)))
#define PICK(i, array) ((array)[digit(i, COUNT(array))])

struct pair {
    uint32_t rows, tokens;
};

/* The lowest digit of *i in base n; the others move down. */
static uint32_t digit(uint32_t *i, uint32_t n)
{
    uint32_t d = *i % n;

    *i /= n;
    return d;
}

static void pick_batch(struct kvt_attention_case *c, struct pair pair, uint32_t seq_count)
{
    c->row_count = pair.rows;
    c->length = pair.tokens;
    c->seq_count = seq_count;
}

static void pick_heads(struct kvt_attention_case *c, uint32_t heads, uint32_t kv_heads,
                       uint32_t dim)
{
    c->heads = heads;
    c->kv_heads = kv_heads;
    c->dim_k = dim;
}

/* none, causal, window */
static void pick_mask(struct kvt_attention_case *c, uint32_t mask)
{
    c->flags = mask ? KVA_CAUSAL : 0;
    c->window_tokens = mask == 2 ? 1 + c->length / 3 : 0;
}

/* ---- FlashAttention-3: output, ragged, against a cache ---- */

static bool flash_output(uint32_t i, struct kvt_attention_case *c)
{
    static const struct pair pairs[] = {
        {1, 1},     {64, 128},    {128, 192},   {256, 256},   {239, 1},     {799, 3},    {113, 203},
        {113, 128}, {128, 217},   {113, 211},   {108, 256},   {256, 512},   {384, 256},  {640, 128},
        {512, 256}, {1024, 1024}, {1023, 1024}, {1024, 1023}, {4096, 4096}, {4224, 4224}};
    static const uint32_t kv_heads[] = {6, 2, 1};
    static const uint32_t dims[] = {64, 128, 96, 256, 192, 80, 191 + 1};
    uint32_t dim;

    pick_batch(c, PICK(&i, pairs), 1);
    c->seq_count = c->length > 2048 ? 2 : 9;
    pick_mask(c, digit(&i, 3));
    pick_heads(c, 6, PICK(&i, kv_heads), 0);
    dim = digit(&i, COUNT(dims));
    c->dim_k = dims[dim];
    c->dim_v = dim == 6 ? 128 : 0;
    c->soft_cap = digit(&i, 2) ? 15 : 0;
    c->dtype = digit(&i, 2) ? KVMEM_DTYPE_FP16 : KVMEM_DTYPE_BF16;
    c->block_tokens = 64;
    c->layout = KVT_LAYOUT_CONTIGUOUS;
    return i == 0;
}

static bool flash_ragged(uint32_t i, struct kvt_attention_case *c)
{
    static const struct pair pairs[] = {
        {1, 1},     {1, 3},     {2, 1},     {511, 1},   {3, 513},     {64, 128},
        {128, 128}, {256, 256}, {113, 203}, {128, 217}, {113, 211},   {108, 256},
        {256, 512}, {307, 256}, {640, 128}, {512, 256}, {1024, 1024}, {1023, 1024}};
    static const uint32_t kv_heads[] = {6, 2, 1};
    static const uint32_t dims[] = {64, 128, 256, 96};
    static const uint32_t blocks[] = {16, 64, 128};

    pick_batch(c, PICK(&i, pairs), 9);
    c->is_ragged = true;
    pick_mask(c, digit(&i, 3));
    pick_heads(c, 6, PICK(&i, kv_heads), PICK(&i, dims));
    c->soft_cap = digit(&i, 2) ? 15 : 0;
    c->block_tokens = PICK(&i, blocks);
    c->has_padded_rows = true;
    return i == 0;
}

static bool flash_cache(uint32_t i, struct kvt_attention_case *c)
{
    static const struct pair pairs[] = {{1, 128},   {1, 339},   {3, 1024},   {64, 800},
                                        {64, 256},  {3, 799},   {64, 2048},  {16, 20000},
                                        {128, 128}, {256, 512}, {2048, 3577}};
    static const uint32_t kv_heads[] = {6, 3, 1};
    static const uint32_t blocks[] = {16, 128, 8, 4, 1};

    pick_batch(c, PICK(&i, pairs), 5);
    pick_mask(c, digit(&i, 3));
    pick_heads(c, 6, PICK(&i, kv_heads), 128);
    c->block_tokens = PICK(&i, blocks);
    c->is_ragged = digit(&i, 2);
    c->dtype = digit(&i, 2) ? KVMEM_DTYPE_FP16 : KVMEM_DTYPE_BF16;
    return i == 0;
}

/* ---- FlashMLA ---- */

static bool latent_dense(uint32_t i, struct kvt_attention_case *c)
{
    static const uint32_t seqs[] = {1, 2, 6};
    static const uint32_t rows[] = {1, 2, 4};
    static const uint32_t tokens[] = {20, 140, 4096};
    static const uint32_t heads[] = {1, 3, 9, 63, 64, 126, 128, 16};

    pick_batch(c, (struct pair){PICK(&i, rows), PICK(&i, tokens)}, PICK(&i, seqs));
    pick_heads(c, PICK(&i, heads), 1, 576);
    c->dim_v = 512;
    c->is_latent = true;
    c->flags = digit(&i, 2) ? KVA_CAUSAL : 0;
    c->is_ragged = digit(&i, 2);
    c->block_tokens = 64;
    return i == 0;
}

/* ---- FlashInfer: decode, prefill, MLA ---- */

static bool infer_decode(uint32_t i, struct kvt_attention_case *c)
{
    static const uint32_t seqs[] = {12, 17, 128};
    static const uint32_t tokens[] = {54, 97, 512, 2048, 16384};
    static const uint32_t blocks[] = {1, 8, 16};
    static const uint32_t heads[] = {4, 32};
    static const uint32_t dims[] = {128, 256};

    pick_batch(c, (struct pair){1, PICK(&i, tokens)}, PICK(&i, seqs));
    c->block_tokens = PICK(&i, blocks);
    pick_heads(c, PICK(&i, heads), 4, PICK(&i, dims));
    c->layout = 1 + digit(&i, 2);
    c->dtype = digit(&i, 2) ? KVMEM_DTYPE_BF16 : KVMEM_DTYPE_FP16;
    return i == 0;
}

static bool infer_prefill(uint32_t i, struct kvt_attention_case *c)
{
    static const uint32_t seqs[] = {12, 17, 128};
    static const uint32_t tokens[] = {54, 97, 512, 2048};
    static const uint32_t rows[] = {37, 17, 127, 577};
    static const uint32_t blocks[] = {1, 5, 16};
    static const uint32_t dims[] = {64, 128, 256};
    static const uint32_t heads[] = {4, 32};

    pick_batch(c, (struct pair){PICK(&i, rows), PICK(&i, tokens)}, PICK(&i, seqs));
    c->block_tokens = PICK(&i, blocks);
    pick_heads(c, PICK(&i, heads), 4, PICK(&i, dims));
    c->flags = digit(&i, 2) ? KVA_CAUSAL : 0;
    c->soft_cap = digit(&i, 2) ? 30 : 0;
    c->layout = 1 + digit(&i, 2);
    c->dtype = KVMEM_DTYPE_FP16;
    return i == 0;
}

static bool infer_latent(uint32_t i, struct kvt_attention_case *c)
{
    static const uint32_t seqs[] = {1, 3, 5, 7, 157};
    static const uint32_t tokens[] = {0, 17, 33, 96, 97, 114, 514, 1024};
    static const uint32_t blocks[] = {1, 16};

    pick_batch(c, (struct pair){1 + 2 * digit(&i, 9), PICK(&i, tokens)}, PICK(&i, seqs));
    c->block_tokens = PICK(&i, blocks);
    pick_heads(c, 16, 1, 576);
    c->dim_v = 512;
    c->is_latent = true;
    c->flags = digit(&i, 2) ? KVA_CAUSAL : 0;
    c->dtype = digit(&i, 2) ? KVMEM_DTYPE_BF16 : KVMEM_DTYPE_FP16;
    return i == 0;
}

/* ---- our own ---- */

/* Around blocks and tiles, with the rows of decode and speculation; some rows lie before token 0.
 */
static bool edges(uint32_t i, struct kvt_attention_case *c)
{
    static const uint32_t tokens[] = {0,  1,  2,  15, 16,  17,  31,  32,  33,  47,
                                      63, 64, 65, 79, 127, 128, 129, 255, 256, 257};
    static const uint32_t blocks[] = {16, 64, 8, 32};
    static const uint32_t groups[] = {1, 4, 8};

    pick_batch(c, (struct pair){0, PICK(&i, tokens)}, 3);
    c->row_count = 1 + digit(&i, 8);
    c->block_tokens = PICK(&i, blocks);
    pick_mask(c, digit(&i, 3));
    c->kv_heads = 2;
    c->heads = 2 * PICK(&i, groups);
    c->dim_k = digit(&i, 2) ? 64 : 128;
    c->is_ragged = digit(&i, 2);
    return i == 0;
}

/* Every mask alone and with others, where one token too many or too few shows. */
static bool exact_masks(uint32_t i, struct kvt_attention_case *c)
{
    static const struct pair pairs[] = {{1, 100}, {1, 513}, {8, 33},
                                        {5, 260}, {70, 70}, {130, 300}};
    static const uint32_t windows[] = {0, 1, 7, 64, 100, 1000};
    static const uint32_t types[] = {KVMEM_DTYPE_BF16, KVMEM_DTYPE_FP16, KVMEM_DTYPE_FP8_E4M3,
                                     KVMEM_DTYPE_INT8};
    uint32_t mask;

    c->fill = 1 + digit(&i, 2);
    pick_batch(c, PICK(&i, pairs), 3);
    mask = digit(&i, 3);
    c->flags = mask == 1 ? KVA_CAUSAL : 0;
    c->has_tree = mask == 2 && c->row_count <= 64;
    c->window_tokens = PICK(&i, windows);
    if (!c->flags && !c->has_tree)
        c->window_tokens = 0;
    c->cache_dtype = PICK(&i, types);
    c->dtype = c->cache_dtype == KVMEM_DTYPE_FP16 ? KVMEM_DTYPE_FP16 : KVMEM_DTYPE_BF16;
    pick_heads(c, 8, 2, digit(&i, 2) ? 64 : 128);
    c->is_ragged = digit(&i, 2);
    c->layout = 1 + digit(&i, KVT_LAYOUT_END - 1);
    return i == 0;
}

/* Sinks, slopes, caps and trees in all combinations. */
static bool features(uint32_t i, struct kvt_attention_case *c)
{
    static const struct pair pairs[] = {{1, 77}, {4, 200}, {33, 130}, {8, 8}, {60, 300}};
    static const uint32_t groups[] = {1, 4, 16};
    uint32_t mask;

    pick_batch(c, PICK(&i, pairs), 3);
    c->has_sinks = digit(&i, 2);
    c->has_slopes = digit(&i, 2);
    c->soft_cap = digit(&i, 2) ? 5 : 0;
    mask = digit(&i, 4);
    c->flags = mask & 1 ? KVA_CAUSAL : 0;
    c->has_tree = mask == 2;
    c->window_tokens = mask >= 2 ? 40 : 0;
    pick_heads(c, 0, 2, digit(&i, 2) ? 64 : 128);
    c->heads = 2 * PICK(&i, groups);
    c->softmax_scale = digit(&i, 2) ? 0.5f : 0;
    c->is_ragged = digit(&i, 2);
    c->flags |= digit(&i, 2) ? KVA_BATCH_INVARIANT : 0;
    c->has_padded_rows = c->is_ragged;
    return i == 0;
}

static bool trees(uint32_t i, struct kvt_attention_case *c)
{
    static const uint32_t tokens[] = {300, 64, 8, 65};

    pick_batch(c, (struct pair){1 + digit(&i, 64), PICK(&i, tokens)}, 2);
    pick_heads(c, 8, 2, 128);
    c->has_tree = true;
    c->is_ragged = digit(&i, 2);
    c->window_tokens = digit(&i, 2) ? 50 : 0;
    return i == 0;
}

static bool quantised(uint32_t i, struct kvt_attention_case *c)
{
    static const struct pair pairs[] = {{1, 150}, {5, 70}, {40, 200}, {1, 1000}};
    static const uint32_t dims[] = {128, 64, 256, 96};
    static const uint32_t groups[] = {4, 1, 8};

    c->cache_dtype = digit(&i, 2) ? KVMEM_DTYPE_INT8 : KVMEM_DTYPE_FP8_E4M3;
    c->scale_mode = 1 + digit(&i, 3);
    pick_batch(c, PICK(&i, pairs), 3);
    c->scale_dtype = KVMEM_DTYPE_BF16 + digit(&i, 3);
    c->has_scales_inside = digit(&i, 2);
    pick_heads(c, 0, 2, PICK(&i, dims));
    c->heads = 2 * PICK(&i, groups);
    c->layout = 1 + digit(&i, KVT_LAYOUT_END - 1);
    c->dtype = digit(&i, 2) ? KVMEM_DTYPE_FP16 : KVMEM_DTYPE_BF16;
    c->flags = digit(&i, 2) ? KVA_CAUSAL : 0;
    return i == 0;
}

static bool layouts(uint32_t i, struct kvt_attention_case *c)
{
    static const struct pair pairs[] = {{1, 333}, {6, 90}, {50, 120}};
    static const uint32_t blocks[] = {16, 8, 64, 128, 192};
    static const uint32_t layers[] = {1, 2, 5};

    c->layout = 1 + digit(&i, KVT_LAYOUT_END - 1);
    pick_batch(c, PICK(&i, pairs), 4);
    c->block_tokens = PICK(&i, blocks);
    c->layers = PICK(&i, layers);
    pick_heads(c, 8, digit(&i, 2) ? 8 : 2, 128);
    c->has_shared_blocks = digit(&i, 2);
    c->spread = 1 + 2 * digit(&i, 2);
    c->is_ragged = digit(&i, 2);
    c->flags = KVA_CAUSAL;
    return i == 0;
}

static bool taints(uint32_t i, struct kvt_attention_case *c)
{
    static const struct pair pairs[] = {{1, 100}, {4, 40}, {80, 90}, {1, 1}};

    c->taint = 1 + digit(&i, KVT_TAINT_END - 1);
    pick_batch(c, PICK(&i, pairs), 4);
    pick_heads(c, 8, 2, 128);
    c->is_ragged = digit(&i, 2);
    c->flags = digit(&i, 2) ? KVA_CAUSAL : 0;
    c->dtype = digit(&i, 2) ? KVMEM_DTYPE_FP16 : KVMEM_DTYPE_BF16;
    return i == 0;
}

/* Scales of tokens that a row does not see may be NaN: a window's edge, a tree, the next rows. */
static bool wild_scales(uint32_t i, struct kvt_attention_case *c)
{
    static const struct pair pairs[] = {{1, 500}, {4, 130}, {2, 1000}, {40, 200}};
    static const uint32_t windows[] = {70, 0, 1, 300};

    c->has_wild_scales = true;
    c->scale_mode = KVMEM_SCALE_TOKEN_HEAD;
    c->cache_dtype = digit(&i, 2) ? KVMEM_DTYPE_INT8 : KVMEM_DTYPE_FP8_E4M3;
    pick_batch(c, PICK(&i, pairs), 3);
    c->window_tokens = PICK(&i, windows);
    c->has_tree = digit(&i, 2);
    c->flags = c->has_tree ? 0 : KVA_CAUSAL;
    pick_heads(c, 0, 2, digit(&i, 2) ? 64 : 128);
    c->heads = digit(&i, 2) ? 2 : 16;
    c->is_ragged = digit(&i, 2);
    return i == 0;
}

/* A cap that hardly bends: it must not cost the score its digits. */
static bool large_caps(uint32_t i, struct kvt_attention_case *c)
{
    static const struct pair pairs[] = {{1, 77}, {4, 200}, {33, 130}, {200, 300}};
    static const uint32_t types[] = {KVMEM_DTYPE_BF16, KVMEM_DTYPE_FP16, KVMEM_DTYPE_FP8_E4M3};
    static const float caps[] = {1e6f, 3e3f, 60};

    pick_batch(c, PICK(&i, pairs), 3);
    c->soft_cap = PICK(&i, caps);
    c->cache_dtype = PICK(&i, types);
    c->dtype = c->cache_dtype == KVMEM_DTYPE_FP16 ? KVMEM_DTYPE_FP16 : KVMEM_DTYPE_BF16;
    c->flags = digit(&i, 2) ? KVA_CAUSAL : 0;
    c->is_latent = digit(&i, 3) == 2 && c->cache_dtype == KVMEM_DTYPE_BF16;
    pick_heads(c, 8, c->is_latent ? 1 : 2, c->is_latent ? 576 : 128);
    c->dim_v = c->is_latent ? 512 : 0;
    return i == 0;
}

/* Any dims and blocks, fp32, mixed types. */
static bool cpu_odd(uint32_t i, struct kvt_attention_case *c)
{
    static const struct pair pairs[] = {{1, 150}, {9, 60}, {70, 100}};
    static const uint32_t dims[] = {1, 7, 37, 64, 100, 128, 300, 600};
    static const uint32_t blocks[] = {1, 3, 16, 100};

    pick_batch(c, PICK(&i, pairs), 3);
    c->dtype = KVMEM_DTYPE_FP32;
    c->cache_dtype = 1 + digit(&i, 5);
    pick_heads(c, 6, digit(&i, 2) ? 3 : 1, PICK(&i, dims));
    c->dim_v = digit(&i, 2) ? c->dim_k / 2 + 1 : 0;
    c->block_tokens = PICK(&i, blocks);
    c->layout = 1 + digit(&i, KVT_LAYOUT_END - 1);
    c->flags = digit(&i, 2) ? KVA_CAUSAL : 0;
    c->dtype = digit(&i, 2) ? KVMEM_DTYPE_FP32 : 1 + i % 2;
    return i == 0;
}

#define GRID(name) {#name, name, false},

const struct kvt_attention_grid kvt_attention_grids[] = {
    /* clang-format off */
    KVT_ATTENTION_GRIDS(GRID)
    /* clang-format on */
    {"cpu_odd", cpu_odd, true},
    {NULL, NULL, false},
};
