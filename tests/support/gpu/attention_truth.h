/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention in double on the device, for shapes that are too large for the CPU's reference: some
 * rows of a run, one thread block each, every score in memory.
 */
#ifndef KVT_GPU_ATTENTION_TRUTH_H
#define KVT_GPU_ATTENTION_TRUTH_H

#include <kvmem/attention.h>

#ifdef __cplusplus
extern "C" {
#endif

struct kvt_gpu_truth_row {
    uint32_t row; /* of q */
    uint32_t head;
};

/* out (count, head_dim_v) and lse (count) double, device memory as all arrays of `what`; rows is
 * the host's. Waits. q of BF16 or FP16. */
void kvt_gpu_attention_truth(const struct kva_attention *what, uint32_t layer, const void *q,
                             const struct kvt_gpu_truth_row *rows, uint32_t count, double *out,
                             double *lse);

/* The largest |out − truth| ÷ 2^-8 (|truth| + the row's largest value) of the sampled rows,
 * `sampled` of them spread over all of q; NaN where only one of both is. */
double kvt_gpu_attention_error(const struct kva_attention *what, uint32_t layer, const void *q,
                               const void *out, uint32_t sampled);

/* Normal numbers of BF16 or FP16, of FP8_E4M3 or INT8 32 times as large, the same for the same
 * seed. */
void kvt_gpu_fill_normal(uint32_t dtype, void *array, uint64_t count, uint64_t seed, void *stream);

#ifdef __cplusplus
}
#endif
#endif
