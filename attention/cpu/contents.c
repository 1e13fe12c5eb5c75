/* SPDX-License-Identifier: Apache-2.0
 *
 * What is wrong with the contents of a batch's arrays, which the host can see on the CPU only.
 */
#include "../internal.h"

static int check_rows(const struct kva_batch *b)
{
    for (uint32_t n = 0; b->q_offsets && n < b->seq_count; n++) {
        int64_t rows = (int64_t)b->q_offsets[n + 1] - b->q_offsets[n];

        if (b->q_offsets[n] < 0 || rows < 0 || rows > b->q_max ||
            (uint32_t)b->q_offsets[n + 1] > b->q_total)
            return kva_error_set(KVMEM_E_INVALID,
                                 "batch.q_offsets: [%u] %d to [%u] %d are not 0..q_max %u rows "
                                 "within q_total %u",
                                 n, b->q_offsets[n], n + 1, b->q_offsets[n + 1], b->q_max,
                                 b->q_total);
    }
    return 0;
}

static int check_table(const struct kva_attention *what, uint32_t n)
{
    const struct kva_batch *b = &what->batch;
    const int32_t *table = b->tables + (uint64_t)n * b->table_stride;
    uint32_t length = (uint32_t)b->kv_lengths[n];
    uint32_t count = length ? (length - 1) / what->cache.block_tokens + 1 : 0;

    for (uint32_t i = 0; i < count; i++)
        if ((uint32_t)table[i] >= what->cache.block_count)
            return kva_error_set(KVMEM_E_INVALID,
                                 "batch.tables: entry %u of sequence %u is %d, outside 0..%u", i, n,
                                 table[i], what->cache.block_count - 1);
    return 0;
}

int kva_check_contents(const struct kva_attention *what)
{
    const struct kva_batch *b = &what->batch;
    int code = check_rows(b);

    for (uint32_t n = 0; n < b->seq_count && !code; n++) {
        if (b->kv_lengths[n] < 0 || (uint32_t)b->kv_lengths[n] > b->kv_max)
            return kva_error_set(KVMEM_E_INVALID, "batch.kv_lengths: [%u] %d is outside 0..%u", n,
                                 b->kv_lengths[n], b->kv_max);
        code = check_table(what, n);
    }
    return code;
}
