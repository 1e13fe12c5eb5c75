/* SPDX-License-Identifier: Apache-2.0
 *
 * Partial results of attention put together, and attention without tiles to compare with
 * (libkvmem-attention.so).
 *
 *   merged = Σ_p exp(lse_p − lse) out_p,   lse = log Σ_p exp(lse_p)
 *
 * (Flash-Decoding, Dao et al. 2023; cascade inference, Ye et al. 2024.)
 */
#ifndef KVMEM_ATTENTION_MERGE_H
#define KVMEM_ATTENTION_MERGE_H

#include <kvmem/attention.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Results over disjoint sets of tokens of the same rows, each contiguous. */
struct kva_merge {
    uint32_t size;       /* sizeof(struct kva_merge) */
    uint32_t device;     /* enum kva_device */
    uint32_t part_count; /* P: 1 .. 256 */
    uint32_t row_count;  /* R = q_total */
    uint32_t head_count; /* H */
    uint32_t head_dim;   /* D: 1 .. 1,024; on a GPU a multiple of 8 */
    uint32_t part_dtype; /* of the parts: BF16, FP16 or FP32 */
    uint32_t dtype;      /* of the result: BF16, FP16 or FP32 */
};

/* parts (P, R, H, D), part_lse (P, R, H), out (R, H, D), lse (R, H) or NULL. A part whose lse is −∞
 * counts nothing, whatever it holds; all −∞: out is 0. May not overlap. On a GPU parts and out are
 * at multiples of 16 bytes. INVALID, NOT_SUPPORTED, SYSTEM as in <kvmem/attention.h>. */
KVMEM_API int kva_merge_run(const struct kva_merge *what, const void *parts, const float *part_lse,
                            void *out, float *lse, void *stream);

/* A prefix that all sequences share, attended once for all rows, then each one's own tokens.
 * `prefix`: one sequence with all q_total rows (q_max = q_total, no q_offsets), without KVA_CAUSAL,
 * window, slopes, sinks or tree mask; its own strides of q and out do not matter. `own`: the batch,
 * whose tables and lengths leave the prefix out; positions, window, slopes and sinks are those of
 * its own tokens. Same device, heads, dims,
 * layer_count, dtype, scale, cap and q_total (else INVALID, naming the field).
 * plan and run as for kva_attention; the two results are rounded to dtype before they are merged.
 */
struct kva_cascade {
    uint32_t size;     /* sizeof(struct kva_cascade) */
    uint32_t reserved; /* 0 */
    struct kva_attention prefix;
    struct kva_attention own;
};

KVMEM_API int kva_cascade_info(const struct kva_cascade *what, struct kva_info *out);
KVMEM_API int kva_cascade_plan(const struct kva_cascade *what, void *workspace,
                               uint64_t workspace_bytes, void *stream);
KVMEM_API int kva_cascade_run(const struct kva_cascade *what, uint32_t layer, const void *q,
                              void *out, float *lse, void *workspace, uint64_t workspace_bytes,
                              void *stream);

/* The same attention with all scores in memory (Vaswani et al. 2017, section 3.2.1): the baseline
 * that the others are measured against. Nothing that a mask hides is skipped, but for what lies
 * behind the lengths. Memory: 4 bytes × q_head_count × q_total × (kv_max, up to a multiple of 64),
 * see info (INVALID from 2^64 on). Same arguments as kva_attention_*, no plan. Full or causal masks
 * only, no sinks, slopes or tree; on a GPU unquantised, cache and q of one type, dims and strides
 * multiples of 8 (else NOT_SUPPORTED). On a GPU a NaN in V reaches all rows of its sequence and
 * head. */
KVMEM_API int kva_standard_info(const struct kva_attention *what, struct kva_info *out);
KVMEM_API int kva_standard_run(const struct kva_attention *what, uint32_t layer, const void *q,
                               void *out, void *workspace, uint64_t workspace_bytes, void *stream);

#ifdef __cplusplus
}
#endif
#endif
