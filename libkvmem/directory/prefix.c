/* SPDX-License-Identifier: Apache-2.0
 *
 * Lookup, publish and release: the messages that engines send most.
 *
 * Each goes through its records in batches, and through a batch in stages, so that the cache
 * misses of many records overlap (the slot of the index, then the record, then its neighbours on
 * the list) instead of adding up: the technique is group prefetching (Chen, Ailamaki, Gibbons,
 * Mowry: Improving Hash Join Performance through Prefetching, 2004). Only the last stage changes
 * anything, and it takes what the others found as a hint where an earlier record of the same
 * message may have changed it.
 */
#include "directory/directory_internal.h"

#define BATCH KVI_DIR_PREFETCH_BATCH

/* Where a name may be. */
struct place {
    uint64_t position; /* in the index, behind the candidate */
    uint32_t tag;
    uint32_t segment; /* KVI_DIR_NONE: the name is not there */
    uint32_t block;
};

static int is_named(const struct kvi_dir *dir, const struct place *place, uint32_t space,
                    const uint8_t *name)
{
    const struct kvi_dir_segment *segment = &dir->segments[place->segment];

    return segment->space == space &&
           memcmp(segment->entries[place->block].name, name, KVI_INDEX_NAME_BYTES) == 0;
}

/* The next candidate for the place's tag. */
static void seek(const struct kvi_dir *dir, struct place *place)
{
    uint64_t slot = kvi_index_seek(&dir->index, place->tag, &place->position);

    place->segment = slot == 0 ? KVI_DIR_NONE : kvi_index_slot_segment(slot);
    place->block = kvi_index_slot_block(slot);
}

static void seek_first(const struct kvi_dir *dir, struct place *place)
{
    place->position = kvi_index_home(&dir->index, place->tag);
    seek(dir, place);
}

static int settle(const struct kvi_dir *dir, struct place *place, uint32_t space,
                  const uint8_t *name)
{
    while (place->segment != KVI_DIR_NONE && !is_named(dir, place, space, name))
        seek(dir, place);
    return place->segment != KVI_DIR_NONE;
}

int kvi_dir_find(const struct kvi_dir *dir, uint32_t space, const uint8_t *name, uint32_t *segment,
                 uint32_t *block)
{
    struct place place = {.tag = kvi_index_tag(&dir->index, space, name)};

    seek_first(dir, &place);
    if (!settle(dir, &place, space, name))
        return 0;
    *segment = place.segment;
    *block = place.block;
    return 1;
}

/* ---- lookup ---- */

/* The record alone: the lease bits are few and stay in the cache, and fetching them here as well
 * was measured to cost 15 ns a name, for want of line fill buffers. */
static void prefetch_record(const struct kvi_dir *dir, const struct place *place)
{
    __builtin_prefetch(&dir->segments[place->segment].entries[place->block], 1);
}

/* Places of the leading names that are there; how many. */
static uint32_t find_batch(const struct kvi_dir *dir, const struct kvi_dir_open *open,
                           const struct kvi_rec_name *names, uint32_t count, struct place *places)
{
    for (uint32_t i = 0; i < count; i++) {
        places[i].tag = kvi_index_tag(&dir->index, open->space, names[i].bytes);
        kvi_index_prefetch(&dir->index, places[i].tag);
    }
    for (uint32_t i = 0; i < count; i++) {
        seek_first(dir, &places[i]);
        if (places[i].segment == KVI_DIR_NONE)
            count = i;
        else
            prefetch_record(dir, &places[i]);
    }
    for (uint32_t i = 0; i < count; i++) {
        if (!settle(dir, &places[i], open->space, names[i].bytes))
            count = i;
    }
    return count;
}

static uint32_t count_foreign(const struct kvi_dir *dir, const struct place *places, uint32_t count,
                              uint32_t session_serial)
{
    uint32_t foreign = 0;

    for (uint32_t i = 0; i < count; i++)
        foreign +=
            dir->segments[places[i].segment].entries[places[i].block].publisher != session_serial;
    return foreign;
}

/* How many of the leading places are hits still, when fences that are not reached are asked. */
static uint32_t admit_batch(struct kvi_dir *dir, const struct place *places, uint32_t count,
                            struct kvi_dir_fence_list *list)
{
    for (uint32_t i = 0; i < count; i++) {
        struct kvi_dir_segment *segment = &dir->segments[places[i].segment];

        if (segment->fence_count > 0 && !kvi_dir_fence_admit(dir, segment, places[i].block, list))
            return i;
    }
    return count;
}

static enum kvi_dir_fence_use use_of_fences(const struct kvi_dir_client *client, uint32_t flags)
{
    if (client->version < KVI_VERSION_FENCES)
        return KVI_DIR_FENCES_MISSED;
    return flags & KVI_LOOKUP_PEEK ? KVI_DIR_FENCES_COUNTED : KVI_DIR_FENCES_LISTED;
}

