/* SPDX-License-Identifier: Apache-2.0
 *
 * What sm_90a has and CUDA C++ has no word for: mbarriers, bulk tensor copies, warpgroup matrix
 * products. One function an instruction, nothing else; all addresses are of shared memory.
 *
 * Tiles that the matrix unit reads are made of atoms of 8 rows of 128 bytes, 1,024 bytes in a row
 * and so aligned; within an atom the 16-byte chunk c of row r lies at chunk c ^ r (the 128-byte
 * swizzle, which bulk tensor copies write and hopper_swizzle() computes).
 */
#ifndef KVA_HOPPER_CUH
#define KVA_HOPPER_CUH

#include <cstdint>
#include <type_traits>

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER_HAVE_SM90A 1
#endif

#ifdef HOPPER_HAVE_SM90A

static __device__ __forceinline__ uint32_t hopper_shared(const void *pointer)
{
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* Offset of byte `column` (0..127) of row `row` in a column of atoms. */
static __device__ __forceinline__ uint32_t hopper_swizzle(uint32_t row, uint32_t column)
{
    return row * 128 + (column ^ (row % 8) * 16);
}

/* ---- mbarriers ---- */

static __device__ __forceinline__ void hopper_barrier_init(uint32_t barrier, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

/* Barriers are initialised before the copy engine may see them. */
static __device__ __forceinline__ void hopper_barrier_init_done()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

static __device__ __forceinline__ void hopper_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

static __device__ __forceinline__ void hopper_arrive_expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

static __device__ __forceinline__ bool hopper_try_wait(uint32_t barrier, uint32_t parity)
{
    uint32_t done;

    asm volatile("{\n.reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return done;
}

/* Until the phase of `parity` is complete. While a kernel is being written, NVCCFLAGS with
 * -DHOPPER_WATCHDOG make a mistake cost a trap and not a card that hangs. */
static __device__ __forceinline__ void hopper_wait(uint32_t barrier, uint32_t parity)
{
#ifdef HOPPER_WATCHDOG
    for (uint32_t i = 0; !hopper_try_wait(barrier, parity); i++)
        if (i > 1u << 22)
            __trap();
#else
    while (!hopper_try_wait(barrier, parity)) {}
#endif
}

/* ---- bulk tensor copies ---- */

/* Read once, leave the L2 to others. */
static constexpr uint64_t hopper_evict_first = 0x12F0000000000000;

static __device__ __forceinline__ void hopper_copy_box(uint32_t to, const CUtensorMap *map, int c0,
                                                       int c1, int c2, int c3, int c4,
                                                       uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%2, %3, %4, %5, %6}], [%7], %8;" ::"r"(to),
                 "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "r"(barrier),
                 "l"(hopper_evict_first)
                 : "memory");
}

static __device__ __forceinline__ void hopper_prefetch_map(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* What this thread stored to shared memory, before the matrix unit or the copy engine touches it
 * (a barrier must follow). */
static __device__ __forceinline__ void hopper_fence_stores()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* A barrier of some of the block's warps. */
static __device__ __forceinline__ void hopper_sync(uint32_t id, uint32_t threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* ---- warpgroup matrix products ---- */

/* A tile in shared memory: `group` bytes from one atom to the next along the rows. Moves along K
 * within an atom are added to the address (32 bytes = 16 elements of 16 bits). */
static __device__ __forceinline__ uint64_t hopper_tile(uint32_t address, uint32_t group)
{
    return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)1 << 16 | (uint64_t)(group >> 4) << 32 |
           (uint64_t)1 << 62;
}

static __device__ __forceinline__ void hopper_mma_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void hopper_mma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* All products are done; the compiler may not have read `d` before. */
template <int COUNT> static __device__ __forceinline__ void hopper_mma_wait(float (&d)[COUNT])
{
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        asm volatile("" : "+f"(d[i])::"memory");
}

#define HOPPER_D4(d, i)  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define HOPPER_D8(d, i)  HOPPER_D4(d, i), HOPPER_D4(d, i + 4)
#define HOPPER_D16(d, i) HOPPER_D8(d, i), HOPPER_D8(d, i + 8)
#define HOPPER_D32(d)    HOPPER_D16(d, 0), HOPPER_D16(d, 16)
#define HOPPER_R4        "%0,%1,%2,%3"
#define HOPPER_R8        HOPPER_R4 ",%4,%5,%6,%7"
#define HOPPER_R16       HOPPER_R8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define HOPPER_R32       HOPPER_R16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"

/* D (64 × n, f32 in registers) (+)= A (64 × 16) B (16 × n); n is named in the macros so that the
 * operands behind the accumulators can be. A from shared memory: */
#define HOPPER_MMA_SHARED(n, type, list, regs, a_, b_, acc_, trans_)                               \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " acc_ ", 0;\n"                                 \
                 "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" list "}, " a_ \
                 ", " b_ ", p, 1, 1, " trans_ ", 0;\n}"                                            \
                 : regs                                                                            \
                 : "l"(a), "l"(b), "r"(accumulate), "n"(A_IS_TRANSPOSED))

