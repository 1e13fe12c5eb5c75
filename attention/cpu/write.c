/* SPDX-License-Identifier: Apache-2.0
 *
 * Writing K and V on the CPU. A piece of work is a layer's next TOKENS_A_PIECE tokens; a vector
 * (token, head) is either copied, or taken through a row of floats: loaded, turned, scaled, stored.
 */
#include <float.h>
#include <inttypes.h>

#include "element.h"
#include "parallel.h"

#define TOKENS_A_PIECE 32u
#define DIM_LIMIT      4096u /* as kva_check_write has it */

/* K or V: where its vectors come from and go to. */
struct side {
    const char *from;
    uint64_t from_layer;
    uint64_t from_token;
    uint64_t from_head;
    char *to;
    char *scale;
    uint64_t head_stride;
    uint64_t token_stride;
    uint32_t dim;
    uint32_t rotary_dim; /* 0 for V */
};

struct job {
    const struct kva_write *what;
    uint32_t layer;
    uint32_t pieces; /* a layer */
    uint32_t side_count;
    struct side sides[2];
};

static int check_slots(const struct kva_write *what)
{
    int64_t limit = (int64_t)what->cache.block_count * what->cache.block_tokens;

    for (uint32_t t = 0; t < what->token_count; t++)
        if (what->slots[t] >= limit)
            return kva_error_set(KVMEM_E_INVALID,
                                 "slots[%u]: %" PRId64 " is not below the %" PRId64
                                 " of cache.block_count × block_tokens",
                                 t, what->slots[t], limit);
    return 0;
}

/* Turn the pairs of one vector; each product and sum is rounded on its own, as on a GPU. */
static void rotate(const struct kva_write *what, uint32_t token, float *vector)
{
    uint32_t half = what->rotary_dim / 2;
    int64_t position = what->positions[token];
    const float *cosines, *sines;

    if (position < 0)
        position = 0;
    if (position >= what->rotary_limit)
        position = what->rotary_limit - 1;
    cosines = what->rotary_cos_sin + (uint64_t)position * what->rotary_dim;
    sines = cosines + half;
    vector += what->rotary_first;
    for (uint32_t i = 0; i < half; i++) {
        float *a = what->rotary_interleaved ? &vector[2 * i] : &vector[i];
        float *b = what->rotary_interleaved ? &vector[2 * i + 1] : &vector[half + i];
        float ac = *a * cosines[i], bs = *b * sines[i];
        float as = *a * sines[i], bc = *b * cosines[i];

        *a = ac - bs;
        *b = as + bc;
    }
}

/* The scale that takes the largest magnitude, NaN aside, to the end of the type's range. */
static float scale_for(const struct kva_cache *cache, const float *vector, uint32_t dim)
{
    float largest = 0;
    float limit = cache->scale_dtype == KVMEM_DTYPE_FP16 ? 65504.0f : 0x1.fep127f;

    for (uint32_t d = 0; d < dim; d++)
        largest = fmaxf(largest, fabsf(vector[d]));
    return fminf(largest / (cache->dtype == KVMEM_DTYPE_INT8 ? 127.0f : 448.0f), limit);
}

static float read_or_store_scale(const struct kva_cache *cache, const struct side *side,
                                 uint64_t at, const float *vector)
{
    float scale;

    if (cache->scale_token_stride) {
        scale = scale_for(cache, vector, side->dim);
        kva_store(cache->scale_dtype, side->scale, at, 1, &scale);
    }
    kva_load(cache->scale_dtype, side->scale, at, 1, &scale, 1);
    return scale;
}

/* A scale of 0 (all elements are), or one that is no number, makes zeros. */
static void divide(float scale, float *vector, uint32_t dim)
{
    float inverse = fabsf(scale) >= FLT_MIN ? 1.0f / scale : 0.0f;

    for (uint32_t d = 0; d < dim; d++)
        vector[d] *= inverse;
}

/* One vector: source element `from`, target element `to`, scale element `scale`. */
struct vector_place {
    uint64_t from;
    uint64_t to;
    uint64_t scale;
};

static void write_vector(const struct kva_write *what, const struct side *side, uint32_t token,
                         const struct vector_place *at)
{
    const struct kva_cache *cache = &what->cache;
    uint32_t bytes = kva_element_bytes(cache->dtype);
    float vector[DIM_LIMIT];

    if (what->dtype == cache->dtype && !side->rotary_dim) {
        memcpy(side->to + at->to * bytes, side->from + at->from * bytes,
               (uint64_t)side->dim * bytes);
        return;
    }
    kva_load(what->dtype, side->from, at->from, side->dim, vector, 1);
    if (side->rotary_dim)
        rotate(what, token, vector);
    if (bytes == 1)
        divide(read_or_store_scale(cache, side, at->scale, vector), vector, side->dim);
    kva_store(cache->dtype, side->to, at->to, side->dim, vector);
}

static void write_token(const struct job *job, uint32_t l, uint32_t token)
{
    const struct kva_cache *cache = &job->what->cache;
    uint64_t slot = (uint64_t)job->what->slots[token];
    uint64_t block = slot / cache->block_tokens, place = slot % cache->block_tokens;
    uint64_t layer = job->layer + l;

    for (const struct side *side = job->sides; side < job->sides + job->side_count; side++)
        for (uint32_t g = 0; g < cache->kv_head_count; g++) {
            struct vector_place at = {
                l * side->from_layer + token * side->from_token + g * side->from_head,
                block * cache->block_stride + layer * cache->layer_stride + g * side->head_stride +
                    place * side->token_stride,
                block * cache->scale_block_stride + layer * cache->scale_layer_stride +
                    g * cache->scale_head_stride + place * cache->scale_token_stride};

            write_vector(job->what, side, token, &at);
        }
}

static void write_piece(void *argument, uint32_t i)
{
    const struct job *job = argument;
    uint32_t first = i % job->pieces * TOKENS_A_PIECE;
    uint32_t left = job->what->token_count - first;

    for (uint32_t t = first; t < first + (left < TOKENS_A_PIECE ? left : TOKENS_A_PIECE); t++)
        if (job->what->slots[t] >= 0)
            write_token(job, i / job->pieces, t);
}

int kva_write_cpu(const struct kva_write *what, uint32_t layer, uint32_t layers, const void *k,
                  uint64_t k_layer_stride, const void *v, uint64_t v_layer_stride)
{
    const struct kva_cache *c = &what->cache;
    const struct kva_threads threads = KVA_THREADS_OF(what);
    struct job job = {
        .what = what,
        .layer = layer,
        .pieces = (what->token_count - 1) / TOKENS_A_PIECE + 1,
        .side_count = v && c->v != c->k ? 2 : 1,
        .sides = {{k, k_layer_stride, what->k_token_stride, what->k_head_stride, (char *)c->k,
                   (char *)c->k_scale, c->k_head_stride, c->k_token_stride, c->head_dim_k,
                   what->rotary_dim},
                  {v, v_layer_stride, what->v_token_stride, what->v_head_stride, (char *)c->v,
                   (char *)c->v_scale, c->v_head_stride, c->v_token_stride, c->head_dim_v, 0}}};
    int code = check_slots(what);

    if (code)
        return code;
    kva_parallel(&threads, job.pieces * layers, write_piece, &job);
    return 0;
}
