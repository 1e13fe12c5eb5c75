/* SPDX-License-Identifier: Apache-2.0
 *
 * Merging partial results on a GPU.
 */
#include "../internal.h"

extern "C" int kva_merge_cuda(const struct kva_merge *, const void *, const float *, void *, float *,
                              void *)
{
    return kva_error_set(KVMEM_E_NOT_SUPPORTED, "device: CUDA merges nothing in this build");
}