/* A from registers: */
#define HOPPER_MMA_REGISTERS(n, type, list, regs, a0_, a1_, a2_, a3_, b_, acc_)           \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " acc_ ", 0;\n"                        \
                 "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" list \
                 "}, {" a0_ ", " a1_ ", " a2_ ", " a3_ "}, " b_ ", p, 1, 1, 0;\n}"        \
                 : regs                                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate))

/* A is (64 rows, K) with K along the 128-byte rows, or, transposed, with the 64 along them. */
template <class T, int A_IS_TRANSPOSED, int COUNT>
static __device__ __forceinline__ void hopper_mma(float (&d)[COUNT], uint64_t a, uint64_t b,
                                                  uint32_t accumulate)
{
    if constexpr (std::is_same<T, __nv_bfloat16>::value) {
        if constexpr (COUNT == 4)
            HOPPER_MMA_SHARED("8", "bf16", HOPPER_R4, HOPPER_D4(d, 0), "%4", "%5", "%6", "%7");
        else if constexpr (COUNT == 8)
            HOPPER_MMA_SHARED("16", "bf16", HOPPER_R8, HOPPER_D8(d, 0), "%8", "%9", "%10", "%11");
        else if constexpr (COUNT == 16)
            HOPPER_MMA_SHARED("32", "bf16", HOPPER_R16, HOPPER_D16(d, 0), "%16", "%17", "%18",
                              "%19");
        else
            HOPPER_MMA_SHARED("64", "bf16", HOPPER_R32, HOPPER_D32(d), "%32", "%33", "%34", "%35");
    } else {
        if constexpr (COUNT == 4)
            HOPPER_MMA_SHARED("8", "f16", HOPPER_R4, HOPPER_D4(d, 0), "%4", "%5", "%6", "%7");
        else if constexpr (COUNT == 8)
            HOPPER_MMA_SHARED("16", "f16", HOPPER_R8, HOPPER_D8(d, 0), "%8", "%9", "%10", "%11");
        else if constexpr (COUNT == 16)
            HOPPER_MMA_SHARED("32", "f16", HOPPER_R16, HOPPER_D16(d, 0), "%16", "%17", "%18",
                              "%19");
        else
            HOPPER_MMA_SHARED("64", "f16", HOPPER_R32, HOPPER_D32(d), "%32", "%33", "%34", "%35");
    }
}

/* f16, A in registers as the warps of a warpgroup hold it: row lane ÷ 4 of a warp's 16 and K
 * 2 (lane mod 4), + 1 in a[0]; a[1] the row 8 below; a[2], a[3] the same at K + 8. */
template <int COUNT>
static __device__ __forceinline__ void hopper_mma(float (&d)[COUNT], const uint32_t (&a)[4],
                                                  uint64_t b, uint32_t accumulate)
{
    if constexpr (COUNT == 4)
        HOPPER_MMA_REGISTERS("8", "f16", HOPPER_R4, HOPPER_D4(d, 0), "%4", "%5", "%6", "%7", "%8",
                             "%9");
    else if constexpr (COUNT == 8)
        HOPPER_MMA_REGISTERS("16", "f16", HOPPER_R8, HOPPER_D8(d, 0), "%8", "%9", "%10", "%11",
                             "%12", "%13");
    else if constexpr (COUNT == 16)
        HOPPER_MMA_REGISTERS("32", "f16", HOPPER_R16, HOPPER_D16(d, 0), "%16", "%17", "%18", "%19",
                             "%20", "%21");
    else
        HOPPER_MMA_REGISTERS("64", "f16", HOPPER_R32, HOPPER_D32(d), "%32", "%33", "%34", "%35",
                             "%36", "%37");
}

/* ---- matrices of 8 × 8 from registers to shared memory, transposed ---- */

static __device__ __forceinline__ void hopper_store_transposed(uint32_t row, uint32_t m0,
                                                               uint32_t m1)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(row),
                 "r"(m0), "r"(m1)
                 : "memory");
}

#endif /* HOPPER_HAVE_SM90A */
#endif
