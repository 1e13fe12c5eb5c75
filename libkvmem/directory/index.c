/* SPDX-License-Identifier: Apache-2.0
 *
 * The index of entries: growing, insertion, deletion by backward shift (Knuth, The Art of
 * Computer Programming vol. 3, 6.4, algorithm R). See index.h for layout and invariants.
 */
#include "directory/index.h"

#include <assert.h>

#include <kvmem/error.h>

/* Five slots for three entries: a load of 0.6. */
static uint32_t bits_for(uint64_t entry_count)
{
    uint64_t slots = entry_count + entry_count / 3 * 2 + 2;
    uint32_t bits = KVI_INDEX_MIN_BITS;

    while (bits < 48 && (UINT64_C(1) << bits) < slots)
        bits++;
    return bits;
}

static uint64_t slot_of(uint32_t tag, uint32_t segment, uint32_t block)
{
    return (uint64_t)(segment + 1) << 48 | (uint64_t)block << KVI_INDEX_TAG_BITS | tag;
}

static size_t table_bytes(uint32_t bits)
{
    return sizeof(uint64_t) << bits;
}

static void place(struct kvi_index *index, uint64_t slot)
{
    uint64_t at = kvi_index_home(index, (uint32_t)slot & KVI_INDEX_TAG_MASK);

    while (index->slots[at] != 0)
        at = (at + 1) & index->mask;
    index->slots[at] = slot;
}

void kvi_index_init(struct kvi_index *index, const uint8_t key[32])
{
    *index = (struct kvi_index){0};
    memcpy(index->key, key, sizeof(index->key));
}

void kvi_index_fini(struct kvi_index *index, const struct kvi_alloc *alloc)
{
    if (index->slots)
        kvi_release(alloc, index->slots, table_bytes(index->bits));
    *index = (struct kvi_index){0};
}

uint64_t kvi_index_bytes(uint64_t entry_count)
{
    return table_bytes(bits_for(entry_count));
}

int kvi_index_reserve(struct kvi_index *index, const struct kvi_alloc *alloc, uint64_t entry_count)
{
    struct kvi_index old = *index;
    uint32_t bits = bits_for(entry_count);
    uint64_t *slots;

    if (index->slots && bits <= index->bits)
        return 0;
    slots = kvi_allocate(alloc, table_bytes(bits));
    if (!slots)
        return KVMEM_E_NO_MEMORY;
    index->slots = slots;
    index->bits = bits;
    index->mask = (UINT64_C(1) << bits) - 1;
    for (uint64_t i = 0; old.slots && i <= old.mask; i++)
        if (old.slots[i] != 0)
            place(index, old.slots[i]);
    if (old.slots)
        kvi_release(alloc, old.slots, table_bytes(old.bits));
    return 0;
}

void kvi_index_insert(struct kvi_index *index, uint32_t tag, uint32_t segment, uint32_t block)
{
    assert(index->slots && index->entry_count < index->mask);
    place(index, slot_of(tag, segment, block));
    index->entry_count++;
}

/* Close the gap at `hole`: a later slot of the same run moves into it when the hole lies between
 * its home and its place (cyclically), which leaves a new hole. */
static void close_gap(struct kvi_index *index, uint64_t hole)
{
    uint64_t at = hole;
    uint64_t slot;

    for (;;) {
        uint64_t home;

        at = (at + 1) & index->mask;
        slot = index->slots[at];
        if (slot == 0)
            break;
        home = kvi_index_home(index, (uint32_t)slot & KVI_INDEX_TAG_MASK);
        if (((at - home) & index->mask) < ((at - hole) & index->mask))
            continue;
        index->slots[hole] = slot;
        hole = at;
    }
    index->slots[hole] = 0;
}

int kvi_index_remove(struct kvi_index *index, uint32_t tag, uint32_t segment, uint32_t block)
{
    uint64_t wanted = slot_of(tag, segment, block);
    uint64_t at;

    if (!index->slots)
        return 0;
    at = kvi_index_home(index, tag);
    while (index->slots[at] != wanted) {
        if (index->slots[at] == 0)
            return 0;
        at = (at + 1) & index->mask;
    }
    close_gap(index, at);
    index->entry_count--;
    return 1;
}

uint64_t kvi_index_check(const struct kvi_index *index)
{
    uint64_t used = 0;
    uint64_t run = 0; /* slots in use right before this one */
    uint64_t start = 0;

    if (!index->slots)
        return index->entry_count == 0 ? 0 : 1;
    while (start <= index->mask && index->slots[start] != 0)
        start++;
    if (start > index->mask)
        return 1; /* full: a search would never end */
    for (uint64_t i = 1; i <= index->mask; i++) {
        uint64_t at = (start + i) & index->mask;
        uint64_t slot = index->slots[at];

        if (slot == 0) {
            run = 0;
            continue;
        }
        if (((at - kvi_index_home(index, (uint32_t)slot & KVI_INDEX_TAG_MASK)) & index->mask) > run)
            return 1 + at;
        run++;
        used++;
    }
    return used == index->entry_count ? 0 : 1 + start;
}
