/* SPDX-License-Identifier: Apache-2.0
 *
 * The two products of flash_tile.h for few rows, straight from rows of bf16: a strip of 1 to 4 rows
 * does not pay for tiles of K and V that are packed first. Part of flash_avx512_bf16.c.
 *
 * Both take rows in ones, twos or fours; rows behind the strip's last one are computed too, in the
 * strip's own memory, and nobody looks at them.
 *
 * Four rows (or three) have scores in *parts*, vectors of 4 rows and 4 tokens: lane 4 r + t of part
 * i is row r, token 4 i + t. Sums over the lanes of 16 products cost more than the products do;
 * here each quarter of a cache line of K meets another row, in four ways, so that quarters which
 * have changed places add up to one vector of 4 words a row:
 *
 *   K, 16 words       a  b  c  d      quarters of 4 words
 *   q, vector 0       0a 1b 2c 3d     row and quarter: quarter i of vector j has row i xor j
 *   q, vector 1       1a 0b 3c 2d
 *   q, vector 2       2a 3b 0c 1d
 *   q, vector 3       3a 2b 1c 0d
 *
 * The softmax stays in parts too when all rows see the whole tile: what it needs of a row's tokens
 * is in the same lanes of all parts.
 */
#define FEW_ROWS  4u
#define FOUR_STEP 4u /* tokens at a time */
#define PARTS     (KVA_TILE / 4)

/* Rows on their way to the cache, line after line: as many lines as the rows at work have. */
struct ahead {
    const char *const *row;
    uint64_t from; /* bytes from where the pointers point to */
    uint64_t byte;
    uint64_t bytes; /* of a row */
};

KVA_INLINE void prefetch_lines(struct ahead *a, const int lines)
{
#pragma GCC unroll 8
    for (int i = 0; i < lines; i++) {
        prefetch_row(*a->row, a->from + a->byte);
        a->byte += 64;
        if (a->byte >= a->bytes) {
            a->byte = 0;
            a->row++;
        }
    }
}

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
    if (R == 1) {
        v_store(to, parts);
    } else {
        _mm256_storeu_ps(to, _mm512_castps512_ps256(parts));
        _mm256_storeu_ps(to + KVA_TILE, _mm512_extractf32x8_ps(parts, 1));
    }
}

KVA_INLINE void all_few_scores(const struct strip *s, const char *const *k, const char *const *next,
                               uint32_t tokens, const int R)
{
    for (uint32_t t = 0; t < tokens; t += 16u / (uint32_t)R)
        few_scores(s, k + t, next + t, s->scores + t, R);
}

/* ---- scores of four rows ---- */

/* Does the strip have its scores in parts, and q as they want it? */
KVA_INLINE int has_four_rows(const struct strip *s)
{
    return s->task->row_count == 3 || s->task->row_count == 4;
}

/* q (4, words) as vectors 0 to 3 of each 16 words. */
static KVA_TARGET void quarter_q(const struct strip *s)
{
    float rows[FEW_ROWS * KVA_DIM_LIMIT / 2];

    memcpy(rows, s->q, sizeof(float) * FEW_ROWS * s->q_stride);
    for (uint32_t w = 0; w < s->q_stride; w += 4)
        for (uint32_t r = 0; r < FEW_ROWS; r++) {
            uint32_t quarter = w / 4 % 4, vector = w / VLANES * 4 + (r ^ quarter);

            memcpy(s->q + vector * VLANES + quarter * 4, rows + r * s->q_stride + w,
                   4 * sizeof(float));
        }
}

/* Products of words [w, w + words), 16 at most: a cache line of each token. */
KVA_INLINE void four_line(const struct strip *s, const char *const *k, uint64_t from,
                          struct ahead *ahead, uint32_t w, uint32_t words, vf (*sum)[FEW_ROWS])
{
    const float *q = s->q + 4ull * w;

#pragma GCC unroll 4
    for (uint32_t t = 0; t < FOUR_STEP; t++) {
        vf token = v_from_fp32(k[t] + from + 4ull * w, words);

        prefetch_lines(ahead, 1);
#pragma GCC unroll 4
        for (uint32_t j = 0; j < FEW_ROWS; j++)
            sum[t][j] = dot(sum[t][j], v_load(q + j * VLANES), token);
    }
}

/* Quarters exchanged with their neighbours, or by twos. */
KVA_INLINE vf swap_1(vf x)
{
    return _mm512_shuffle_f32x4(x, x, 0xb1);
}

