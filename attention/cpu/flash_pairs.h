/* SPDX-License-Identifier: Apache-2.0
 *
 * The two products of flash_tile.h for few rows, straight from rows of bf16: a strip of 1 to 4 rows
 * does not pay for tiles of K and V that are packed first. Part of flash_avx512_bf16.c.
 *
 * Both take rows in ones, twos or fours; rows behind the strip's last one are computed too, in the
 * strip's own memory, and nobody looks at them.
 */
#define FEW_ROWS 4u

/* Lane i of the result: the sum of all lanes of a[i]. Each step adds halves of two vectors. */
KVA_INLINE vf sums_of_16(vf *a)
{
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        a[i] = v_add(_mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]),
                     _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);

        a[i] = v_add(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                     _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        a[i] = v_add(_mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x44),
                     _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xee));
    return v_add(_mm512_shuffle_f32x4(a[0], a[1], 0x88), _mm512_shuffle_f32x4(a[0], a[1], 0xdd));
}

/* q · K of R rows and 16 ÷ R tokens: row r's scores are at to + r · KVA_TILE. */
KVA_INLINE void few_scores(const struct strip *s, const char *const *k, const char *const *next,
                           float *to, const int R)
{
    const int T = 16 / R;
    vf sum[16], parts;

#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        sum[i] = v_set1(0);
    for (uint32_t w = 0; w < s->k_words; w += VLANES) {
        uint32_t n = s->k_words - w < VLANES ? s->k_words - w : VLANES;
        vf q[4];

#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
            q[r] = v_load(s->q + (uint64_t)r * s->q_stride + w);
#pragma GCC unroll 16
        for (int t = 0; t < T; t++) {
            vf token = v_from_fp32(k[t] + 4ull * w, n);

            prefetch_row(next[t], 4ull * w);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++)
                sum[r * T + t] = dot(sum[r * T + t], q[r], token);
        }
    }
    parts = sums_of_16(sum);
    if (R == 1)
        v_store(to, parts);
    else if (R == 2) {
        _mm256_storeu_ps(to, _mm512_castps512_ps256(parts));
        _mm256_storeu_ps(to + KVA_TILE, _mm512_extractf32x8_ps(parts, 1));
    } else {
        _mm_storeu_ps(to, _mm512_castps512_ps128(parts));
        _mm_storeu_ps(to + KVA_TILE, _mm512_extractf32x4_ps(parts, 1));
        _mm_storeu_ps(to + 2 * KVA_TILE, _mm512_extractf32x4_ps(parts, 2));
        _mm_storeu_ps(to + 3 * KVA_TILE, _mm512_extractf32x4_ps(parts, 3));
    }
}

KVA_INLINE void all_few_scores(const struct strip *s, const char *const *k, const char *const *next,
                               uint32_t tokens, const int R)
{
    for (uint32_t t = 0; t < tokens; t += 16u / (uint32_t)R)
        few_scores(s, k + t, next + t, s->scores + t, R);
}

/* P · V of R rows and N vectors of elements from d on. `last`: the elements that there are of the
 * last 32, or 16 where N is odd. */
KVA_INLINE void few_sums(const struct strip *s, const char *const *v, const char *const *next,
                         uint32_t tokens, uint32_t d, __mmask32 last, const int R, const int N)
{
    const __m512i low = pair_order(), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    float *to = s->sums + d;
    vf sum[4][4];

#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++)
            sum[r][n] = v_mul(v_set1(s->factor[r]),
                              v_load(to + (uint64_t)r * s->v_stride + n * (int)VLANES));
    for (uint32_t t = 0; t < tokens; t += 2) {
        const float *p = s->scores + t / 2;
        vf line[4];

#pragma GCC unroll 2
        for (int n = 0; n < N; n += 2) {
            uint64_t byte = 2ull * d + 32u * (unsigned)n;
            __mmask32 m = n + 2 < N ? ~0u : last;
            __m512i a = _mm512_maskz_loadu_epi16(m, v[t] + byte);
            __m512i b = _mm512_maskz_loadu_epi16(m, v[t + 1] + byte);

            prefetch_row(next[t], byte);
            prefetch_row(next[t + 1], byte);
            line[n] = _mm512_castsi512_ps(_mm512_permutex2var_epi16(a, low, b));
            line[n + 1] = _mm512_castsi512_ps(_mm512_permutex2var_epi16(a, high, b));
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int n = 0; n < N; n++)
                sum[r][n] = dot(sum[r][n], v_set1(p[r * (int)KVA_TILE]), line[n]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++)
            v_store(to + (uint64_t)r * s->v_stride + n * (int)VLANES, sum[r][n]);
}

KVA_INLINE void all_few_sums(const struct strip *s, const char *const *v, const char *const *next,
                             uint32_t tokens, const int R)
{
    uint32_t dim = s->run->what->cache.head_dim_v, d = 0;
    __mmask32 last;

    for (; d + 64 <= dim; d += 64)
        few_sums(s, v, next, tokens, d, ~0u, R, 4);
    last = dim % 32 ? (1u << dim % 32) - 1 : ~0u;
    switch ((s->v_stride - d) / VLANES) {
    case 4: few_sums(s, v, next, tokens, d, last, R, 4); break;
    case 3: few_sums(s, v, next, tokens, d, last, R, 3); break;
    case 2: few_sums(s, v, next, tokens, d, last, R, 2); break;
    case 1: few_sums(s, v, next, tokens, d, last, R, 1); break;
    }
}
