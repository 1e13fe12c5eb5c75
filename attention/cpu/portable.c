/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention in portable C: accepts every description. One pass over tiles of tokens with a running
 * maximum and sum a row (Milakov and Gimelshein 2018; tiles as in FlashAttention-2, Dao 2023,
 * section 3.1), all in fp32.
 *
 *   line   a row of a sequence for one query head: the lines of a K/V head are (row, head in group)
 *   item   up to LINES lines of one sequence and K/V head, over all tokens that one of them sees
 *   plan   (N + 1) items in front of sequence n, for one K/V head, behind a struct plan
 *
 * An item never sees other sequences and is always cut the same way, so that results are the same
 * whatever is in the batch and however many threads there are. V has VALUES elements at a time;
 * wider ones do the scores again for each part. Tokens that a line does not see are left out, not
 * multiplied by 0: what they hold may be NaN.
 */
#include <math.h>
#include <stddef.h>

#include "element.h"
#include "kernels.h"
#include "parallel.h"

#define LINES      8u
#define TOKENS     32u
#define DIMS       64u
#define VALUES     512u
#define PLAN_MAGIC 0x6b766170u

struct plan {
    uint32_t magic;
    uint32_t seq_count;
    uint32_t before[]; /* (seq_count + 1) */
};

struct run {
    const struct kva_attention *what;
    const struct plan *plan;
    const void *q;
    void *out;
    float *lse;
    uint32_t layer;
    uint32_t group; /* query heads of a K/V head */
    float scale;
};

struct line {
    uint64_t row;   /* in q */
    uint32_t head;  /* of q */
    uint32_t first; /* it sees tokens [first, end), */
    uint32_t end;
    uint32_t tree; /* and of those from here on what `bits` say */
    uint64_t bits;
    int64_t position;
    float most; /* largest score so far */
    float sum;  /* Σ exp(score − most) */
    uint32_t has_seen;
};

struct item {
    const struct run *run;
    const int32_t *table;
    uint32_t kv_head;
    uint32_t line_count;
    uint32_t tile;        /* first token of the tile, */
    uint32_t token_count; /* and how many */
    struct line lines[LINES];
    float weights[LINES][TOKENS];
    float sums[LINES][VALUES];
};

/* ---- lines ---- */

static void line_init(struct line *line, const struct run *run, uint32_t n, uint32_t kv_head,
                      uint32_t place)
{
    const struct kva_attention *what = run->what;
    uint32_t length = (uint32_t)what->batch.kv_lengths[n];
    uint32_t first_row, end_row;
    int64_t first_new, end;

    kva_rows_of(&what->batch, n, &first_row, &end_row);
    first_new = (int64_t)length - (end_row - first_row);
    *line = (struct line){.row = (uint64_t)first_row + place / run->group,
                          .head = kv_head * run->group + place % run->group,
                          .position = first_new + place / run->group,
                          .tree = UINT32_MAX,
                          .most = -INFINITY};
    end = what->flags & KVA_CAUSAL ? line->position + 1 : length;
    line->end = end > 0 ? (uint32_t)end : 0;
    if (what->window_tokens && line->position + 1 > what->window_tokens)
        line->first = (uint32_t)(line->position + 1 - what->window_tokens);
    if (what->tree_mask) {
        line->bits = length ? what->tree_mask[line->row] : 0;
        line->tree = first_new > 0 ? (uint32_t)first_new : 0;
        line->bits >>= length ? line->tree - first_new : 0;
    }
}

static uint32_t sees(const struct line *line, uint32_t t)
{
    if (t < line->first || t >= line->end)
        return 0;
    return t < line->tree || (line->bits >> (t - line->tree) & 1);
}

/* ---- scores ---- */

static uint64_t token_at(const struct item *item, uint32_t t, uint64_t head_stride,
                         uint64_t token_stride)
{
    const struct kva_cache *c = &item->run->what->cache;

    return (uint64_t)item->table[t / c->block_tokens] * c->block_stride +
           item->run->layer * c->layer_stride + item->kv_head * head_stride +
           t % c->block_tokens * token_stride;
}

static float scale_at(const struct item *item, const void *scales, uint32_t t)
{
    const struct kva_cache *c = &item->run->what->cache;
    float scale;

    if (c->dtype < KVMEM_DTYPE_FP8_E4M3)
        return 1;
    kva_load(c->scale_dtype, scales,
             (uint64_t)item->table[t / c->block_tokens] * c->scale_block_stride +
                 item->run->layer * c->scale_layer_stride + item->kv_head * c->scale_head_stride +
                 t % c->block_tokens * c->scale_token_stride,
             1, &scale, 1);
    return scale;
}

