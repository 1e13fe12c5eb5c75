/* SPDX-License-Identifier: Apache-2.0
 *
 * Fragmentation: where the bytes of a space's segments are. Pure.
 *
 *   segment_bytes = token_bytes       slots of blocks that hold a token
 *                 + internal_bytes    unused token slots in used blocks
 *                 + external_bytes    free blocks in partly used segments
 *                 + empty_bytes       blocks of segments without a used block
 *                 + waiting_bytes     blocks nobody can use before a process is gone
 *                 + padding_bytes     between the blocks, by the stride
 *
 * A block is used when it is an entry or in a sequence of its owner. Beside the sum:
 *   over_floor_segments = segments − ceil(used blocks ÷ blocks a segment)
 *   virtual_bytes       = referenced_bytes + saved_bytes, each client counted for itself
 *
 * Owners' blocks come from their status pages, which are advisory: counts that contradict each
 * other are clamped, so that the sum holds for any input.
 */
#ifndef KVCTL_FRAG_H
#define KVCTL_FRAG_H

#include "pool.h"
#include "style.h"

struct kvctl_frag {
    uint64_t segment_count;
    uint64_t segment_bytes;
    uint64_t token_bytes;
    uint64_t internal_bytes;
    uint64_t external_bytes;
    uint64_t empty_bytes;
    uint64_t waiting_bytes;
    uint64_t padding_bytes;

    uint64_t total_blocks;
    uint64_t used_blocks;
    uint64_t external_blocks;
    uint64_t waiting_blocks;
    uint64_t unused_slot_tokens;
    uint64_t partly_used_segments;
    uint64_t empty_segments;

    uint64_t over_floor_segments;
    uint64_t over_floor_bytes;

    uint64_t referenced_bytes; /* leased entries and used blocks, once each */
    uint64_t saved_bytes;      /* by sharing between clients */
    uint64_t virtual_bytes;
};

/* One space. `segments` may hold those of others too. */
void kvctl_frag_space(const struct kvi_rec_space_info *space,
                      const struct kvi_rec_segment_info *segments, size_t segment_count,
                      struct kvctl_frag *out);

/* *total += *part. */
void kvctl_frag_add(struct kvctl_frag *total, const struct kvctl_frag *part);

/* One sentence: what it means and what to do. */
void kvctl_frag_advise(const struct kvctl_frag *frag, uint32_t block_tokens, char *text,
                       size_t text_bytes);

/* A table a space, and one of the sum when there are several. */
void kvctl_frag_print(FILE *out, const struct kvctl_pool *pool, const char *title,
                      const struct kvctl_style *style);

#endif
