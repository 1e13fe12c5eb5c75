/* SPDX-License-Identifier: Apache-2.0
 *
 * The reference of attention/reference.h. Slow on purpose.
 *
 * In KVA_PLAIN every result of an operation is rounded to fp32. That is what fp32 arithmetic does:
 * a double holds the product of two floats, and rounding a sum or quotient of floats twice gives
 * the same as once.
 */
#include "reference.h"

#include <math.h>
#include <stdlib.h>

#include "internal.h"

/* One head of one sequence: K, V and q as numbers. */
struct head {
    const struct kva_attention *what;
    uint32_t is_plain;
    uint32_t dim_k;
    uint32_t dim_v;
    uint32_t length;
    uint32_t row_count;
    double scale;
    double slope;
    double sink;     /* −∞ = none */
    double *k;       /* (length, dim_k) */
    double *v;       /* (length, dim_v) */
    double *k_norms; /* (length) √Σk² */
    double *v_most;  /* (length) largest |v| */
    double *q;       /* (dim_k) of a row */
    double q_norm;
    double *weights; /* (length) of a row */
};

static double rounded(const struct head *head, double value)
{
    return head->is_plain ? (float)value : value;
}

/* Σ a b. */
static double dot(const struct head *head, const double *a, const double *b)
{
    double sum = 0;

    if (!head->is_plain)
        for (uint32_t d = 0; d < head->dim_k; d++)
            sum += a[d] * b[d];
    else
        for (uint32_t d = 0; d < head->dim_k; d++)
            sum = (float)(sum + a[d] * b[d]);
    return sum;
}

/* Does row i of the sequence see token t? `bits`: its line of the tree mask. */
static uint32_t sees(const struct head *head, uint32_t i, uint64_t bits, uint32_t t)
{
    const struct kva_attention *what = head->what;
    int64_t first_new = (int64_t)head->length - head->row_count;
    int64_t position = first_new + i;

    if (what->flags & KVA_CAUSAL && t > position)
        return 0;
    if (what->window_tokens && t + (int64_t)what->window_tokens <= position)
        return 0;
    if (what->tree_mask && t >= first_new)
        return bits >> (t - first_new) & 1;
    return 1;
}

static double score_of(const struct head *head, uint32_t i, uint32_t t,
                       struct kva_reference_row *row)
{
    int64_t position = (int64_t)head->length - head->row_count + i;
    double score = dot(head, head->q, head->k + (uint64_t)t * head->dim_k);
    double cap = head->what->soft_cap;
    double bias = rounded(head, head->slope * (double)(t - position));

    score = rounded(head, score * head->scale);
    if (cap != 0)
        score = rounded(head, cap * rounded(head, tanh(rounded(head, score / cap))));
    row->magnitude =
        fmax(row->magnitude, head->scale * head->q_norm * head->k_norms[t] + fabs(bias));
    return rounded(head, score + bias);
}

/* head->weights[t] = score of each token that row i sees, −∞ for the others; returns the largest,
 * the sink included. */
static double score_row(struct head *head, uint32_t i, uint64_t bits, struct kva_reference_row *row)
{
    double most = head->sink;

    for (uint32_t t = 0; t < head->length; t++) {
        uint32_t is_seen = sees(head, i, bits, t);

        head->weights[t] = is_seen ? score_of(head, i, t, row) : -INFINITY;
        if (head->weights[t] > most || isnan(head->weights[t]))
            most = head->weights[t];
    }
    return most;
}

/* out += p × V of a token. */
static void add_value(const struct head *head, double p, uint32_t t, double *out)
{
    const double *v = head->v + (uint64_t)t * head->dim_v;

    if (!head->is_plain)
        for (uint32_t d = 0; d < head->dim_v; d++)
            out[d] += p * v[d];
    else
        for (uint32_t d = 0; d < head->dim_v; d++)
            out[d] = (float)(out[d] + p * v[d]);
}

/* The scores in head->weights become a result. */
static void weigh_row(const struct head *head, double most, double *out,
                      struct kva_reference_row *row)
{
    uint32_t dtype = head->what->dtype;
    double sum = head->sink > -INFINITY ? rounded(head, exp(head->sink - most)) : 0;
    double squares = 0;

