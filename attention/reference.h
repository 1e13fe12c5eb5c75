/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention as <kvmem/attention.h> defines it, to hold other code against: plain C, one element at
 * a time, every sum in double, K and V read where they lie, through the block table. All types,
 * masks, scales and layouts. No tiles, no threads, no tricks.
 *
 *   out[h] = Σ_t softmax_t(scale · q[h] · K[t, g]) V[t, g],   g = h ÷ (query heads ÷ K/V heads)
 *
 * (Scaled dot products: Vaswani et al. 2017, section 3.2.1. Grouped queries: Ainslie et al. 2023.)
 *
 * The same code also tells what a faithful kernel may be off by: KVA_PLAIN rounds as the most
 * straightforward kernel would, with sums in fp32, the weights P rounded to the type of q before
 * they meet V, and the result rounded to that type. Where such a kernel has no error by luck, a
 * struct kva_reference_row says what it might have had.
 */
#ifndef KVA_REFERENCE_H
#define KVA_REFERENCE_H

#include <kvmem/attention.h>

enum kva_precision {
    KVA_EXACT = 0, /* double */
    KVA_PLAIN = 1
};

/* About one row and head. p: the weights of the tokens that it sees, Σ p = 1 without a sink. */
struct kva_reference_row {
    double lse;
    double spread; /* √Σp² × largest |v| seen: 1 ÷ √3 of it, times the unit of rounding, is at
                      least the standard deviation that rounding each p gives a result */
    double magnitude; /* largest |q| |k| · scale of a token seen, and its slope, or the sink: what
                         the rounding errors of scores are in proportion to */
    double value;     /* largest |v| seen */
};

struct kva_reference {
    const struct kva_attention *what; /* with pointers to host memory; `device` is not looked at */
    const void *q;
    uint32_t layer;
    uint32_t row_step; /* do every so many rows, counted from a sequence's last one; 0 = all */
    enum kva_precision precision;
    double softmax_scale;           /* 0 = the description's */
    double *out;                    /* (q_total, q_head_count, head_dim_v) */
    struct kva_reference_row *rows; /* (q_total, q_head_count); may be NULL */
};

/* One query head of sequence n; rows that are left out stay as they are. 0, KVMEM_E_INVALID for a
 * table entry outside 0 .. block_count − 1 below the length, KVMEM_E_NO_MEMORY. The description is
 * not checked. Any thread. */
KVMEM_API int kva_reference_head(const struct kva_reference *job, uint32_t n, uint32_t head);

/* All heads of all sequences. */
KVMEM_API int kva_reference_attention(const struct kva_reference *job);

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

/* One query position that sees tokens 0 .. length − 1, with a scale in double. table
 * (ceil(length ÷ block_tokens)) int32; query (query_head_count, head_dim) float; out
 * (query_head_count, head_dim) double. 0, or KVMEM_E_INVALID: dtype, length 0, query heads that are
 * no multiple of the K/V heads, or a negative index in the table. Pure. */
KVMEM_API int kva_reference_decode(const struct kva_layer *layer, const int32_t *table,
                                   uint32_t length, const float *query, uint32_t query_head_count,
                                   double softmax_scale, double *out);

/* ---- elements of arrays (reference_element.c) ---- */

/* Element `index` of an array of `dtype`; exact. */
KVMEM_API double kva_reference_element(uint32_t dtype, const void *array, uint64_t index);

/* The nearest value that `dtype` has, ties to even; beyond the range infinity for BF16, FP16 and
 * FP32, the largest for FP8_E4M3 and INT8. */
KVMEM_API double kva_reference_round(uint32_t dtype, double value);

/* array[index] = that value. NaN becomes 0 in INT8. */
KVMEM_API void kva_reference_store(uint32_t dtype, void *array, uint64_t index, double value);

/* Half the distance from 1 to the next value: what rounding changes, in proportion, at most. */
KVMEM_API double kva_reference_unit(uint32_t dtype);

#endif
