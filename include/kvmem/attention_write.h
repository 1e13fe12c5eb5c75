/* SPDX-License-Identifier: Apache-2.0
 *
 * Writing K and V into blocks: any layout, rotary embedding and quantisation on the way
 * (libkvmem-attention.so).
 */
#ifndef KVMEM_ATTENTION_WRITE_H
#define KVMEM_ATTENTION_WRITE_H

#include <kvmem/attention.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Where T new tokens go. cache.k, v and scales are write addresses here (see
 * kvmem_space_write_base); with v = k (latent attention) or a NULL source of V only K is written.
 */
struct kva_write {
    uint32_t size;           /* sizeof(struct kva_write) */
    uint32_t device;         /* enum kva_device */
    uint32_t token_count;    /* T: 0 .. 2^24 */
    uint32_t dtype;          /* of the sources: BF16, FP16 or FP32 */
    uint64_t k_token_stride; /* elements; sources (T, kv_head_count, head_dim) */
    uint64_t k_head_stride;
    uint64_t v_token_stride;
    uint64_t v_head_stride;
    /* (T) block × block_tokens + place in it, each at most once (else that slot may hold parts of
     * both). Negative: not written. From block_count × block_tokens on: INVALID before anything is
     * written on the CPU, not written on a GPU. */
    const int64_t *slots;
    /* Rotary embedding of K (RoFormer, section 3.2), in float, before rounding and quantising:
     * elements [rotary_first, rotary_first + rotary_dim). Pairs are (i, i + rotary_dim ÷ 2), or
     * neighbours when interleaved. On a GPU rotary_first is a multiple of 8, rotary_dim of 16. */
    uint32_t rotary_first;
    uint32_t rotary_dim; /* even; 0 = none */
    uint32_t rotary_interleaved;
    uint32_t rotary_limit;       /* rows of rotary_cos_sin */
    const float *rotary_cos_sin; /* (rotary_limit, rotary_dim): cosines, then sines, half each */
    const int32_t *positions;    /* (T), 0 .. rotary_limit − 1, else clamped */
    /* FP8_E4M3 and INT8: scales one a tensor or a head are read, as in the cache; one a token and
     * head (scale_token_stride ≠ 0) are computed, the largest magnitude ÷ 448 or ÷ 127, rounded to
     * scale_dtype (at most its largest number), and stored: then no other stride of scales is 0
     * where there are several blocks, layers or heads (INVALID). What is written is the value times
     * 1 ÷ scale in float, to the nearest, ties to even; 0 for a scale below 2^−126. Values beyond
     * the range (448; −128 .. 127) are clamped; NaN stays NaN in e4m3 and becomes 0 in int8.
     * All devices write the same bytes, but for which NaN a NaN becomes. On a GPU head dims are
     * multiples of 8, of 16 for one byte an element, up to 1,024; sources and their strides
     * multiples of 16 bytes. */
    struct kva_cache cache;
    uint32_t threads;  /* CPU, as in struct kva_attention */
    uint32_t reserved; /* 0 */
    void (*parallel)(void *context, uint32_t n, void (*work)(void *argument, uint32_t i),
                     void *argument);
    void *parallel_context;
};

/* Write the new tokens of layers [layer, layer + layers): source of layer l is at k + l ×
 * k_layer_stride elements, counted from the first of them. One launch. v may be NULL. */
KVMEM_API int kva_write_run(const struct kva_write *what, uint32_t layer, uint32_t layers,
                            const void *k, uint64_t k_layer_stride, const void *v,
                            uint64_t v_layer_stride, void *stream);

#ifdef __cplusplus
}
#endif
#endif
