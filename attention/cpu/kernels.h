/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels of this folder, a line each.
 */
#ifndef KVA_CPU_KERNELS_H
#define KVA_CPU_KERNELS_H

#include "../internal.h"

extern const struct kva_kernel kva_cpu_avx512_bf16; /* flash.c: products in bf16 */
extern const struct kva_kernel kva_cpu_avx512;      /* in floats */
extern const struct kva_kernel kva_cpu_avx2;
extern const struct kva_kernel kva_cpu_portable; /* accepts everything */

#endif
