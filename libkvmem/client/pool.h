/* SPDX-License-Identifier: Apache-2.0
 *
 * The pool: every block of a space as this client knows it, and the free ones to take.
 *
 *   NONE ──granted──▶ FREE ──take──▶ PRIVATE ──publish──▶ PUBLISHING ──published──▶ LEASED
 *    ▲                 ▲◀──give────────┘ ▲────exists, refused──┘                      │
 *    ├◀───hand-in──────┘                                                     last reference gone
 *    └◀────────────── the release is sent ◀──────────────── RELEASING ◀───────────────┘
 *
 *   ARRIVING      between NONE and FREE while a helper changes the segment's mapping: granted and
 *                 not writable yet, or about to be handed in and not to be written any more
 *   a segment     an owned one (we write it), or one that others write and we may have mapped
 *   current       the owned segment that blocks are taken from; it stays until it has none left,
 *                 then the fullest segment with a free block follows: whole segments come free
 *   class         64 classes of owned segments by free blocks, 0 the fullest, a list each;
 *                 the current one and those without a free block are in no list
 *   hot           the block of the current segment that was given back last: taken next, FREE, but
 *                 charged to the segment as used until kvi_pool_settle(); what a speculating
 *                 engine gives back and takes again costs next to nothing
 *   idle          owned, no used block: may be handed in; a list of candidates, verified by
 *                 whoever walks it (a candidate may have been used again)
 *
 * Equations (kvi_pool_check):
 *   free_count    = FREE blocks, not hot = bits in free_words          of an owned segment, else 0
 *   arriving_count = ARRIVING blocks                            of an owned segment, else 0
 *   used_count    = PRIVATE + PUBLISHING + the hot block = bits in used   of an owned segment, else
 * 0 sealing_count = PUBLISHING blocks = bits in sealed leased_count  = LEASED + RELEASING blocks
 *   tokens        = Σ fill of the used blocks − what their writers have not taken yet (seq.h)
 *   pool totals   = Σ over segments
 *
 * Ownership: the pool has its arrays, allocated once at init for the whole index range and
 * untouched until used. It knows no daemon, no mapping and no sequence: those write the fields
 * of struct kvi_segment that are marked theirs. One thread.
 */
#ifndef KVI_CLIENT_POOL_H
#define KVI_CLIENT_POOL_H

#include <assert.h>
#include <kvmem/types.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backend/backend.h"
#include "client/status.h"
#include "util/alloc.h"

#define KVI_POOL_CLASSES    64u
#define KVI_POOL_NO_CLASS   255u
#define KVI_POOL_NO_SEGMENT UINT32_MAX

enum kvi_block_state {
    KVI_BLOCK_NONE = 0,       /* not ours: free for others, or an entry that we do not hold */
    KVI_BLOCK_FREE = 1,       /* in an owned segment, ours to take */
    KVI_BLOCK_PRIVATE = 2,    /* ours, in sequences, writable */
    KVI_BLOCK_PUBLISHING = 3, /* sealed; a publish record waits for its answer */
    KVI_BLOCK_LEASED = 4,     /* an entry that this client holds */
    KVI_BLOCK_RELEASING = 5,  /* an entry no longer held; a release record waits to be sent */
    KVI_BLOCK_ARRIVING = 6    /* granted or to be handed in; its segment is being mapped */
};

struct kvi_segment {
    struct kvi_status_slot *shown; /* used and sealed bits, tokens; NULL when not owned */
    uint32_t free_count;
    uint32_t used_count;
    uint32_t sealing_count;
    uint32_t leased_count;
    uint32_t fenced_count; /* publications whose own fence is under way: no hand-in (cooling.h) */
    uint32_t arriving_count;
    uint32_t first_word; /* no free bit lies in a word before it */
    uint32_t prev;       /* neighbours in the class' list */
    uint32_t next;
    uint32_t idle_next; /* next candidate */
    uint8_t class;      /* KVI_POOL_NO_CLASS: in no list */
    bool is_owned;
    bool is_candidate;
    bool is_on_page; /* shown lies in the status page */
    uint8_t access;  /* the importer's: 0 = not mapped, else enum kvi_access */
    uint8_t job;     /* the importer's: 1 = the helper changes the mapping */
    uint8_t reserved[2];
    uint32_t generation;  /* the importer's: of what is mapped */
    uint32_t mapped_next; /* the importer's: next mapped segment */
    uint32_t mapped_prev;
    struct kvi_phys phys; /* the importer's */
};

struct kvi_pool {
    struct kvi_segment *current;
    uint32_t current_base;   /* its first block */
    uint32_t current_span;   /* its blocks; 0 without a current segment */
    int32_t hot;             /* or KVMEM_BLOCK_NONE */
    uint64_t listed_blocks;  /* Σ free_count */
    uint64_t charged_blocks; /* Σ used_count */
    uint64_t leased_blocks;  /* LEASED only */
    uint64_t arriving_blocks;
    uint64_t owned_segments;
    uint64_t class_mask; /* bit c: class c has a segment */
    uint32_t class_first[KVI_POOL_CLASSES];
    uint32_t idle_first;
    bool has_new_idle; /* a candidate came since the list was walked */

    uint32_t segment_limit;
    uint32_t blocks_per_segment;
    uint32_t index_range; /* segment_limit × blocks_per_segment */
    uint32_t words_per_segment;
    uint32_t chunks_per_segment; /* status slots of a segment */
    uint64_t slot_multiplier;    /* index × this >> 62 = index ÷ blocks_per_segment */
    uint64_t class_multiplier;   /* (free − 1) × this >> 32 = class */

