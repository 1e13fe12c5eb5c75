/* SPDX-License-Identifier: Apache-2.0
 *
 * Filling tables; see table.h.
 */
#include "client/table.h"

#include <inttypes.h>
#include <string.h>

#include "util/error.h"

static int too_long(uint32_t i, const struct kvi_seq *seq)
{
    return kvi_error_set(KVMEM_E_INVALID,
                         "seqs[%" PRIu32 "]: %" PRIu64 " tokens do not fit an int32", i,
                         seq->appended);
}

int kvi_table_padded(const struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                     uint32_t max_blocks, int32_t *tables, int32_t *lengths)
{
    for (uint32_t i = 0; i < n; i++) {
        const struct kvi_seq *seq = kvi_seq_find(space, seqs[i]);

        if (!seq)
            return kvi_seq_stale(seqs[i]);
        if (kvi_seq_used_blocks(space, seq) > max_blocks)
            return kvi_error_set(KVMEM_E_INVALID,
                                 "max_blocks: %" PRIu32 ", seqs[%" PRIu32 "] has %" PRIu32,
                                 max_blocks, i, kvi_seq_used_blocks(space, seq));
        if (lengths && seq->appended > INT32_MAX)
            return too_long(i, seq);
    }
    for (uint32_t i = 0; i < n; i++) {
        const struct kvi_seq *seq = &space->seqs[seqs[i].index];
        size_t used = kvi_seq_used_blocks(space, seq);
        int32_t *row = tables + (size_t)i * max_blocks;

        if (used)
            memcpy(row, seq->blocks, used * sizeof(*row));
        if (used < max_blocks)
            memset(row + used, 0xff, (max_blocks - used) * sizeof(*row)); /* KVMEM_BLOCK_NONE */
        if (lengths)
            lengths[i] = (int32_t)seq->appended;
    }
    return 0;
}

int kvi_table_csr(const struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                  uint32_t indices_limit, int32_t *indptr, int32_t *indices, int32_t *last_lengths)
{
    uint64_t total = 0;
    int32_t at = 0;

    for (uint32_t i = 0; i < n; i++) {
        const struct kvi_seq *seq = kvi_seq_find(space, seqs[i]);

        if (!seq)
            return kvi_seq_stale(seqs[i]);
        total += kvi_seq_used_blocks(space, seq);
        if (total > indices_limit || total > INT32_MAX)
            return kvi_error_set(KVMEM_E_INVALID,
                                 "indices_limit: %" PRIu32 ", seqs[0..%" PRIu32 "] have %" PRIu64
                                 " blocks",
                                 indices_limit, i, total);
    }
    indptr[0] = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct kvi_seq *seq = &space->seqs[seqs[i].index];
        uint32_t used = kvi_seq_used_blocks(space, seq);
        uint32_t fill = kvi_space_fill(space, seq->appended);

        if (used)
            memcpy(indices + at, seq->blocks, used * sizeof(*indices));
        at += (int32_t)used;
        indptr[i + 1] = at;
        last_lengths[i] = (int32_t)(used && !fill ? space->block_tokens : fill);
    }
    return at;
}

/* Slots of the last `count` tokens of the sequence. */
static void fill_slots(const struct kvmem_space *space, const struct kvi_seq *seq, uint32_t count,
                       int64_t *slots)
{
    uint64_t token = seq->appended - count;
    uint64_t at = kvi_space_whole_blocks(space, token);
    uint32_t position = kvi_space_fill(space, token);

    while (count) {
        int64_t first = (int64_t)seq->blocks[at++] * space->block_tokens;

        for (; position < space->block_tokens && count; position++, count--)
            *slots++ = first + position;
        position = 0;
    }
}

int kvi_table_slots(const struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                    const uint32_t *counts, uint32_t slots_limit, int64_t *slots)
{
    uint64_t total = 0;

    for (uint32_t i = 0; i < n; i++) {
        const struct kvi_seq *seq = kvi_seq_find(space, seqs[i]);
        uint32_t count = counts ? counts[i] : 1;

        if (!seq)
            return kvi_seq_stale(seqs[i]);
        if (count > seq->appended)
            return kvi_error_set(KVMEM_E_INVALID,
                                 "counts[%" PRIu32 "]: %" PRIu32 " is outside 0..%" PRIu64
                                 " (appended)",
                                 i, count, seq->appended);
        total += count;
        if (total > slots_limit || total > INT32_MAX)
            return kvi_error_set(KVMEM_E_INVALID,
                                 "slots_limit: %" PRIu32 ", seqs[0..%" PRIu32 "] need %" PRIu64,
                                 slots_limit, i, total);
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t count = counts ? counts[i] : 1;

        fill_slots(space, &space->seqs[seqs[i].index], count, slots);
        slots += count;
    }
    return (int)total;
}

int kvi_table_view(const struct kvmem_space *space, struct kvmem_seq id, const int32_t **blocks)
{
    const struct kvi_seq *seq = kvi_seq_find(space, id);

    if (!seq)
        return kvi_seq_stale(id);
    *blocks = seq->blocks;
    return (int)seq->block_count;
}
