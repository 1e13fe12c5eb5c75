/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels of this folder, a line each.
 */
#ifndef KVA_CPU_KERNELS_H
#define KVA_CPU_KERNELS_H

#include "../internal.h"

extern const struct kva_kernel kva_cpu_portable; /* accepts everything */

#endif
