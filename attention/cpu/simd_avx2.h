/* SPDX-License-Identifier: Apache-2.0
 *
 * Vectors of 8 floats for flash_tile.h: what its code needs of AVX2, FMA and F16C. As
 * simd_avx512.h; `n` is 1..8 here.
 */
#ifndef KVA_CPU_SIMD_AVX2_H
#define KVA_CPU_SIMD_AVX2_H

#include <cpuid.h>
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "flash.h"

#define VLANES  8u
#define GEMM_NV 2

typedef __m256 vf;

/* Not among the names that __builtin_cpu_supports() knows in gcc 12. */
static inline int v_has_f16c(void)
{
    unsigned a, b, c = 0, d;

    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}

/* All bits of the lanes of the first n. */
KVA_INLINE __m256i v_first(uint32_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

KVA_INLINE vf v_set1(float x)
{
    return _mm256_set1_ps(x);
}

KVA_INLINE vf v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

KVA_INLINE void v_store(float *p, vf x)
{
    _mm256_storeu_ps(p, x);
}

KVA_INLINE vf v_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}

KVA_INLINE vf v_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}

KVA_INLINE vf v_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}

KVA_INLINE vf v_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}

KVA_INLINE vf v_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}

KVA_INLINE vf v_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}

KVA_INLINE vf v_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}

KVA_INLINE float v_sum(vf x)
{
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));

    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

KVA_INLINE float v_most(vf x)
{
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));

    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

KVA_INLINE vf v_iota(void)
{
    return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
}

KVA_INLINE vf v_select(uint32_t bits, vf x, vf other)
{
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), lane), lane);

    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(set));
}

KVA_INLINE vf v_round(vf x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

KVA_INLINE vf v_scale2(vf x, vf n, vf exponent)
{
    __m256i power =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    vf is_there = _mm256_cmp_ps(exponent, v_set1(-126), _CMP_NLT_UQ);

    return _mm256_and_ps(is_there, v_mul(x, _mm256_castsi256_ps(power)));
}

/* ---- elements of other types as floats ---- */

/* n elements of `bytes` bytes, and zeros behind them. */
KVA_INLINE __m128i v_load_some(const void *p, uint32_t n, uint32_t bytes)
{
    char some[16] = {0};

    if (n == VLANES)
        return bytes == 2 ? _mm_loadu_si128(p) : _mm_loadl_epi64(p);
    memcpy(some, p, n * bytes);
    return _mm_loadu_si128((const __m128i *)some);
}

KVA_INLINE vf v_from_bf16(const void *p, uint32_t n)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v_load_some(p, n, 2)), 16));
}

KVA_INLINE vf v_from_fp16(const void *p, uint32_t n)
{
    return _mm256_cvtph_ps(v_load_some(p, n, 2));
}

KVA_INLINE vf v_from_fp32(const void *p, uint32_t n)
{
    return n == VLANES ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, v_first(n));
}

KVA_INLINE vf v_from_int8(const void *p, uint32_t n)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v_load_some(p, n, 1)));
}

KVA_INLINE vf v_from_fp8(const void *p, uint32_t n)
{
    __m256i x = _mm256_cvtepu8_epi32(v_load_some(p, n, 1));
    __m256i low = _mm256_and_si256(x, _mm256_set1_epi32(0x7f));
    __m256i sign = _mm256_slli_epi32(_mm256_xor_si256(x, low), 24);
    __m256i nan = _mm256_and_si256(_mm256_cmpeq_epi32(low, _mm256_set1_epi32(0x7f)),
                                   _mm256_set1_epi32(0x7fc00000));
    vf value = v_mul(_mm256_castsi256_ps(_mm256_slli_epi32(low, 20)), v_set1(0x1p120f));

    return _mm256_castsi256_ps(
        _mm256_or_si256(_mm256_or_si256(_mm256_castps_si256(value), sign), nan));
}

/* ---- floats as elements of other types, to the nearest, ties to even ---- */

KVA_INLINE void v_store_some(void *p, __m128i x, uint32_t n)
{
    char some[16];

    if (n == VLANES) {
        _mm_storeu_si128(p, x);
        return;
    }
    _mm_storeu_si128((__m128i *)some, x);
    memcpy(p, some, 2 * n);
}

KVA_INLINE void v_to_bf16(void *p, vf x, uint32_t n)
{
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));

    up = _mm256_srli_epi32(_mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc00000), is_nan), 16);
    up = _mm256_permute4x64_epi64(_mm256_packus_epi32(up, up), 0xd8);
    v_store_some(p, _mm256_castsi256_si128(up), n);
}

KVA_INLINE void v_to_fp16(void *p, vf x, uint32_t n)
{
    v_store_some(p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), n);
}

KVA_INLINE void v_to_fp32(void *p, vf x, uint32_t n)
{
    _mm256_maskstore_ps(p, v_first(n), x);
}

/* ---- 8 rows of words become columns ---- */

/* Four words, or fewer, at `byte` of row i in the low lane of to[i], of row i + 4 in the high one.
 */
KVA_INLINE void v_load_part(vf *to, const char *const *rows, uint64_t byte, uint32_t words)
{
    const __m128i first = _mm256_castsi256_si128(v_first(words));

#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m128 low = _mm_maskload_ps((const float *)(rows[i] + byte), first);
        __m128 high = _mm_maskload_ps((const float *)(rows[i + 4] + byte), first);

        to[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
    }
}

/* Word w of row i, w < n, goes to to[w · stride + i]. */
KVA_INLINE void v_transpose(float *to, uint64_t stride, const char *const *rows, uint64_t byte,
                            uint32_t n)
{
    vf a[4], b[4];

#pragma GCC unroll 2
    for (uint32_t part = 0; part < n; part += 4) {
        uint32_t words = n - part < 4 ? n - part : 4;

        v_load_part(a, rows, byte + 4 * part, words);
        for (int i = 0; i < 4; i += 2) {
            b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
            b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
        }
        a[0] = _mm256_shuffle_ps(b[0], b[2], 0x44);
        a[1] = _mm256_shuffle_ps(b[0], b[2], 0xee);
        a[2] = _mm256_shuffle_ps(b[1], b[3], 0x44);
        a[3] = _mm256_shuffle_ps(b[1], b[3], 0xee);
        for (uint32_t w = 0; w < words; w++)
            v_store(to + (part + w) * stride, a[w]);
    }
}

#endif
