/* SPDX-License-Identifier: Apache-2.0
 *
 * Mapping segments; see importer.h.
 */
#include "client/importer.h"

#include <assert.h>
#include <string.h>
#include <unistd.h>

#include "client/region.h"
#include "util/error.h"

static uint64_t address_of(const struct kvmem_space *space, uint32_t slot)
{
    return space->base + (uint64_t)slot * space->geometry.segment_bytes;
}

int kvi_importer_map(struct kvmem_space *space, uint32_t slot, uint32_t generation, int fd,
                     enum kvi_access access)
{
    struct kvi_segment *segment = &space->pool.segments[slot];
    struct kvi_backend *backend = kvi_space_backend(space);
    uint64_t bytes = space->geometry.segment_bytes;
    struct kvi_phys phys;
    int code;

    assert(!segment->access);
    code = kvi_backend_segment_import_consume(backend, fd, bytes, &phys);
    if (code)
        return code;
    code = kvi_backend_map(backend, phys, address_of(space, slot), bytes, access);
    if (code) {
        kvi_backend_segment_release(backend, phys);
        return code;
    }
    segment->phys = phys;
    segment->generation = generation;
    segment->access = (uint8_t)access;
    segment->mapped_prev = KVI_POOL_NO_SEGMENT;
    segment->mapped_next = space->mapped_first;
    if (space->mapped_first != KVI_POOL_NO_SEGMENT)
        space->pool.segments[space->mapped_first].mapped_prev = slot;
    space->mapped_first = slot;
    space->mapped_segments++;
    space->client->segments_imported++;
    return 0;
}

int kvi_importer_set_access(struct kvmem_space *space, uint32_t slot, enum kvi_access access)
{
    struct kvi_segment *segment = &space->pool.segments[slot];
    int code;

    if (segment->access == access)
        return 0;
    code = kvi_backend_set_access(kvi_space_backend(space), address_of(space, slot),
                                  space->geometry.segment_bytes, access);
    if (!code)
        segment->access = (uint8_t)access;
    return code;
}

void kvi_importer_unmap(struct kvmem_space *space, uint32_t slot)
{
    struct kvi_segment *segment = &space->pool.segments[slot];
    struct kvi_backend *backend = kvi_space_backend(space);

    assert(segment->access);
    /* Neither fails for what was mapped here. */
    kvi_backend_unmap(backend, address_of(space, slot), space->geometry.segment_bytes);
    kvi_backend_segment_release(backend, segment->phys);
    if (segment->mapped_prev != KVI_POOL_NO_SEGMENT)
        space->pool.segments[segment->mapped_prev].mapped_next = segment->mapped_next;
    else
        space->mapped_first = segment->mapped_next;
    if (segment->mapped_next != KVI_POOL_NO_SEGMENT)
        space->pool.segments[segment->mapped_next].mapped_prev = segment->mapped_prev;
    segment->access = 0;
    space->mapped_segments--;
}

static void say_unmapped(struct kvmem_space *space, uint32_t slot, uint32_t generation)
{
    kvi_outbox_append(space->client, KVI_OUTBOX_UNMAPPED, space->place, slot)->generation =
        generation;
}

int kvi_importer_vacate(struct kvmem_space *space, uint32_t slot)
{
    struct kvi_segment *segment = &space->pool.segments[slot];
    uint32_t generation = segment->generation;

    if (segment->is_owned || segment->leased_count)
        return kvi_client_protocol(space->client, "a segment that is in use here is gone");
    if (space->regions)
        kvi_regions_vacate(space, slot);
    kvi_importer_unmap(space, slot);
    say_unmapped(space, slot, generation);
    return 0;
}

/* Ask for the segments of the hits that are not mapped, at most 16; hits of the first of them. */
static uint32_t build_request(struct kvmem_space *space, uint32_t count)
{
    struct kvmem_client *client = space->client;
    struct kvi_msg_segment_map *message = kvi_client_begin(client, KVI_OP_SEGMENT_MAP);
    struct kvi_rec_segment_ref *refs = kvi_wire_tail(message, 0);
    uint32_t n = 0;

    message->space = space->id;
    for (uint32_t i = 0; i < count && n < KVI_SPACE_MAP_SEGMENTS; i++) {
        uint32_t slot = kvi_pool_slot(&space->pool, client->hits[i].index);
        bool is_asked = false;

        if (kvi_importer_has(space, slot, client->hits[i].generation))
            continue;
        for (uint32_t j = 0; j < n && !is_asked; j++)
            is_asked = refs[j].slot == slot;
        if (is_asked)
            continue;
        refs[n].slot = slot;
        refs[n++].generation = client->hits[i].generation;
    }
    message->segment_count = n;
    return n;
}

/* Map what came. The first failure counts; the rest is tried, so that all descriptors are used. */
static int map_reply(struct kvmem_space *space, const struct kvi_msg_segment_fds *reply)
{
    struct kvmem_client *client = space->client;
    const struct kvi_rec_segment_ref *refs = kvi_wire_tail_const(reply, 0);
    int first = 0;

    if (reply->space != space->id || reply->segment_count != client->fd_count)
        return kvi_client_protocol(client, "a segment_fds that does not match its descriptors");
    for (uint32_t i = 0; i < reply->segment_count; i++) {
        struct kvi_segment *segment;
        int code = 0;

        if (refs[i].slot >= space->pool.segment_limit)
            return kvi_client_protocol(client, "segment_fds.slot is outside the space");
        segment = &space->pool.segments[refs[i].slot];
        if (segment->access && segment->generation == refs[i].generation)
            continue;
        if (segment->access)
            code = kvi_importer_vacate(space, refs[i].slot);
        if (code)
            return code;
        code = kvi_importer_map(space, refs[i].slot, refs[i].generation,
                                kvi_client_steal_fd(client), KVI_ACCESS_RO);
        if (code)
            say_unmapped(space, refs[i].slot, refs[i].generation);
        if (code && !first)
            first = code;
    }
    return first;
}

int kvi_importer_map_hits(struct kvmem_space *space, uint32_t count)
{
    struct kvmem_client *client = space->client;
    const void *reply;
    uint32_t left;
    int code;

    while ((left = build_request(space, count)) > 0) {
        code = kvi_client_call(client, KVI_OP_SEGMENT_FDS, &reply);
        if (!code)
            code = map_reply(space, reply);
        if (code)
            return code;
        if (((const struct kvi_msg_segment_fds *)reply)->segment_count < left)
            break;
    }
    for (uint32_t i = 0; i < count; i++)
        if (!kvi_importer_has(space, kvi_pool_slot(&space->pool, client->hits[i].index),
                              client->hits[i].generation))
            return (int)i;
    return (int)count;
}

int kvi_importer_late_fds(struct kvmem_space *space, const struct kvi_msg_segment_fds *message)
{
    const struct kvi_rec_segment_ref *refs = kvi_wire_tail_const(message, 0);

    for (uint32_t i = 0; i < message->segment_count; i++)
        if (refs[i].slot < space->pool.segment_limit &&
            !kvi_importer_has(space, refs[i].slot, refs[i].generation))
            say_unmapped(space, refs[i].slot, refs[i].generation);
    return 0;
}

void kvi_importer_fini(struct kvmem_space *space)
{
    while (space->mapped_first != KVI_POOL_NO_SEGMENT)
        kvi_importer_unmap(space, space->mapped_first);
}
