/* SPDX-License-Identifier: Apache-2.0
 *
 * The index of entries: one open-addressing table for the whole directory.
 *
 *   slot (64 bits)   segment number + 1 (16) | block in it (24) | tag (24)        0 = empty
 *
 * The tag is the head of a keyed hash over (space, name). It alone says where a slot belongs
 * (its home), so that deletion moves slots back without looking at any record:
 *
 *   home = tag scaled to the number of slots;     a slot lies at or behind its home, and every
 *                                                 slot between the two is in use
 *
 * Linear probing, deletion by backward shift: no tombstones, no clean-up, ever. The table grows
 * in kvi_index_reserve() only, before the entries can exist. It never exceeds a load of 0.6.
 * Names are compared by the caller, who owns the records: kvi_index_seek() gives candidates.
 * From 2^24 slots on several slots share a home and the tag tells less apart: still correct,
 * slower by the records that are looked at in vain.
 *
 * Owned by one directory; its thread alone uses it. Allocates in reserve, frees in fini.
 */
#ifndef KVI_DIRECTORY_INDEX_H
#define KVI_DIRECTORY_INDEX_H

#include <stdint.h>
#include <string.h>

#include "util/alloc.h"

#define KVI_INDEX_TAG_BITS   24u
#define KVI_INDEX_TAG_MASK   ((1u << KVI_INDEX_TAG_BITS) - 1)
#define KVI_INDEX_MIN_BITS   6u
#define KVI_INDEX_NAME_BYTES 32u

struct kvi_index {
    uint64_t *slots;
    uint64_t mask;        /* slots − 1 */
    uint64_t entry_count; /* slots in use */
    uint32_t bits;        /* log2 of the number of slots; 0 = no table yet */
    uint32_t reserved;
    uint64_t key[4]; /* drawn at the start: nobody can aim names at one home */
};

/* An empty index without a table; `key`: 32 random bytes. */
void kvi_index_init(struct kvi_index *index, const uint8_t key[32]);
void kvi_index_fini(struct kvi_index *index, const struct kvi_alloc *alloc);

/* Make room for `entry_count` entries at a load of at most 0.6. 0 or KVMEM_E_NO_MEMORY (nothing
 * changed). Takes time only when the table grows. */
int kvi_index_reserve(struct kvi_index *index, const struct kvi_alloc *alloc, uint64_t entry_count);

/* Add (tag → segment, block). There is room, and it is not there yet. */
void kvi_index_insert(struct kvi_index *index, uint32_t tag, uint32_t segment, uint32_t block);

/* Take (tag → segment, block) out. 1, or 0 when it was not there. */
int kvi_index_remove(struct kvi_index *index, uint32_t tag, uint32_t segment, uint32_t block);

/* Verify homes and count. 0, or 1 + the position of the first slot that lies wrong. */
uint64_t kvi_index_check(const struct kvi_index *index);

/* Bytes of the table for `entry_count` entries. */
uint64_t kvi_index_bytes(uint64_t entry_count);

static inline uint64_t kvi_index_fold(uint64_t a, uint64_t b)
{
    __extension__ typedef unsigned __int128 u128;
    u128 product = (u128)a * b;

    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Tag of `name` in space number `space`. */
static inline uint32_t kvi_index_tag(const struct kvi_index *index, uint32_t space,
                                     const uint8_t *name)
{
    uint64_t word[4];
    uint64_t low, high;

    memcpy(word, name, sizeof(word));
    low = kvi_index_fold(word[0] ^ index->key[0], word[1] ^ index->key[1]);
    high = kvi_index_fold(word[2] ^ index->key[2], word[3] ^ index->key[3] ^ space);
    return (uint32_t)(kvi_index_fold(low ^ index->key[2], high ^ index->key[0] ^ space) >>
                      (64 - KVI_INDEX_TAG_BITS));
}

static inline uint64_t kvi_index_home(const struct kvi_index *index, uint32_t tag)
{
    if (index->bits <= KVI_INDEX_TAG_BITS)
        return tag >> (KVI_INDEX_TAG_BITS - index->bits);
    return (uint64_t)tag << (index->bits - KVI_INDEX_TAG_BITS);
}

static inline void kvi_index_prefetch(const struct kvi_index *index, uint32_t tag)
{
    __builtin_prefetch(&index->slots[kvi_index_home(index, tag)], 1);
}

static inline uint32_t kvi_index_slot_segment(uint64_t slot)
{
    return (uint32_t)(slot >> 48) - 1;
}

static inline uint32_t kvi_index_slot_block(uint64_t slot)
{
    return (uint32_t)(slot >> KVI_INDEX_TAG_BITS) & KVI_INDEX_TAG_MASK;
}

/* The first slot with `tag` at or behind *position, or 0. *position begins at the tag's home and
 * is moved behind what was found. */
static inline uint64_t kvi_index_seek(const struct kvi_index *index, uint32_t tag,
                                      uint64_t *position)
{
    uint64_t at = *position;
    uint64_t slot;

    while ((slot = index->slots[at]) != 0) {
        at = (at + 1) & index->mask;
        if (((uint32_t)slot & KVI_INDEX_TAG_MASK) == tag)
            break;
    }
    *position = at;
    return slot;
}

#endif
