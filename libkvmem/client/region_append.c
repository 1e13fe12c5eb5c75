/* SPDX-License-Identifier: Apache-2.0
 *
 * What an append does for sequences with regions, before its step 3; see region.h, seq_append.c.
 *
 *   take   all blocks of the batch go into the tables, as reserved ones
 *   map    views of what will be written: mapped if they are not, writable if they are not (a
 *          sibling that shared the tail has gone), and the copies of shared tails in their place:
 *          last, since that takes several calls
 */
#include <assert.h>
#include <inttypes.h>

#include "client/region.h"
#include "util/error.h"

static uint32_t tokens_of(const uint32_t *counts, uint32_t i)
{
    return counts ? counts[i] : 1;
}

static struct kvi_seq *seq_of(struct kvmem_space *space, struct kvmem_seq id)
{
    return &space->seqs[id.index];
}

int kvi_regions_check_limits(const struct kvmem_space *space, uint32_t n,
                             const struct kvmem_seq *seqs, const uint32_t *counts)
{
    for (uint32_t i = 0; i < n; i++) {
        const struct kvi_seq *seq = &space->seqs[seqs[i].index];
        const struct kvmem_region *region = kvi_region_of(space, seq);
        uint64_t after = kvi_seq_blocks_after(space, seq, tokens_of(counts, i));

        if (region && after > region->block_limit)
            return kvi_error_set(KVMEM_E_LIMIT,
                                 "tokens: %" PRIu64 " and %" PRIu32 " more are beyond the %" PRIu64
                                 " that the region of seqs[%" PRIu32 "] was opened for",
                                 seq->appended, tokens_of(counts, i),
                                 (uint64_t)region->block_limit * space->block_tokens, i);
    }
    return 0;
}

/* ---- take ---- */

static int take_blocks(struct kvmem_region *region, struct kvi_seq *seq, uint64_t count)
{
    struct kvmem_space *space = region->space;
    int code;

    region->stamp = space->batch_stamp;
    region->undo_blocks = seq->block_count;
    region->undo_mapped = region->mapped;
    region->undo_waits = region->waits;
    region->is_remapped = false;
    code = kvi_seq_table_grow(space, seq, seq->block_count + count);
    if (!code)
        kvi_seq_take_reserved(space, seq, count);
    return code;
}

int kvi_regions_take(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                     const uint32_t *counts, const struct kvmem_fence *fence)
{
    bool has_remaps = false;
    int code = 0;

    /* Who copies a shared tail leaves it to fewer, as in make_copies. */
    for (uint32_t i = 0; i < n; i++) {
        struct kvi_seq *seq = seq_of(space, seqs[i]);
        struct kvmem_region *region = kvi_region_of(space, seq);
        uint32_t tokens = tokens_of(counts, i);
        bool copy = tokens && kvi_seq_needs_copy(space, seq);

        if (region && !code && tokens > seq->tail_room)
            code = take_blocks(region, seq, kvi_seq_blocks_lacking(space, seq, tokens, copy));
        if (region && !code && copy)
            code = kvi_region_pass(region); /* a block ahead may become the copy */
        has_remaps |= region && copy;
        seq->copy_block = copy ? 0 : KVMEM_BLOCK_NONE;
        if (copy)
            space->refs[kvi_seq_tail(space, seq)]--;
    }
    for (uint32_t i = 0; i < n; i++) {
        struct kvi_seq *seq = seq_of(space, seqs[i]);

        if (seq->copy_block == 0)
            space->refs[kvi_seq_tail(space, seq)]++;
        seq->copy_block = KVMEM_BLOCK_NONE;
    }
    /* A kernel must not lose what it reads. */
    return !code && has_remaps ? kvi_region_wait_for(space, fence) : code;
}

/* ---- map ---- */

