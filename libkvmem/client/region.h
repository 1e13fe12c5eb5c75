/* SPDX-License-Identifier: Apache-2.0
 *
 * Regions: sequences as contiguous ranges of addresses, for <kvmem/region.h>.
 *
 *   table of the sequence   | b0 | b1 | b2 | b3 | b4 |        b2 is the tail, b3 and b4 lie ahead
 *   views, to be read       | v0 | v1 | v2 | v3 | .. |        at base + position × block_bytes
 *   views, to be written    | .. | .. | w2 | w3 | .. |        at write_base + the same
 *
 *   view     a position of a region: shows the block of its segment, mapped again, or nothing.
 *            Read-only at base, for as long as it shows that block; writable at write_base while
 *            it may be written there. No mapping changes its access
 *   closing  a region whose views stay until the last work that uses them has passed; its sequence
 *            has none any more, its blocks may be given up behind the same fence
 *   ahead    blocks of the table beyond the tail: reserved blocks of the sequence like others
 *   mapped   leading blocks of the table that are shown; the other views show nothing
 *   queued   views [mapped, queued) are being mapped by the helper, `pending` of them; whoever
 *            touches the region's end waits for that first
 *
 * Equations (kvi_regions_check):
 *   views [0, mapped) show blocks [0, mapped) of the table, unless the region is closing
 *   mapped ≤ blocks of the table, mapped ≤ block_limit
 *   mapped ≤ queued ≤ block_limit; mapped = queued when nothing is pending
 *   the handle behind a view = that of its block's segment
 *   the list of a segment = the views that show it
 *   a view is writable  ⇒  it shows a block, and its segment is ours and writable
 *
 * A view becomes writable while its block is PRIVATE and referenced once. It stays so, as the
 * block's own write address does, until the segment is handed in. Before an append returns, all
 * views that its tokens go to are mapped and writable. That is so already, unless they outran
 * dispatch (info.waits) or the tail was shared (info.remaps).
 *
 * Ownership: the space has its regions, their ranges and mappings; ranges of closed regions are
 * kept for the next ones of their size. One thread, that of the client.
 */
#ifndef KVI_CLIENT_REGION_H
#define KVI_CLIENT_REGION_H

#include <kvmem/region.h>

#include "client/fence.h"
#include "client/seq.h"

#define KVI_REGION_AHEAD     2u
#define KVI_REGION_AHEAD_MAX 64u
#define KVI_REGION_PENDING   128u
#define KVI_REGION_RANGES    16u /* kept for later regions */

struct kvi_view {
    struct kvmem_region *region;
    struct kvi_view *prev; /* in the segment's list */
    struct kvi_view *next;
    struct kvi_phys phys; /* of the segment that is mapped here */
    int32_t block;        /* that is shown */
    uint8_t access;       /* 0 = shows nothing, RO = mapped at base, RW = at write_base too */
    uint8_t reserved[3];
};

struct kvmem_region {
    struct kvmem_space *space;
    struct kvmem_region *prev;
    struct kvmem_region *next;
    struct kvmem_seq seq;
    uint64_t base;          /* of the read-only views */
    uint64_t write_base;    /* of the writable ones: the lower half of one reservation */
    struct kvi_point point; /* behind it, blocks ahead that a truncate left are not used any more;
                               closing: unmapped once it is reached */
    uint32_t block_limit;   /* views */
    uint32_t ahead;
    uint32_t mapped;
    uint32_t queued;
    uint8_t pending; /* jobs of the helper, at most KVI_REGION_PENDING */
    uint64_t waits;
    uint64_t remaps;
    /* of the append that is being prepared, to be undone */
    uint64_t stamp;
    uint32_t undo_blocks;
    uint32_t undo_mapped;
    uint64_t undo_waits;
    bool is_remapped;
    struct kvi_view views[]; /* [block_limit] */
};

struct kvi_regions {
    struct kvmem_region *first;
    struct kvmem_region *closing;       /* those that wait for their point */
    struct kvmem_region **of_seq;       /* [seq_limit], by place */
    struct kvi_view **shown;            /* [segment_limit] views of the segment */
    uint64_t ranges[KVI_REGION_RANGES]; /* reservations, for regions to come */
    uint64_t range_bytes[KVI_REGION_RANGES];
    uint32_t range_count;
    bool is_due; /* dispatch has blocks to map ahead */
};

/* What a space with KVMEM_SPACE_REGIONS needs. NO_MEMORY. fini leaves mappings as they are. */
int kvi_regions_init(struct kvmem_space *space);
void kvi_regions_fini(struct kvmem_space *space);

/* Close all, unmap all, give the ranges back. */
void kvi_regions_unmap(struct kvmem_space *space);

/* Wait for what the helper was asked for, in all regions. */
void kvi_regions_settle(struct kvmem_space *space);

/* Until no region, open or closing, waits for its point, at most until `deadline_ns`. 0,
 * TIMED_OUT. */
int kvi_regions_wait(struct kvmem_space *space, int64_t deadline_ns);

