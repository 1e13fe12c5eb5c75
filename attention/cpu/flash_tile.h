/* SPDX-License-Identifier: Apache-2.0
 *
 * The work of a task of flash.h, in terms of vectors. A file includes it once, after it has defined
 *
 *   KVA_TARGET     the attribute of functions for its target
 *   FLASH_PAIRS    1: words are pairs of bf16, neighbours along the sum; 0: words are floats
 *   FLASH_CODE     the name of its struct kva_flash_code
 *   flash_is_here  the function that says whether this processor can run it
 *
 * and a simd_*.h. Both products are one routine, gemm(): C (rows, columns) = Σ_w A (rows, w) ·
 * B (w, columns), A by words that are spread over a vector, columns in the lanes:
 *
 *   scores (row, token) = Σ q (row, word) · K (word, token)     K is transposed into tiles first
 *   sums   (row, d)     = Σ P (row, word) · V (word, d)         words of P and V: tokens
 *
 * Scores are in units of log 2: p = 2^(s − m), m the row's running maximum. Rows, and the elements
 * of a row, are computed alike whatever else is in the strip, since gemm() adds up words in order.
 */
#include <math.h>
#include <string.h>

#include "flash.h"

#define LOG2_E   1.44269504088896f
#define LN_2     0.693147180559945f
#define TILE_NV  (KVA_TILE / VLANES)
#define GEMM_R   6
#define PER_WORD (FLASH_PAIRS ? 2u : 1u)

#define HEAD_LIMIT (KVA_STRIP_ROWS / KVA_ROW_STEP) /* of a strip */

/* A strip at work; shapes as in struct kva_flash_scratch. */
struct strip {
    const struct kva_flash_run *run;
    const struct kva_flash_task *task;
    float *q, *scores, *sums, *most, *total, *factor, *more, *k, *v, *wide;
    uint64_t *masks;
    uint32_t kv_head; /* the one at work: all arrays but masks begin with its rows */
    uint32_t k_words;
    uint32_t q_stride;
    uint32_t v_stride;
    uint32_t is_scaled; /* K and V are quantised */
    float scale;        /* of the softmax, in units of log 2 */
};

#include "flash_soft.h"

/* ---- tiles of K and V ---- */

KVA_INLINE void prefetch_row(const char *row, uint64_t byte)
{
    _mm_prefetch(row + byte, _MM_HINT_T1);
}

#if FLASH_PAIRS

/* Rows of fp8 or int8 as bf16: all 256 values are in a table. */
static KVA_TARGET void widen_row(uint32_t dtype, const char *from, uint32_t dim, float *to)
{
    for (uint32_t d = 0; d < dim; d += VLANES) {
        uint32_t n = dim - d < VLANES ? dim - d : VLANES;
        vf x = dtype == KVMEM_DTYPE_INT8 ? v_from_int8(from + d, n) : v_from_fp8(from + d, n);

        _mm256_storeu_si256((__m256i *)((char *)to + 2ull * d), (__m256i)_mm512_cvtneps_pbh(x));
    }
}

KVA_INLINE int is_wide(uint32_t dtype)
{
    return dtype == KVMEM_DTYPE_BF16;
}

/* Elements 0..15 of two rows in turn; 16 more are elements 16..31. */
KVA_INLINE __m512i pair_order(void)
{
    return _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38,
                            6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
}

#include "flash_pairs.h"

/* Rows 2 t and 2 t + 1 side by side, for each t. */
static KVA_TARGET void pack_v(const struct strip *s, const char *const *rows,
                              const char *const *next, uint32_t tokens)
{
    const __m512i low = pair_order(), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    uint32_t dim = s->run->what->cache.head_dim_v;

    for (uint32_t t = 0; t < tokens; t += 2)
        for (uint32_t d = 0; d < dim; d += 32) {
            float *to = s->v + (uint64_t)(t / 2) * s->v_stride + d;
            __mmask32 m = dim - d < 32 ? (1u << (dim - d)) - 1 : ~0u;
            __m512i a = _mm512_maskz_loadu_epi16(m, rows[t] + 2ull * d);
            __m512i b = _mm512_maskz_loadu_epi16(m, rows[t + 1] + 2ull * d);

            prefetch_row(next[t], 2ull * d);
            prefetch_row(next[t + 1], 2ull * d);
            _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, low, b));
            if (d + 16 < s->v_stride)
                _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi16(a, high, b));
        }
}