    for (uint32_t t = 0; t < head->length; t++) {
        double p = rounded(head, exp(rounded(head, head->weights[t] - most)));

        if (head->weights[t] == -INFINITY)
            continue; /* not 0 × V, which may be NaN */
        sum = rounded(head, sum + p);
        squares += p * p;
        row->value = fmax(row->value, head->v_most[t]);
        add_value(head, head->is_plain ? kva_reference_round(dtype, p) : p, t, out);
    }
    for (uint32_t d = 0; d < head->dim_v; d++) {
        out[d] = rounded(head, out[d] / sum);
        if (head->is_plain)
            out[d] = kva_reference_round(dtype, out[d]);
    }
    row->lse = rounded(head, most + rounded(head, log(sum)));
    row->spread = sqrt(squares) / sum * row->value;
}

static void attend_row(struct head *head, uint32_t i, uint64_t bits, double *out,
                       struct kva_reference_row *row)
{
    double most;
    uint32_t is_any_seen = 0;

    *row = (struct kva_reference_row){.lse = -INFINITY};
    for (uint32_t d = 0; d < head->dim_v; d++)
        out[d] = 0;
    for (uint32_t t = 0; t < head->length && !is_any_seen; t++)
        is_any_seen = sees(head, i, bits, t);
    if (!is_any_seen)
        return;
    if (head->sink > -INFINITY)
        row->magnitude = fabs(head->sink);
    most = score_row(head, i, bits, row);
    if (most == -INFINITY)
        return; /* infinite scores */
    weigh_row(head, most, out, row);
}

/* ---- reading the arrays ---- */

static double scale_at(const struct kva_cache *c, const void *scales, uint64_t index)
{
    return scales && c->dtype >= KVMEM_DTYPE_FP8_E4M3
               ? kva_reference_element(c->scale_dtype, scales, index)
               : 1;
}

/* √Σa² */
static double norm(const double *a, uint32_t count)
{
    double sum = 0;

    for (uint32_t d = 0; d < count; d++)
        sum += a[d] * a[d];
    return sqrt(sum);
}

static void read_vector(const struct head *head, const void *array, uint64_t first, double scale,
                        uint32_t count, double *out)
{
    uint32_t dtype = head->what->cache.dtype;

    for (uint32_t d = 0; d < count; d++)
        out[d] = rounded(head, kva_reference_element(dtype, array, first + d) * scale);
}

static void read_token(struct head *head, uint32_t layer, uint32_t g, uint64_t block, uint32_t t)
{
    const struct kva_cache *c = &head->what->cache;
    uint64_t slot = t % c->block_tokens;
    uint64_t start = block * c->block_stride + layer * c->layer_stride;
    uint64_t k = start + g * c->k_head_stride + slot * c->k_token_stride;
    uint64_t v = start + g * c->v_head_stride + slot * c->v_token_stride;
    uint64_t s = block * c->scale_block_stride + layer * c->scale_layer_stride +
                 g * c->scale_head_stride + slot * c->scale_token_stride;
    double k_scale = scale_at(c, c->k_scale, s);
    double v_scale = scale_at(c, c->v_scale, s);

    read_vector(head, c->k, k, k_scale, head->dim_k, head->k + (uint64_t)t * head->dim_k);
    read_vector(head, c->v, v, v_scale, head->dim_v, head->v + (uint64_t)t * head->dim_v);
    head->k_norms[t] = norm(head->k + (uint64_t)t * head->dim_k, head->dim_k);
    head->v_most[t] = 0;
    for (uint32_t d = 0; d < head->dim_v; d++)
        head->v_most[t] = fmax(head->v_most[t], fabs(head->v[(uint64_t)t * head->dim_v + d]));
}

/* K and V of a K/V head, by the block table. */
static int read_tokens(struct head *head, uint32_t layer, uint32_t g, const int32_t *table)
{
    const struct kva_cache *c = &head->what->cache;

    for (uint32_t t = 0; t < head->length; t++) {
        int32_t block = table[t / c->block_tokens];

        if (block < 0 || (uint32_t)block >= c->block_count)
            return KVMEM_E_INVALID;
        read_token(head, layer, g, (uint64_t)block, t);
    }
    return 0;
}

static void attend_rows(const struct kva_reference *job, struct head *head, uint32_t first,
                        uint32_t h)
{
    const struct kva_attention *what = job->what;
    uint32_t step = job->row_step ? job->row_step : 1;

    for (uint32_t i = (head->row_count - 1) % step; i < head->row_count; i += step) {
        uint64_t r = (uint64_t)first + i;
        uint64_t place = r * what->q_head_count + h;
        struct kva_reference_row row;

        for (uint32_t d = 0; d < head->dim_k; d++)
            head->q[d] = kva_reference_element(
                what->dtype, job->q, r * what->q_token_stride + h * what->q_head_stride + d);
        head->q_norm = norm(head->q, head->dim_k);
        attend_row(head, i, what->tree_mask ? what->tree_mask[r] : 0,
                   job->out + place * head->dim_v, &row);
        if (job->rows)
            job->rows[place] = row;
    }
}

