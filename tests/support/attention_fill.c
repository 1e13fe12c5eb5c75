/* SPDX-License-Identifier: Apache-2.0
 *
 * What the arrays of a scene hold. Values of K and V are random numbers of their type; what they
 * mean is for the reference to say.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../../attention/cpu/element.h"
#include "support/attention_scene.h"
#include "support/random.h"

/* Nearly normal, of deviation 1: four uniform numbers. */
static float normal(uint64_t *seed)
{
    uint64_t bits = kvt_random(seed);
    uint32_t sum = (uint32_t)(bits & 0xffff) + (uint32_t)(bits >> 16 & 0xffff) +
                   (uint32_t)(bits >> 32 & 0xffff) + (uint32_t)(bits >> 48);

    return ((float)sum / 65536.0f - 2.0f) * 1.7320508f;
}

static void random_row(uint32_t dtype, void *to, uint64_t first, uint32_t count, uint64_t *seed)
{
    for (uint32_t d = 0; d < count; d++) {
        float value = normal(seed);

        if (dtype == KVMEM_DTYPE_INT8)
            ((int8_t *)to)[first + d] = (int8_t)(value * 36);
        else if (dtype == KVMEM_DTYPE_FP8_E4M3) /* exponents −5 .. 2, any fraction and sign */
            ((uint8_t *)to)[first + d] = (uint8_t)((kvt_random(seed) & 0xbf) + 0x10);
        else
            kva_store(dtype, to, first + d, 1, &value);
    }
}

/* Elements 0 .. count − 1 are 0 but for number `one`. */
static void one_hot_row(uint32_t dtype, void *to, uint64_t first, uint32_t count, uint32_t one,
                        double value)
{
    for (uint32_t d = 0; d < count; d++)
        kva_reference_store(dtype, to, first + d, d == one ? value : 0);
}

static void fill_k(const struct kvt_attention_scene *s, uint64_t first, uint32_t t, uint64_t *seed)
{
    const struct kva_cache *c = &s->host.cache;
    void *k = (void *)(uintptr_t)c->k;

    switch (s->c.fill) {
    case KVT_FILL_RANDOM: random_row(c->dtype, k, first, c->head_dim_k, seed); break;
    case KVT_FILL_EVEN:
        one_hot_row(c->dtype, k, first, c->head_dim_k, s->c.is_latent ? t % c->head_dim_v : ~0u, 1);
        break;
    case KVT_FILL_ONE_HOT:
        one_hot_row(c->dtype, k, first, c->head_dim_k, t % c->head_dim_k, 1);
        break;
    }
}

static void fill_v(const struct kvt_attention_scene *s, uint64_t first, uint32_t t, uint64_t *seed)
{
    const struct kva_cache *c = &s->host.cache;
    void *v = (void *)(uintptr_t)c->v;

    switch (s->c.fill) {
    case KVT_FILL_RANDOM: random_row(c->dtype, v, first, c->head_dim_v, seed); break;
    case KVT_FILL_EVEN: one_hot_row(c->dtype, v, first, c->head_dim_v, t % c->head_dim_v, 1); break;
    case KVT_FILL_ONE_HOT:
        for (uint32_t d = 0; d < c->head_dim_v; d++)
            kva_reference_store(c->dtype, v, first + d, (t * 7 + d) % 16);
        break;
    }
}

/* The last of several rows sees the last token, and no other row; a window hides tokens from all.
 * Where every token has its own scale. */
static bool is_wild(const struct kvt_attention_scene *s, uint32_t n, uint32_t t)
{
    uint32_t rows = kvt_attention_row(s, n + 1) - kvt_attention_row(s, n);
    uint64_t length = (uint64_t)s->host.batch.kv_lengths[n];

    if (!s->c.has_wild_scales || s->c.scale_mode != KVMEM_SCALE_TOKEN_HEAD)
        return false;
    return (rows > 1 && t + UINT64_C(1) == length) ||
           (s->c.window_tokens && (uint64_t)t + s->c.window_tokens + rows <= length);
}

static double pick_scale(const struct kvt_attention_scene *s, uint64_t *seed)
{
    double size = s->c.cache_dtype == KVMEM_DTYPE_INT8 ? 1.0 / 36 : 0.6;

    if (s->c.fill != KVT_FILL_RANDOM)
        return 1;
    return size * (0.5 + (double)(kvt_random(seed) >> 40) / 16777216);
}

static void fill_scales(const struct kvt_attention_scene *s, uint64_t at, bool wild, uint64_t *seed)
{
    const struct kva_cache *c = &s->host.cache;
    double k = pick_scale(s, seed), v = pick_scale(s, seed);

    if (c->dtype < KVMEM_DTYPE_FP8_E4M3)
        return;
    kva_reference_store(c->scale_dtype, (void *)(uintptr_t)c->k_scale, at, wild ? NAN : k);
    kva_reference_store(c->scale_dtype, (void *)(uintptr_t)c->v_scale, at, wild ? NAN : v);
}