/* kvmem_region_open with checked options. */
int kvi_region_open(struct kvmem_space *space, struct kvmem_seq seq,
                    const struct kvmem_region_options *options, struct kvmem_region **out);

/* Unmap and forget, once `point` is reached; the sequence stays, with its blocks. */
void kvi_region_close(struct kvmem_region *region, const struct kvi_point *point);

/* The region of a sequence, or NULL. */
static inline struct kvmem_region *kvi_region_of(const struct kvmem_space *space,
                                                 const struct kvi_seq *seq)
{
    return seq->has_region ? space->regions->of_seq[seq - space->seqs] : NULL;
}

/* Wait for a point, at most the client's time limit. A broken one is over. 0, TIMED_OUT. */
int kvi_region_wait(struct kvmem_space *space, const struct kvi_point *point);

/* The same for a checked fence of a caller; a STREAM fence is recorded first. */
int kvi_region_wait_for(struct kvmem_space *space, const struct kvmem_fence *fence);

/* Has what a truncate left as blocks ahead been passed by the work on it? Until then these blocks
 * are neither given up, nor hidden, nor another's copy. */
bool kvi_region_is_passed(const struct kvmem_region *region);

/* Wait until it has. 0, TIMED_OUT. */
int kvi_region_pass(struct kvmem_region *region);

/* Make of *point one that is reached no earlier than the region's own: the later
 * one of a timeline, else what the region has is waited for. 0, TIMED_OUT. */
int kvi_region_join(struct kvmem_region *region, struct kvi_point *point);

/* Take and map blocks ahead where they are lacking; unmap what has closed. */
void kvi_regions_dispatch(struct kvmem_space *space);

/* ---- what becomes of the sequence ---- */

/* Would the batch outgrow a region? 0 or LIMIT. */
int kvi_regions_check_limits(const struct kvmem_space *space, uint32_t n,
                             const struct kvmem_seq *seqs, const uint32_t *counts);

/* An append, in its second step: take what the sequences with regions lack, so that all blocks of
 * the batch are in their tables (NO_MEMORY), and wait for `fence` when a view is going to show
 * another block (TIMED_OUT, codes of kvi_fence_take); then, when copies of shared tails are made
 * but not placed, map them and all that is to be written (codes of the backend). After a failure
 * of either, and of what lies between, undo: as if nothing had been done. */
int kvi_regions_take(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                     const uint32_t *counts, const struct kvmem_fence *fence);
int kvi_regions_map(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                    const uint32_t *counts);
void kvi_regions_undo(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs);

/* A truncate that needs `keep` blocks: how many stay, as blocks ahead; the views of the others are
 * unmapped, behind `fence`, which is waited for. When no view goes it is not: the region keeps it
 * as its point. Or TIMED_OUT, a code of kvi_fence_take or of the backend. */
int kvi_region_truncate(struct kvmem_region *region, uint32_t keep, const struct kvmem_fence *fence,
                        uint32_t *stay);

/* The truncate failed after that: map again what its table has. */
void kvi_region_restore(struct kvmem_region *region);

/* Show `blocks` instead of the blocks ahead of an empty sequence, which are dropped. The table
 * holds nothing then. LIMIT, TIMED_OUT (what a truncate left is in use) or a code of the backend,
 * and nothing has changed. */
int kvi_region_attach(struct kvmem_region *region, uint32_t count, const int32_t *blocks);

/* The segment is going to be handed in: its writable views go first. Codes of the backend. */
int kvi_regions_lower(struct kvmem_space *space, uint32_t slot);

/* Nobody here holds the segment's block any more: unmap what still shows it. */
void kvi_regions_vacate(struct kvmem_space *space, uint32_t slot);

/* Verify the equations. 0 or CORRUPT. */
int kvi_regions_check(const struct kvmem_space *space);

/* ---- views (region_view.c) ---- */

/* Map the block at the first position that shows nothing. Codes of the backend. */
int kvi_region_show(struct kvmem_region *region, int32_t block, enum kvi_access access);

/* Let the helper map the blocks of the table up to `end`. False when it cannot be asked: there is
 * none, or too much is asked for already. */
bool kvi_region_submit(struct kvmem_region *region, uint32_t end);

/* Wait for what the helper was asked for. */
void kvi_region_settle(struct kvmem_region *region);

/* Unmap the views from `from` on. */
int kvi_region_hide(struct kvmem_region *region, uint32_t from);

/* Show another block at a position that shows one. When that fails the old one is shown again, or,
 * when even that fails, the region ends there. */
int kvi_region_swap(struct kvmem_region *region, uint32_t position, int32_t block,
                    enum kvi_access access);

/* Make the view at a position that shows a block writable, if it is not. Codes of the backend. */
int kvi_region_raise(struct kvmem_region *region, uint32_t position);

/* RW for a block that its only sequence may write. */
enum kvi_access kvi_region_access_of(const struct kvmem_space *space, int32_t block);

#endif