#else

KVA_INLINE void widen_as(vf from_type(const void *, uint32_t), uint32_t bytes, const char *from,
                         uint32_t dim, float *to)
{
    uint32_t d = 0;

    for (; d + VLANES <= dim; d += VLANES)
        v_store(to + d, from_type(from + (uint64_t)d * bytes, VLANES));
    if (d < dim)
        v_store(to + d, from_type(from + (uint64_t)d * bytes, dim - d));
}

/* A row as floats, zeros up to a whole vector. */
static KVA_TARGET void widen_row(uint32_t dtype, const char *from, uint32_t dim, float *to)
{
    switch (dtype) {
    case KVMEM_DTYPE_BF16: widen_as(v_from_bf16, 2, from, dim, to); break;
    case KVMEM_DTYPE_FP16: widen_as(v_from_fp16, 2, from, dim, to); break;
    case KVMEM_DTYPE_FP32: widen_as(v_from_fp32, 4, from, dim, to); break;
    case KVMEM_DTYPE_FP8_E4M3: widen_as(v_from_fp8, 1, from, dim, to); break;
    case KVMEM_DTYPE_INT8: widen_as(v_from_int8, 1, from, dim, to); break;
    }
}

KVA_INLINE int is_wide(uint32_t dtype)
{
    return dtype == KVMEM_DTYPE_FP32;
}

#endif

KVA_INLINE uint32_t type_bytes(uint32_t dtype)
{
    return dtype == KVMEM_DTYPE_FP32 ? 4 : dtype <= KVMEM_DTYPE_FP16 ? 2 : 1;
}

KVA_INLINE void prefetch_whole(const char *row, uint32_t bytes)
{
    for (uint32_t b = 0; b < bytes; b += 64)
        prefetch_row(row, b);
}

/* Rows in the type that the words have: into `to`, whose rows the pointers name afterwards. */
static KVA_TARGET void widen_rows(const struct strip *s, const char **rows, const char *const *next,
                                  uint32_t tokens, uint32_t dim, float *to)
{
    uint32_t dtype = s->run->what->cache.dtype;
    uint64_t stride = kva_padded((dim + PER_WORD - 1) / PER_WORD);

    for (uint32_t t = 0; t < tokens; t++, to += stride) {
        prefetch_whole(next[t], dim * type_bytes(dtype));
        widen_row(dtype, rows[t], dim, to);
        rows[t] = (const char *)to;
    }
}

/* K (words, KVA_TILE) of `vectors` vectors of tokens. */
static KVA_TARGET void pack_k(const struct strip *s, const char *const *rows,
                              const char *const *next, uint32_t vectors)
{
    for (uint32_t v = 0; v < vectors; v++)
        for (uint32_t w = 0; w < s->k_words; w += VLANES) {
            float *to = s->k + (uint64_t)w * KVA_TILE + v * VLANES;

            for (uint32_t i = 0; i < VLANES; i++)
                prefetch_row(next[v * VLANES + i], 4ull * w);
            if (s->k_words - w >= VLANES)
                v_transpose(to, KVA_TILE, rows + v * VLANES, 4ull * w, VLANES);
            else
                v_transpose(to, KVA_TILE, rows + v * VLANES, 4ull * w, s->k_words - w);
        }
}

/* A tile on its way: the rows of its tokens, and of the next tile's. */
struct tile {
    uint32_t first;
    uint32_t vectors; /* of tokens that there are */
    uint32_t row;     /* rows [row, end) of each head see some of it */
    uint32_t end;
    uint32_t is_full;  /* these see all of it */
    uint32_t in_parts; /* scores stay in parts (flash_pairs.h) */
    const char *k[KVA_TILE], *v[KVA_TILE];
    const char *next_k[KVA_TILE], *next_v[KVA_TILE];
    float k_scales[KVA_TILE], v_scales[KVA_TILE];
};

