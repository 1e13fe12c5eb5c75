/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention as the definition says it, to hold other code against: plain C, one element at a
 * time, every sum in double. It reads K and V where they lie, through a block table.
 *
 *   out[h] = Σ_t softmax_t(scale · q[h] · K[t, g]) V[t, g],   g = h ÷ (query heads ÷ K/V heads)
 *
 * (Grouped-query attention: Ainslie et al. 2023; MHA and MQA are its ends. The softmax keeps a
 * running maximum, Milakov and Gimelshein 2018.)
 */
#ifndef KVA_REFERENCE_H
#define KVA_REFERENCE_H

#include <stdint.h>

#include <kvmem/types.h>

/* Where one layer's K and V lie; strides and offsets in bytes. Element d of token t of head g in
 * block i is at k + i × block_stride + g × k_head_stride + (t % block_tokens) × k_token_stride
 * + d × element. */
struct kva_layer {
    const void *k; /* K of this layer in block 0 */
    const void *v;
    uint64_t block_stride_bytes;
    uint64_t k_head_stride_bytes;
    uint64_t k_token_stride_bytes;
    uint64_t v_head_stride_bytes;
    uint64_t v_token_stride_bytes;
    uint32_t dtype; /* KVMEM_DTYPE_BF16, FP16 or FP32 */
    uint32_t block_tokens;
    uint32_t kv_head_count;
    uint32_t head_dim; /* of K and of V */
};

/* One query position that sees tokens 0 .. length − 1. table (ceil(length ÷ block_tokens)) int32;
 * query (query_head_count, head_dim) float; out (query_head_count, head_dim) double.
 * 0, or KVMEM_E_INVALID: dtype, length 0, query heads that are no multiple of the K/V heads, or a
 * negative index in the table. Pure. */
KVMEM_API int kva_reference_decode(const struct kva_layer *layer, const int32_t *table,
                                   uint32_t length, const float *query, uint32_t query_head_count,
                                   double softmax_scale, double *out);

/* Element `index` of an array of `dtype` (BF16, FP16, FP32); exact. */
KVMEM_API double kva_reference_element(uint32_t dtype, const void *array, uint32_t index);

#endif
