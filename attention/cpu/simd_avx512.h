/* SPDX-License-Identifier: Apache-2.0
 *
 * Vectors of 16 floats for flash_tile.h: what its code needs of AVX-512 (F, BW, DQ, VL), and no
 * more. Included by a file that compiles its functions for that target (KVA_TARGET). `n` is how
 * many elements of a vector count, 1..16; the others are neither read nor written.
 */
#ifndef KVA_CPU_SIMD_AVX512_H
#define KVA_CPU_SIMD_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#include "flash.h"

#define VLANES  16u
#define GEMM_NV 4 /* vectors that a micro-kernel is wide */

typedef __m512 vf;

KVA_INLINE __mmask16 v_first(uint32_t n)
{
    return (__mmask16)((1u << n) - 1);
}

KVA_INLINE vf v_set1(float x)
{
    return _mm512_set1_ps(x);
}

KVA_INLINE vf v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

KVA_INLINE void v_store(float *p, vf x)
{
    _mm512_storeu_ps(p, x);
}

KVA_INLINE vf v_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}

KVA_INLINE vf v_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}

KVA_INLINE vf v_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}

KVA_INLINE vf v_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}

KVA_INLINE vf v_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}

/* The larger; b where one is no number. */
KVA_INLINE vf v_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}

KVA_INLINE vf v_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}

KVA_INLINE float v_sum(vf x)
{
    return _mm512_reduce_add_ps(x);
}

KVA_INLINE float v_most(vf x)
{
    return _mm512_reduce_max_ps(x);
}

KVA_INLINE vf v_iota(void)
{
    return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

/* x where the lane's bit is set, else `other`. */
KVA_INLINE vf v_select(uint32_t bits, vf x, vf other)
{
    return _mm512_mask_mov_ps(other, (__mmask16)bits, x);
}

/* The nearest whole number. */
KVA_INLINE vf v_round(vf x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* x · 2^n, n a whole number; 0 where `exponent` is below −126. */
KVA_INLINE vf v_scale2(vf x, vf n, vf exponent)
{
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(exponent, v_set1(-126), _CMP_NLT_UQ), x, n);
}

/* ---- elements of other types as floats ---- */

KVA_INLINE vf v_from_bf16(const void *p, uint32_t n)
{
    __m256i x = _mm256_maskz_loadu_epi16(v_first(n), p);

    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

KVA_INLINE vf v_from_fp16(const void *p, uint32_t n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(v_first(n), p));
}

KVA_INLINE vf v_from_fp32(const void *p, uint32_t n)
{
    return _mm512_maskz_loadu_ps(v_first(n), p);
}

KVA_INLINE vf v_from_int8(const void *p, uint32_t n)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(v_first(n), p)));
}

/* The seven bits below the sign, put where those of a float are, are off by 2^120, subnormals too;
 * 0x7f is no number. */
KVA_INLINE vf v_from_fp8(const void *p, uint32_t n)
{
    __m512i x = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(v_first(n), p));
    __m512i low = _mm512_and_si512(x, _mm512_set1_epi32(0x7f));
    __m512i sign = _mm512_slli_epi32(_mm512_xor_si512(x, low), 24);
    __mmask16 is_nan = _mm512_cmpeq_epi32_mask(low, _mm512_set1_epi32(0x7f));
    vf value = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(low, 20)), v_set1(0x1p120f));
    __m512i bits = _mm512_or_si512(_mm512_castps_si512(value), sign);

    return _mm512_castsi512_ps(_mm512_mask_mov_epi32(bits, is_nan, _mm512_set1_epi32(0x7fc00000)));
}

/* ---- floats as elements of other types, to the nearest, ties to even ---- */

KVA_INLINE void v_to_bf16(void *p, vf x, uint32_t n)
{
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);

    up = _mm512_mask_mov_epi32(up, is_nan, _mm512_set1_epi32(0x7fc00000));
    _mm256_mask_storeu_epi16(p, v_first(n), _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16)));
}

KVA_INLINE void v_to_fp16(void *p, vf x, uint32_t n)
{
    _mm256_mask_storeu_epi16(p, v_first(n),
                             _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

KVA_INLINE void v_to_fp32(void *p, vf x, uint32_t n)
{
    _mm512_mask_storeu_ps(p, v_first(n), x);
}

/* ---- 16 rows of words become columns ---- */

KVA_INLINE void v_unpack_words(__m512i *to, const __m512i *from)
{
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        to[2 * i] = _mm512_unpacklo_epi32(from[2 * i], from[2 * i + 1]);
        to[2 * i + 1] = _mm512_unpackhi_epi32(from[2 * i], from[2 * i + 1]);
    }
}

KVA_INLINE void v_unpack_pairs(__m512i *to, const __m512i *from)
{
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        to[i] = _mm512_unpacklo_epi64(from[i], from[i + 2]);
        to[i + 1] = _mm512_unpackhi_epi64(from[i], from[i + 2]);
        to[i + 2] = _mm512_unpacklo_epi64(from[i + 1], from[i + 3]);
        to[i + 3] = _mm512_unpackhi_epi64(from[i + 1], from[i + 3]);
    }
}

/* Four words, or fewer, at `byte` of the rows i, i + 4, i + 8, i + 12 in the lanes of row[i]: that
 * is where unpacking wants them, so that columns come out in the rows' order. */
KVA_INLINE __m128i v_load_words(const char *p, uint32_t words)
{
    return words == 4 ? _mm_loadu_si128((const __m128i *)p)
                      : _mm_maskz_loadu_epi32((__mmask8)((1u << words) - 1), p);
}

KVA_INLINE void v_load_part(__m512i *row, const char *const *rows, uint64_t byte, uint32_t words)
{
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512i x = _mm512_castsi128_si512(v_load_words(rows[i] + byte, words));

        x = _mm512_inserti32x4(x, v_load_words(rows[i + 4] + byte, words), 1);
        x = _mm512_inserti32x4(x, v_load_words(rows[i + 8] + byte, words), 2);
        row[i] = _mm512_inserti32x4(x, v_load_words(rows[i + 12] + byte, words), 3);
    }
}

/* Word w of row i, w < n, goes to to[w · stride + i]. */
KVA_INLINE void v_transpose(float *to, uint64_t stride, const char *const *rows, uint64_t byte,
                            uint32_t n)
{
    __m512i a[16], b[16];

#pragma GCC unroll 4
    for (uint32_t part = 0; part < 4; part++) {
        uint32_t words = n <= 4 * part ? 0 : n - 4 * part < 4 ? n - 4 * part : 4;

        v_load_part(a + 4 * part, rows, byte + 16 * part, words);
    }
    v_unpack_words(b, a);
    v_unpack_pairs(a, b);
#pragma GCC unroll 16
    for (uint32_t w = 0; w < 16; w++)
        if (w < n)
            _mm512_storeu_ps(to + w * stride, _mm512_castsi512_ps(a[w]));
}

#endif