static void lease_batch(struct kvi_dir *dir, struct kvi_dir_open *open, const struct place *places,
                        uint32_t count, struct kvi_rec_hit *hits)
{
    for (uint32_t i = 0; i < count; i++) {
        struct kvi_dir_segment *segment = &dir->segments[places[i].segment];

        kvi_dir_entry_lease(dir, segment, places[i].block, open);
        hits[i].index = segment->slot * segment->block_count + places[i].block;
        hits[i].generation = segment->generation;
    }
}

void kvi_dir_lookup(struct kvi_dir *dir, struct kvi_dir_client *client,
                    const struct kvi_msg_lookup *m)
{
    struct kvi_dir_open *open = kvi_dir_open_need(dir, client, &m->header, m->space);
    const struct kvi_rec_name *names = kvi_wire_tail_const(m, 0);
    struct kvi_msg_lookup_reply *reply = (void *)dir->out;
    struct kvi_dir_fence_list list;
    struct place places[BATCH];
    uint32_t hits = 0, foreign = 0, found = BATCH;

    if (!open)
        return;
    if (m->group != 0) {
        kvi_dir_refuse(dir, client, m->header.opcode, m->header.serial, KVMEM_E_NOT_SUPPORTED,
                       "lookup.group: only group 0 is supported yet");
        return;
    }
    kvi_wire_begin(reply, KVI_OP_LOOKUP_REPLY, m->header.serial);
    list.use = use_of_fences(client, m->flags);
    list.count = 0;
    list.producer = NULL;
    for (; hits < m->name_count && found == BATCH; hits += found) {
        uint32_t count = m->name_count - hits < BATCH ? m->name_count - hits : BATCH;

        found = find_batch(dir, open, names + hits, count, places);
        found = admit_batch(dir, places, found, &list);
        foreign += count_foreign(dir, places, found, client->session_serial);
        if (!(m->flags & KVI_LOOKUP_PEEK))
            lease_batch(dir, open, places, found,
                        (struct kvi_rec_hit *)kvi_wire_tail(reply, 0) + hits);
    }
    reply->space = m->space;
    reply->hit_count = hits;
    reply->foreign_hits = foreign;
    reply->record_count = m->flags & KVI_LOOKUP_PEEK ? 0 : hits;
    reply->fence_count = list.count;
    memcpy(kvi_wire_tail(reply, 1), list.fences, sizeof(list.fences[0]) * list.count);
    dir->totals.lookups++;
    dir->totals.lookup_blocks += m->name_count;
    dir->totals.hit_blocks += hits;
    dir->totals.foreign_hit_blocks += foreign;
    kvi_dir_reply(dir, client, reply);
}

/* ---- publish ---- */

/* The number of the segment that the publication lies in and the client may publish from. */
static uint32_t publishable(const struct kvi_dir *dir, const struct kvi_dir_open *open,
                            const struct kvi_rec_publication *p, uint32_t *block)
{
    const struct kvi_dir_space *space = &dir->spaces[open->space];
    uint32_t block_count = space->geometry.blocks_per_segment;
    uint32_t slot = p->index / block_count;
    uint32_t number;

    *block = p->index % block_count;
    if (slot >= space->segment_limit || p->token_count != space->geometry.block_tokens ||
        !kvi_dir_fence_is_valid(dir, &dir->clients[open->client], p))
        return KVI_DIR_NONE;
    number = space->slots[slot].segment;
    if (number == KVI_DIR_NONE || dir->segments[number].owner != open->client ||
        dir->segments[number].state != KVI_SEGMENT_OWNED || dir->segments[number].is_ready)
        return KVI_DIR_NONE;
    return number;
}

/* Nothing that one record does changes what this stage finds of another but the index. */
static void publish_prepare(const struct kvi_dir *dir, const struct kvi_dir_open *open,
                            const struct kvi_rec_publication *p, uint32_t count,
                            struct place *places, uint32_t *tags)
{
    for (uint32_t i = 0; i < count; i++) {
        tags[i] = kvi_index_tag(&dir->index, open->space, p[i].name);
        kvi_index_prefetch(&dir->index, tags[i]);
        places[i].segment = publishable(dir, open, &p[i], &places[i].block);
        if (places[i].segment != KVI_DIR_NONE)
            prefetch_record(dir, &places[i]);
    }
    for (uint32_t i = 0; i < count; i++) {
        struct place other = {.tag = tags[i]};

        seek_first(dir, &other);
        if (other.segment != KVI_DIR_NONE)
            __builtin_prefetch(&dir->segments[other.segment].entries[other.block]);
    }
}