KVA_INLINE vf swap_2(vf x)
{
    return _mm512_shuffle_f32x4(x, x, 0x4e);
}

/* The part of four tokens from their sums. */
KVA_INLINE vf part_of(vf (*sum)[FEW_ROWS])
{
    vf a[FOUR_STEP];
    __m512d x, y;

#pragma GCC unroll 4
    for (uint32_t t = 0; t < FOUR_STEP; t++)
        a[t] =
            v_add(v_add(sum[t][0], swap_1(sum[t][1])), swap_2(v_add(sum[t][2], swap_1(sum[t][3]))));
    x = _mm512_castps_pd(v_add(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1])));
    y = _mm512_castps_pd(v_add(_mm512_unpacklo_ps(a[2], a[3]), _mm512_unpackhi_ps(a[2], a[3])));
    return v_add(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                 _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}

/* The parts of tokens that are `from` bytes behind k. */
KVA_INLINE void four_scores(const struct strip *s, const char *const *k, uint64_t from,
                            uint32_t tokens, struct ahead *ahead, float *parts)
{
    for (uint32_t t = 0; t < tokens; t += FOUR_STEP) {
        vf sum[FOUR_STEP][FEW_ROWS];
        uint32_t w = 0;

#pragma GCC unroll 16
        for (uint32_t i = 0; i < FOUR_STEP * FEW_ROWS; i++)
            sum[i / FEW_ROWS][i % FEW_ROWS] = v_set1(0);
        for (; w + VLANES <= s->k_words; w += VLANES)
            four_line(s, k + t, from, ahead, w, VLANES, sum);
        if (w < s->k_words)
            four_line(s, k + t, from, ahead, w, s->k_words - w, sum);
        v_store(parts + 4ull * t, part_of(sum));
    }
}

/* Parts become rows (row, KVA_TILE). */
static KVA_TARGET void parts_to_rows(const struct strip *s)
{
    float parts[FEW_ROWS * KVA_TILE];

    memcpy(parts, s->scores, sizeof(parts));
    for (uint32_t i = 0; i < PARTS; i++)
        for (uint32_t r = 0; r < FEW_ROWS; r++)
            memcpy(s->scores + (uint64_t)r * KVA_TILE + 4 * i, parts + i * VLANES + 4 * r,
                   4 * sizeof(float));
}

/* ---- softmax of four rows, in parts ---- */

/* Lane 4 r + t of the result: number r, or number t. */
KVA_INLINE vf of_rows(const float *numbers)
{
    const __m512i row = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);

    return _mm512_permutexvar_ps(row, _mm512_castps128_ps512(_mm_loadu_ps(numbers)));
}

KVA_INLINE vf of_tokens(const float *numbers)
{
    return _mm512_broadcast_f32x4(_mm_loadu_ps(numbers));
}

/* Number r from lane 4 r. */
KVA_INLINE void to_rows(float *numbers, vf x)
{
    const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);

    _mm_storeu_ps(numbers, _mm512_castps512_ps128(_mm512_permutexvar_ps(first, x)));
}

/* Each lane: the largest, or the sum, of its quarter's lanes. */
KVA_INLINE vf most_of_row(vf x)
{
    x = v_max(x, _mm512_permute_ps(x, 0xb1));
    return v_max(x, _mm512_permute_ps(x, 0x4e));
}

KVA_INLINE vf sum_of_row(vf x)
{
    x = v_add(x, _mm512_permute_ps(x, 0xb1));
    return v_add(x, _mm512_permute_ps(x, 0x4e));
}

/* As soften() and follow_maxima(), of four rows that see the whole tile. Of weights, bf16, words
 * (part, row, 2) are left. */
static KVA_TARGET void soften_parts(const struct strip *s, const struct scoring *scoring,
                                    const float *k_scales, const float *v_scales)
{
    vf x[PARTS], most = v_set1(-INFINITY), sum = v_set1(0), old = of_rows(s->most), base, factor;

#pragma GCC unroll 16
    for (uint32_t i = 0; i < PARTS; i++) {
        x[i] = v_load(s->scores + i * VLANES);
        if (k_scales)
            x[i] = v_mul(x[i], of_tokens(k_scales + 4 * i));
        x[i] = score_of(scoring, x[i], 0);
        most = v_max(most, x[i]);
    }
    most = v_max(most_of_row(most), old);
    base = v_select(_mm512_cmp_ps_mask(most, v_set1(-INFINITY), _CMP_EQ_OQ), v_set1(0), most);
    factor = exp2_of(v_sub(old, base));
#pragma GCC unroll 16
    for (uint32_t i = 0; i < PARTS; i++) {
        x[i] = exp2_of(v_sub(x[i], base));
        sum = v_add(sum, x[i]);
        if (v_scales)
            x[i] = v_mul(x[i], of_tokens(v_scales + 4 * i));
    }
#pragma GCC unroll 8
    for (uint32_t i = 0; i < PARTS; i += 2)
        _mm512_storeu_si512(s->scores + i / 2 * VLANES,
                            (__m512i)_mm512_cvtne2ps_pbh(x[i + 1], x[i]));
    to_rows(s->total, v_fma(of_rows(s->total), factor, sum_of_row(sum)));
    to_rows(s->factor, factor);
    to_rows(s->most, most);
}