/* Rows of K and V that have another type than words are made of. */
static KVA_TARGET const char *const *wide_k(const struct strip *s, struct tile *tile)
{
    const struct kva_cache *c = &s->run->what->cache;

    if (is_wide(c->dtype))
        return tile->next_k;
    widen_rows(s, tile->k, tile->next_k, tile->vectors * VLANES, c->head_dim_k, s->wide);
    return tile->k;
}

/* scores (row, token) of rows [row, end). */
static KVA_TARGET void multiply_k(const struct strip *s, struct tile *tile, uint32_t row,
                                  uint32_t end)
{
    const struct gemm products = {s->q,        s->k,     s->scores, NULL,
                                  s->q_stride, KVA_TILE, KVA_TILE,  s->k_words};
    const char *const *next = wide_k(s, tile);

#if FLASH_PAIRS
    uint32_t tokens = tile->vectors * VLANES;
    struct ahead ahead = {.row = next, .bytes = 4ull * s->k_words};

    switch (s->task->row_count) {
    case 1: all_few_scores(s, tile->k, next, tokens, 1); return;
    case 2: all_few_scores(s, tile->k, next, tokens, 2); return;
    case 3:
    case 4:
        four_scores(s, tile->k, 0, tokens, &ahead, s->scores);
        if (!tile->in_parts)
            parts_to_rows(s);
        return;
    }
#endif
    pack_k(s, tile->k, next, tile->vectors);
    gemm(&products, row, end, tile->vectors);
}

#if FLASH_PAIRS

static KVA_TARGET const char *const *wide_v(const struct strip *s, struct tile *tile)
{
    const struct kva_cache *c = &s->run->what->cache;

    if (is_wide(c->dtype))
        return tile->next_v;
    widen_rows(s, tile->v, tile->next_v, tile->vectors * VLANES, c->head_dim_v, s->wide);
    return tile->v;
}

static KVA_TARGET void take_v(const struct strip *s, struct tile *tile)
{
    const char *const *next = wide_v(s, tile);

    pack_v(s, tile->v, next, tile->vectors * VLANES);
}

/* The sums of a strip of few rows, if it is one. */
static KVA_TARGET int add_few_values(const struct strip *s, struct tile *tile)
{
    const char *const *next;
    struct few_values of = {.v = tile->v,
                            .factor = s->factor,
                            .p = s->scores,
                            .tokens = tile->vectors * VLANES,
                            .p_row = tile->in_parts ? 2 : KVA_TILE,
                            .p_four = tile->in_parts ? 8 : 2};

    if (s->task->row_count > FEW_ROWS)
        return 0;
    next = wide_v(s, tile);
    of.ahead = (struct ahead){.row = next, .bytes = 2ull * s->run->what->cache.head_dim_v};
    switch (s->task->row_count) {
    case 1: all_few_sums(s, &of, 1); return 1;
    case 2: all_few_sums(s, &of, 2); return 1;
    default: all_few_sums(s, &of, 4); return 1;
    }
}

/* Four rows that all see the whole tile, alike but for a factor: their softmax is in parts. */
KVA_INLINE uint32_t can_be_in_parts(const struct strip *s, const struct tile *tile)
{
    return has_four_rows(s) && tile->is_full && tile->row == 0 && tile->end == s->task->row_count &&
           s->masks[0] == ~UINT64_C(0) && !s->run->what->alibi_slopes;
}

KVA_INLINE void soften_in_parts(const struct strip *s, const struct tile *tile)
{
    struct scoring scoring = scoring_of(s, 0, tile->first);

    soften_parts(s, &scoring, s->is_scaled ? tile->k_scales : NULL,
                 s->is_scaled ? tile->v_scales : NULL);
}

