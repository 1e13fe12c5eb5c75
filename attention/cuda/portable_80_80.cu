/* SPDX-License-Identifier: Apache-2.0
 *
 * Portable kernels for head dim 80.
 */
#include "portable_define.cuh"

KVA_PORTABLE_DEFINE(80_80, 80, 80, 1, 2, 64, 4)
