/* SPDX-License-Identifier: Apache-2.0
 *
 * What the host hands to Hopper's decode kernels, and which of them there are.
 */
#ifndef KVA_HOPPER_LAUNCH_CUH
#define KVA_HOPPER_LAUNCH_CUH

#include <cuda.h>
#include <cuda_runtime.h>

#include "plan.cuh"

static constexpr uint32_t hopper_tile_tokens = 64;
static constexpr uint32_t hopper_math_threads = 128;
static constexpr uint32_t hopper_decode_threads = hopper_math_threads + 32;
static constexpr float log2_of_e = 1.44269504f;

struct hopper_decode {
    /* (block, head, half, token, 128 bytes) of one layer; a box is `box_rows` tokens of one head */
    CUtensorMap k_map;
    CUtensorMap v_map;
    struct kva_plan plan;
    struct kva_plan_view work;
    const int32_t *tables;
    uint32_t table_stride;
    uint32_t block_tokens;
    uint32_t block_count;
    uint32_t box_rows;
    float scale;    /* of scores, in units of log 2 */
    float soft_cap; /* the same units; 0 = none */
    const float *sinks;
    const float *alibi_slopes;
    const uint64_t *tree_mask;
    const void *q;
    void *out;
    float *lse;
    uint64_t q_token_stride;
    uint64_t q_head_stride;
    uint64_t out_token_stride;
    uint64_t out_head_stride;
    /* Quantised K and V only. */
    const void *k_scale; /* of this layer */
    const void *v_scale;
    uint32_t scale_dtype;
    uint64_t scale_block_stride;
    uint64_t scale_head_stride;
    uint64_t scale_token_stride;
};

/* A kernel for (dtype, cache dtype, head dim), and up to `columns` rows × heads. */
struct hopper_decode_kernel {
    const void *entry;
    uint32_t columns;
    uint32_t shared_bytes;
    uint32_t blocks_per_sm;
};

/* {0} where there is none. */
hopper_decode_kernel hopper_decode_bf16(uint32_t head_dim, uint32_t columns);
hopper_decode_kernel hopper_decode_fp16(uint32_t head_dim, uint32_t columns);
/* Head dim 128; q and out of type `dtype`. */
hopper_decode_kernel hopper_decode_fp8(uint32_t dtype, uint32_t columns);
hopper_decode_kernel hopper_decode_int8(uint32_t dtype, uint32_t columns);

#endif
