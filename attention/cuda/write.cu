/* SPDX-License-Identifier: Apache-2.0
 *
 * Writing K and V on a GPU.
 */
#include "../internal.h"

extern "C" int kva_write_cuda(const struct kva_write *, uint32_t, uint32_t, const void *, uint64_t,
                              const void *, uint64_t, void *)
{
    return kva_error_set(KVMEM_E_NOT_SUPPORTED, "device: CUDA writes no K and V in this build");
}
