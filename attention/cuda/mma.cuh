/* SPDX-License-Identifier: Apache-2.0
 *
 * Warp instructions of sm_80 and up, and how their registers lie. Of a warp's lane, q = lane ÷ 4
 * and c = 2 × (lane % 4):
 *
 *   A  16 × 16   a[0] (q, c..c+1)  a[1] (q + 8, c..)  a[2] (q, c + 8..)  a[3] (q + 8, c + 8..)
 *   B  16 × 8    b[0] (c..c+1, q)  b[1] (c + 8.., q)
 *   C  16 × 8    d[0..1] (q, c..c+1)  d[2..3] (q + 8, c..)      float
 *
 * so that C of two neighbouring products, rounded, is an A.
 */
#ifndef KVA_CUDA_MMA_CUH
#define KVA_CUDA_MMA_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <stdint.h>

#include "score.cuh"

static __device__ __forceinline__ uint32_t kva_shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes into shared memory, asynchronously; zeros without reading when `valid` is false. */
static __device__ __forceinline__ void kva_copy16(uint32_t to, const void *from, bool valid)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(valid ? 16 : 0));
}

static __device__ __forceinline__ void kva_copy_commit()
{
    asm volatile("cp.async.commit_group;");
}

/* Until at most LEFT of this thread's groups are under way. */
template <int LEFT> static __device__ __forceinline__ void kva_copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

static __device__ __forceinline__ void kva_load_matrix(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}

static __device__ __forceinline__ void kva_load_matrix_transposed(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}

/* d += a b */
template <typename Element>
static __device__ __forceinline__ void kva_mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                               uint32_t b1);

template <>
__device__ __forceinline__ void kva_mma<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4],
                                                       uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void kva_mma<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Two numbers of 16 bits, `low` in the low half. */
template <typename Element>
static __device__ __forceinline__ uint32_t kva_pack(float low, float high);

template <> __device__ __forceinline__ uint32_t kva_pack<__nv_bfloat16>(float low, float high)
{
    uint32_t out;

    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

template <> __device__ __forceinline__ uint32_t kva_pack<__half>(float low, float high)
{
    uint32_t out;

    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

template <typename Element> static __device__ __forceinline__ float kva_float_of(uint16_t bits);

template <> __device__ __forceinline__ float kva_float_of<__nv_bfloat16>(uint16_t bits)
{
    return __uint_as_float((uint32_t)bits << 16);
}

template <> __device__ __forceinline__ float kva_float_of<__half>(uint16_t bits)
{
    return __half2float(__ushort_as_half(bits));
}

/* All ones in the exponent: infinity or no number. */
template <typename Element> static __device__ __forceinline__ bool kva_is_wild(uint16_t bits);

template <> __device__ __forceinline__ bool kva_is_wild<__nv_bfloat16>(uint16_t bits)
{
    return (bits & 0x7f80) == 0x7f80;
}

template <> __device__ __forceinline__ bool kva_is_wild<__half>(uint16_t bits)
{
    return (bits & 0x7c00) == 0x7c00;
}

/* Two bytes of a narrow cache, exactly: both kinds fit into both types of 16 bits. */
template <typename Element>
static __device__ __forceinline__ uint32_t kva_widen(uint16_t two, bool is_int8)
{
    float2 wide;

    if (is_int8) {
        wide.x = (float)(int8_t)(two & 0xff);
        wide.y = (float)(int8_t)(two >> 8);
    } else {
        wide = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(two, __NV_E4M3)));
    }
    return kva_pack<Element>(wide.x, wide.y);
}

#endif
