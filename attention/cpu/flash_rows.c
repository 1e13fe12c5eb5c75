/* SPDX-License-Identifier: Apache-2.0
 *
 * Where the tokens of a tile lie, and which rows of a strip see them (flash.h). Plain C.
 */
#include "element.h"
#include "flash.h"

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t group_of(const struct kva_attention *what)
{
    return what->q_head_count / what->cache.kv_head_count;
}

/* Rows of the sequence: q tokens. */
static uint32_t tokens_of(const struct kva_batch *batch, uint32_t n, uint32_t *first)
{
    uint32_t end;

    kva_rows_of(batch, n, first, &end);
    return end - *first;
}

static uint32_t element_bytes(uint32_t dtype)
{
    static const uint8_t bytes[] = {0, 2, 2, 4, 1, 1};

    return bytes[dtype];
}

/* Rows of `count` tokens of one block from slot `slot` on. */
static void block_rows(const struct kva_flash_run *run, uint32_t kv_head, int32_t block,
                       uint32_t slot, uint32_t count, const char **k, const char **v)
{
    const struct kva_cache *c = &run->what->cache;
    uint64_t bytes = element_bytes(c->dtype);
    uint64_t start = (uint64_t)block * c->block_stride + run->layer * c->layer_stride;
    const char *k_row = (const char *)c->k +
                        (start + kv_head * c->k_head_stride + slot * c->k_token_stride) * bytes;
    const char *v_row = (const char *)c->v +
                        (start + kv_head * c->v_head_stride + slot * c->v_token_stride) * bytes;

    for (uint32_t i = 0; i < count; i++) {
        k[i] = k_row + i * c->k_token_stride * bytes;
        v[i] = v_row + i * c->v_token_stride * bytes;
    }
}

void kva_flash_rows(const struct kva_flash_run *run, const struct kva_flash_task *task,
                    uint32_t kv_head, uint32_t first, const char **k, const char **v)
{
    const struct kva_batch *batch = &run->what->batch;
    const int32_t *table = batch->tables + (uint64_t)task->seq * batch->table_stride;
    uint32_t block_tokens = run->what->cache.block_tokens;
    uint32_t count = task->end > first ? smaller(task->end - first, KVA_TILE) : 0;
    uint32_t part;

    for (uint32_t i = 0; i < count; i += part) {
        uint32_t slot = (first + i) % block_tokens;

        part = smaller(block_tokens - slot, count - i);
        block_rows(run, kv_head, table[(first + i) / block_tokens], slot, part, k + i, v + i);
    }
    for (uint32_t i = count; i < KVA_TILE; i++)
        k[i] = v[i] = run->zeros;
}

int kva_flash_nowhere(void)
{
    return 0;
}

/* ---- scales ---- */

void kva_flash_scales(const struct kva_flash_run *run, const struct kva_flash_task *task,
                      uint32_t kv_head, uint32_t first, float *k, float *v)
{
    const struct kva_batch *batch = &run->what->batch;
    const struct kva_cache *c = &run->what->cache;
    const int32_t *table = batch->tables + (uint64_t)task->seq * batch->table_stride;

    for (uint32_t i = 0; i < KVA_TILE; i++) {
        uint32_t t = first + i;
        uint64_t place;

        k[i] = v[i] = 1;
        if (t >= task->end)
            continue;
        place = (uint64_t)table[t / c->block_tokens] * c->scale_block_stride +
                run->layer * c->scale_layer_stride + kv_head * c->scale_head_stride +
                t % c->block_tokens * c->scale_token_stride;
        kva_load(c->scale_dtype, c->k_scale, place, 1, k + i, 1);
        kva_load(c->scale_dtype, c->v_scale, place, 1, v + i, 1);
    }
}

/* ---- masks ---- */

/* The tokens [*low, *high) of those below the length that query token i sees, its tree aside. */
static void seen(const struct kva_attention *what, const struct kva_flash_task *task,
                 int64_t position, int64_t *low, int64_t *high)
{
    *low = task->first;
    *high = task->end;
    if (what->flags & KVA_CAUSAL && position + 1 < *high)
        *high = position + 1;
    if (what->window_tokens && position + 1 - (int64_t)what->window_tokens > *low)
        *low = position + 1 - (int64_t)what->window_tokens;
}

/* Bits [low, high), each cut to 0..64. */
static uint64_t range_bits(int64_t low, int64_t high)
{
    low = low < 0 ? 0 : low;
    high = high > 64 ? 64 : high;
    if (low >= high)
        return 0;
    return (high == 64 ? ~UINT64_C(0) : (UINT64_C(1) << high) - 1) & ~UINT64_C(0) << low;
}

/* A line of the tree mask, its bit 0 at place `at` of the tile; what is older is seen. */
static uint64_t tree_bits(uint64_t line, int64_t at)
{
    if (at >= 64)
        return ~UINT64_C(0);
    if (at <= -64)
        return 0;
    return at < 0 ? line >> -at : line << at | range_bits(0, at);
}

void kva_flash_masks(const struct kva_flash_run *run, const struct kva_flash_task *task,
                     uint32_t first, uint64_t *masks)
{
    const struct kva_attention *what = run->what;
    uint32_t group = group_of(what);
    uint32_t row, q_first, q_count = tokens_of(&what->batch, task->seq, &q_first);
    int64_t oldest_new = (int64_t)task->kv_length - q_count;

    for (uint32_t i = 0; i < task->row_count; i = row - task->row) {
        uint32_t token = (task->row + i) / group;
        uint32_t end = smaller((token + 1) * group, task->row + task->row_count);
        int64_t low, high;
        uint64_t bits;

        seen(what, task, oldest_new + token, &low, &high);
        bits = range_bits(low - first, high - first);
        if (what->tree_mask)
            bits &= tree_bits(what->tree_mask[q_first + token], oldest_new - first);
        for (row = task->row + i; row < end; row++)
            masks[row - task->row] = bits;
    }
}

void kva_flash_bounds(const struct kva_attention *what, const struct kva_flash_task *task,
                      uint32_t *first, uint32_t *end)
{
    uint32_t group = group_of(what);
    uint32_t q_first, q_count = tokens_of(&what->batch, task->seq, &q_first);
    int64_t oldest_new = (int64_t)task->kv_length - q_count;
    int64_t low, high, ignored;

    seen(what, task, oldest_new + task->row / group, &low, &ignored);
    seen(what, task, oldest_new + (task->row + task->row_count - 1) / group, &ignored, &high);
    *first = low < high ? (uint32_t)low / KVA_TILE * KVA_TILE : 0;
    *end = low < high ? (uint32_t)high : 0;
}