#else

static KVA_TARGET void take_v(const struct strip *s, struct tile *tile)
{
    const struct kva_cache *c = &s->run->what->cache;

    for (uint32_t t = 0; t < tile->vectors * VLANES; t++) {
        prefetch_whole(tile->next_v[t], c->head_dim_v * type_bytes(c->dtype));
        widen_row(c->dtype, tile->v[t], c->head_dim_v, s->v + (uint64_t)t * s->v_stride);
    }
}

KVA_INLINE int add_few_values(const struct strip *s, struct tile *tile)
{
    (void)s, (void)tile;
    return 0;
}

KVA_INLINE uint32_t can_be_in_parts(const struct strip *s, const struct tile *tile)
{
    (void)s, (void)tile;
    return 0;
}

KVA_INLINE void soften_in_parts(const struct strip *s, const struct tile *tile)
{
    (void)s, (void)tile;
}

#endif

/* ---- a tile ---- */

static KVA_TARGET void add_values(const struct strip *s, const struct tile *tile, uint32_t row,
                                  uint32_t end)
{
    const struct gemm values = {
        s->scores, s->v,        s->sums,     s->factor,
        KVA_TILE,  s->v_stride, s->v_stride, tile->vectors * VLANES / PER_WORD};

    gemm(&values, row, end, s->v_stride / VLANES);
}

/* Is each element of V, as packed, a finite number? */
static KVA_TARGET int is_finite(const struct strip *s, const struct tile *tile)
{
    uint64_t words = (uint64_t)tile->vectors * VLANES / PER_WORD * s->v_stride;
    uint32_t bad = 0;

    for (uint64_t w = 0; w < words; w++) {
        uint32_t bits;

        memcpy(&bits, s->v + w, sizeof(bits));
        bad |= (bits & 0x7f800000u) == 0x7f800000u;
#if FLASH_PAIRS
        bad |= (bits & 0x7f80u) == 0x7f80u;
#endif
    }
    return !bad;
}

/* 0 · NaN is NaN: rows that do not see a token must not meet its V. One row at a time. */
static KVA_TARGET void add_values_apart(const struct strip *s, struct tile *tile, uint32_t row,
                                        uint32_t end)
{
    const char *rows[KVA_TILE];

    memcpy(rows, tile->v, sizeof(rows));
    for (uint32_t i = row; i < end; i++) {
        for (uint32_t t = 0; t < KVA_TILE; t++)
            tile->v[t] = s->masks[i] >> t & 1 ? rows[t] : s->run->zeros;
        take_v(s, tile);
        add_values(s, tile, i, i + 1);
    }
}

/* The rows [row, end) that see anything in the tile, and whether each sees all of it. */
static KVA_TARGET void find_rows(const struct strip *s, struct tile *tile)
{
    uint32_t tokens = s->task->end - tile->first;
    uint64_t all = tokens < 64 ? (UINT64_C(1) << tokens) - 1 : ~UINT64_C(0);

    kva_flash_masks(s->run, s->task, tile->first, s->masks);
    for (tile->end = s->task->row_count; tile->end && !s->masks[tile->end - 1];)
        tile->end--;
    for (tile->row = 0; tile->row < tile->end && !s->masks[tile->row];)
        tile->row++;
    tile->is_full = 1;
    for (uint32_t i = tile->row; i < tile->end; i++)
        tile->is_full &= s->masks[i] == all;
}

static KVA_TARGET void do_tile(const struct strip *s, struct tile *tile)
{
    uint32_t row = tile->row, end = tile->end;
    const char *rows[KVA_TILE];

    if (s->is_scaled)
        kva_flash_scales(s->run, s->task, s->kv_head, tile->first, tile->k_scales, tile->v_scales);
    tile->in_parts = can_be_in_parts(s, tile);
    multiply_k(s, tile, row, end);
    if (tile->in_parts)
        soften_in_parts(s, tile);
    else
        soften_rows(s, row, end, tile->first, s->is_scaled ? tile->k_scales : NULL,
                    s->is_scaled ? tile->v_scales : NULL);
    if (tile->is_full && row == 0 && end == s->task->row_count && add_few_values(s, tile))
        return;
    memcpy(rows, tile->v, sizeof(rows));
    take_v(s, tile);
    if (tile->is_full || is_finite(s, tile)) {
        add_values(s, tile, row, end);
        return;
    }
    memcpy(tile->v, rows, sizeof(rows));
    add_values_apart(s, tile, row, end);
}

