/* SPDX-License-Identifier: Apache-2.0
 *
 * Sharing and giving up: fork, free, truncate. See seq.h.
 */
#include <inttypes.h>
#include <string.h>

#include "client/guard.h"
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

/* A table of the parent's first `used` blocks for a child. False: no memory. */
static inline bool copy_table(struct kvmem_space *space, const struct kvi_seq *from, uint32_t used,
                              struct kvi_seq *to)
{
    uint8_t class = kvi_table_class(used);

    to->blocks = kvi_table_take(&space->tables, class);
    if (!to->blocks)
        return false;
    to->table_class = class;
    to->block_count = used;
    if (class == 0) /* both are so long at least; a size that is known takes no call */
        memcpy(to->blocks, from->blocks, KVI_TABLE_MIN * sizeof(*to->blocks));
    else
        memcpy(to->blocks, from->blocks, used * sizeof(*to->blocks));
    return true;
}

int kvi_seqs_fork(struct kvmem_space *space, struct kvmem_seq parent, uint32_t n,
                  struct kvmem_seq *children)
{
    struct kvi_seq *from = kvi_seq_find(space, parent);
    uint32_t used;
    int code;

    if (!from)
        return kvi_seq_stale(parent);
    code = kvi_seqs_room(space, n);
    if (code || !n)
        return code;
    used = kvi_seq_used_blocks(space, from);
    for (uint32_t i = 0; i < n; i++) {
        struct kvi_seq *to = kvi_seq_open(space, &children[i]);

        if (used && !copy_table(space, from, used, to)) {
            do
                free_place(space, children[i].index);
            while (i-- > 0);
            return kvi_error_set(KVMEM_E_NO_MEMORY,
                                 "no memory for a block table of %" PRIu32 " entries", used);
        }
        to->appended = from->appended;
        to->committed = from->committed;
        to->guard = from->guard;
    }
    kvi_seq_settle(space, from);
    for (uint32_t i = 0; i < used; i++)
        space->refs[from->blocks[i]] += n;
    return 0;
}

/* What truncates left in regions of the sequences, and can only be waited for, passes. */
static int join_regions(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                        struct kvi_point point)
{
    int code = 0;

    for (uint32_t i = 0; !code && i < n; i++) {
        struct kvmem_region *region = kvi_region_of(space, &space->seqs[seqs[i].index]);
        struct kvi_point joined = point;

        code = region ? kvi_region_join(region, &joined) : 0;
    }
    return code;
}

/* The sequences' tables, with their references, wait for `fence`, and for what truncates left in
 * their regions: in O(1) each. */
static int cool_seqs(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                     const struct kvmem_fence *fence)
{
    struct kvi_point point;
    int code = kvi_cooling_room(space, n);

    if (!code)
        code = kvi_fence_take(space->client, kvi_space_backend(space), fence, &point);
    if (!code)
        code = join_regions(space, n, seqs, point);
    if (code)
        return code;
    for (uint32_t i = 0; i < n; i++) {
        struct kvi_seq *seq = &space->seqs[seqs[i].index];
        struct kvi_point joined = point;

        if (seq->has_region) {
            (void)kvi_region_join(kvi_region_of(space, seq), &joined); /* waits for nothing now */
            kvi_region_close(kvi_region_of(space, seq), &joined);
        }
        kvi_seq_settle(space, seq);
        if (seq->block_count) {
            kvi_cooling_add_table(space, &joined, seq->blocks, seq->block_count, seq->table_class);
            seq->table_class = KVI_TABLE_NONE;
        }
        free_place(space, seqs[i].index);
    }
    return 0;
}

/* Room for the releases that dropping the sequences leads to. */
static int room_to_free(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                        uint64_t blocks)
{
    if (blocks <= kvi_outbox_room(&space->client->outbox))
        return 0;
    blocks = 0;
    for (uint32_t i = 0; i < n; i++)
        blocks += kvi_seq_leased_blocks(space, &space->seqs[seqs[i].index], 0);
    return kvi_space_room(space, blocks);
}