/* Views from the tail, or the next block, to the last one that is written: but for the copy. */
static int map_written(struct kvmem_region *region, const struct kvi_seq *seq, uint32_t tokens)
{
    struct kvmem_space *space = region->space;
    uint32_t first = (uint32_t)kvi_space_whole_blocks(space, seq->appended);
    uint32_t after = (uint32_t)kvi_seq_blocks_after(space, seq, tokens);
    bool has_copy = seq->copy_block != KVMEM_BLOCK_NONE;
    bool has_to_map;
    int code = 0;

    for (uint32_t i = first + has_copy; !code && i < after && i < region->mapped; i++)
        code = kvi_region_raise(region, i);
    has_to_map = region->mapped < after;
    if (has_to_map) {
        kvi_region_settle(region);
        region->undo_mapped = region->mapped;
    }
    while (!code && region->mapped < after) {
        uint32_t i = region->mapped;
        bool is_copy = has_copy && i == first;
        int32_t block = is_copy ? seq->copy_block : seq->blocks[i];

        code = kvi_region_show(region, block,
                               i >= first ? KVI_ACCESS_RW : kvi_region_access_of(space, block));
    }
    region->waits += has_to_map;
    return code;
}

/* The copy takes the place of the shared tail. It was the last reserved block, and leaves there. */
static int map_copy(struct kvmem_region *region, const struct kvi_seq *seq)
{
    uint32_t tail = (uint32_t)kvi_space_whole_blocks(region->space, seq->appended);
    int code;

    if (region->views[tail].block == seq->copy_block)
        return 0; /* it was not mapped before */
    kvi_region_settle(region);
    code = kvi_region_hide(region, seq->block_count - 1);
    if (!code)
        code = kvi_region_swap(region, tail, seq->copy_block, KVI_ACCESS_RW);
    region->is_remapped = !code;
    region->remaps += !code;
    return code;
}

/* Sequences of the batch for which something is to be mapped. */
static struct kvmem_region *prepared(struct kvmem_space *space, const struct kvi_seq *seq)
{
    struct kvmem_region *region = kvi_region_of(space, seq);

    return region && region->stamp == space->batch_stamp ? region : NULL;
}

int kvi_regions_map(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                    const uint32_t *counts)
{
    int code = 0;

    for (uint32_t i = 0; !code && i < n; i++) {
        const struct kvi_seq *seq = seq_of(space, seqs[i]);
        struct kvmem_region *region = prepared(space, seq);

        if (region)
            code = map_written(region, seq, tokens_of(counts, i));
    }
    for (uint32_t i = 0; !code && i < n; i++) {
        const struct kvi_seq *seq = seq_of(space, seqs[i]);
        struct kvmem_region *region = prepared(space, seq);

        if (region && seq->copy_block != KVMEM_BLOCK_NONE)
            code = map_copy(region, seq);
    }
    space->regions->is_due = true;
    return code;
}

/* ---- undo ---- */

static void undo_one(struct kvmem_region *region, struct kvi_seq *seq)
{
    struct kvmem_space *space = region->space;
    uint32_t tail = (uint32_t)kvi_space_whole_blocks(space, seq->appended);

    if (region->is_remapped) {
        region->remaps--;
        (void)kvi_region_swap(region, tail, seq->blocks[tail],
                              kvi_region_access_of(space, seq->blocks[tail]));
    }
    (void)kvi_region_hide(region, region->undo_mapped);
    while (seq->block_count > region->undo_blocks)
        kvi_space_unref(space, (uint32_t)seq->blocks[--seq->block_count]);
    /* A block ahead that was to become the copy is ahead again. */
    while (region->mapped < region->undo_mapped &&
           !kvi_region_show(region, seq->blocks[region->mapped],
                            kvi_region_access_of(space, seq->blocks[region->mapped])))
        ;
    region->waits = region->undo_waits;
    region->stamp = 0;
}

void kvi_regions_undo(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs)
{
    for (uint32_t i = 0; i < n; i++) {
        struct kvi_seq *seq = seq_of(space, seqs[i]);
        struct kvmem_region *region = prepared(space, seq);

        if (region)
            undo_one(region, seq);
    }
}
