/* SPDX-License-Identifier: Apache-2.0
 *
 * Hopper's kernels for latent attention: one K/V head of 576 elements, V in its first 512, bf16.
 *
 *   few    up to 32 rows × heads a tile: they are the N side of the products (hopper_mla_few.cu)
 *   many   64, or 128 by a pair of thread blocks: they are the M side (hopper_mla_many.cu)
 */
#ifndef KVA_HOPPER_MLA_H
#define KVA_HOPPER_MLA_H

#include "hopper_launch.cuh"

static constexpr uint32_t hopper_mla_k = 576;
static constexpr uint32_t hopper_mla_v = 512;
static constexpr uint32_t hopper_mla_few_rows = 32;

/* In struct hopper_decode, k_map has the boxes of the kernel, and v_map, for many rows, those of
 * the last 64 elements. */
struct hopper_mla_kernel {
    const void *entry;
    uint32_t rows; /* of a tile */
    uint32_t threads;
    uint32_t shared_bytes;
    uint32_t blocks; /* thread blocks that work on a task together */
    uint32_t box_columns;
};

hopper_mla_kernel hopper_mla_few(uint32_t packed);
hopper_mla_kernel hopper_mla_many(uint32_t packed);

#endif
