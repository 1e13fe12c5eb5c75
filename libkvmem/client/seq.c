/* SPDX-License-Identifier: Apache-2.0
 *
 * Sequences: places, ids, tables, commit, information. See seq.h; appending is in seq_append.c,
 * sharing and giving up in seq_fork.c.
 */
#include "client/seq.h"

#include <inttypes.h>
#include <string.h>

#include "util/error.h"

int kvi_seq_stale(struct kvmem_seq id)
{
    return kvi_error_set(KVMEM_E_STALE, "seq {%" PRIu32 ", %" PRIu32 "} does not exist", id.index,
                         id.generation);
}

int kvi_seqs_room(const struct kvmem_space *space, uint32_t n)
{
    if (n <= space->seq_limit - space->live_seqs)
        return 0;
    return kvi_error_set(KVMEM_E_LIMIT,
                         "n: %" PRIu32 " more sequences, %" PRIu32 " of seq_limit %" PRIu32
                         " are alive",
                         n, space->live_seqs, space->seq_limit);
}

int kvi_seqs_create(struct kvmem_space *space, uint32_t n, struct kvmem_seq *seqs)
{
    int code = kvi_seqs_room(space, n);

    for (uint32_t i = 0; !code && i < n; i++)
        kvi_seq_open(space, &seqs[i]);
    return code;
}

int kvi_seq_table_grow(struct kvmem_space *space, struct kvi_seq *seq, uint64_t entries)
{
    uint8_t class;
    int32_t *blocks;

    if (entries <= kvi_table_entries(seq->table_class))
        return 0;
    class = kvi_table_class((uint32_t)entries);
    blocks = kvi_table_take(&space->tables, class);
    if (!blocks)
        return kvi_error_set(KVMEM_E_NO_MEMORY,
                             "no memory for a block table of %" PRIu64 " entries", entries);
    if (seq->block_count)
        memcpy(blocks, seq->blocks, seq->block_count * sizeof(*blocks));
    if (seq->table_class != KVI_TABLE_NONE)
        kvi_table_give(&space->tables, seq->blocks, seq->table_class);
    seq->blocks = blocks;
    seq->table_class = class;
    return 0;
}

void kvi_seq_settle(struct kvmem_space *space, struct kvi_seq *seq)
{
    uint32_t tail;

    if (!seq->tail_room)
        return;
    tail = (uint32_t)seq->blocks[kvi_space_whole_blocks(space, seq->appended)];
    space->pool.fill[tail] = (uint16_t)(space->block_tokens - seq->tail_room);
    seq->tail_room = 0;
}

void kvi_seq_drop_blocks(struct kvmem_space *space, struct kvi_seq *seq, uint32_t keep)
{
    const int32_t *blocks = seq->blocks;

    for (uint32_t i = seq->block_count; i-- > keep;)
        kvi_space_unref(space, (uint32_t)blocks[i]);
    if (keep < seq->block_count)
        seq->block_count = keep;
}

uint64_t kvi_seq_leased_blocks(const struct kvmem_space *space, const struct kvi_seq *seq,
                               uint32_t from)
{
    uint64_t leased = 0;

    for (uint32_t i = from; i < seq->block_count; i++)
        leased += space->pool.state[seq->blocks[i]] == KVI_BLOCK_LEASED;
    return leased;
}

int kvi_seqs_commit(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                    const uint32_t *counts)
{
    uint64_t stamp = ++space->batch_stamp;

    for (uint32_t i = 0; i < n; i++) {
        struct kvi_seq *seq = kvi_seq_find(space, seqs[i]);
        uint32_t tokens = counts ? counts[i] : 1;

        if (!seq)
            return kvi_seq_stale(seqs[i]);
        if (seq->stamp == stamp)
            return kvi_error_set(KVMEM_E_INVALID, "seqs[%" PRIu32 "]: is named twice", i);
        seq->stamp = stamp;
        if (tokens > seq->appended - seq->committed)
            return kvi_error_set(KVMEM_E_INVALID,
                                 "tokens: %" PRIu32 " is outside 0..%" PRIu64
                                 " (appended and not committed) of seqs[%" PRIu32 "]",
                                 tokens, seq->appended - seq->committed, i);
    }
    for (uint32_t i = 0; i < n; i++)
        space->seqs[seqs[i].index].committed += counts ? counts[i] : 1;
    return 0;
}

int kvi_seq_info(const struct kvmem_space *space, struct kvmem_seq id, struct kvmem_seq_info *out)
{
    const struct kvi_seq *seq = kvi_seq_find(space, id);
    uint32_t published = 0;

    if (!seq)
        return kvi_seq_stale(id);
    out->block_count = seq->block_count;
    out->appended_tokens = seq->appended;
    out->committed_tokens = seq->committed;
    out->shared_blocks = 0;
    while (published < seq->block_count &&
           space->pool.state[seq->blocks[published]] == KVI_BLOCK_LEASED)
        published++;
    out->published_blocks = published;
    for (uint32_t i = 0; i < seq->block_count; i++)
        out->shared_blocks += space->refs[seq->blocks[i]] > 1;
    return 0;
}
