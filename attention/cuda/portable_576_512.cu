/* SPDX-License-Identifier: Apache-2.0
 *
 * Portable kernels for head dim 576 of K, 512 of V (latent attention), V in four slices.
 */
#include "portable_define.cuh"

KVA_PORTABLE_DEFINE(576_512, 576, 128, 4, 1, 16, 2)
