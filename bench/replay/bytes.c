/* SPDX-License-Identifier: Apache-2.0
 *
 * The functions of bytes.h.
 */
#include "bytes.h"

#include <string.h>

#define VECTOR_WORDS_LIMIT (4096u * 4 / 8)

/* "lowbias32" (Wellons 2018): a permutation, so that positions of an id never coincide. */
static inline uint32_t mix32(uint32_t x)
{
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

static inline uint32_t token_at(uint64_t seed, uint32_t position)
{
    return mix32((uint32_t)seed + position * 0x9e3779b9u) ^ (uint32_t)(seed >> 32);
}

static void fill_tokens(uint64_t id, uint32_t count, uint32_t *tokens)
{
    uint64_t seed = kvb_mix64(id + KVB_GOLDEN);
    uint32_t at = 0;

    for (; at + 16 <= count; at += 16) /* a fixed count, so that the compiler makes vectors */
        for (uint32_t i = 0; i < 16; i++)
            tokens[at + i] = token_at(seed, at + i);
    for (; at < count; at++)
        tokens[at] = token_at(seed, at);
}

void kvb_tokens_of_prompt(const struct kvb_trace *trace, const struct kvb_request *request,
                          uint32_t *tokens)
{
    uint32_t done = 0;

    for (uint32_t i = 0; i < request->id_count; i++) {
        uint32_t count = request->prompt_tokens - done;

        if (count > trace->tokens_per_id)
            count = trace->tokens_per_id;
        fill_tokens(trace->ids[request->first_id + i], count, tokens + done);
        done += count;
    }
}

uint32_t kvb_token_of_output(uint32_t number, uint32_t position)
{
    return token_at(kvb_mix64(~(uint64_t)number), position);
}

void kvb_history_fill(const uint32_t *tokens, uint32_t first, uint32_t end, uint64_t *history)
{
    uint64_t now = first == 0 ? KVB_HISTORY_ROOT : history[first - 1];

    for (uint32_t i = first; i < end; i++) {
        now = kvb_history_next(now, tokens[i]);
        history[i] = now;
    }
}

void kvb_shape_init(struct kvb_shape *shape, const struct kvb_model *model,
                    const struct kvmem_geometry *geometry)
{
    shape->model = *model;
    shape->geometry = *geometry;
    shape->vector_bytes = model->head_dim * kvmem_dtype_bytes((enum kvmem_dtype)model->dtype);
    switch (model->dtype) {
    case KVMEM_DTYPE_BF16: /* exponents 124 .. 127 of 8 bits */
        shape->keep = 0x81ff81ff81ff81ffull;
        shape->set = 0x3e003e003e003e00ull;
        break;
    case KVMEM_DTYPE_FP16: /* exponents 12 .. 15 of 5 bits */
        shape->keep = 0x8fff8fff8fff8fffull;
        shape->set = 0x3000300030003000ull;
        break;
    default:
        shape->keep = 0x81ffffff81ffffffull;
        shape->set = 0x3e0000003e000000ull;
        break;
    }
}

void kvb_vector(const struct kvb_shape *shape, uint64_t history, uint32_t layer, uint32_t is_v,
                uint32_t head, uint64_t *out)
{
    uint64_t seed = kvb_vector_seed(shape, history, layer, is_v, head);
    uint32_t words = (shape->vector_bytes + 7) / 8;

    for (uint32_t i = 0; i < words; i++)
        out[i] = kvb_vector_word(shape, seed, i);
}

/* One token into its slot. */
static void write_token(const struct kvb_shape *shape, char *block, uint32_t slot, uint64_t history)
{
    uint64_t vector[VECTOR_WORDS_LIMIT];

    for (uint32_t layer = 0; layer < shape->model.layers; layer++)
        for (uint32_t is_v = 0; is_v <= 1; is_v++)
            for (uint32_t head = 0; head < shape->model.kv_heads; head++) {
                kvb_vector(shape, history, layer, is_v, head, vector);
                memcpy(block + kvb_vector_offset(shape, slot, layer, is_v, head), vector,
                       shape->vector_bytes);
            }
}

void kvb_write(const struct kvb_shape *shape, char *base, const int32_t *table,
               const uint64_t *history, uint32_t first, uint32_t end)
{
    uint32_t block_tokens = shape->model.block_tokens;

    for (uint32_t i = first; i < end; i++)
        write_token(shape,
                    base + (uint64_t)table[i / block_tokens] * shape->geometry.index_stride_bytes,
                    i % block_tokens, history[i]);
}

static uint64_t count_differences(const char *seen, const char *right, uint32_t bytes)
{
    uint64_t wrong = 0;

    if (memcmp(seen, right, bytes) == 0)
        return 0;
    for (uint32_t i = 0; i < bytes; i++)
        wrong += seen[i] != right[i];
    return wrong;
}

static uint64_t check_token(const struct kvb_shape *shape, const char *block, uint32_t slot,
                            uint64_t history)
{
    uint64_t vector[VECTOR_WORDS_LIMIT];
    uint64_t wrong = 0;

    for (uint32_t layer = 0; layer < shape->model.layers; layer++)
        for (uint32_t is_v = 0; is_v <= 1; is_v++)
            for (uint32_t head = 0; head < shape->model.kv_heads; head++) {
                kvb_vector(shape, history, layer, is_v, head, vector);
                wrong +=
                    count_differences(block + kvb_vector_offset(shape, slot, layer, is_v, head),
                                      (const char *)vector, shape->vector_bytes);
            }
    return wrong;
}

uint64_t kvb_count_wrong_bytes(const struct kvb_shape *shape, const struct kvb_view *view,
                               const uint64_t *history, uint32_t first, uint32_t end)
{
    uint32_t block_tokens = shape->model.block_tokens;
    uint64_t token_bytes = shape->geometry.block_bytes / block_tokens;
    uint64_t wrong = 0;

    for (uint32_t i = first; i < end; i++) {
        uint32_t at = i / block_tokens;

        if (at >= view->block_count || view->table[at] < 0 || i >= view->length)
            wrong += token_bytes;
        else
            wrong += check_token(
                shape, view->base + (uint64_t)view->table[at] * shape->geometry.index_stride_bytes,
                i % block_tokens, history[i]);
    }
    return wrong;
}
