/* SPDX-License-Identifier: Apache-2.0
 *
 * Entries that wait, and dropping them; see cooling.h.
 */
#include "client/cooling.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "client/space.h"
#include "util/error.h"

int kvi_cooling_init(struct kvi_cooling *cooling, const struct kvi_alloc *alloc, uint32_t seq_limit)
{
    uint32_t limit = 2 * seq_limit > KVI_COOLING_MIN ? 2 * seq_limit : KVI_COOLING_MIN;

    cooling->entries = kvi_allocate(alloc, limit * sizeof(*cooling->entries));
    if (!cooling->entries)
        return kvi_error_set(KVMEM_E_NO_MEMORY,
                             "no memory for %" PRIu32 " entries that wait for "
                             "fences",
                             limit);
    cooling->limit = limit;
    cooling->first_free = KVI_COOLING_NONE;
    for (uint32_t list = 0; list < KVI_COOLING_LISTS; list++)
        cooling->first[list] = cooling->last[list] = KVI_COOLING_NONE;
    return 0;
}

void kvi_cooling_fini(struct kvi_cooling *cooling, const struct kvi_alloc *alloc)
{
    kvi_release(alloc, cooling->entries, cooling->limit * sizeof(*cooling->entries));
}

int kvi_cooling_room(struct kvmem_space *space, uint32_t entries)
{
    const struct kvi_cooling *cooling = &space->cooling;

    if (entries <= cooling->limit - cooling->count)
        return 0;
    kvi_cooling_drain(space);
    if (entries <= cooling->limit - cooling->count)
        return 0;
    return kvi_error_set(KVMEM_E_BUSY,
                         "%" PRIu32 " of %" PRIu32 " places are taken by what waits for its fence, "
                         "%" PRIu32 " are needed; wait for a fence, dispatch, then again",
                         cooling->count, cooling->limit, entries);
}

int kvi_cooling_reserve(struct kvmem_space *space, uint32_t count, struct kvi_cooling_place *place)
{
    int code = kvi_cooling_room(space, 1);

    place->array = NULL;
    place->table_class = KVI_TABLE_NONE;
    if (code || count <= 1)
        return code;
    place->array = kvi_table_take(&space->tables, kvi_table_class(count));
    if (!place->array)
        return kvi_error_set(KVMEM_E_NO_MEMORY,
                             "no memory for %" PRIu32 " blocks that wait for a fence", count);
    place->table_class = kvi_table_class(count);
    return 0;
}

void kvi_cooling_cancel(struct kvmem_space *space, struct kvi_cooling_place *place)
{
    kvi_table_give(&space->tables, place->array, place->table_class);
    place->array = NULL;
    place->table_class = KVI_TABLE_NONE;
}

/* ---- lists ---- */

static struct kvi_cooling_entry *entry_take(struct kvi_cooling *cooling)
{
    struct kvi_cooling_entry *entry;

    if (cooling->first_free == KVI_COOLING_NONE) {
        entry = &cooling->entries[cooling->fresh++];
    } else {
        entry = &cooling->entries[cooling->first_free];
        cooling->first_free = entry->next;
    }
    cooling->count++;
    return entry;
}

static void list_insert(struct kvi_cooling *cooling, struct kvi_cooling_entry *entry)
{
    uint32_t at = (uint32_t)(entry - cooling->entries);
    uint32_t before = cooling->last[entry->list];

    /* Values nearly always come in their order. */
    while (entry->list != KVI_COOLING_OTHERS && before != KVI_COOLING_NONE &&
           cooling->entries[before].point.value > entry->point.value)
        before = cooling->entries[before].prev;
    entry->prev = before;
    entry->next =
        before == KVI_COOLING_NONE ? cooling->first[entry->list] : cooling->entries[before].next;
    if (entry->next == KVI_COOLING_NONE)
        cooling->last[entry->list] = at;
    else
        cooling->entries[entry->next].prev = at;
    if (before == KVI_COOLING_NONE)
        cooling->first[entry->list] = at;
    else
        cooling->entries[before].next = at;
}

static void list_remove(struct kvi_cooling *cooling, struct kvi_cooling_entry *entry)
{
    if (entry->prev == KVI_COOLING_NONE)
        cooling->first[entry->list] = entry->next;
    else
        cooling->entries[entry->prev].next = entry->next;
    if (entry->next == KVI_COOLING_NONE)
        cooling->last[entry->list] = entry->prev;
    else
        cooling->entries[entry->next].prev = entry->prev;
    entry->next = cooling->first_free;
    cooling->first_free = (uint32_t)(entry - cooling->entries);
    cooling->count--;
}

