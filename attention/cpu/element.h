/* SPDX-License-Identifier: Apache-2.0
 *
 * Elements of arrays as float, one at a time, for kernels that read or write any type. Loads are
 * exact. Stores round to nearest, ties to even, as the GPU's conversions do, bit for bit:
 *
 *   FP16, BF16   overflow to infinity; NaN becomes 0x7fff
 *   FP8_E4M3     clamped to ±448 (infinity too); NaN becomes 0x7f
 *   INT8         clamped to −128 .. 127; NaN becomes 0
 */
#ifndef KVA_CPU_ELEMENT_H
#define KVA_CPU_ELEMENT_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <kvmem/types.h>

static inline uint32_t kva_float_bits(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static inline float kva_float_of(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

static inline float kva_float_of_fp16(uint16_t half)
{
    uint32_t magnitude = half & 0x7fff;
    uint32_t sign = (uint32_t)(half & 0x8000) << 16;

    if (magnitude >= 0x7c00) /* infinity, NaN */
        return kva_float_of(sign | 0x7f800000 | (magnitude & 1023) << 13);
    if (magnitude < 0x400) /* multiples of 2^−24 */
        return sign ? -(float)magnitude * 0x1p-24f : (float)magnitude * 0x1p-24f;
    return kva_float_of(sign | ((magnitude << 13) + (112u << 23)));
}

static inline float kva_float_of_e4m3(uint8_t code)
{
    uint32_t magnitude = code & 0x7f;
    float value;

    if (magnitude == 0x7f)
        value = NAN;
    else if (magnitude < 8) /* multiples of 2^−9 */
        value = (float)magnitude * 0x1p-9f;
    else
        value = kva_float_of((magnitude << 20) + (120u << 23));
    return code & 0x80 ? -value : value;
}

static inline uint16_t kva_bf16_of(float value)
{
    uint32_t bits = kva_float_bits(value);

    if (value != value)
        return 0x7fff;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Below the smallest normal number the addition of a power of two rounds to the target's last
 * place, and leaves the code in the low bits. */
static inline uint16_t kva_fp16_of(float value)
{
    uint32_t magnitude = kva_float_bits(value) & 0x7fffffff;
    uint32_t code;

    if (value != value)
        return 0x7fff;
    if (magnitude >= 0x477ff000) /* 65,520 and more */
        code = 0x7c00;
    else if (magnitude < 113u << 23)
        code = kva_float_bits(kva_float_of(magnitude) + 0.5f) - kva_float_bits(0.5f);
    else
        code = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    return (uint16_t)(kva_float_bits(value) >> 16 & 0x8000) | (uint16_t)code;
}

static inline uint8_t kva_e4m3_of(float value)
{
    uint32_t sign = kva_float_bits(value) >> 24 & 0x80;
    uint32_t magnitude = kva_float_bits(fminf(fabsf(value), 448.0f));
    uint32_t code;

    if (value != value)
        return 0x7f;
    if (magnitude < 121u << 23)
        code = kva_float_bits(kva_float_of(magnitude) + 0x1p14f) - kva_float_bits(0x1p14f);
    else
        code = (magnitude - (120u << 23) + 0x7ffff + (magnitude >> 20 & 1)) >> 20;
    return (uint8_t)(sign | code);
}

static inline int8_t kva_int8_of(float value)
{
    if (value != value)
        return 0;
    return (int8_t)rintf(fmaxf(-128.0f, fminf(value, 127.0f)));
}

static inline uint32_t kva_element_bytes(uint32_t dtype)
{
    static const uint8_t bytes[] = {0, 2, 2, 4, 1, 1};

    return dtype < sizeof(bytes) ? bytes[dtype] : 0;
}

static inline float kva_load(uint32_t dtype, const void *array, uint64_t index)
{
    switch (dtype) {
    case KVMEM_DTYPE_BF16: return kva_float_of((uint32_t)((const uint16_t *)array)[index] << 16);
    case KVMEM_DTYPE_FP16: return kva_float_of_fp16(((const uint16_t *)array)[index]);
    case KVMEM_DTYPE_FP32: return ((const float *)array)[index];
    case KVMEM_DTYPE_FP8_E4M3: return kva_float_of_e4m3(((const uint8_t *)array)[index]);
    default: return ((const int8_t *)array)[index];
    }
}

static inline void kva_store(uint32_t dtype, void *array, uint64_t index, float value)
{
    switch (dtype) {
    case KVMEM_DTYPE_BF16: ((uint16_t *)array)[index] = kva_bf16_of(value); break;
    case KVMEM_DTYPE_FP16: ((uint16_t *)array)[index] = kva_fp16_of(value); break;
    case KVMEM_DTYPE_FP32: ((float *)array)[index] = value; break;
    case KVMEM_DTYPE_FP8_E4M3: ((uint8_t *)array)[index] = kva_e4m3_of(value); break;
    default: ((int8_t *)array)[index] = kva_int8_of(value); break;
    }
}

#endif