int kvi_seqs_free(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                  const struct kvmem_fence *fence)
{
    uint64_t stamp = ++space->batch_stamp;
    uint64_t blocks = 0;
    bool is_passed = true; /* what truncates left in regions */
    int code;

    for (uint32_t i = 0; i < n; i++) {
        struct kvi_seq *seq = kvi_seq_find(space, seqs[i]);

        if (!seq)
            return kvi_seq_stale(seqs[i]);
        if (seq->stamp == stamp)
            return kvi_error_set(KVMEM_E_INVALID, "seqs[%" PRIu32 "]: is named twice", i);
        seq->stamp = stamp;
        blocks += seq->block_count;
        if (seq->has_region)
            is_passed &= kvi_region_is_passed(kvi_region_of(space, seq));
    }
    if (blocks && (!is_passed || kvi_fence_is_pending(space->client, fence)))
        return cool_seqs(space, n, seqs, fence);
    code = room_to_free(space, n, seqs, blocks);
    if (code)
        return code;
    for (uint32_t i = 0; i < n; i++) {
        struct kvi_seq *seq = &space->seqs[seqs[i].index];

        if (seq->has_region)
            kvi_region_close(kvi_region_of(space, seq), &(struct kvi_point){0});
        kvi_seq_settle(space, seq);
        kvi_seq_drop_blocks(space, seq, 0);
        free_place(space, seqs[i].index);
    }
    return 0;
}

/* ---- truncating ---- */

/* The blocks from `keep` on wait for `fence`. */
static int cool_end(struct kvmem_space *space, struct kvi_seq *seq, uint32_t keep,
                    const struct kvmem_fence *fence)
{
    uint32_t count = seq->block_count - keep;
    struct kvi_cooling_place place;
    struct kvi_point point;
    int code = kvi_cooling_reserve(space, count, &place);

    if (code)
        return code;
    code = kvi_fence_take(space->client, kvi_space_backend(space), fence, &point);
    if (code) {
        kvi_cooling_cancel(space, &place);
        return code;
    }
    kvi_seq_settle(space, seq);
    kvi_cooling_add(space, &point, seq->blocks + keep, count, &place);
    seq->block_count = keep;
    return 0;
}

/* The blocks from `keep` on go, now or when `fence` is reached. Nothing else has changed yet. */
static int give_up_end(struct kvmem_space *space, struct kvi_seq *seq, uint32_t keep,
                       const struct kvmem_fence *fence)
{
    int code = 0;

    if (seq->block_count > keep) {
        if (kvi_fence_is_pending(space->client, fence))
            return cool_end(space, seq, keep, fence);
        code = kvi_space_room(space, kvi_seq_leased_blocks(space, seq, keep));
        if (code)
            return code;
    }
    kvi_seq_settle(space, seq);
    kvi_seq_drop_blocks(space, seq, keep);
    return 0;
}

/* Blocks from `keep` on hold no tokens any more. */
static void clear_reserved(struct kvmem_space *space, const struct kvi_seq *seq, uint32_t keep)
{
    for (uint32_t i = keep; i < seq->block_count; i++)
        if (space->pool.fill[seq->blocks[i]])
            kvi_pool_clear_fill(&space->pool, (uint32_t)seq->blocks[i]);
}

int kvi_seq_truncate(struct kvmem_space *space, struct kvmem_seq id, uint64_t tokens,
                     const struct kvmem_fence *fence)
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
    stay = keep;
    if (seq->has_region) {
        code = kvi_region_truncate(kvi_region_of(space, seq), keep, fence, &stay);
        if (code)
            goto failed;
    }
    code = give_up_end(space, seq, stay, fence);
    if (code) {
        if (seq->has_region)
            kvi_region_restore(kvi_region_of(space, seq));
        goto failed;
    }
    clear_reserved(space, seq, keep);
    if (keep < kvi_seq_used_blocks(space, seq))
        kvi_seq_table_changed(seq);
    seq->appended = tokens;
    if (seq->committed > tokens)
        seq->committed = tokens;
    if (!keep)
        seq->guard = KVI_GUARD_NONE;
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

failed: /* the tail's view may not be as it was: the next append looks */
    kvi_seq_settle(space, seq);
    return code;
}
