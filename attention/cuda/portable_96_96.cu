/* SPDX-License-Identifier: Apache-2.0
 *
 * Portable kernels for head dim 96.
 */
#include "portable_define.cuh"

KVA_PORTABLE_DEFINE(96_96, 96, 96, 1, 2, 64, 4)
