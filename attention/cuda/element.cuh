/* SPDX-License-Identifier: Apache-2.0
 *
 * Eight neighbouring elements of any type as floats, in loads and stores of 8 to 32 bytes. Values
 * are those of cpu/element.h, bit for bit.
 */
#ifndef KVA_CUDA_ELEMENT_CUH
#define KVA_CUDA_ELEMENT_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include "../internal.h"

#define KVA_EIGHT 8

static __device__ __forceinline__ uint32_t kva_bytes_of(uint32_t dtype)
{
    return dtype == KVMEM_DTYPE_FP32 ? 4 : dtype <= KVMEM_DTYPE_FP16 ? 2 : 1;
}

/* Elements [index, index + 8) of a BF16, FP16 or FP32 array; 16-byte aligned. */
static __device__ __forceinline__ void kva_load8(uint32_t dtype, const void *array, uint64_t index,
                                                 float out[KVA_EIGHT])
{
    if (dtype == KVMEM_DTYPE_FP32) {
        const float4 *from = (const float4 *)((const float *)array + index);
        const float4 a = __ldg(from), b = __ldg(from + 1);

        out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
        out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
        return;
    }
    const uint4 four = __ldg((const uint4 *)((const uint16_t *)array + index));
    const uint32_t words[4] = {four.x, four.y, four.z, four.w};

#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (dtype == KVMEM_DTYPE_BF16) {
            out[2 * i] = __uint_as_float(words[i] << 16);
            out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000);
        } else {
            const float2 two = __half22float2(*(const __half2 *)&words[i]);

            out[2 * i] = two.x;
            out[2 * i + 1] = two.y;
        }
    }
}

static __device__ __forceinline__ uint32_t kva_two_of(uint32_t dtype, float low, float high)
{
    if (dtype == KVMEM_DTYPE_BF16) {
        const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);

        return *(const uint32_t *)&two;
    }
    const __half2 two = __floats2half2_rn(low, high);

    return *(const uint32_t *)&two;
}

static __device__ __forceinline__ uint32_t kva_int8_byte(float value)
{
    return value != value ? 0 : (uint32_t)__float2int_rn(fmaxf(-128.f, fminf(value, 127.f))) & 255;
}

static __device__ __forceinline__ uint32_t kva_four_bytes(uint32_t dtype, const float *values)
{
    if (dtype == KVMEM_DTYPE_INT8)
        return kva_int8_byte(values[0]) | kva_int8_byte(values[1]) << 8 |
               kva_int8_byte(values[2]) << 16 | kva_int8_byte(values[3]) << 24;
    const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(values[0], values[1]), __NV_SATFINITE,
                                                  __NV_E4M3);
    const uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(values[2], values[3]),
                                                   __NV_SATFINITE, __NV_E4M3);

    return low | high << 16;
}

/* Elements [index, index + 8) of an array of any type; aligned to 16 bytes, or 8 of one byte. */
static __device__ __forceinline__ void kva_store8(uint32_t dtype, void *array, uint64_t index,
                                                  const float values[KVA_EIGHT])
{
    if (dtype == KVMEM_DTYPE_FP32) {
        float4 *to = (float4 *)((float *)array + index);

        to[0] = make_float4(values[0], values[1], values[2], values[3]);
        to[1] = make_float4(values[4], values[5], values[6], values[7]);
    } else if (dtype <= KVMEM_DTYPE_FP16) {
        *(uint4 *)((uint16_t *)array + index) =
            make_uint4(kva_two_of(dtype, values[0], values[1]), kva_two_of(dtype, values[2], values[3]),
                       kva_two_of(dtype, values[4], values[5]), kva_two_of(dtype, values[6], values[7]));
    } else {
        *(uint2 *)((uint8_t *)array + index) =
            make_uint2(kva_four_bytes(dtype, values), kva_four_bytes(dtype, values + 4));
    }
}

static __device__ __forceinline__ float kva_load1(uint32_t dtype, const void *array, uint64_t index)
{
    switch (dtype) {
    case KVMEM_DTYPE_FP32: return ((const float *)array)[index];
    case KVMEM_DTYPE_FP16: return __half2float(((const __half *)array)[index]);
    default: return __uint_as_float((uint32_t)((const uint16_t *)array)[index] << 16);
    }
}

static __device__ __forceinline__ void kva_store1(uint32_t dtype, void *array, uint64_t index,
                                                  float value)
{
    if (dtype == KVMEM_DTYPE_FP32)
        ((float *)array)[index] = value;
    else
        ((uint16_t *)array)[index] = (uint16_t)kva_two_of(dtype, value, value);
}

#endif
