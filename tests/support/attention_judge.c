/* SPDX-License-Identifier: Apache-2.0
 *
 * Is a scene's result right? The rule of attention.h.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/attention_scene.h"

static bool is_exact(const struct kvt_attention_case *c)
{
    return c->fill != KVT_FILL_RANDOM && !c->has_sinks && !c->has_slopes && c->soft_cap == 0;
}

/* Largest |a − b|, or of |a| when b is NULL. */
static double largest(const double *a, const double *b, uint32_t count)
{
    double most = 0;

    for (uint32_t d = 0; d < count; d++)
        most = fmax(most, fabs(b ? a[d] - b[d] : a[d]));
    return most;
}

double kvt_attention_bound(const struct kvt_attention_scene *s, uint64_t row, uint32_t head)
{
    uint64_t place = row * s->c.heads + head;
    const double *exact = s->exact + place * s->c.dim_v;
    const struct kva_reference_row *about = &s->exact_rows[place];
    double u = kva_reference_unit(s->c.dtype);
    double last = u * largest(exact, NULL, s->c.dim_v);
    double fp32 = 0x1p-21 * (1 + about->magnitude) * about->value;
    double times = s->c.cache_dtype >= KVMEM_DTYPE_FP8_E4M3 ? 4 : 2;

    if (is_exact(&s->c))
        return last + 0x1p-21 * about->value;
    return times * largest(s->plain + place * s->c.dim_v, exact, s->c.dim_v) + last +
           2 * u * about->spread + fp32;
}

static double lse_bound(const struct kvt_attention_scene *s, uint64_t place)
{
    const struct kva_reference_row *about = &s->exact_rows[place];

    return 2 * fabs(s->plain_rows[place].lse - about->lse) +
           0x1p-21 * (1 + about->magnitude + fabs(about->lse));
}

double kvt_attention_out(const struct kvt_attention_scene *s, uint64_t row, uint32_t head,
                         uint32_t d)
{
    return kva_reference_element(s->c.dtype, (char *)s->out.host + KVT_ATTENTION_GUARD,
                                 row * s->host.out_token_stride + head * s->host.out_head_stride +
                                     d);
}

float *kvt_attention_lse(const struct kvt_attention_scene *s, uint64_t row, uint32_t head)
{
    return (float *)((char *)s->lse.host + KVT_ATTENTION_GUARD) + row * s->c.heads + head;
}

uint32_t kvt_attention_row(const struct kvt_attention_scene *s, uint32_t n)
{
    return (uint32_t)((const int32_t *)s->offsets.host)[n];
}

static enum kvt_verdict wrong(struct kvt_attention_scene *s, const char *what, uint64_t row,
                              uint32_t head, uint32_t d, const double values[3])
{
    snprintf(s->text, sizeof(s->text),
             "%s of row %llu, head %u, element %u: %.9g, expected %.9g, allowed error %.3g; %s",
             what, (unsigned long long)row, head, d, values[0], values[1], values[2],
             kvt_attention_describe(&s->c));
    return KVT_WRONG;
}

static enum kvt_verdict judge_lse(struct kvt_attention_scene *s, uint64_t row, uint32_t head)
{
    uint64_t place = row * s->c.heads + head;
    double expected = s->exact_rows[place].lse;
    double got = *kvt_attention_lse(s, row, head);
    double values[3] = {got, expected, lse_bound(s, place)};

    if (isinf(expected) ? got == expected : fabs(got - expected) <= values[2])
        return KVT_RIGHT;
    return wrong(s, "lse", row, head, 0, values);
}

/* What must come of a token that is no number, in a row and head that see it: nothing finite. A V
 * may be lost where its weight is too small for fp32. */
static enum kvt_verdict judge_tainted(struct kvt_attention_scene *s, uint64_t row, uint32_t head)
{
    uint64_t place = row * s->c.heads + head;
    double lse = *kvt_attention_lse(s, row, head);
    bool is_k = s->c.taint == KVT_TAINT_K_NAN || s->c.taint == KVT_TAINT_K_INF;

    if (!is_k && (s->c.has_slopes || s->c.fill != KVT_FILL_RANDOM))
        return KVT_RIGHT;
    for (uint32_t d = 0; d < s->c.dim_v; d++) {
        double values[3] = {kvt_attention_out(s, row, head, d), s->exact[place * s->c.dim_v + d],
                            0};

        if (!isfinite(values[1]) && isfinite(values[0]))
            return wrong(s, "out", row, head, d, values);
    }
    if (isnan(s->exact_rows[place].lse) && !isnan(lse))
        return wrong(s, "lse", row, head, 0, (double[]){lse, NAN, 0});
    return KVT_RIGHT;
}

