/* SPDX-License-Identifier: Apache-2.0
 *
 * Entries: references (leases and pins), each segment's list by time of release, eviction.
 *
 *   oldest ──newer──▶ ... ──newer──▶ newest      stamps grow along the list; 0 = not on it
 *
 *   references = leases + pins
 *   referenced_count of a segment = its entries with references
 *   an entry without references is on the list
 *
 * An entry goes to the newest end with a fresh stamp when its last reference ends: that is exact
 * least-recently-used. A client that releases the tail of a sequence first makes the tail older
 * than the head. A new reference does not take the entry off the list: that would touch both its
 * neighbours, two more cache misses for each hit of a lookup. It stays where it was, passed over,
 * until its last reference ends or it has become the oldest, which kvi_dir_trim() looks for.
 * Nothing here allocates or fails.
 */
#include "directory/directory_internal.h"

/* ---- the list ---- */

static void unlink_entry(struct kvi_dir_segment *segment, struct kvi_dir_entry *entry)
{
    entry->stamp = 0;
    if (entry->older == KVI_DIR_NONE)
        segment->oldest = entry->newer;
    else
        segment->entries[entry->older].newer = entry->newer;
    if (entry->newer == KVI_DIR_NONE)
        segment->newest = entry->older;
    else
        segment->entries[entry->newer].older = entry->older;
}

static void append_entry(struct kvi_dir *dir, struct kvi_dir_segment *segment, uint32_t block)
{
    struct kvi_dir_entry *entry = &segment->entries[block];

    entry->stamp = ++dir->stamp;
    entry->older = segment->newest;
    entry->newer = KVI_DIR_NONE;
    if (segment->newest == KVI_DIR_NONE)
        segment->oldest = block;
    else
        segment->entries[segment->newest].newer = block;
    segment->newest = block;
}

uint64_t kvi_dir_trim(struct kvi_dir_segment *segment)
{
    while (segment->oldest != KVI_DIR_NONE &&
           kvi_dir_is_referenced(&segment->entries[segment->oldest]))
        unlink_entry(segment, &segment->entries[segment->oldest]);
    return segment->oldest == KVI_DIR_NONE ? UINT64_MAX : segment->entries[segment->oldest].stamp;
}

/* ---- references ---- */

static void reference(struct kvi_dir_segment *segment, const struct kvi_dir_entry *entry)
{
    segment->referenced_count += !kvi_dir_is_referenced(entry);
}

static void unreferenced(struct kvi_dir *dir, struct kvi_dir_segment *segment, uint32_t block)
{
    struct kvi_dir_entry *entry = &segment->entries[block];

    if (kvi_dir_is_referenced(entry))
        return;
    if (entry->stamp != 0)
        unlink_entry(segment, entry);
    append_entry(dir, segment, block);
    segment->referenced_count--;
    dir->memory_came_back = 1;
}

static uint64_t index_of(const struct kvi_dir_segment *segment, uint32_t block)
{
    return (uint64_t)segment->slot * segment->block_count + block;
}

void kvi_dir_entry_lease(struct kvi_dir *dir, struct kvi_dir_segment *segment, uint32_t block,
                         struct kvi_dir_open *open)
{
    struct kvi_dir_entry *entry = &segment->entries[block];
    uint64_t index = index_of(segment, block);
    uint64_t bit = UINT64_C(1) << index % 64;

    if (open->lease_bits[index / 64] & bit)
        return;
    reference(segment, entry);
    open->lease_bits[index / 64] |= bit;
    entry->lease_count++;
    open->lease_count++;
    dir->clients[open->client].lease_count++;
}

int kvi_dir_entry_unlease(struct kvi_dir *dir, struct kvi_dir_segment *segment, uint32_t block,
                          struct kvi_dir_open *open)
{
    uint64_t index = index_of(segment, block);
    uint64_t bit = UINT64_C(1) << index % 64;

    if (!(open->lease_bits[index / 64] & bit))
        return 0;
    open->lease_bits[index / 64] &= ~bit;
    segment->entries[block].lease_count--;
    open->lease_count--;
    dir->clients[open->client].lease_count--;
    unreferenced(dir, segment, block);
    return 1;
}

void kvi_dir_entry_pin(struct kvi_dir_segment *segment, uint32_t block)
{
    reference(segment, &segment->entries[block]);
    segment->entries[block].pin_count++;
}

void kvi_dir_entry_unpin(struct kvi_dir *dir, struct kvi_dir_segment *segment, uint32_t block)
{
    segment->entries[block].pin_count--;
    unreferenced(dir, segment, block);
}

