/* SPDX-License-Identifier: Apache-2.0
 *
 * Writing K and V on the CPU.
 */
#include "../internal.h"

int kva_write_cpu(const struct kva_write *what, uint32_t layer, uint32_t layers, const void *k,
                  uint64_t k_layer_stride, const void *v, uint64_t v_layer_stride)
{
    (void)what, (void)layer, (void)layers, (void)k, (void)k_layer_stride, (void)v;
    (void)v_layer_stride;
    return kva_error_set(KVMEM_E_NOT_SUPPORTED, "device: the CPU writes no K and V in this build");
}