/* ---- a task ---- */

static KVA_TARGET struct strip strip_of(const struct kva_flash_run *run,
                                        const struct kva_flash_task *task, float *memory)
{
    const struct kva_attention *what = run->what;
    struct kva_flash_scratch at = kva_flash_scratch(what);
    uint32_t rows = kva_strip_rows(what);
    struct strip s = {
        .run = run,
        .task = task,
        .q = memory + at.q,
        .scores = memory + at.scores,
        .sums = memory + at.sums,
        .most = memory + at.state,
        .total = memory + at.state + rows,
        .factor = memory + at.state + 2 * rows,
        .more = memory + at.state + 3 * rows,
        .masks = (uint64_t *)(memory + at.state + 4 * rows),
        .k = memory + at.k,
        .v = memory + at.v,
        .wide = memory + at.wide,
        .kv_head = task->kv_head,
        .k_words = what->cache.head_dim_k / PER_WORD,
        .q_stride = kva_padded(what->cache.head_dim_k / PER_WORD),
        .v_stride = kva_padded(what->cache.head_dim_v),
        .is_scaled = type_bytes(what->cache.dtype) == 1,
        .scale = kva_scale_of(what) * LOG2_E,
    };

    return s;
}

/* The same for the strip's h-th head. */
static KVA_TARGET struct strip head_of(const struct strip *all, uint32_t h)
{
    uint64_t row = (uint64_t)h * kva_head_rows(all->task->row_count);
    struct strip s = *all;

    s.kv_head += h;
    s.q += row * s.q_stride;
    s.scores += row * KVA_TILE;
    s.sums += row * s.v_stride;
    s.most += row;
    s.total += row;
    s.factor += row;
    s.more += row;
    return s;
}

/* Element 0 of row i of the head, in q or out, by its strides. */
KVA_INLINE uint64_t place_of(const struct strip *s, uint32_t i, uint64_t token_stride,
                             uint64_t head_stride)
{
    const struct kva_attention *what = s->run->what;
    uint32_t group = what->q_head_count / what->cache.kv_head_count;
    uint32_t row = s->task->row + i, first, end;

    kva_rows_of(&what->batch, s->task->seq, &first, &end);
    return (uint64_t)(first + row / group) * token_stride +
           (uint64_t)(s->kv_head * group + row % group) * head_stride;
}

static KVA_TARGET void load_q(const struct strip *s)
{
    const struct kva_attention *what = s->run->what;
    uint32_t bytes = type_bytes(what->dtype);

    memset(s->q, 0, sizeof(float) * kva_head_rows(s->task->row_count) * s->q_stride);
    for (uint32_t i = 0; i < s->task->row_count; i++) {
        const char *from = (const char *)s->run->q +
                           bytes * place_of(s, i, what->q_token_stride, what->q_head_stride);
        float *to = s->q + (uint64_t)i * s->q_stride;

#if FLASH_PAIRS
        memcpy(to, from, (uint64_t)bytes * what->cache.head_dim_k);
#else
        widen_row(what->dtype, from, what->cache.head_dim_k, to);
#endif
    }
#if FLASH_PAIRS
    if (has_four_rows(s))
        quarter_q(s);
#endif
}