static int head_alloc(struct head *head)
{
    uint64_t dims = (uint64_t)head->dim_k + head->dim_v;

    head->k = malloc(sizeof(double) * (head->length * (dims + 3) + head->dim_k));
    if (!head->k)
        return KVMEM_E_NO_MEMORY;
    head->v = head->k + (uint64_t)head->length * head->dim_k;
    head->weights = head->v + (uint64_t)head->length * head->dim_v;
    head->k_norms = head->weights + head->length;
    head->v_most = head->k_norms + head->length;
    head->q = head->v_most + head->length;
    return 0;
}

int kva_reference_head(const struct kva_reference *job, uint32_t n, uint32_t h)
{
    const struct kva_attention *what = job->what;
    const struct kva_batch *batch = &what->batch;
    struct head head = {
        .what = what,
        .is_plain = job->precision == KVA_PLAIN,
        .dim_k = what->cache.head_dim_k,
        .dim_v = what->cache.head_dim_v,
        .length = batch->kv_lengths[n] > 0 ? (uint32_t)batch->kv_lengths[n] : 0,
        .scale = job->softmax_scale != 0 ? job->softmax_scale : kva_scale_of(what),
        .slope = what->alibi_slopes ? what->alibi_slopes[h] : 0,
        .sink = what->sinks ? what->sinks[h] : -INFINITY,
    };
    uint32_t first, end;
    int code;

    kva_rows_of(batch, n, &first, &end);
    head.row_count = end - first;
    if (!head.row_count)
        return 0;
    code = head_alloc(&head);
    if (code)
        return code;
    code = read_tokens(&head, job->layer, h / (what->q_head_count / what->cache.kv_head_count),
                       batch->tables + (uint64_t)n * batch->table_stride);
    if (!code)
        attend_rows(job, &head, first, h);
    free(head.k);
    return code;
}

int kva_reference_attention(const struct kva_reference *job)
{
    int code = 0;

    for (uint32_t n = 0; n < job->what->batch.seq_count && !code; n++)
        for (uint32_t h = 0; h < job->what->q_head_count && !code; h++)
            code = kva_reference_head(job, n, h);
    return code;
}

/* ---- one position, in the terms of struct kva_layer ---- */

static struct kva_attention description_of(const struct kva_layer *layer, uint32_t heads)
{
    uint64_t bytes = layer->dtype == KVMEM_DTYPE_FP32 ? 4 : 2;

    return (struct kva_attention){
        .q_head_count = heads,
        .dtype = KVMEM_DTYPE_FP32,
        .q_head_stride = layer->head_dim,
        .cache = {.dtype = layer->dtype,
                  .block_tokens = layer->block_tokens,
                  .block_count = INT32_MAX,
                  .kv_head_count = layer->kv_head_count,
                  .head_dim_k = layer->head_dim,
                  .head_dim_v = layer->head_dim,
                  .k = layer->k,
                  .v = layer->v,
                  .block_stride = layer->block_stride_bytes / bytes,
                  .k_head_stride = layer->k_head_stride_bytes / bytes,
                  .k_token_stride = layer->k_token_stride_bytes / bytes,
                  .v_head_stride = layer->v_head_stride_bytes / bytes,
                  .v_token_stride = layer->v_token_stride_bytes / bytes},
    };
}

int kva_reference_decode(const struct kva_layer *layer, const int32_t *table, uint32_t length,
                         const float *query, uint32_t query_head_count, double softmax_scale,
                         double *out)
{
    struct kva_attention what;
    int32_t kv_length = (int32_t)length;
    struct kva_reference job = {
        .what = &what, .q = query, .softmax_scale = softmax_scale, .out = out};

    if (layer->dtype < KVMEM_DTYPE_BF16 || layer->dtype > KVMEM_DTYPE_FP32 || length == 0)
        return KVMEM_E_INVALID;
    if (layer->block_tokens == 0 || layer->kv_head_count == 0 ||
        query_head_count % layer->kv_head_count != 0)
        return KVMEM_E_INVALID;
    what = description_of(layer, query_head_count);
    what.batch = (struct kva_batch){
        .seq_count = 1, .q_max = 1, .q_total = 1, .tables = table, .kv_lengths = &kv_length};
    return kva_reference_attention(&job);
}
