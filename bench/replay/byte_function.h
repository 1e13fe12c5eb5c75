/* SPDX-License-Identifier: Apache-2.0
 *
 * The bytes of K and V, and where they lie: one definition, for C and for CUDA on both of its
 * sides, so that no two writers or checkers can drift apart. bytes.h says what it is good for.
 *
 *   vector of (history, lane) = words 0, 1, ... of 8 bytes, the last one cut to vector_bytes
 *   lane                      = (layer, K or V, head); each has a key of its own
 */
#ifndef KVB_REPLAY_BYTE_FUNCTION_H
#define KVB_REPLAY_BYTE_FUNCTION_H

#include <stdint.h>

#include <kvmem/space.h>

#ifdef __CUDACC__
#define KVB_BOTH_SIDES static inline __host__ __device__
#else
#define KVB_BOTH_SIDES static inline
#endif

#define KVB_GOLDEN 0x9e3779b97f4a7c15ull

/* The model whose K and V are replayed. */
struct kvb_model {
    uint32_t layers;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t dtype; /* BF16, FP16 or FP32 */
    uint32_t block_tokens;
};

/* Its shape and where things lie in a block. */
struct kvb_shape {
    struct kvb_model model;
    struct kvmem_geometry geometry;
    uint32_t vector_bytes; /* of one token's K or V of one head of one layer */
    uint64_t keep;         /* bits of a random word that stay */
    uint64_t set;          /* and those that are set, to make it finite */
};

/* splitmix64's finaliser (Steele, Lea, Flood 2014). */
KVB_BOTH_SIDES uint64_t kvb_mix64(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* What all words of one vector come from. */
KVB_BOTH_SIDES uint64_t kvb_vector_seed(const struct kvb_shape *shape, uint64_t history,
                                        uint32_t layer, uint32_t is_v, uint32_t head)
{
    uint64_t lane = ((uint64_t)layer * 2 + is_v) * shape->model.kv_heads + head;

    return kvb_mix64(history ^ ((lane + 1) * KVB_GOLDEN));
}

KVB_BOTH_SIDES uint64_t kvb_vector_word(const struct kvb_shape *shape, uint64_t seed, uint32_t i)
{
    uint64_t word = (seed + i * KVB_GOLDEN) * 0xd6e8feb86659fd93ull;

    return ((word ^ (word >> 32)) & shape->keep) | shape->set;
}

/* Offset of a vector's place in a block. */
KVB_BOTH_SIDES uint64_t kvb_vector_offset(const struct kvb_shape *shape, uint32_t slot,
                                          uint32_t layer, uint32_t is_v, uint32_t head)
{
    const struct kvmem_geometry *g = &shape->geometry;
    uint64_t offset = layer * g->layer_stride_bytes;

    if (is_v)
        return offset + g->v_offset_bytes + head * g->v_head_stride_bytes +
               slot * g->v_token_stride_bytes;
    return offset + head * g->k_head_stride_bytes + slot * g->k_token_stride_bytes;
}

#endif