KVA_INLINE void store_row(uint32_t dtype, void *out, uint64_t place, const float *sums, float total,
                          uint32_t dim)
{
    char *to = (char *)out + place * type_bytes(dtype);

    for (uint32_t d = 0; d < dim; d += VLANES) {
        uint32_t n = dim - d < VLANES ? dim - d : VLANES;
        vf x = total == 0 ? v_set1(0) : v_div(v_load(sums + d), v_set1(total));

        if (dtype == KVMEM_DTYPE_BF16)
            v_to_bf16(to + 2ull * d, x, n);
        else if (dtype == KVMEM_DTYPE_FP16)
            v_to_fp16(to + 2ull * d, x, n);
        else
            v_to_fp32(to + 4ull * d, x, n);
    }
}

/* Sums of a row become its result; the sink joins the total. A total of 0 says that nothing is
 * seen; the maximum does not, which passes over scores that are no numbers. */
static KVA_TARGET void finish_row(const struct strip *s, uint32_t i)
{
    const struct kva_attention *what = s->run->what;
    float most = s->most[i], total = s->total[i];
    uint64_t lse = place_of(s, i, what->q_head_count, 1);
    float *sums = s->sums + (uint64_t)i * s->v_stride;

    if (what->sinks && total != 0) {
        float sink = what->sinks[lse % what->q_head_count] * LOG2_E;
        float base = sink > most ? sink : most;

        for (uint32_t d = 0; d < s->v_stride; d += VLANES)
            v_store(sums + d, v_mul(v_load(sums + d), v_set1(exp2f(most - base))));
        total = total * exp2f(most - base) + exp2f(sink - base);
        most = base;
    }
    store_row(what->dtype, s->run->out,
              place_of(s, i, what->out_token_stride, what->out_head_stride), sums, total,
              what->cache.head_dim_v);
    if (s->run->lse)
        s->run->lse[lse] = total == 0 ? -INFINITY : (most + log2f(total)) * LN_2;
}

/* A partial result: of each head (rows, padded dv) sums, maxima, totals; heads one after the other.
 */
KVA_INLINE float *partial_of(const struct strip *s, const struct kva_flash_task *task)
{
    uint64_t row = task->partial + (uint64_t)(s->kv_head - task->kv_head) * task->row_count;

    return s->run->partials + row * (s->v_stride + 2);
}

static KVA_TARGET void leave_partial(const struct strip *s)
{
    float *to = partial_of(s, s->task);
    uint64_t floats = (uint64_t)s->task->row_count * s->v_stride;

    memcpy(to, s->sums, floats * sizeof(float));
    memcpy(to + floats, s->most, s->task->row_count * sizeof(float));
    memcpy(to + floats + s->task->row_count, s->total, s->task->row_count * sizeof(float));
}

static KVA_TARGET void clear(const struct strip *s)
{
    memset(s->sums, 0, sizeof(float) * kva_head_rows(s->task->row_count) * s->v_stride);
    for (uint32_t i = 0; i < kva_head_rows(s->task->row_count); i++) {
        s->most[i] = -INFINITY;
        s->total[i] = 0;
    }
}

/* The rows of the next head's tokens, which lie a stride behind this one's. */
static KVA_TARGET void next_head(const struct strip *s, struct tile *tile)
{
    const struct kva_cache *c = &s->run->what->cache;
    uint64_t k_step = c->k_head_stride * type_bytes(c->dtype);
    uint64_t v_step = c->v_head_stride * type_bytes(c->dtype);
    uint32_t tokens = s->task->end - tile->first;

    tokens = tokens < KVA_TILE ? tokens : KVA_TILE;
    for (uint32_t t = 0; t < tokens; t++) {
        tile->next_k[t] += k_step;
        tile->next_v[t] += v_step;
    }
}

#if FLASH_PAIRS
#include "flash_runs.h"
#else

KVA_INLINE void do_runs(const struct strip *heads, const struct tile *tile)
{
    (void)heads, (void)tile;
}

KVA_INLINE int can_be_runs(const struct strip *heads, const struct tile *tile)
{
    (void)heads, (void)tile;
    return 0;
}

#endif

/* The rows that come behind those at work: of the head h + 1, or behind the last head of the first
 * one's next tile. */
