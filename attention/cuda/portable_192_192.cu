/* SPDX-License-Identifier: Apache-2.0
 *
 * Portable kernels for head dim 192.
 */
#include "portable_define.cuh"

KVA_PORTABLE_DEFINE(192_192, 192, 96, 2, 1, 64, 4)
