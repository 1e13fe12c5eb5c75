/* SPDX-License-Identifier: Apache-2.0
 *
 * Stands for attention/cuda where nvcc is not installed.
 */
#include "internal.h"

static const struct kva_kernel *const no_kernels[] = {NULL};

static int absent(void)
{
    return kva_error_set(KVMEM_E_NOT_SUPPORTED,
                         "device: this build has no CUDA kernels (remedy: build with nvcc)");
}

const struct kva_kernel *const *kva_cuda_kernels(void)
{
    return no_kernels;
}

int kva_write_cuda(const struct kva_write *what, uint32_t layer, uint32_t layers, const void *k,
                   uint64_t k_layer_stride, const void *v, uint64_t v_layer_stride, void *stream)
{
    (void)what, (void)layer, (void)layers, (void)k, (void)k_layer_stride, (void)v;
    (void)v_layer_stride, (void)stream;
    return absent();
}

int kva_merge_cuda(const struct kva_merge_job *job, void *stream)
{
    (void)job, (void)stream;
    return absent();
}
