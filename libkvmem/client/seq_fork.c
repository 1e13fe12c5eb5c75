/* SPDX-License-Identifier: Apache-2.0
 *
 * Sharing and giving up: fork, free, truncate. See seq.h.
 */
#include <inttypes.h>
#include <string.h>

#include "client/region.h"
#include "client/seq.h"
#include "util/error.h"

static void give_table(struct kvmem_space *space, struct kvi_seq *seq)
{
    if (seq->table_class != KVI_TABLE_NONE)
        kvi_table_give(&space->tables, seq->blocks, seq->table_class);
    seq->table_class = KVI_TABLE_NONE;
    seq->blocks = NULL;
}

static void free_place(struct kvmem_space *space, uint32_t place)
{
    struct kvi_seq *seq = &space->seqs[place];

    give_table(space, seq);
    seq->generation++;
    seq->block_count = space->first_free_seq;
    space->first_free_seq = place;
    space->live_seqs--;
}

/* New sequences with tables for `entries` blocks. */
static int create_with_tables(struct kvmem_space *space, uint32_t n, struct kvmem_seq *seqs,
                              uint32_t entries)
{
    int code = kvi_seqs_create(space, n, seqs);

    for (uint32_t i = 0; !code && entries && i < n; i++)
        code = kvi_seq_table_grow(space, &space->seqs[seqs[i].index], entries);
    if (code == KVMEM_E_NO_MEMORY)
        for (uint32_t i = n; i-- > 0;)
            free_place(space, seqs[i].index);
    return code;
}

int kvi_seqs_fork(struct kvmem_space *space, struct kvmem_seq parent, uint32_t n,
                  struct kvmem_seq *children)
{
    struct kvi_seq *from = kvi_seq_find(space, parent);
    uint32_t used;
    int code;

    if (!from)
        return kvi_seq_stale(parent);
    used = kvi_seq_used_blocks(space, from);
    code = create_with_tables(space, n, children, used);
    if (code || !n)
        return code;
    kvi_seq_settle(space, from);
    for (uint32_t i = 0; i < used; i++)
        space->refs[from->blocks[i]] += n;
    for (uint32_t i = 0; i < n; i++) {
        struct kvi_seq *to = &space->seqs[children[i].index];

        to->appended = from->appended;
        to->committed = from->committed;
        to->block_count = used;
        if (used)
            memcpy(to->blocks, from->blocks, used * sizeof(*to->blocks));
    }
    return 0;
}

int kvi_seqs_free(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs)
{
    uint64_t stamp = ++space->batch_stamp;
    uint64_t blocks = 0;
    int code;

    for (uint32_t i = 0; i < n; i++) {
        struct kvi_seq *seq = kvi_seq_find(space, seqs[i]);

        if (!seq)
            return kvi_seq_stale(seqs[i]);
        if (seq->stamp == stamp)
            return kvi_error_set(KVMEM_E_INVALID, "seqs[%" PRIu32 "]: is named twice", i);
        seq->stamp = stamp;
        blocks += seq->block_count;
    }
    if (blocks > kvi_outbox_room(&space->client->outbox)) {
        blocks = 0;
        for (uint32_t i = 0; i < n; i++)
            blocks += kvi_seq_leased_blocks(space, &space->seqs[seqs[i].index], 0);
        code = kvi_space_room(space, blocks);
        if (code)
            return code;
    }
    for (uint32_t i = 0; i < n; i++) {
        struct kvi_seq *seq = &space->seqs[seqs[i].index];

        if (seq->has_region)
            kvi_region_close(kvi_region_of(space, seq));
        kvi_seq_settle(space, seq);
        kvi_seq_drop_blocks(space, seq, 0);
        free_place(space, seqs[i].index);
    }
    return 0;
}

/* Blocks from `keep` on hold no tokens any more. */
static void clear_reserved(struct kvmem_space *space, const struct kvi_seq *seq, uint32_t keep)
{
    for (uint32_t i = keep; i < seq->block_count; i++)
        if (space->pool.fill[seq->blocks[i]])
            kvi_pool_clear_fill(&space->pool, (uint32_t)seq->blocks[i]);
}

int kvi_seq_truncate(struct kvmem_space *space, struct kvmem_seq id, uint64_t tokens)
{
    struct kvi_seq *seq = kvi_seq_find(space, id);
    uint32_t keep, stay, tail, fill;
    int code;

    if (!seq)
        return kvi_seq_stale(id);
    if (tokens > seq->appended)
        return kvi_error_set(KVMEM_E_INVALID,
                             "tokens: %" PRIu64 " is outside 0..%" PRIu64 " (appended)", tokens,
                             seq->appended);
    keep = (uint32_t)kvi_space_whole_blocks(space, tokens + space->block_tokens - 1);
    if (seq->block_count > keep) {
        code = kvi_space_room(space, kvi_seq_leased_blocks(space, seq, keep));
        if (code)
            return code;
    }
    stay = keep;
    if (seq->has_region) {
        code = kvi_region_truncate(kvi_region_of(space, seq), keep, &stay);
        if (code)
            return code;
    }
    kvi_seq_settle(space, seq);
    kvi_seq_drop_blocks(space, seq, stay);
    clear_reserved(space, seq, keep);
    seq->appended = tokens;
    if (seq->committed > tokens)
        seq->committed = tokens;
    fill = kvi_space_fill(space, tokens);
    if (!fill)
        return 0;
    tail = (uint32_t)seq->blocks[keep - 1];
    if (space->pool.state[tail] != KVI_BLOCK_PRIVATE || space->refs[tail] > 1)
        return 0;
    kvi_pool_count(&kvi_pool_segment(&space->pool, tail)->shown->tokens,
                   (uint64_t)fill - space->pool.fill[tail]);
    space->pool.fill[tail] = (uint16_t)fill;
    return 0;
}
