/* SPDX-License-Identifier: Apache-2.0
 *
 * Portable kernels for head dim 128.
 */
#include "portable_define.cuh"

KVA_PORTABLE_DEFINE(128_128, 128, 128, 1, 2, 64, 4)
