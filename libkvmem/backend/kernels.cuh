/* SPDX-License-Identifier: Apache-2.0
 *
 * Where the pieces of a list lie, for device code that is compiled once: kernels.cu, and a
 * laboratory that tries others.
 */
#ifndef KVI_BACKEND_KERNELS_CUH
#define KVI_BACKEND_KERNELS_CUH

#include "backend/kernels.h"

/* Piece number `piece` of the list: which block, where in it, how long. */
struct place {
    uint32_t block;
    uint64_t offset;
    uint32_t bytes;
};

static __device__ __forceinline__ place place_of(const kvi_kernel_blocks &list, uint32_t piece)
{
    place at;

    at.block = piece / list.pieces;
    at.offset = (uint64_t)(piece - at.block * list.pieces) * list.piece_bytes;
    at.bytes = min((uint64_t)list.piece_bytes, list.bytes - at.offset);
    return at;
}

static __device__ __forceinline__ char *to_address(const kvi_kernel_blocks &list, const place &at)
{
    return (char *)(list.to_base + (uint64_t)(uint32_t)list.to[at.block] * list.stride_bytes +
                    at.offset);
}

static __device__ __forceinline__ const char *from_address(const kvi_kernel_blocks &list,
                                                           const place &at)
{
    return (const char *)(list.from_base +
                          (uint64_t)(uint32_t)list.from[at.block] * list.stride_bytes + at.offset);
}

#endif