static KVA_TARGET void advance(const struct strip *s, struct tile *tile, uint32_t h, uint32_t end)
{
    const struct kva_flash_task *task = s->task;

    memcpy(tile->k, tile->next_k, sizeof(tile->k));
    memcpy(tile->v, tile->next_v, sizeof(tile->v));
    if (h + 1 < task->head_count)
        next_head(s, tile);
    else if (tile->first + KVA_TILE < end)
        kva_flash_rows(s->run, task, task->kv_head, tile->first + KVA_TILE, tile->next_k,
                       tile->next_v);
}

/* One tile of all heads, tokens before `end` of which somebody sees. */
static KVA_TARGET void do_heads(const struct strip *heads, struct tile *tile, uint32_t end)
{
    uint32_t count = heads->task->head_count;

    if (can_be_runs(heads, tile)) {
        advance(heads, tile, count - 1, end);
        do_runs(heads, tile);
        return;
    }
    for (uint32_t h = 0; h < count; h++) {
        advance(heads, tile, h, end);
        if (tile->row < tile->end)
            do_tile(heads + h, tile);
    }
}

static KVA_TARGET void finish(const struct strip *s)
{
    if (s->task->partial != KVA_WHOLE) {
        leave_partial(s);
        return;
    }
    for (uint32_t i = 0; i < s->task->row_count; i++)
        finish_row(s, i);
}

static KVA_TARGET void attend(const struct kva_flash_run *run, const struct kva_flash_task *task,
                              float *memory)
{
    struct strip all = strip_of(run, task, memory), heads[HEAD_LIMIT];
    struct tile tile;
    uint32_t end;

    for (uint32_t h = 0; h < task->head_count; h++) {
        heads[h] = head_of(&all, h);
        load_q(heads + h);
        clear(heads + h);
    }
    kva_flash_bounds(run->what, task, &tile.first, &end);
    kva_flash_rows(run, task, task->kv_head, tile.first, tile.next_k, tile.next_v);
    for (; tile.first < end; tile.first += KVA_TILE) {
        uint32_t tokens = task->end - tile.first;

        tile.vectors = ((tokens < KVA_TILE ? tokens : KVA_TILE) + VLANES - 1) / VLANES;
        find_rows(&all, &tile);
        do_heads(heads, &tile, end);
    }
    for (uint32_t h = 0; h < task->head_count; h++)
        finish(heads + h);
}

/* sums, maxima and totals of row i, plus those of a partial result. */
static KVA_TARGET void merge_row(const struct strip *s, uint32_t i, const float *partial)
{
    uint64_t floats = (uint64_t)s->task->row_count * s->v_stride;
    const float *more = partial + (uint64_t)i * s->v_stride;
    float *sums = s->sums + (uint64_t)i * s->v_stride;
    float most = partial[floats + i], total = partial[floats + s->task->row_count + i];
    float base = most > s->most[i] || most != most ? most : s->most[i];
    float mine, theirs;

    if (total == 0)
        return;
    mine = exp2f(s->most[i] - base);
    theirs = exp2f(most - base);
    for (uint32_t d = 0; d < s->v_stride; d += VLANES)
        v_store(sums + d,
                v_fma(v_load(more + d), v_set1(theirs), v_mul(v_load(sums + d), v_set1(mine))));
    s->total[i] = s->total[i] * mine + total * theirs;
    s->most[i] = base;
}

static KVA_TARGET void merge(const struct kva_flash_run *run, const struct kva_flash_task *first,
                             float *memory)
{
    struct strip all = strip_of(run, first, memory);

    for (uint32_t h = 0; h < first->head_count; h++) {
        struct strip s = head_of(&all, h);

        clear(&s);
        for (uint32_t c = 0; c < first->chunks; c++)
            for (uint32_t i = 0; i < first->row_count; i++)
                merge_row(&s, i, partial_of(&s, first + c));
        for (uint32_t i = 0; i < first->row_count; i++)
            finish_row(&s, i);
    }
}

const struct kva_flash_code FLASH_CODE = {flash_is_here, attend, merge};
