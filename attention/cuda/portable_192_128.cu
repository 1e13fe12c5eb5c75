/* SPDX-License-Identifier: Apache-2.0
 *
 * Portable kernels for head dim 192 of K, 128 of V.
 */
#include "portable_define.cuh"

KVA_PORTABLE_DEFINE(192_128, 192, 128, 1, 1, 64, 4)