static struct kvi_cooling_entry *add(struct kvmem_space *space, const struct kvi_point *point,
                                     uint32_t count)
{
    struct kvi_cooling *cooling = &space->cooling;
    struct kvi_cooling_entry *entry = entry_take(cooling);
    bool is_own = kvi_fence_is_own(space->client, point->timeline);

    assert(count);
    entry->point = *point;
    entry->count = count;
    entry->blocks = NULL;
    entry->table_class = KVI_TABLE_NONE;
    entry->is_publication = false;
    entry->list = (uint8_t)(is_own ? point->timeline % KVI_LANE_COUNT : KVI_COOLING_OTHERS);
    list_insert(cooling, entry);
    cooling->blocks += count;
    return entry;
}

void kvi_cooling_add_table(struct kvmem_space *space, const struct kvi_point *point,
                           int32_t *blocks, uint32_t count, uint8_t table_class)
{
    struct kvi_cooling_entry *entry = add(space, point, count);

    entry->blocks = blocks;
    entry->table_class = table_class;
}

static struct kvi_cooling_entry *add_copy(struct kvmem_space *space, const struct kvi_point *point,
                                          const int32_t *blocks, uint32_t count,
                                          const struct kvi_cooling_place *place)
{
    struct kvi_cooling_entry *entry = add(space, point, count);

    entry->single = blocks[0];
    entry->blocks = place->array;
    entry->table_class = place->table_class;
    assert(count == 1 || place->array);
    if (place->array && place->array != blocks)
        memcpy(place->array, blocks, count * sizeof(*blocks));
    return entry;
}

void kvi_cooling_add(struct kvmem_space *space, const struct kvi_point *point,
                     const int32_t *blocks, uint32_t count, const struct kvi_cooling_place *place)
{
    (void)add_copy(space, point, blocks, count, place);
}

void kvi_cooling_add_publication(struct kvmem_space *space, const struct kvi_point *point,
                                 const int32_t *blocks, uint32_t count,
                                 const struct kvi_cooling_place *place)
{
    add_copy(space, point, blocks, count, place)->is_publication = true;
    for (uint32_t i = 0; i < count; i++) {
        space->refs[blocks[i]]++;
        kvi_pool_segment(&space->pool, (uint32_t)blocks[i])->fenced_count++;
    }
}

/* ---- dropping ---- */

static void unfence(struct kvi_pool *pool, uint32_t block)
{
    if (--kvi_pool_segment(pool, block)->fenced_count == 0)
        pool->has_new_idle = true; /* it may be handed in now, if it is idle */
}

/* Drop the entry's references, the last block first. False: the outbox is full; the rest waits. */
static bool drop(struct kvmem_space *space, struct kvi_cooling_entry *entry)
{
    struct kvmem_client *client = space->client;
    const int32_t *blocks = kvi_cooling_blocks(entry);

    while (entry->count) {
        uint32_t block = (uint32_t)blocks[entry->count - 1];

        if (space->pool.state[block] == KVI_BLOCK_LEASED && space->refs[block] == 1 &&
            !client->is_lost && !kvi_outbox_room(&client->outbox))
            return false;
        if (entry->is_publication)
            unfence(&space->pool, block);
        kvi_space_unref(space, block);
        entry->count--;
        space->cooling.blocks--;
    }
    kvi_table_give(&space->tables, entry->blocks, entry->table_class);
    list_remove(&space->cooling, entry);
    return true;
}

static bool drain_list(struct kvmem_space *space, uint32_t list)
{
    struct kvi_cooling *cooling = &space->cooling;
    uint32_t at = cooling->first[list];

    while (at != KVI_COOLING_NONE) {
        struct kvi_cooling_entry *entry = &cooling->entries[at];

        at = entry->next;
        if (kvi_fence_state(space->client, &entry->point) == KVI_LANE_PENDING) {
            if (list == KVI_COOLING_OTHERS)
                continue;
            return true;
        }
        if (!drop(space, entry))
            return false;
    }
    return true;
}

void kvi_cooling_drain(struct kvmem_space *space)
{
    uint32_t lanes = space->client->fences.lane_count;

    if (!space->cooling.count)
        return;
    if (!drain_list(space, KVI_COOLING_OTHERS))
        return;
    for (uint32_t lane = 0; lane < lanes; lane++)
        if (!drain_list(space, lane))
            return;
}

int kvi_cooling_wait(struct kvmem_space *space, int64_t deadline_ns)
{
    struct kvmem_client *client = space->client;
    uint32_t turn = 0;

    for (;;) {
        kvi_cooling_drain(space);
        if (!space->cooling.count)
            return 0;
        if (!client->is_lost && !kvi_outbox_room(&client->outbox))
            (void)kvi_outbox_drain(client, deadline_ns);
        if (!deadline_ns || kvi_client_now_ns() >= deadline_ns)
            return kvi_error_set(KVMEM_E_TIMED_OUT,
                                 "%" PRIu64 " blocks wait for fences that were not reached in time",
                                 space->cooling.blocks);
        kvi_fence_pause(&turn);
    }
}