/* ---- values ---- */

/* The rows of V, and where weights are: words of row r, tokens t and t + 1 at r · p_row +
 * t ÷ 4 · p_four + t % 4 ÷ 2. */
struct few_values {
    const char *const *v;
    uint64_t from; /* bytes from where v points to */
    struct ahead ahead;
    const float *factor; /* sums = factor (row) · sums + P · V; NULL: 1 */
    const float *p;
    uint32_t tokens;
    uint32_t p_row, p_four;
};

/* sum += P · V of R rows, N vectors of elements from d on and two tokens; `p`: words of row 0. */
KVA_INLINE void few_products(const char *const *v, struct ahead *ahead, const float *p,
                             uint32_t p_row, uint64_t from, uint32_t d, __mmask32 last,
                             vf (*sum)[4], const int R, const int N)
{
    const __m512i low = pair_order(), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    const int lines = (N + 1) / 2 * 2; /* of both tokens */
    vf line[4];

#pragma GCC unroll 2
    for (int n = 0; n < N; n += 2) {
        uint64_t byte = from + 2ull * d + 32u * (unsigned)n;
        __mmask32 m = n + 2 < N ? ~0u : last;
        __m512i a = _mm512_maskz_loadu_epi16(m, v[0] + byte);
        __m512i b = _mm512_maskz_loadu_epi16(m, v[1] + byte);

        line[n] = _mm512_castsi512_ps(_mm512_permutex2var_epi16(a, low, b));
        line[n + 1] = _mm512_castsi512_ps(_mm512_permutex2var_epi16(a, high, b));
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
        prefetch_lines(ahead, lines * (r + 1) / R - lines * r / R);
#pragma GCC unroll 4
        for (int n = 0; n < N; n++)
            sum[r][n] = dot(sum[r][n], v_set1(p[(uint64_t)r * p_row]), line[n]);
    }
}

/* P · V of R rows and N vectors of elements from d on. `last`: the elements that there are of the
 * last 32, or 16 where N is odd. */
KVA_INLINE void few_sums(const struct strip *s, struct few_values *of, uint32_t d, __mmask32 last,
                         const int R, const int N)
{
    float *to = s->sums + d;
    vf sum[4][4];

#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++)
            sum[r][n] = v_load(to + (uint64_t)r * s->v_stride + n * (int)VLANES);
    if (of->factor)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int n = 0; n < N; n++)
                sum[r][n] = v_mul(v_set1(of->factor[r]), sum[r][n]);
    for (uint32_t t = 0; t < of->tokens; t += 4) {
        const float *p = of->p + (uint64_t)(t / 4) * of->p_four;

        few_products(of->v + t, &of->ahead, p, of->p_row, of->from, d, last, sum, R, N);
        few_products(of->v + t + 2, &of->ahead, p + 1, of->p_row, of->from, d, last, sum, R, N);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++)
            v_store(to + (uint64_t)r * s->v_stride + n * (int)VLANES, sum[r][n]);
}

KVA_INLINE void all_few_sums(const struct strip *s, struct few_values *of, const int R)
{
    uint32_t dim = s->run->what->cache.head_dim_v, d = 0;
    __mmask32 last;

    for (; d + 64 <= dim; d += 64)
        few_sums(s, of, d, ~0u, R, 4);
    last = dim % 32 ? (1u << dim % 32) - 1 : ~0u;
    switch ((s->v_stride - d) / VLANES) {
    case 4: few_sums(s, of, d, last, R, 4); break;
    case 3: few_sums(s, of, d, last, R, 3); break;
    case 2: few_sums(s, of, d, last, R, 2); break;
    case 1: few_sums(s, of, d, last, R, 1); break;
    }
}
