/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernels that move whole blocks and store cells; kernels.h has their parameters.
 *
 * All are bound by device memory: a copy reads and writes every byte once. So each thread keeps
 * UNROLL loads of 16 bytes in flight before it stores the first, and the grid covers the SMs
 * whatever the list is: the host cuts blocks into pieces until there are enough.
 */
#include "backend/kernels.h"

#define UNROLL 4

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

/* All threads of the block: copy `vectors` of 16 bytes. */
static __device__ __forceinline__ void vectors_copy(uint4 *__restrict__ to,
                                                    const uint4 *__restrict__ from,
                                                    uint32_t vectors)
{
    const uint32_t step = blockDim.x;
    uint32_t at = threadIdx.x;

    for (; at + (UNROLL - 1) * step < vectors; at += UNROLL * step) {
        uint4 held[UNROLL];

#pragma unroll
        for (int i = 0; i < UNROLL; i++)
            held[i] = __ldcs(from + at + i * step);
#pragma unroll
        for (int i = 0; i < UNROLL; i++)
            to[at + i * step] = held[i];
    }
    for (; at < vectors; at += step)
        to[at] = from[at];
}

static __device__ __forceinline__ void list_copy(const kvi_kernel_blocks &list)
{
    const uint32_t total = list.count * list.pieces;

    for (uint32_t piece = blockIdx.x; piece < total; piece += gridDim.x) {
        place at = place_of(list, piece);

        vectors_copy((uint4 *)to_address(list, at), (const uint4 *)from_address(list, at),
                     at.bytes / sizeof(uint4));
    }
}

extern "C" __global__ void __launch_bounds__(KVI_KERNEL_THREADS)
    kvi_kernel_copy(const __grid_constant__ kvi_kernel_blocks list)
{
    list_copy(list);
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

/* ---- bulk copies through shared memory ---- */

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/* Loads of a thread block's pieces run STAGES ahead of its stores; a stage is loaded again when
 * the store before the last has read it.
 *
 *   full[s]   completes when the piece of stage s has arrived: n-th use, parity n & 1
 */
static __device__ __forceinline__ void stage_load(uint32_t full, uint32_t stage, const char *from,
                                                  uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(full), "r"(bytes)
                 : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(stage),
                 "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(full)
                 : "memory");
}

static __device__ __forceinline__ void stage_wait(uint32_t full, uint32_t parity)
{
    uint32_t done;

    do
        asm volatile("{\n\t.reg .pred p;\n\t"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
                     "selp.u32 %0, 1, 0, p;\n\t}"
                     : "=r"(done)
                     : "r"(full), "r"(parity)
                     : "memory");
    while (!done);
}

static __device__ __forceinline__ void stage_store(char *to, uint32_t stage, uint32_t bytes)
{
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n\t"
                 "cp.async.bulk.commit_group;" ::"l"(__cvta_generic_to_global(to)),
                 "r"(stage), "r"(bytes)
                 : "memory");
}

static __device__ void piece_load(const kvi_kernel_blocks &list, uint32_t piece, uint32_t full,
                                  uint32_t stage)
{
    place at = place_of(list, piece);

    stage_load(full, stage, from_address(list, at), at.bytes);
}

static __device__ void list_bulk(const kvi_kernel_blocks &list, uint32_t memory)
{
    const uint32_t stages = KVI_KERNEL_BULK_STAGES;
    const uint32_t total = list.count * list.pieces;
    const uint32_t full = memory + stages * list.piece_bytes;

    for (uint32_t s = 0; s < stages; s++)
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(full + 8 * s) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    for (uint32_t s = 0; s < stages && blockIdx.x + s * gridDim.x < total; s++)
        piece_load(list, blockIdx.x + s * gridDim.x, full + 8 * s, memory + s * list.piece_bytes);
    for (uint32_t k = 0; blockIdx.x + k * gridDim.x < total; k++) {
        uint32_t s = k % stages;
        uint32_t before = (k + stages - 1) % stages; /* the stage of piece k − 1, to be refilled */
        uint32_t next = blockIdx.x + (k + stages - 1) * gridDim.x;
        place at = place_of(list, blockIdx.x + k * gridDim.x);

        stage_wait(full + 8 * s, k / stages & 1);
        stage_store(to_address(list, at), memory + s * list.piece_bytes, at.bytes);
        if (k > 0 && next < total) {
            asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
            piece_load(list, next, full + 8 * before, memory + before * list.piece_bytes);
        }
    }
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

#endif

/* Not made for other devices, but right on them. */
extern "C" __global__ void __launch_bounds__(KVI_KERNEL_BULK_THREADS)
    kvi_kernel_bulk(const __grid_constant__ kvi_kernel_blocks list)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) unsigned char memory[];

    if (threadIdx.x == 0)
        list_bulk(list, (uint32_t)__cvta_generic_to_shared(memory));
#else
    list_copy(list);
#endif
}
