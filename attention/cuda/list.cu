/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels for CUDA, best first.
 */
#include "../internal.h"

extern "C" const struct kva_kernel kva_cuda_hopper_decode;
extern "C" const struct kva_kernel kva_cuda_hopper_mla;
extern "C" const struct kva_kernel kva_cuda_hopper_prefill;
extern "C" const struct kva_kernel kva_cuda_portable;

static const struct kva_kernel *const kernels[] = {
    &kva_cuda_hopper_decode,  /* few rows, sm_90a */
    &kva_cuda_hopper_mla,     /* latent attention, sm_90a */
    &kva_cuda_hopper_prefill, /* many rows, sm_90a */
    &kva_cuda_portable,       /* all that the headers promise, from sm_80 on */
    nullptr,
};

extern "C" const struct kva_kernel *const *kva_cuda_kernels(void)
{
    return kernels;
}
