/* SPDX-License-Identifier: Apache-2.0
 *
 * The two products of prefill on Hopper, D (64 × 128, floats of a warpgroup) with one step of 16:
 *
 *   scores   D (+)= A (shared memory) B (shared memory), both with the 16 along their rows
 *   values   D += A (registers, as mma.sync has them) B (shared memory, the 128 along its rows)
 *
 * D's registers lie as those of mma.sync: d[0][column ÷ 8][...], rows of a warp 16.
 *
 * Tiles are (rows ÷ 8) groups of 2,048 bytes: two atoms (hopper.cuh) for the halves of 128
 * elements.
 */
#ifndef KVA_HOPPER_WIDE_CUH
#define KVA_HOPPER_WIDE_CUH

#include "hopper.cuh"

#ifdef HOPPER_HAVE_SM90A

static constexpr uint32_t hopper_group_bytes = 2048;

/* Byte of element `column` (0..127) of row `row` in a tile. */
static __device__ __forceinline__ uint32_t hopper_wide_at(uint32_t row, uint32_t column)
{
    return row / 8 * hopper_group_bytes + column / 64 * 1024 +
           hopper_swizzle(row % 8, column % 64 * 2);
}

/* The tile at `address` as an operand with elements 16 × step .. of its rows:
 *
 *   hopper_wide_rows(tile) + hopper_wide_row_step(step)
 *
 * where the sum is all that there is to do between products. */
static __device__ __forceinline__ uint64_t hopper_wide_rows(uint32_t address)
{
    return hopper_tile(address, hopper_group_bytes);
}

static __device__ __forceinline__ constexpr uint64_t hopper_wide_row_step(uint32_t step)
{
    return (step / 4 * 1024 + step % 4 * 32) / 16;
}

/* The same for the transposed operand: all elements of rows 16 × step .. */
static __device__ __forceinline__ uint64_t hopper_wide_columns(uint32_t address)
{
    return hopper_tile(address, hopper_group_bytes) +
           ((uint64_t)(1024 / 16 - 1) << 16); /* from one half to the other */
}

static __device__ __forceinline__ constexpr uint64_t hopper_wide_column_step(uint32_t step)
{
    return step * 2 * hopper_group_bytes / 16;
}

/* hopper_copy_box for what other thread blocks read too: no hint to drop it from the L2. */
static __device__ __forceinline__ void hopper_copy_wide(uint32_t to, const CUtensorMap *map, int c1,
                                                        int c3, int c4, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %2, %4, %5}], [%6];" ::"r"(to),
                 "l"(map), "r"(0), "r"(c1), "r"(c3), "r"(c4), "r"(barrier)
                 : "memory");
}

/* At most LEFT products are under way; the compiler may not have read `d` before. */
template <int LEFT> static __device__ __forceinline__ void hopper_wide_wait(float (&d)[1][16][4])
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
#pragma unroll
    for (int i = 0; i < 64; i++)
        asm volatile("" : "+f"(d[0][i / 4][i % 4])::"memory");
}

#define HOPPER_WIDE_4(d, n) "+f"(d[0][n][0]), "+f"(d[0][n][1]), "+f"(d[0][n][2]), "+f"(d[0][n][3])
#define HOPPER_WIDE_16(d, n) \
    HOPPER_WIDE_4(d, n), HOPPER_WIDE_4(d, n + 1), HOPPER_WIDE_4(d, n + 2), HOPPER_WIDE_4(d, n + 3)
#define HOPPER_WIDE_64(d) \
    HOPPER_WIDE_16(d, 0), HOPPER_WIDE_16(d, 4), HOPPER_WIDE_16(d, 8), HOPPER_WIDE_16(d, 12)
#define HOPPER_WIDE_LIST                                               \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"           \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
    "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

#define HOPPER_WIDE_SCORES(type)                                              \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                 \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type \
                 " {" HOPPER_WIDE_LIST "}, %64, %65, p, 1, 1, 0, 0;\n}"       \
                 : HOPPER_WIDE_64(d)                                          \
                 : "l"(a), "l"(b), "r"(accumulate))

#define HOPPER_WIDE_VALUES(type)                                                   \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type      \
                 " {" HOPPER_WIDE_LIST "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;" \
                 : HOPPER_WIDE_64(d)                                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

template <typename Element>
static __device__ __forceinline__ void hopper_wide_scores(float (&d)[1][16][4], uint64_t a,
                                                          uint64_t b, uint32_t accumulate)
{
    if constexpr (std::is_same<Element, __nv_bfloat16>::value)
        HOPPER_WIDE_SCORES("bf16");
    else
        HOPPER_WIDE_SCORES("f16");
}

template <typename Element>
static __device__ __forceinline__ void hopper_wide_values(float (&d)[1][16][4],
                                                          const uint32_t (&a)[4], uint64_t b)
{
    if constexpr (std::is_same<Element, __nv_bfloat16>::value)
        HOPPER_WIDE_VALUES("bf16");
    else
        HOPPER_WIDE_VALUES("f16");
}

#endif /* HOPPER_HAVE_SM90A */
#endif