void kvi_dir_entry_unlease_all(struct kvi_dir *dir, struct kvi_dir_open *open)
{
    struct kvi_dir_space *space = &dir->spaces[open->space];
    uint32_t block_count = space->geometry.blocks_per_segment;
    uint64_t words = ((uint64_t)space->slot_high * block_count + 63) / 64;

    for (uint64_t w = words; w > 0 && open->lease_count > 0; w--) {
        while (open->lease_bits[w - 1] != 0) {
            uint32_t top = 63 - (uint32_t)__builtin_clzll(open->lease_bits[w - 1]);
            uint32_t index = (uint32_t)(w - 1) * 64 + top;
            uint32_t number = space->slots[index / block_count].segment;

            kvi_dir_entry_unlease(dir, &dir->segments[number], index % block_count, open);
        }
    }
}

/* ---- birth and eviction ---- */

void kvi_dir_entry_add(struct kvi_dir *dir, uint32_t number, uint32_t block, const uint8_t *name,
                       uint32_t tag, struct kvi_dir_open *open)
{
    struct kvi_dir_segment *segment = &dir->segments[number];
    struct kvi_dir_entry *entry = &segment->entries[block];
    struct kvi_dir_client *client = &dir->clients[open->client];
    uint64_t index = index_of(segment, block);

    memcpy(entry->name, name, sizeof(entry->name));
    entry->stamp = 0;
    entry->older = KVI_DIR_NONE;
    entry->newer = KVI_DIR_NONE;
    entry->lease_count = 1;
    entry->pin_count = 0;
    entry->publisher = client->session_serial;
    entry->tag = tag;
    segment->entry_bits[block / 64] |= UINT64_C(1) << block % 64;
    segment->entry_count++;
    segment->referenced_count++;
    dir->spaces[segment->space].entry_count++;
    open->lease_bits[index / 64] |= UINT64_C(1) << index % 64;
    open->lease_count++;
    client->lease_count++;
    kvi_index_insert(&dir->index, tag, number, block);
}

static void forget(struct kvi_dir *dir, uint32_t number, uint32_t block)
{
    struct kvi_dir_segment *segment = &dir->segments[number];
    int was_there = kvi_index_remove(&dir->index, segment->entries[block].tag, number, block);

    assert(was_there);
    (void)was_there;
    segment->entry_bits[block / 64] &= ~(UINT64_C(1) << block % 64);
    if (segment->fence_count > 0)
        kvi_dir_fence_clear(segment, block);
}

static void count_evicted(struct kvi_dir *dir, struct kvi_dir_segment *segment, uint32_t count)
{
    segment->entry_count -= count;
    dir->spaces[segment->space].entry_count -= count;
    dir->totals.evicted_blocks += count;
}

void kvi_dir_entry_evict_oldest(struct kvi_dir *dir, uint32_t number, const uint32_t *blocks,
                                uint32_t count)
{
    struct kvi_dir_segment *segment = &dir->segments[number];
    uint32_t rest = segment->entries[blocks[count - 1]].newer;

    for (uint32_t i = 0; i < count; i++)
        forget(dir, number, blocks[i]);
    segment->oldest = rest;
    if (rest == KVI_DIR_NONE)
        segment->newest = KVI_DIR_NONE;
    else
        segment->entries[rest].older = KVI_DIR_NONE;
    count_evicted(dir, segment, count);
}

void kvi_dir_entry_evict_all(struct kvi_dir *dir, uint32_t number)
{
    struct kvi_dir_segment *segment = &dir->segments[number];
    uint32_t words = (segment->block_count + 63) / 64;

    assert(segment->referenced_count == 0);
    for (uint32_t w = 0; w < words; w++) {
        /* The records of a word lie in a row, the slots of the index anywhere: fetch these. */
        for (uint64_t bits = segment->entry_bits[w]; bits != 0; bits &= bits - 1)
            kvi_index_prefetch(&dir->index,
                               segment->entries[w * 64 + (uint32_t)__builtin_ctzll(bits)].tag);
        while (segment->entry_bits[w] != 0)
            forget(dir, number, w * 64 + (uint32_t)__builtin_ctzll(segment->entry_bits[w]));
    }
    count_evicted(dir, segment, segment->entry_count);
    segment->oldest = KVI_DIR_NONE;
    segment->newest = KVI_DIR_NONE;
}

static void rename_entry(struct kvi_dir *dir, uint32_t number, uint32_t block)
{
    struct kvi_dir_segment *segment = &dir->segments[number];
    struct kvi_dir_entry *entry = &segment->entries[block];

    kvi_index_remove(&dir->index, entry->tag, number, block);
    dir->env.random(dir->env.context, entry->name, sizeof(entry->name));
    entry->tag = kvi_index_tag(&dir->index, segment->space, entry->name);
    kvi_index_insert(&dir->index, entry->tag, number, block);
}

void kvi_dir_entry_break(struct kvi_dir *dir, uint32_t number, uint32_t block)
{
    struct kvi_dir_segment *segment = &dir->segments[number];

    if (kvi_dir_is_referenced(&segment->entries[block]) || segment->state == KVI_SEGMENT_OWNED) {
        rename_entry(dir, number, block);
        return;
    }
    unlink_entry(segment, &segment->entries[block]);
    forget(dir, number, block);
    count_evicted(dir, segment, 1);
    dir->memory_came_back = 1;
}