static uint32_t publish_one(struct kvi_dir *dir, struct kvi_dir_open *open,
                            const struct kvi_rec_publication *p, const struct place *target,
                            uint32_t tag)
{
    struct place other = {.tag = tag};
    int exists;

    if (target->segment == KVI_DIR_NONE)
        return KVMEM_PUBLISH_REFUSED;
    seek_first(dir, &other);
    exists = settle(dir, &other, open->space, p->name);
    if (kvi_dir_is_entry(&dir->segments[target->segment], target->block)) {
        int is_same = exists && other.segment == target->segment && other.block == target->block;

        return is_same ? KVMEM_PUBLISH_EXISTS : KVMEM_PUBLISH_REFUSED;
    }
    if (exists)
        return KVMEM_PUBLISH_EXISTS;
    kvi_dir_entry_add(dir, target->segment, target->block, p->name, tag, open);
    kvi_dir_fence_set(dir, &dir->segments[target->segment], target->block,
                      &dir->clients[open->client], p);
    return KVMEM_PUBLISHED;
}

void kvi_dir_publish(struct kvi_dir *dir, struct kvi_dir_client *client,
                     const struct kvi_msg_publish *m)
{
    struct kvi_dir_open *open = kvi_dir_open_need(dir, client, &m->header, m->space);
    const struct kvi_rec_publication *p = kvi_wire_tail_const(m, 0);
    struct kvi_msg_publish_reply *reply = (void *)dir->out;
    uint64_t counts[3] = {0, 0, 0}; /* by enum kvmem_publish_state */
    struct kvi_rec_state *states;
    struct place places[BATCH];
    uint32_t tags[BATCH];

    if (!open)
        return;
    kvi_wire_begin(reply, KVI_OP_PUBLISH_REPLY, m->header.serial);
    reply->space = m->space;
    reply->record_count = m->record_count;
    states = kvi_wire_tail(reply, 0);
    for (uint32_t from = 0; from < m->record_count; from += BATCH) {
        uint32_t count = m->record_count - from < BATCH ? m->record_count - from : BATCH;

        publish_prepare(dir, open, p + from, count, places, tags);
        for (uint32_t i = 0; i < count; i++) {
            states[from + i].state = publish_one(dir, open, &p[from + i], &places[i], tags[i]);
            counts[states[from + i].state]++;
        }
    }
    dir->totals.published_blocks += counts[KVMEM_PUBLISHED];
    dir->totals.publish_exists_blocks += counts[KVMEM_PUBLISH_EXISTS];
    dir->totals.publish_refused_blocks += counts[KVMEM_PUBLISH_REFUSED];
    kvi_dir_reply(dir, client, reply);
}

/* ---- release ---- */

static void release_prepare(const struct kvi_dir *dir, const struct kvi_dir_space *space,
                            const struct kvi_rec_index *indices, uint32_t count,
                            struct place *places)
{
    uint32_t block_count = space->geometry.blocks_per_segment;

    for (uint32_t i = 0; i < count; i++) {
        uint32_t slot = indices[i].index / block_count;

        places[i].segment = KVI_DIR_NONE;
        places[i].block = indices[i].index % block_count;
        if (slot >= space->slot_high || space->slots[slot].segment == KVI_DIR_NONE)
            continue;
        if (dir->segments[space->slots[slot].segment].entries) {
            places[i].segment = space->slots[slot].segment;
            prefetch_record(dir, &places[i]);
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        const struct kvi_dir_segment *segment = &dir->segments[places[i].segment];
        const struct kvi_dir_entry *entry;

        if (places[i].segment == KVI_DIR_NONE || !kvi_dir_is_entry(segment, places[i].block))
            continue;
        entry = &segment->entries[places[i].block];
        if (entry->stamp == 0)
            continue;
        if (entry->older != KVI_DIR_NONE)
            __builtin_prefetch(&segment->entries[entry->older], 1);
        if (entry->newer != KVI_DIR_NONE)
            __builtin_prefetch(&segment->entries[entry->newer], 1);
    }
}

void kvi_dir_release(struct kvi_dir *dir, struct kvi_dir_client *client,
                     const struct kvi_msg_release *m)
{
    struct kvi_dir_open *open = kvi_dir_open_need(dir, client, &m->header, m->space);
    const struct kvi_rec_index *indices = kvi_wire_tail_const(m, 0);
    struct place places[BATCH];

    if (!open)
        return;
    for (uint32_t from = 0; from < m->index_count; from += BATCH) {
        uint32_t count = m->index_count - from < BATCH ? m->index_count - from : BATCH;

        release_prepare(dir, &dir->spaces[open->space], indices + from, count, places);
        for (uint32_t i = 0; i < count; i++)
            if (places[i].segment == KVI_DIR_NONE ||
                !kvi_dir_entry_unlease(dir, &dir->segments[places[i].segment], places[i].block,
                                       open))
                dir->ignored_releases++;
    }
}
