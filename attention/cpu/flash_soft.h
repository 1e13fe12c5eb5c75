/* SPDX-License-Identifier: Apache-2.0
 *
 * Parts of flash_tile.h, which includes it: gemm(), exponentials, and the softmax that turns a
 * tile's scores into weights.
 */
/* ---- products ---- */

KVA_INLINE vf dot(vf sum, vf a, vf b)
{
#if FLASH_PAIRS
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#else
    return v_fma(a, b, sum);
#endif
}

struct gemm {
    const float *a;
    const float *b;
    float *c;
    const float *factor; /* C = factor (row) · C + A B; NULL: C = A B */
    uint64_t a_stride, b_stride, c_stride;
    uint32_t words;
};

/* R rows and N vectors of columns, all in registers. */
KVA_INLINE void gemm_block(const struct gemm *g, uint32_t row, uint32_t column, const int R,
                           const int N)
{
    const float *a = g->a + row * g->a_stride, *b = g->b + column;
    float *c = g->c + row * g->c_stride + column;
    vf sum[GEMM_R][GEMM_NV], line[GEMM_NV];

#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++)
            sum[r][n] = g->factor ? v_mul(v_set1(g->factor[row + (uint32_t)r]),
                                          v_load(c + (uint64_t)r * g->c_stride + n * (int)VLANES))
                                  : v_set1(0);
    for (uint32_t w = 0; w < g->words; w++, b += g->b_stride) {
#pragma GCC unroll 4
        for (int n = 0; n < N; n++)
            line[n] = v_load(b + n * (int)VLANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            vf word = v_set1(a[(uint64_t)r * g->a_stride + w]);

#pragma GCC unroll 4
            for (int n = 0; n < N; n++)
                sum[r][n] = dot(sum[r][n], word, line[n]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++)
            v_store(c + (uint64_t)r * g->c_stride + n * (int)VLANES, sum[r][n]);
}

KVA_INLINE void gemm_columns(const struct gemm *g, uint32_t row, uint32_t end, uint32_t column,
                             const int N)
{
    for (; row + GEMM_R <= end; row += GEMM_R)
        gemm_block(g, row, column, GEMM_R, N);
    switch (end - row) {
    case 5: gemm_block(g, row, column, 5, N); break;
    case 4: gemm_block(g, row, column, 4, N); break;
    case 3: gemm_block(g, row, column, 3, N); break;
    case 2: gemm_block(g, row, column, 2, N); break;
    case 1: gemm_block(g, row, column, 1, N); break;
    }
}

/* Rows [row, end), `vectors` vectors of columns. */
static KVA_TARGET void gemm(const struct gemm *g, uint32_t row, uint32_t end, uint32_t vectors)
{
    uint32_t v = 0;

    for (; v + GEMM_NV <= vectors; v += GEMM_NV)
        gemm_columns(g, row, end, v * VLANES, GEMM_NV);
    switch (vectors - v) {
#if GEMM_NV > 2
    case 3: gemm_columns(g, row, end, v * VLANES, 3); break;
    case 2: gemm_columns(g, row, end, v * VLANES, 2); break;
#endif
    case 1: gemm_columns(g, row, end, v * VLANES, 1); break;
    }
}

/* ---- exponentials ---- */

/* 2^x − 1 for −½ ≤ x ≤ ½, off by 2e-8 of it: (2^x − 1) ÷ x interpolated at Chebyshev's nodes. */
KVA_INLINE vf exp2_less_1(vf x)
{
    vf sum = v_set1(1.546144746e-4f);

    sum = v_fma(sum, x, v_set1(1.339086735e-3f));
    sum = v_fma(sum, x, v_set1(9.61805667e-3f));
    sum = v_fma(sum, x, v_set1(5.550357104e-2f));
    sum = v_fma(sum, x, v_set1(0.2402265092f));
    sum = v_fma(sum, x, v_set1(0.693147188f));
    return v_mul(sum, x);
}

/* 2^x for x ≤ 127; 0 below −126. */
KVA_INLINE vf exp2_of(vf x)
{
    vf n = v_round(x);

    return v_scale2(v_add(exp2_less_1(v_sub(x, n)), v_set1(1)), n, x);
}

/* tanh(x · ln 2 ÷ 2) = (2^x − 1) ÷ (2^x + 1), without loss where x is small. */
KVA_INLINE vf tanh_of(vf x)
{
    vf y = v_max(v_set1(-60), v_min(v_set1(60), x));
    vf n = v_round(y);
    vf power = v_scale2(v_set1(1), n, y);
    vf less_1 = v_fma(exp2_less_1(v_sub(y, n)), power, v_sub(power, v_set1(1)));

    return v_div(less_1, v_add(less_1, v_set1(2)));
}

/* ---- softmax ---- */

/* What turns a product into a score, in units of log 2. */
struct scoring {
    const float *scales; /* of K, a token; NULL = 1 */
    float scale;
    float cap; /* 0 = none: then `scale` goes into the tanh */
    float slope;
    float distance; /* first token of the tile − position of the row */
};

static KVA_TARGET struct scoring scoring_of(const struct strip *s, uint32_t i, uint32_t first)
{
    const struct kva_attention *what = s->run->what;
    uint32_t group = what->q_head_count / what->cache.kv_head_count;
    uint32_t row = s->task->row + i, q_first, q_end;
    struct scoring scoring = {.scale = s->scale};

    if (what->soft_cap != 0) {
        scoring.scale *= 2 / what->soft_cap;
        scoring.cap = what->soft_cap * LOG2_E;
    }
    if (what->alibi_slopes) {
        kva_rows_of(&what->batch, s->task->seq, &q_first, &q_end);
        scoring.slope = what->alibi_slopes[s->kv_head * group + row % group] * LOG2_E;
        scoring.distance =
            (float)((int64_t)first + (q_end - q_first) - row / group - (int64_t)s->task->kv_length);
    }
    return scoring;
}

KVA_INLINE vf score_of(const struct scoring *scoring, vf x, uint32_t v)
{
    if (scoring->scales)
        x = v_mul(x, v_load(scoring->scales + v * VLANES));
    x = v_mul(x, v_set1(scoring->scale));
    if (scoring->cap != 0)
        x = v_mul(tanh_of(x), v_set1(scoring->cap));
    if (scoring->slope != 0)
        x = v_fma(v_add(v_iota(), v_set1(scoring->distance + (float)(v * VLANES))),
                  v_set1(scoring->slope), x);
    return x;
}

/* P over the scores of a row: floats, or bf16 in the first half of their place. */
KVA_INLINE void store_weights(float *to, const vf *p)
{
#if FLASH_PAIRS
    for (uint32_t v = 0; v < TILE_NV; v += 2)
        _mm512_storeu_si512(to + v / 2 * VLANES, (__m512i)_mm512_cvtne2ps_pbh(p[v + 1], p[v]));
#else
    for (uint32_t v = 0; v < TILE_NV; v++)
        v_store(to + v * VLANES, p[v]);
#endif
}

KVA_INLINE uint32_t lane_bits(uint64_t mask, uint32_t v)
{
    return (uint32_t)(mask >> (v * VLANES)) & ((1u << VLANES) - 1);
}

/* Scores of row i become weights, `more` their sum; its maximum follows, `factor` is the
 * difference. v_scales: of V. */
KVA_INLINE void soften(const struct strip *s, uint32_t i, const struct scoring *scoring,
                       const float *v_scales, const int is_masked)
{
    float *row = s->scores + (uint64_t)i * KVA_TILE;
    uint64_t mask = s->masks[i];
    vf x[TILE_NV], largest = v_set1(-INFINITY), sum = v_set1(0);
    float most, base;

    for (uint32_t v = 0; v < TILE_NV; v++) {
        x[v] = score_of(scoring, v_load(row + v * VLANES), v);
        if (is_masked)
            x[v] = v_select(lane_bits(mask, v), x[v], v_set1(-INFINITY));
        largest = v_max(largest, x[v]);
    }
    most = v_most(largest);
    most = most > s->most[i] || most != most ? most : s->most[i];
    base = most == -INFINITY ? 0 : most;
    for (uint32_t v = 0; v < TILE_NV; v++) {
        x[v] = exp2_of(v_sub(x[v], v_set1(base)));
        sum = v_add(sum, x[v]);
        if (v_scales)
            x[v] = v_mul(x[v], v_load(v_scales + v * VLANES));
        if (v_scales && is_masked) /* a scale of what is not seen may be no number */
            x[v] = v_select(lane_bits(mask, v), x[v], v_set1(0));
    }
    store_weights(row, x);
    s->factor[i] = s->most[i] - base;
    s->more[i] = v_sum(sum);
    s->most[i] = most;
}

/* Factors from differences of maxima, then totals, of rows [row, end). */
static KVA_TARGET void follow_maxima(const struct strip *s, uint32_t row, uint32_t end)
{
    for (; row < end; row += VLANES) {
        uint32_t n = end - row < VLANES ? end - row : VLANES;
        vf factor = exp2_of(v_from_fp32(s->factor + row, n));
        vf more = v_from_fp32(s->more + row, n);

        v_to_fp32(s->factor + row, factor, n);
        v_to_fp32(s->total + row, v_fma(v_from_fp32(s->total + row, n), factor, more), n);
    }
}

static KVA_TARGET void soften_rows(const struct strip *s, uint32_t row, uint32_t end,
                                   uint32_t first, const float *k_scales, const float *v_scales)
{
    uint32_t has_slopes = s->run->what->alibi_slopes != NULL;
    struct scoring scoring = scoring_of(s, row, first);

    for (uint32_t i = row; i < end; i++) {
        if (has_slopes)
            scoring = scoring_of(s, i, first);
        scoring.scales = k_scales;
        if (s->masks[i] == ~UINT64_C(0))
            soften(s, i, &scoring, v_scales, 0);
        else
            soften(s, i, &scoring, v_scales, 1);
    }
    follow_maxima(s, row, end);
}