/* One row and head; false `is_known` when only NaN is looked for. */
static enum kvt_verdict judge_row(struct kvt_attention_scene *s, uint64_t row, uint32_t head,
                                  bool is_known)
{
    const double *exact = s->exact + (row * s->c.heads + head) * s->c.dim_v;
    double bound = is_known ? kvt_attention_bound(s, row, head) : HUGE_VAL;

    for (uint32_t d = 0; d < s->c.dim_v; d++) {
        double got = kvt_attention_out(s, row, head, d);
        double error = is_known ? fabs(got - exact[d]) : isnan(got) ? NAN : 0;
        double values[3] = {got, exact[d], bound};

        if (is_known && !isfinite(exact[d]))
            return judge_tainted(s, row, head);
        if (!(error <= bound))
            return wrong(s, "out", row, head, d, values);
        if (bound > 0)
            s->worst = fmax(s->worst, error / bound);
    }
    return is_known ? judge_lse(s, row, head) : KVT_RIGHT;
}

/* A taint may reach anything in its sequence and K/V head, unless the case is strict. */
static bool is_exempt(const struct kvt_attention_scene *s, uint32_t n, uint32_t head)
{
    return s->c.taint && !s->c.is_strict && n == 0 && head < s->c.heads / s->c.kv_heads;
}

static enum kvt_verdict judge_seq(struct kvt_attention_scene *s, uint32_t n)
{
    uint32_t first = kvt_attention_row(s, n);
    uint32_t end = kvt_attention_row(s, n + 1);
    uint32_t step = s->c.row_step ? s->c.row_step : 1;

    for (uint32_t row = first; row < end; row++)
        for (uint32_t head = 0; head < s->c.heads; head++) {
            bool is_known = (end - 1 - row) % step == 0;
            enum kvt_verdict verdict = KVT_RIGHT;

            if (!is_exempt(s, n, head))
                verdict = judge_row(s, row, head, is_known);
            else if (is_known)
                verdict = judge_tainted(s, row, head);
            if (verdict != KVT_RIGHT)
                return verdict;
        }
    return KVT_RIGHT;
}

/* Nothing was written but rows of sequences: those are poisoned again in a copy, which must then be
 * all poison. */
static enum kvt_verdict judge_surroundings(struct kvt_attention_scene *s)
{
    uint64_t bytes = kvt_attention_dtype_bytes(s->c.dtype);
    uint32_t rows = kvt_attention_row(s, s->c.seq_count);
    unsigned char *copies[2] = {kvt_attention_need(s->out.bytes), kvt_attention_need(s->lse.bytes)};
    uint64_t sizes[2] = {s->out.bytes, s->lse.bytes};
    enum kvt_verdict verdict = KVT_RIGHT;

    memcpy(copies[0], s->out.host, s->out.bytes);
    memcpy(copies[1], s->lse.host, s->lse.bytes);
    for (uint64_t r = 0; r < rows; r++)
        for (uint64_t h = 0; h < s->c.heads; h++)
            memset(copies[0] + KVT_ATTENTION_GUARD +
                       (r * s->host.out_token_stride + h * s->host.out_head_stride) * bytes,
                   0xff, s->c.dim_v * bytes);
    memset(copies[1] + KVT_ATTENTION_GUARD, 0xff, (uint64_t)rows * s->c.heads * 4);
    for (uint32_t i = 0; i < 2; i++)
        for (uint64_t j = 0; j < sizes[i] && verdict == KVT_RIGHT; j++)
            if (copies[i][j] != 0xff) {
                snprintf(s->text, sizeof(s->text), "%s: byte %lld was written; %s",
                         i ? "lse" : "out", (long long)j - KVT_ATTENTION_GUARD,
                         kvt_attention_describe(&s->c));
                verdict = KVT_WRONG;
            }
    free(copies[0]);
    free(copies[1]);
    return verdict;
}

enum kvt_verdict kvt_attention_judge(struct kvt_attention_scene *s)
{
    enum kvt_verdict verdict = KVT_RIGHT;

    s->worst = 0;
    for (uint32_t n = 0; n < s->c.seq_count && verdict == KVT_RIGHT; n++)
        verdict = judge_seq(s, n);
    return verdict == KVT_RIGHT ? judge_surroundings(s) : verdict;
}
