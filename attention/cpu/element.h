/* SPDX-License-Identifier: Apache-2.0
 *
 * Elements of arrays as floats, and back: portable C, exact, rounding to nearest even, as the GPU
 * does. Beyond the range BF16 and FP16 become infinity; FP8_E4M3 is clamped to ±448, INT8 to
 * −128 .. 127. NaN stays NaN, and becomes 0 in INT8.
 */
#ifndef KVA_CPU_ELEMENT_H
#define KVA_CPU_ELEMENT_H

#include <math.h>
#include <string.h>

#include <kvmem/types.h>

static inline float kva_float_of_bits(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

static inline uint32_t kva_bits_of_float(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static inline float kva_from_bf16(uint16_t x)
{
    return kva_float_of_bits((uint32_t)x << 16);
}

/* Exponent and fraction are moved to where a float has them, which is right up to a factor of
 * 2^(127 − 15), for subnormal numbers too. */
static inline float kva_from_fp16(uint16_t x)
{
    uint32_t sign = (uint32_t)(x & 0x8000) << 16;
    uint32_t magnitude = (uint32_t)(x & 0x7fff) << 13;

    if (magnitude >= 0x7c00u << 13)
        return kva_float_of_bits(sign | 0x7f800000 | magnitude);
    return kva_float_of_bits(sign | kva_bits_of_float(kva_float_of_bits(magnitude) * 0x1p112f));
}

static inline float kva_from_e4m3(uint8_t x)
{
    uint32_t sign = (uint32_t)(x & 0x80) << 24;

    if ((x & 0x7f) == 0x7f)
        return kva_float_of_bits(sign | 0x7fc00000);
    return kva_float_of_bits(
        sign | kva_bits_of_float(kva_float_of_bits((uint32_t)(x & 0x7f) << 20) * 0x1p120f));
}

static inline uint16_t kva_to_bf16(float value)
{
    uint32_t bits = kva_bits_of_float(value);

    if (value != value)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline uint16_t kva_to_fp16(float value)
{
    uint32_t bits = kva_bits_of_float(value);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    uint32_t magnitude = bits & 0x7fffffff;

    if (magnitude > 0x7f800000)
        return sign | 0x7e00;
    if (magnitude >= 0x477ff000) /* 65,520: halfway to what would come behind the largest */
        return sign | 0x7c00;
    if (magnitude < 0x38800000) /* below 2^−14: adding 0.5 leaves the multiple of 2^−24 */
        return sign | (uint16_t)(kva_bits_of_float(kva_float_of_bits(magnitude) + 0.5f) -
                                 kva_bits_of_float(0.5f));
    magnitude += 0xfff + (magnitude >> 13 & 1);
    return sign | (uint16_t)((magnitude - (112u << 23)) >> 13);
}

/* Below 2^−6 adding 2^14 leaves the multiple of 2^−9. */
static inline uint8_t kva_to_e4m3(float value)
{
    uint32_t sign = kva_bits_of_float(value) >> 24 & 0x80;
    uint32_t magnitude = kva_bits_of_float(fminf(fabsf(value), 448.0f));

    if (value != value)
        return (uint8_t)(sign | 0x7f);
    if (magnitude < 121u << 23)
        return (uint8_t)(sign | (kva_bits_of_float(kva_float_of_bits(magnitude) + 0x1p14f) -
                                 kva_bits_of_float(0x1p14f)));
    magnitude += 0x7ffff + (magnitude >> 20 & 1);
    return (uint8_t)(sign | (magnitude - (120u << 23)) >> 20);
}

static inline int8_t kva_to_int8(float value)
{
    return value != value ? 0 : (int8_t)rintf(fmaxf(-128.0f, fminf(value, 127.0f)));
}

static inline uint32_t kva_element_bytes(uint32_t dtype)
{
    return dtype == KVMEM_DTYPE_FP32 ? 4 : dtype <= KVMEM_DTYPE_FP16 ? 2 : 1;
}

/* `count` elements from `first` on, as floats, `step` floats apart. */
static inline void kva_load(uint32_t dtype, const void *array, uint64_t first, uint32_t count,
                            float *to, uint32_t step)
{
    const uint8_t *bytes = (const uint8_t *)array + first;
    const uint16_t *halves = (const uint16_t *)array + first;
    const float *floats = (const float *)array + first;

    switch (dtype) {
    case KVMEM_DTYPE_BF16:
        for (uint32_t i = 0; i < count; i++)
            to[i * step] = kva_from_bf16(halves[i]);
        break;
    case KVMEM_DTYPE_FP16:
        for (uint32_t i = 0; i < count; i++)
            to[i * step] = kva_from_fp16(halves[i]);
        break;
    case KVMEM_DTYPE_FP32:
        for (uint32_t i = 0; i < count; i++)
            to[i * step] = floats[i];
        break;
    case KVMEM_DTYPE_FP8_E4M3:
        for (uint32_t i = 0; i < count; i++)
            to[i * step] = kva_from_e4m3(bytes[i]);
        break;
    default:
        for (uint32_t i = 0; i < count; i++)
            to[i * step] = (int8_t)bytes[i];
    }
}

/* The other way. */
static inline void kva_store(uint32_t dtype, void *array, uint64_t first, uint32_t count,
                             const float *from)
{
    uint8_t *bytes = (uint8_t *)array + first;
    uint16_t *halves = (uint16_t *)array + first;

    switch (dtype) {
    case KVMEM_DTYPE_BF16:
        for (uint32_t i = 0; i < count; i++)
            halves[i] = kva_to_bf16(from[i]);
        break;
    case KVMEM_DTYPE_FP16:
        for (uint32_t i = 0; i < count; i++)
            halves[i] = kva_to_fp16(from[i]);
        break;
    case KVMEM_DTYPE_FP32: memcpy((float *)array + first, from, count * sizeof(float)); break;
    case KVMEM_DTYPE_FP8_E4M3:
        for (uint32_t i = 0; i < count; i++)
            bytes[i] = kva_to_e4m3(from[i]);
        break;
    default:
        for (uint32_t i = 0; i < count; i++)
            bytes[i] = (uint8_t)kva_to_int8(from[i]);
    }
}

#endif
