/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels for the CPU, best first.
 */
#include "../internal.h"

const struct kva_kernel *const kva_cpu_kernels[] = {NULL};
