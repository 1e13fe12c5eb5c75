/* SPDX-License-Identifier: Apache-2.0
 *
 * From a description to kernels' arguments.
 */
#ifndef KVA_CUDA_PORTABLE_LAUNCH_CUH
#define KVA_CUDA_PORTABLE_LAUNCH_CUH

#include "portable.cuh"

/* All but plan, view and slices. */
struct kva_portable kva_portable_arguments(const struct kva_attention *what, uint32_t layer,
                                           const void *q, void *out, float *lse);

#endif
