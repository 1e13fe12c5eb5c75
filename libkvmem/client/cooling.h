/* SPDX-License-Identifier: Apache-2.0
 *
 * Cooling: references that were given up with a fence which is not reached yet.
 *
 *   free ─▶ the sequence's whole table      ┐            fence reached
 *   truncate, release, replaced tails ─▶    ├─▶ entry ───────────────────▶ references dropped,
 *       an array, or one block              │                              array recycled
 *   publish ─▶ a reference of its own       ┘
 *
 * An entry holds a reference for each of its blocks; the blocks' states do not change until it is
 * dropped. So nothing that a kernel may still touch becomes free, is released or handed in. An
 * entry of a publication also counts in kvi_segment.fenced_count of its blocks: the block becomes
 * an entry of the directory at once, but its segment must stay writable.
 *
 *   blocks = Σ count of the entries          entries in lists + free ones = those ever used
 *
 * One list a lane of the own timeline, ordered by value, and one for all other fences. Looked at in
 * dispatch, and when a call lacks blocks. A broken fence counts as reached: its producer touches
 * nothing any more.
 */
#ifndef KVI_CLIENT_COOLING_H
#define KVI_CLIENT_COOLING_H

#include <stdbool.h>
#include <stdint.h>

#include "client/fence.h"
#include "util/alloc.h"

#define KVI_COOLING_MIN    4096u /* entries; twice the sequences of the space, where that is more */
#define KVI_COOLING_LISTS  (KVI_LANE_COUNT + 1)
#define KVI_COOLING_OTHERS KVI_LANE_COUNT /* the list of points of others */
#define KVI_COOLING_NONE   UINT32_MAX

struct kvmem_space;

struct kvi_cooling_entry {
    struct kvi_point point;
    int32_t *blocks; /* an array of table memory; NULL: the block is `single` */
    int32_t single;
    uint32_t count;
    uint32_t prev; /* in its list */
    uint32_t next; /* in its list, or the next free one */
    uint8_t list;
    uint8_t table_class;
    bool is_publication;
};

struct kvi_cooling {
    struct kvi_cooling_entry *entries; /* [limit] */
    uint32_t limit;
    uint32_t fresh; /* entries from here on were never used */
    uint32_t first_free;
    uint32_t count;
    uint64_t blocks;
    uint32_t first[KVI_COOLING_LISTS];
    uint32_t last[KVI_COOLING_LISTS];
};

/* NO_MEMORY. */
int kvi_cooling_init(struct kvi_cooling *cooling, const struct kvi_alloc *alloc,
                     uint32_t seq_limit);
void kvi_cooling_fini(struct kvi_cooling *cooling, const struct kvi_alloc *alloc);

/* Is there room for `entries` more? 0 or BUSY. */
int kvi_cooling_room(struct kvmem_space *space, uint32_t entries);

/* A whole table of count ≥ 1 blocks, with its references, waits for `point`. There is room. */
void kvi_cooling_add_table(struct kvmem_space *space, const struct kvi_point *point,
                           int32_t *blocks, uint32_t count, uint8_t table_class);

/* What one more entry needs, taken before anything else is done. */
struct kvi_cooling_place {
    int32_t *array; /* NULL: for one block */
    uint8_t table_class;
};

/* A place for an entry of at most `count` blocks. BUSY, NO_MEMORY. */
int kvi_cooling_reserve(struct kvmem_space *space, uint32_t count, struct kvi_cooling_place *place);
void kvi_cooling_cancel(struct kvmem_space *space, struct kvi_cooling_place *place);

/* The references that blocks[0 .. count), at least one, stand for wait for `point`. */
void kvi_cooling_add(struct kvmem_space *space, const struct kvi_point *point,
                     const int32_t *blocks, uint32_t count, const struct kvi_cooling_place *place);

/* Blocks that were just published get one reference more, and their segments are fenced. */
void kvi_cooling_add_publication(struct kvmem_space *space, const struct kvi_point *point,
                                 const int32_t *blocks, uint32_t count,
                                 const struct kvi_cooling_place *place);

/* Drop the entries whose fence is reached, as far as the outbox has room for the releases. */
void kvi_cooling_drain(struct kvmem_space *space);

/* Drain until nothing is left, sending what it leads to, at most until `deadline_ns` (0: do not
 * wait). 0, TIMED_OUT. */
int kvi_cooling_wait(struct kvmem_space *space, int64_t deadline_ns);

static inline const int32_t *kvi_cooling_blocks(const struct kvi_cooling_entry *entry)
{
    return entry->blocks ? entry->blocks : &entry->single;
}

#endif
