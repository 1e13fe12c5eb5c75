/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention with all scores in memory on the CPU: three passes over a head's scores, in fp32. A
 * piece of work is a query head, of all sequences.
 */
#include <math.h>

#include "element.h"
#include "parallel.h"

#define ROWS      4u /* that share a loaded vector of K or V */
#define DIM_LIMIT 4096u

/* One sequence under one query head. */
struct head {
    const struct kva_standard_job *job;
    const int32_t *table;
    uint32_t head;
    uint32_t first; /* row of q */
    uint32_t row_count;
    uint32_t length;
};

static float *scores_of(const struct head *head, uint32_t row)
{
    const struct kva_attention *what = head->job->what;

    return head->job->scores + ((uint64_t)head->head * what->batch.q_total + head->first + row) *
                                   head->job->score_stride;
}

/* K or V of a token, as numbers. */
static void load_token(const struct head *head, uint32_t t, uint32_t is_v, float *to)
{
    const struct kva_attention *what = head->job->what;
    const struct kva_cache *c = &what->cache;
    uint64_t block = (uint64_t)head->table[t / c->block_tokens], place = t % c->block_tokens;
    uint64_t group = head->head / (what->q_head_count / c->kv_head_count);
    uint32_t dim = is_v ? c->head_dim_v : c->head_dim_k;
    float scale;

    kva_load(c->dtype, is_v ? c->v : c->k,
             block * c->block_stride + head->job->layer * c->layer_stride +
                 group * (is_v ? c->v_head_stride : c->k_head_stride) +
                 place * (is_v ? c->v_token_stride : c->k_token_stride),
             dim, to, 1);
    if (c->dtype < KVMEM_DTYPE_FP8_E4M3)
        return;
    kva_load(c->scale_dtype, is_v ? c->v_scale : c->k_scale,
             block * c->scale_block_stride + head->job->layer * c->scale_layer_stride +
                 group * c->scale_head_stride + place * c->scale_token_stride,
             1, &scale, 1);
    for (uint32_t d = 0; d < dim; d++)
        to[d] *= scale;
}

/* Tokens that a row sees. */
static uint32_t end_of(const struct head *head, uint32_t row)
{
    int64_t end = (int64_t)head->length - head->row_count + row + 1;

    if (!(head->job->what->flags & KVA_CAUSAL))
        return head->length;
    return end < 0 ? 0 : (uint32_t)end;
}

/* scores = cap(scale · q · K), of up to ROWS rows. */
static void score(const struct head *head, uint32_t row, uint32_t count)
{
    const struct kva_attention *what = head->job->what;
    uint32_t dim = what->cache.head_dim_k;
    float scale = kva_scale_of(what), cap = what->soft_cap;
    float q[ROWS][DIM_LIMIT], k[DIM_LIMIT];

    for (uint32_t i = 0; i < count; i++)
        kva_load(what->dtype, head->job->q,
                 (uint64_t)(head->first + row + i) * what->q_token_stride +
                     head->head * what->q_head_stride,
                 dim, q[i], 1);
    for (uint32_t t = 0; t < head->length; t++) {
        load_token(head, t, 0, k);
        for (uint32_t i = 0; i < count; i++) {
            float sum = 0;

            for (uint32_t d = 0; d < dim; d++)
                sum += q[i][d] * k[d];
            sum *= scale;
            scores_of(head, row + i)[t] = cap != 0 ? cap * tanhf(sum / cap) : sum;
        }
    }
}

static void softmax(const struct head *head, uint32_t row)
{
    float *scores = scores_of(head, row);
    uint32_t end = end_of(head, row);
    float most = -INFINITY, sum = 0;

    for (uint32_t t = 0; t < end; t++)
        most = fmaxf(most, scores[t]);
    for (uint32_t t = 0; t < end; t++)
        sum += scores[t] = expf(scores[t] - most);
    for (uint32_t t = 0; t < end; t++)
        scores[t] /= sum;
    for (uint32_t t = end; t < head->length; t++)
        scores[t] = 0;
}

/* out = P V, of up to ROWS rows. */
static void add_values(const struct head *head, uint32_t row, uint32_t count)
{
    const struct kva_attention *what = head->job->what;
    uint32_t dim = what->cache.head_dim_v;
    float sums[ROWS][DIM_LIMIT], v[DIM_LIMIT];

    for (uint32_t i = 0; i < count; i++)
        memset(sums[i], 0, sizeof(float) * dim);
    for (uint32_t t = 0; t < end_of(head, row + count - 1); t++) {
        load_token(head, t, 1, v);
        for (uint32_t i = 0; i < count; i++) {
            float weight = scores_of(head, row + i)[t];

            for (uint32_t d = 0; d < dim && t < end_of(head, row + i); d++)
                sums[i][d] += weight * v[d];
        }
    }
    for (uint32_t i = 0; i < count; i++)
        kva_store(what->dtype, head->job->out,
                  (uint64_t)(head->first + row + i) * what->out_token_stride +
                      head->head * what->out_head_stride,
                  dim, sums[i]);
}

/* All sequences under query head i. */
static void attend(void *argument, uint32_t i)
{
    const struct kva_standard_job *job = argument;
    const struct kva_batch *batch = &job->what->batch;

    for (uint32_t n = 0; n < batch->seq_count; n++) {
        uint32_t first, end;

        kva_rows_of(batch, n, &first, &end);
        for (uint32_t row = 0; row < end - first; row += ROWS) {
            struct head head = {job,         batch->tables + (uint64_t)n * batch->table_stride,
                                i,           first,
                                end - first, (uint32_t)batch->kv_lengths[n]};
            uint32_t count = end - first - row < ROWS ? end - first - row : ROWS;

            score(&head, row, count);
            for (uint32_t r = row; r < row + count; r++)
                softmax(&head, r);
            add_values(&head, row, count);
        }
    }
}

int kva_standard_cpu(const struct kva_standard_job *job)
{
    const struct kva_threads threads = KVA_THREADS_OF(job->what);
    int code = kva_check_contents(job->what);

    if (code)
        return code;
    kva_parallel(&threads, job->what->q_head_count, attend, (void *)job);
    return 0;
}