/* Add `count` elements of q · K, from `dim` on, to the weights of all lines and tokens. */
static void add_products(struct item *item, uint32_t dim, uint32_t count)
{
    const struct kva_attention *what = item->run->what;
    const struct kva_cache *c = &what->cache;
    float k[DIMS][TOKENS] = {{0}}; /* tokens are neighbours */
    float q[DIMS];

    for (uint32_t t = 0; t < item->token_count; t++)
        kva_load(c->dtype, c->k,
                 token_at(item, item->tile + t, c->k_head_stride, c->k_token_stride) + dim, count,
                 &k[0][t], TOKENS);
    for (uint32_t i = 0; i < item->line_count; i++) {
        const struct line *line = &item->lines[i];
        float *weights = item->weights[i];

        kva_load(what->dtype, item->run->q,
                 line->row * what->q_token_stride + line->head * what->q_head_stride + dim, count,
                 q, 1);
        for (uint32_t d = 0; d < count; d++)
            for (uint32_t t = 0; t < TOKENS; t++)
                weights[t] += q[d] * k[d][t];
    }
}

/* The weights of a line become scores; −∞ where it does not see. */
static void finish_scores(struct item *item, uint32_t i, const float *k_scales)
{
    const struct run *run = item->run;
    const struct kva_attention *what = run->what;
    struct line *line = &item->lines[i];
    float slope = what->alibi_slopes ? what->alibi_slopes[line->head] : 0;

    for (uint32_t j = 0; j < TOKENS; j++) {
        uint32_t t = item->tile + j;
        float score = item->weights[i][j] * (run->scale * k_scales[j]);

        if (j >= item->token_count || !sees(line, t)) {
            item->weights[i][j] = -INFINITY;
            continue;
        }
        if (what->soft_cap != 0)
            score = what->soft_cap * tanhf(score / what->soft_cap);
        item->weights[i][j] = score + slope * (float)((int64_t)t - line->position);
        line->has_seen = 1;
    }
}

/* Scores become weights relative to the new maximum; what was summed so far shrinks. */
static void finish_weights(struct item *item, uint32_t i, uint32_t value_count)
{
    struct line *line = &item->lines[i];
    float *weights = item->weights[i];
    float most = line->most;
    float shrink;

    for (uint32_t j = 0; j < TOKENS; j++)
        most = weights[j] > most ? weights[j] : most;
    shrink = line->most == most ? 1 : expf(line->most - most);
    line->most = most;
    line->sum *= shrink;
    for (uint32_t d = 0; d < value_count; d++)
        item->sums[i][d] *= shrink;
    for (uint32_t j = 0; j < TOKENS; j++) {
        weights[j] = weights[j] == -INFINITY ? 0 : expf(weights[j] - most);
        line->sum += weights[j];
    }
}

/* ---- values ---- */

/* Add `count` elements of weights · V, from `value` on, to sums from `place` on. */
static void add_values(struct item *item, uint32_t value, uint32_t place, uint32_t count,
                       const float *v_scales)
{
    const struct kva_cache *c = &item->run->what->cache;
    float v[DIMS];

    for (uint32_t j = 0; j < item->token_count; j++) {
        kva_load(c->dtype, c->v,
                 token_at(item, item->tile + j, c->v_head_stride, c->v_token_stride) + value, count,
                 v, 1);
        for (uint32_t i = 0; i < item->line_count; i++) {
            float weight = item->weights[i][j] * v_scales[j];

            if (item->weights[i][j] == 0)
                continue;
            for (uint32_t d = 0; d < count; d++)
                item->sums[i][place + d] += weight * v[d];
        }
    }
}

static void do_tile(struct item *item, uint32_t value, uint32_t value_count)
{
    const struct kva_cache *c = &item->run->what->cache;
    float k_scales[TOKENS] = {0}, v_scales[TOKENS];

    memset(item->weights, 0, sizeof(item->weights));
    for (uint32_t j = 0; j < item->token_count; j++) {
        k_scales[j] = scale_at(item, c->k_scale, item->tile + j);
        v_scales[j] = scale_at(item, c->v_scale, item->tile + j);
    }
    for (uint32_t d = 0; d < c->head_dim_k; d += DIMS)
        add_products(item, d, c->head_dim_k - d < DIMS ? c->head_dim_k - d : DIMS);
    for (uint32_t i = 0; i < item->line_count; i++) {
        finish_scores(item, i, k_scales);
        if (item->lines[i].has_seen)
            finish_weights(item, i, value_count);
        else
            memset(item->weights[i], 0, sizeof(item->weights[i]));
    }
    for (uint32_t d = 0; d < value_count; d += DIMS)
        add_values(item, value + d, d, value_count - d < DIMS ? value_count - d : DIMS, v_scales);
}

/* ---- results ---- */

static void store_line(struct item *item, uint32_t i, uint32_t value, uint32_t value_count)
{
    const struct run *run = item->run;
    const struct kva_attention *what = run->what;
    struct line *line = &item->lines[i];
    float *sums = item->sums[i];
    float factor = 0;

    if (line->has_seen && what->sinks) {
        float most = fmaxf(line->most, what->sinks[line->head]);

        factor = expf(line->most - most);
        line->sum = line->sum * factor + expf(what->sinks[line->head] - most);
        line->most = most;
    } else if (line->has_seen) {
        factor = 1;
    }
    for (uint32_t d = 0; d < value_count; d++)
        sums[d] = line->sum == 0 ? 0 : sums[d] * factor / line->sum;
    kva_store(what->dtype, run->out,
              line->row * what->out_token_stride + line->head * what->out_head_stride + value,
              value_count, sums);
    if (run->lse)
        run->lse[line->row * what->q_head_count + line->head] =
            line->sum == 0 ? -INFINITY : line->most + logf(line->sum);
}

