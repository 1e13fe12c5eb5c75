/* SPDX-License-Identifier: Apache-2.0
 *
 * Elements of the number formats, as their definitions say them: sign, exponent, fraction.
 */
#include "reference.h"

#include <math.h>
#include <string.h>

/* A format with subnormal numbers. FP8_E4M3 (OCP 8-bit floating point, 2023) has no infinity, and
 * NaN only where all other bits are ones. */
struct format {
    int fraction_bits;
    int exponent_bits;
    int bias;
    double largest;
};

static const struct format FORMATS[] = {
    [KVMEM_DTYPE_BF16] = {7, 8, 127, 0x1.fep127},
    [KVMEM_DTYPE_FP16] = {10, 5, 15, 65504},
    [KVMEM_DTYPE_FP32] = {23, 8, 127, 0x1.fffffep127},
    [KVMEM_DTYPE_FP8_E4M3] = {3, 4, 7, 448},
};

static uint32_t bytes_of(uint32_t dtype)
{
    return dtype == KVMEM_DTYPE_FP32 ? 4 : dtype <= KVMEM_DTYPE_FP16 ? 2 : 1;
}

static double value_of(const struct format *f, uint32_t dtype, uint32_t bits)
{
    uint32_t fraction = bits & ((1u << f->fraction_bits) - 1);
    uint32_t exponent = bits >> f->fraction_bits & ((1u << f->exponent_bits) - 1);
    uint32_t sign = bits >> (f->fraction_bits + f->exponent_bits) & 1;
    double magnitude;

    if (dtype == KVMEM_DTYPE_FP8_E4M3 && (bits & 0x7f) == 0x7f)
        magnitude = NAN;
    else if (dtype != KVMEM_DTYPE_FP8_E4M3 && exponent == (1u << f->exponent_bits) - 1)
        magnitude = fraction ? NAN : INFINITY;
    else if (exponent == 0)
        magnitude = ldexp(fraction, 1 - f->bias - f->fraction_bits);
    else
        magnitude =
            ldexp(fraction + (1u << f->fraction_bits), (int)exponent - f->bias - f->fraction_bits);
    return sign ? -magnitude : magnitude;
}

double kva_reference_element(uint32_t dtype, const void *array, uint64_t index)
{
    uint32_t bytes = bytes_of(dtype);
    uint32_t bits = 0;
    float value;

    memcpy(&bits, (const char *)array + bytes * index, bytes); /* little-endian, as all we run on */
    if (dtype == KVMEM_DTYPE_INT8)
        return (int8_t)bits;
    if (dtype == KVMEM_DTYPE_FP16 || dtype == KVMEM_DTYPE_FP8_E4M3)
        return value_of(&FORMATS[dtype], dtype, bits);
    if (dtype == KVMEM_DTYPE_BF16)
        bits <<= 16;
    memcpy(&value, &bits, 4);
    return value;
}

double kva_reference_round(uint32_t dtype, double value)
{
    const struct format *f = &FORMATS[dtype];
    double rounded;
    int exponent;

    if (dtype == KVMEM_DTYPE_INT8)
        return fmin(127, fmax(-128, rint(value)));
    if (!isfinite(value) && dtype != KVMEM_DTYPE_FP8_E4M3)
        return value;
    if (isnan(value) || value == 0)
        return value;
    if (isinf(value))
        return copysign(f->largest, value);
    if (dtype == KVMEM_DTYPE_FP32)
        return (float)value;
    frexp(value, &exponent); /* value = 0.1... × 2^exponent */
    exponent = exponent < 2 - f->bias ? 2 - f->bias : exponent;
    exponent -= f->fraction_bits + 1;
    rounded = ldexp(rint(ldexp(value, -exponent)), exponent);
    if (fabs(rounded) > f->largest)
        rounded = copysign(dtype == KVMEM_DTYPE_FP8_E4M3 ? f->largest : INFINITY, value);
    return rounded;
}

/* The bits of a value that the format has. */
static uint32_t bits_of(const struct format *f, double value)
{
    uint32_t sign = (signbit(value) ? 1u : 0) << (f->fraction_bits + f->exponent_bits);
    uint32_t top = ((1u << f->exponent_bits) - 1) << f->fraction_bits;
    double magnitude = fabs(value);
    int exponent;

    if (isnan(value))
        return sign | top | ((1u << f->fraction_bits) - 1);
    if (isinf(value))
        return sign | top;
    frexp(magnitude, &exponent);
    exponent += f->bias - 1;
    if (magnitude == 0 || exponent < 1) /* subnormal: the fraction alone, of the least exponent */
        return sign | (uint32_t)ldexp(magnitude, f->bias - 1 + f->fraction_bits);
    return (sign | (uint32_t)(exponent - 1) << f->fraction_bits) +
           (uint32_t)ldexp(magnitude, f->bias - exponent + f->fraction_bits); /* with its one */
}

void kva_reference_store(uint32_t dtype, void *array, uint64_t index, double value)
{
    uint32_t bytes = bytes_of(dtype);
    double rounded = kva_reference_round(dtype, value);
    uint32_t bits;

    if (dtype == KVMEM_DTYPE_INT8)
        bits = isnan(value) ? 0 : (uint32_t)(int32_t)rounded;
    else
        bits = bits_of(&FORMATS[dtype], rounded);
    memcpy((char *)array + bytes * index, &bits, bytes);
}

double kva_reference_unit(uint32_t dtype)
{
    return dtype == KVMEM_DTYPE_INT8 ? 1.0 / 256 : ldexp(1, -FORMATS[dtype].fraction_bits - 1);
}
