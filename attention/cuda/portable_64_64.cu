/* SPDX-License-Identifier: Apache-2.0
 *
 * Portable kernels for head dim 64.
 */
#include "portable_define.cuh"

KVA_PORTABLE_DEFINE(64_64, 64, 64, 1, 2, 64, 4)