/* K, V and scales of token t of sequence n, in the layer that is computed. */
static void fill_token(const struct kvt_attention_scene *s, uint32_t n, uint32_t t, uint64_t *seed)
{
    const struct kva_cache *c = &s->host.cache;
    const struct kva_batch *b = &s->host.batch;
    uint64_t layer = c->layer_count - 1;
    uint64_t slot = t % c->block_tokens;
    uint64_t block = (uint64_t)b->tables[(uint64_t)n * b->table_stride + t / c->block_tokens];
    uint64_t at = block * c->block_stride + layer * c->layer_stride;

    for (uint64_t g = 0; g < c->kv_head_count; g++) {
        fill_k(s, at + g * c->k_head_stride + slot * c->k_token_stride, t, seed);
        if (!s->c.is_latent)
            fill_v(s, at + g * c->v_head_stride + slot * c->v_token_stride, t, seed);
        fill_scales(s,
                    block * c->scale_block_stride + layer * c->scale_layer_stride +
                        g * c->scale_head_stride + slot * c->scale_token_stride,
                    is_wild(s, n, t), seed);
    }
}

static void fill_q(const struct kvt_attention_scene *s, uint64_t *seed)
{
    const struct kva_attention *what = &s->host;
    uint32_t rows = kvt_attention_row(s, what->batch.seq_count);
    uint32_t dims = what->cache.head_dim_k;

    for (uint64_t r = 0; r < rows; r++) {
        for (uint64_t h = 0; h < what->q_head_count; h++) {
            uint64_t at = r * what->q_token_stride + h * what->q_head_stride;

            switch (s->c.fill) {
            case KVT_FILL_RANDOM: random_row(what->dtype, s->q.host, at, dims, seed); break;
            case KVT_FILL_EVEN: one_hot_row(what->dtype, s->q.host, at, dims, 0, 0); break;
            case KVT_FILL_ONE_HOT:
                one_hot_row(what->dtype, s->q.host, at, dims, (uint32_t)(kvt_random(seed) % dims),
                            4096);
                break;
            }
        }
    }
}

/* Each row of a tree sees its own token, and of those before some. */
static void fill_tree(const struct kvt_attention_scene *s, uint64_t *seed)
{
    uint64_t *tree = s->tree.host;

    for (uint32_t n = 0; n < s->host.batch.seq_count; n++) {
        uint32_t first = kvt_attention_row(s, n);
        uint32_t count = kvt_attention_row(s, n + 1) - first;

        for (uint32_t i = 0; i < count; i++) {
            uint64_t before = (UINT64_C(1) << i) - 1;

            tree[first + i] = UINT64_C(1) << i | (kvt_random(seed) & before);
        }
    }
}

/* One token of sequence 0 and K/V head 0 goes bad. */
static void taint(const struct kvt_attention_scene *s, uint64_t *seed)
{
    const struct kva_cache *c = &s->host.cache;
    uint32_t is_v = s->c.taint == KVT_TAINT_V_NAN || s->c.taint == KVT_TAINT_V_INF;
    double value = s->c.taint == KVT_TAINT_K_NAN || s->c.taint == KVT_TAINT_V_NAN ? NAN : INFINITY;
    uint32_t t = s->c.tainted
                     ? s->c.tainted - 1
                     : (uint32_t)(kvt_random(seed) % (uint32_t)s->host.batch.kv_lengths[0]);
    uint64_t at = (uint64_t)s->host.batch.tables[t / c->block_tokens] * c->block_stride +
                  (c->layer_count - 1) * c->layer_stride +
                  t % c->block_tokens * (is_v ? c->v_token_stride : c->k_token_stride);

    for (uint32_t d = 0; d < (is_v ? c->head_dim_v : c->head_dim_k); d++)
        kva_reference_store(c->dtype, (void *)(uintptr_t)(is_v ? c->v : c->k), at + d, value);
}

void kvt_attention_fill(struct kvt_attention_scene *s)
{
    uint64_t seed = s->c.seed;

    for (uint32_t h = 0; h < s->c.heads; h++) {
        ((float *)s->sinks.host)[h] = normal(&seed);
        ((float *)s->slopes.host)[h] = ldexpf(1, -(int)(h % 8) - 1);
    }
    for (uint32_t n = 0; n < s->host.batch.seq_count; n++)
        for (uint32_t t = 0; t < (uint32_t)s->host.batch.kv_lengths[n]; t++)
            fill_token(s, n, t, &seed);
    fill_q(s, &seed);
    if (s->c.has_tree)
        fill_tree(s, &seed);
    if (s->c.taint && s->host.batch.seq_count && s->host.batch.kv_lengths[0])
        taint(s, &seed);
}