    struct kvi_segment *segments;  /* [segment_limit] */
    uint64_t *free_words;          /* [segment_limit][words_per_segment] */
    struct kvi_status_slot *plain; /* [segment_limit][chunks]: for what the page has no room */
    uint8_t *state;                /* [index_range] enum kvi_block_state */
    uint16_t *fill;                /* [index_range] tokens counted for a used block */
    struct kvi_alloc alloc;
};

/* Arrays for `segment_limit` segments of `blocks_per_segment` blocks, none owned. NO_MEMORY. */
int kvi_pool_init(struct kvi_pool *pool, const struct kvi_alloc *alloc, uint32_t segment_limit,
                  uint32_t blocks_per_segment);
void kvi_pool_fini(struct kvi_pool *pool);

/* The segment is ours to write from now on, with no free block yet. `shown`: its slots in the
 * status page, or NULL. */
void kvi_pool_own(struct kvi_pool *pool, uint32_t segment, struct kvi_status_slot *shown);

/* It is not any more: no used block is left (asserted), its free and arriving blocks are none of
 * ours. Returns how many these were. */
uint32_t kvi_pool_disown(struct kvi_pool *pool, uint32_t segment);

/* A block of an owned segment, NONE so far, will be ours to take. */
void kvi_pool_expect(struct kvi_pool *pool, uint32_t index);

/* All FREE blocks of an owned segment without used ones: ARRIVING; and the way back. */
void kvi_pool_suspend(struct kvi_pool *pool, uint32_t segment);
void kvi_pool_arrive(struct kvi_pool *pool, uint32_t segment);

/* A block of an owned segment, NONE so far, is ours to take. */
void kvi_pool_add(struct kvi_pool *pool, uint32_t index);

/* Charge the hot block to nobody: afterwards used_count says what is used. */
void kvi_pool_settle(struct kvi_pool *pool);

/* What kvi_pool_take and kvi_pool_give do when no block is hot, or one is, or this one cannot be.
 */
int32_t kvi_pool_take_cold(struct kvi_pool *pool);
void kvi_pool_give_cold(struct kvi_pool *pool, uint32_t index);
void kvi_pool_clear_fill(struct kvi_pool *pool, uint32_t index);

/* PRIVATE → PUBLISHING → PRIVATE or LEASED. */
void kvi_pool_seal(struct kvi_pool *pool, uint32_t index);
void kvi_pool_unseal(struct kvi_pool *pool, uint32_t index);
void kvi_pool_become_entry(struct kvi_pool *pool, uint32_t index);

/* NONE or RELEASING → LEASED → RELEASING → NONE. */
void kvi_pool_lease(struct kvi_pool *pool, uint32_t index);
void kvi_pool_begin_release(struct kvi_pool *pool, uint32_t index);
void kvi_pool_end_release(struct kvi_pool *pool, uint32_t index);

/* Verify the equations. 0, or CORRUPT with the first violation in the detail. */
int kvi_pool_check(const struct kvi_pool *pool);

static inline uint32_t kvi_pool_slot(const struct kvi_pool *pool, uint32_t index)
{
    return (uint32_t)(((unsigned __int128)index * pool->slot_multiplier) >> 62);
}

static inline struct kvi_segment *kvi_pool_segment(const struct kvi_pool *pool, uint32_t index)
{
    return &pool->segments[kvi_pool_slot(pool, index)];
}

static inline uint64_t kvi_pool_free_blocks(const struct kvi_pool *pool)
{
    return pool->listed_blocks + (pool->hot != KVMEM_BLOCK_NONE);
}

/* PRIVATE and PUBLISHING ones. */
static inline uint64_t kvi_pool_used_blocks(const struct kvi_pool *pool)
{
    return pool->charged_blocks - (pool->hot != KVMEM_BLOCK_NONE);
}

/* FREE → PRIVATE: its index, or KVMEM_BLOCK_NONE. */
static inline int32_t kvi_pool_take(struct kvi_pool *pool)
{
    int32_t hot = pool->hot;

    if (hot == KVMEM_BLOCK_NONE)
        return kvi_pool_take_cold(pool);
    pool->hot = KVMEM_BLOCK_NONE;
    pool->state[hot] = KVI_BLOCK_PRIVATE;
    return hot;
}

/* `count` blocks, which are there. The same blocks as by one call each. */
void kvi_pool_take_many(struct kvi_pool *pool, uint32_t count, int32_t *out);

/* PRIVATE → FREE. */
static inline void kvi_pool_give(struct kvi_pool *pool, uint32_t index)
{
    assert(pool->state[index] == KVI_BLOCK_PRIVATE);
    if (pool->hot != KVMEM_BLOCK_NONE || index - pool->current_base >= pool->current_span) {
        kvi_pool_give_cold(pool, index);
        return;
    }
    if (pool->fill[index])
        kvi_pool_clear_fill(pool, index);
    pool->state[index] = KVI_BLOCK_FREE;
    pool->hot = (int32_t)index;
}

/* Tokens in the used blocks of a segment; the slot is the client's own or its status page's. */
static inline void kvi_pool_count(uint64_t *tokens, uint64_t change)
{
    __atomic_store_n(tokens, __atomic_load_n(tokens, __ATOMIC_RELAXED) + change, __ATOMIC_RELAXED);
}

#endif