/* All tokens for value_count elements of V. */
static void do_values(struct item *item, uint32_t n, uint32_t first_line, uint32_t value)
{
    uint32_t dims = item->run->what->cache.head_dim_v;
    uint32_t value_count = dims - value < VALUES ? dims - value : VALUES;
    uint32_t first = UINT32_MAX;
    uint32_t end = 0;

    for (uint32_t i = 0; i < item->line_count; i++) {
        struct line *line = &item->lines[i];

        line_init(line, item->run, n, item->kv_head, first_line + i);
        if (line->first < line->end) {
            first = line->first < first ? line->first : first;
            end = line->end > end ? line->end : end;
        }
        memset(item->sums[i], 0, value_count * sizeof(float));
    }
    for (uint32_t t = first; t < end; t += TOKENS) {
        item->tile = t;
        item->token_count = end - t < TOKENS ? end - t : TOKENS;
        do_tile(item, value, value_count);
    }
    for (uint32_t i = 0; i < item->line_count; i++)
        store_line(item, i, value, value_count);
}

/* ---- items ---- */

/* The last sequence with at most `place` items in front of it. */
static uint32_t seq_of(const struct plan *plan, uint32_t place)
{
    uint32_t low = 0;
    uint32_t high = plan->seq_count;

    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;

        if (plan->before[middle] <= place)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static void work(void *argument, uint32_t i)
{
    const struct run *run = argument;
    const struct kva_attention *what = run->what;
    uint32_t items = run->plan->before[run->plan->seq_count];
    uint32_t n = seq_of(run->plan, i % items);
    uint32_t line = (i % items - run->plan->before[n]) * LINES;
    struct item item = {.run = run, .kv_head = i / items};
    uint32_t first, end;

    kva_rows_of(&what->batch, n, &first, &end);
    item.table = what->batch.tables + (uint64_t)n * what->batch.table_stride;
    item.line_count = (end - first) * run->group - line;
    item.line_count = item.line_count < LINES ? item.line_count : LINES;
    for (uint32_t value = 0; value < what->cache.head_dim_v; value += VALUES)
        do_values(&item, n, line, value);
}

/* ---- the table of functions ---- */

static uint32_t group_of(const struct kva_attention *what)
{
    return what->q_head_count / what->cache.kv_head_count;
}

/* Items of a K/V head, at most. */
static uint64_t item_limit(const struct kva_attention *what)
{
    return (uint64_t)what->batch.q_total * group_of(what) / LINES + what->batch.seq_count;
}

static int portable_accepts(const struct kva_attention *what)
{
    uint64_t lines = (uint64_t)what->batch.q_total * group_of(what);

    if (lines >= UINT32_MAX - LINES || item_limit(what) * what->cache.kv_head_count > UINT32_MAX)
        return kva_error_set(KVMEM_E_NOT_SUPPORTED,
                             "batch.q_total: %u rows of %u heads are too much work for one call "
                             "(remedy: smaller batches)",
                             what->batch.q_total, what->q_head_count);
    return 0;
}

static int portable_info(const struct kva_attention *what, struct kva_info *out)
{
    out->task_limit = (uint32_t)(item_limit(what) * what->cache.kv_head_count);
    out->workspace_bytes =
        offsetof(struct plan, before) + ((uint64_t)what->batch.seq_count + 1) * sizeof(uint32_t);
    return 0;
}

static int portable_plan(const struct kva_attention *what, void *workspace, void *stream)
{
    struct plan *plan = workspace;
    uint32_t items = 0;

    (void)stream;
    plan->magic = PLAN_MAGIC;
    plan->seq_count = what->batch.seq_count;
    for (uint32_t n = 0; n < plan->seq_count; n++) {
        uint32_t first, end;

        kva_rows_of(&what->batch, n, &first, &end);
        plan->before[n] = items;
        items += ((end - first) * group_of(what) + LINES - 1) / LINES;
    }
    plan->before[plan->seq_count] = items;
    return 0;
}

static int portable_run(const struct kva_attention *what, uint32_t layer, const void *q, void *out,
                        float *lse, void *workspace, void *stream)
{
    struct run run = {.what = what,
                      .plan = workspace,
                      .q = q,
                      .out = out,
                      .lse = lse,
                      .layer = layer,
                      .group = group_of(what),
                      .scale = kva_scale_of(what)};

    (void)stream;
    if (run.plan->magic != PLAN_MAGIC || run.plan->seq_count != what->batch.seq_count)
        return kva_error_set(KVMEM_E_INVALID,
                             "workspace: holds no plan of this batch (kva_attention_plan)");
    kva_parallel(&KVA_THREADS_OF(what),
                 run.plan->before[run.plan->seq_count] * what->cache.kv_head_count, work, &run);
    return 0;
}

const struct kva_kernel kva_cpu_portable = {
    .name = "cpu portable",
    .accepts = portable_accepts,
    .info = portable_info,
    .plan = portable_plan,
    .run = portable_run,
};
