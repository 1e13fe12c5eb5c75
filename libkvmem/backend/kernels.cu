/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernels that move whole blocks and store cells; kernels.h has their parameters.
 *
 * All are bound by device memory: a copy reads and writes every byte once. So each thread keeps
 * UNROLL loads of 16 bytes in flight before it stores the first, and the grid covers the SMs
 * whatever the list is: the host cuts blocks into pieces until there are enough. Nothing that is
 * copied is needed again soon: L1 takes none of it, L2 evicts it first.
 */
#include "backend/kernels.cuh"

#define UNROLL 4

static __device__ __forceinline__ uint64_t policy_evict_first()
{
    uint64_t policy;

    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* volatile: the loads of a round stay ahead of its stores. */
static __device__ __forceinline__ uint4 vector_load(const uint4 *from, uint64_t policy)
{
    uint4 value;

    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(__cvta_generic_to_global(from)), "l"(policy));
    return value;
}

static __device__ __forceinline__ void vector_store(uint4 *to, uint4 value, uint64_t policy)
{
    asm volatile("st.global.L2::cache_hint.v4.u32 [%0], {%1, %2, %3, %4}, %5;"
                 :
                 : "l"(__cvta_generic_to_global(to)), "r"(value.x), "r"(value.y), "r"(value.z),
                   "r"(value.w), "l"(policy)
                 : "memory");
}

/* All threads of the block: copy `vectors` of 16 bytes. */
static __device__ __forceinline__ void vectors_copy(uint4 *to, const uint4 *from, uint32_t vectors,
                                                    uint64_t policy)
{
    const uint32_t step = blockDim.x;
    uint32_t at = threadIdx.x;

    for (; at + (UNROLL - 1) * step < vectors; at += UNROLL * step) {
        uint4 held[UNROLL];

#pragma unroll
        for (int i = 0; i < UNROLL; i++)
            held[i] = vector_load(from + at + i * step, policy);
#pragma unroll
        for (int i = 0; i < UNROLL; i++)
            vector_store(to + at + i * step, held[i], policy);
    }
    for (; at < vectors; at += step)
        vector_store(to + at, vector_load(from + at, policy), policy);
}

extern "C" __global__ void __launch_bounds__(KVI_KERNEL_THREADS)
    kvi_kernel_copy(const __grid_constant__ kvi_kernel_blocks list)
{
    const uint32_t total = list.count * list.pieces;
    const uint64_t policy = policy_evict_first();

    for (uint32_t piece = blockIdx.x; piece < total; piece += gridDim.x) {
        place at = place_of(list, piece);

        vectors_copy((uint4 *)to_address(list, at), (const uint4 *)from_address(list, at),
                     at.bytes / sizeof(uint4), policy);
    }
}

extern "C" __global__ void __launch_bounds__(KVI_KERNEL_THREADS)
    kvi_kernel_zero(const __grid_constant__ kvi_kernel_blocks list)
{
    const uint32_t total = list.count * list.pieces;

    for (uint32_t piece = blockIdx.x; piece < total; piece += gridDim.x) {
        place at = place_of(list, piece);
        uint4 *to = (uint4 *)to_address(list, at);

        for (uint32_t i = threadIdx.x; i < at.bytes / sizeof(uint4); i += blockDim.x)
            to[i] = make_uint4(0, 0, 0, 0);
    }
}

/* The cells lie in host memory: each is read once, across the bus, all at the same time. */
extern "C" __global__ void __launch_bounds__(KVI_KERNEL_THREADS)
    kvi_kernel_cells(uint64_t base, uint64_t cells, uint32_t count)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;

    if (i < count) {
        uint2 cell = __ldcv((const uint2 *)cells + i);

        ((uint32_t *)base)[cell.x] = cell.y;
    }
}
