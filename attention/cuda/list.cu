/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels for CUDA, best first.
 */
#include "../internal.h"

static const struct kva_kernel *const kernels[] = {nullptr};

extern "C" const struct kva_kernel *const *kva_cuda_kernels(void)
{
    return kernels;
}
