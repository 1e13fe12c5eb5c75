/* SPDX-License-Identifier: Apache-2.0
 *
 * Portable kernels for head dim 256.
 */
#include "portable_define.cuh"

KVA_PORTABLE_DEFINE(256_256, 256, 256, 1, 1, 32, 2)
