/* SPDX-License-Identifier: Apache-2.0
 *
 * More of what sm_90a has, for kernels that fill an SM alone: registers that move between
 * warpgroups, products of 256 columns. One function an instruction, as in hopper.cuh.
 */
#ifndef KVA_HOPPER_PAIR_CUH
#define KVA_HOPPER_PAIR_CUH

#include "hopper.cuh"

#ifdef HOPPER_HAVE_SM90A

static __device__ __forceinline__ void hopper_sync_arrive(uint32_t id, uint32_t threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <int REGISTERS> static __device__ __forceinline__ void hopper_more_registers()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS> static __device__ __forceinline__ void hopper_less_registers()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

/* V as B: 64 elements of the head every 1,024 bytes, 8 tokens every `group`. */
static __device__ __forceinline__ uint64_t hopper_tile_transposed(uint32_t address, uint32_t group)
{
    return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(1024 >> 4) << 16 |
           (uint64_t)(group >> 4) << 32 | (uint64_t)1 << 62;
}

#define HOPPER_R128                                                                                \
    HOPPER_R32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,"     \
               "%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,"  \
               "%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,"  \
               "%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108," \
               "%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,"  \
               "%125,%126,%127"
#define HOPPER_D128(d)                                                                            \
    HOPPER_D16(d, 0), HOPPER_D16(d, 16), HOPPER_D16(d, 32), HOPPER_D16(d, 48), HOPPER_D16(d, 64), \
        HOPPER_D16(d, 80), HOPPER_D16(d, 96), HOPPER_D16(d, 112)

/* O (64 × 256) += P (64 × 16) V (16 × 256, rows along memory); P from registers, or as tile. */
static __device__ __forceinline__ void hopper_mma_values(float (&d)[128], const uint32_t (&a)[4],
                                                         uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" HOPPER_R128
                 "}, {%128, %129, %130, %131}, %132, 1, 1, 1, 1;"
                 : HOPPER_D128(d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

static __device__ __forceinline__ void hopper_mma_values(float (&d)[128], uint64_t a, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" HOPPER_R128
                 "}, %128, %129, 1, 1, 1, 0, 1;"
                 : HOPPER_D128(d)
                 : "l"(a), "l"(b));
}

/* All products but the last COUNT groups are done, among them those of d. */
template <int LEFT, int COUNT>
static __device__ __forceinline__ void hopper_mma_wait_but(float (&d)[COUNT])
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        asm volatile("" : "+f"(d[i])::"memory");
}

static __device__ __forceinline__ void hopper_store_matrices(uint32_t row, const uint32_t (&m)[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
                 "r"(m[0]), "r"(m[1]), "r"(m[2]), "r"(m[3])
                 : "memory");
}

#endif /* HOPPER_HAVE_SM90A */
#endif
