/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels for the CPU, best first.
 */
#include "kernels.h"

const struct kva_kernel *const kva_cpu_kernels[] = {
    &kva_cpu_avx512_bf16, &kva_cpu_avx512, &kva_cpu_avx2, &kva_cpu_portable, NULL,
};
