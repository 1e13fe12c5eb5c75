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

static struct kvi_mapping job_for(struct kvmem_space *space, uint32_t slot,
                                  enum kvi_mapping_kind kind, enum kvi_access access)
{
    uint64_t offset = (uint64_t)slot * space->geometry.segment_bytes;

    return (struct kvi_mapping){.kind = kind,
                                .access = access,
                                .backend = space->backend,
                                .fd = -1,
                                .phys = space->pool.segments[slot].phys,
                                .address = space->base + offset,
                                .write_address = space->write_base + offset,
                                .bytes = space->geometry.segment_bytes,
                                .context = space,
                                .tag = slot};
}

/* ---- what is mapped ---- */

static void note_mapped(struct kvmem_space *space, uint32_t slot, const struct kvi_mapping *job)
{
    struct kvi_segment *segment = &space->pool.segments[slot];

    segment->phys = job->phys;
    segment->access = (uint8_t)job->access;
    segment->mapped_prev = KVI_POOL_NO_SEGMENT;
    segment->mapped_next = space->mapped_first;
    if (space->mapped_first != KVI_POOL_NO_SEGMENT)
        space->pool.segments[space->mapped_first].mapped_prev = slot;
    space->mapped_first = slot;
    space->mapped_segments++;
    space->client->segments_imported++;
}

static void note_unmapped(struct kvmem_space *space, uint32_t slot)
{
    struct kvi_segment *segment = &space->pool.segments[slot];

    if (segment->mapped_prev != KVI_POOL_NO_SEGMENT)
        space->pool.segments[segment->mapped_prev].mapped_next = segment->mapped_next;
    else
        space->mapped_first = segment->mapped_next;
    if (segment->mapped_next != KVI_POOL_NO_SEGMENT)
        space->pool.segments[segment->mapped_next].mapped_prev = segment->mapped_prev;
    segment->access = 0;
    space->mapped_segments--;
}

/* ---- on this thread ---- */

void kvi_importer_settle(struct kvmem_space *space, uint32_t slot)
{
    if (space->pool.segments[slot].job)
        kvi_mapper_await(space->client->mapper, &space->pool.segments[slot].job);
}

void kvi_importer_settle_all(struct kvmem_space *space)
{
    for (uint32_t slot = 0; slot < space->pool.segment_limit; slot++)
        kvi_importer_settle(space, slot);
}

int kvi_importer_map(struct kvmem_space *space, uint32_t slot, uint32_t generation, int fd,
                     enum kvi_access access)
{
    struct kvi_segment *segment = &space->pool.segments[slot];
    struct kvi_mapping job = job_for(space, slot, KVI_MAPPING_MAP, access);
    int code;

    assert(!segment->access && !segment->job);
    job.fd = fd;
    code = kvi_mapper_do(space->client->mapper, &job);
    if (code)
        return code;
    segment->generation = generation;
    note_mapped(space, slot, &job);
    return 0;
}

/* What a RAISE or a LOWER has made of the segment. */
static void note_alias(struct kvi_segment *segment, const struct kvi_mapping *job)
{
    segment->access = job->kind == KVI_MAPPING_RAISE ? KVI_ACCESS_RW : KVI_ACCESS_RO;
}

static struct kvi_mapping raise_job(struct kvmem_space *space, uint32_t slot)
{
    assert(space->pool.segments[slot].access == KVI_ACCESS_RO && !space->pool.segments[slot].job);
    return job_for(space, slot, KVI_MAPPING_RAISE, KVI_ACCESS_RW);
}

static struct kvi_mapping lower_job(struct kvmem_space *space, uint32_t slot)
{
    assert(space->pool.segments[slot].access == KVI_ACCESS_RW && !space->pool.segments[slot].job);
    return job_for(space, slot, KVI_MAPPING_LOWER, KVI_ACCESS_RO);
}

static int change_alias(struct kvmem_space *space, struct kvi_mapping *job)
{
    int code = kvi_mapper_do(space->client->mapper, job);

    if (!code)
        note_alias(&space->pool.segments[job->tag], job);
    return code;
}

int kvi_importer_raise(struct kvmem_space *space, uint32_t slot)
{
    struct kvi_mapping job = raise_job(space, slot);

    return change_alias(space, &job);
}

int kvi_importer_lower(struct kvmem_space *space, uint32_t slot)
{
    struct kvi_mapping job = lower_job(space, slot);

    return change_alias(space, &job);
}

void kvi_importer_unmap(struct kvmem_space *space, uint32_t slot)
{
    const struct kvi_segment *segment = &space->pool.segments[slot];
    struct kvi_mapping job =
        job_for(space, slot, KVI_MAPPING_UNMAP, (enum kvi_access)segment->access);

    assert(segment->access && !segment->job);
    (void)kvi_mapper_do(space->client->mapper, &job); /* does not fail for what was mapped here */
    note_unmapped(space, slot);
}

/* ---- by the helper ---- */

/* False without a helper that has room. */
static bool submit(struct kvmem_space *space, const struct kvi_mapping *job)
{
    struct kvi_mapper *mapper = space->client->mapper;

    if (!kvi_mapper_has_helper(mapper) || kvi_mapper_submit(mapper, job))
        return false;
    space->pool.segments[job->tag].job = 1;
    return true;
}

bool kvi_importer_submit_map(struct kvmem_space *space, uint32_t slot, uint32_t generation, int fd,
                             enum kvi_access access, void (*done)(const struct kvi_mapping *job))
{
    struct kvi_mapping job = job_for(space, slot, KVI_MAPPING_MAP, access);

    assert(!space->pool.segments[slot].access && !space->pool.segments[slot].job);
    job.fd = fd;
    job.done = done;
    if (!submit(space, &job))
        return false;
    space->pool.segments[slot].generation = generation;
    return true;
}

bool kvi_importer_submit_raise(struct kvmem_space *space, uint32_t slot,
                               void (*done)(const struct kvi_mapping *job))
{
    struct kvi_mapping job = raise_job(space, slot);

    job.done = done;
    return submit(space, &job);
}

bool kvi_importer_submit_lower(struct kvmem_space *space, uint32_t slot,
                               void (*done)(const struct kvi_mapping *job))
{
    struct kvi_mapping job = lower_job(space, slot);

    job.done = done;
    return submit(space, &job);
}

int kvi_importer_finish(const struct kvi_mapping *job)
{
    struct kvmem_space *space = job->context;
    struct kvi_segment *segment = &space->pool.segments[job->tag];

    segment->job = 0;
    if (!job->code && job->kind == KVI_MAPPING_MAP)
        note_mapped(space, (uint32_t)job->tag, job);
    if (!job->code && (job->kind == KVI_MAPPING_RAISE || job->kind == KVI_MAPPING_LOWER))
        note_alias(segment, job);
    return job->code;
}

/* ---- slots that are used again ---- */

static void say_unmapped(struct kvmem_space *space, uint32_t slot, uint32_t generation)
{
    kvi_outbox_append(space->client, KVI_OUTBOX_UNMAPPED, space->place, slot)->generation =
        generation;
}

static int check_unused(const struct kvmem_space *space, uint32_t slot)
{
    const struct kvi_segment *segment = &space->pool.segments[slot];

    if (segment->is_owned || segment->leased_count)
        return kvi_client_protocol(space->client, "a segment that is in use here is gone");
    return 0;
}

int kvi_importer_vacate(struct kvmem_space *space, uint32_t slot)
{
    uint32_t generation = space->pool.segments[slot].generation;
    int code = check_unused(space, slot);

    if (code)
        return code;
    if (space->regions)
        kvi_regions_vacate(space, slot);
    kvi_importer_unmap(space, slot);
    say_unmapped(space, slot, generation);
    return 0;
}

static void vacated(const struct kvi_mapping *job)
{
    struct kvmem_space *space = job->context;
    uint32_t slot = (uint32_t)job->tag;

    (void)kvi_importer_finish(job); /* does not fail for what was mapped here */
    say_unmapped(space, slot, space->pool.segments[slot].generation);
}

int kvi_importer_vacate_later(struct kvmem_space *space, uint32_t slot)
{
    struct kvi_mapping job = job_for(space, slot, KVI_MAPPING_UNMAP, KVI_ACCESS_RO);
    int code = check_unused(space, slot);

    job.done = vacated;
    if (code)
        return code;
    if (space->regions)
        kvi_regions_vacate(space, slot);
    if (!submit(space, &job))
        return kvi_importer_vacate(space, slot);
    note_unmapped(space, slot); /* from now on nobody relies on it */
    return 0;
}

/* ---- look-ups ---- */

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
        kvi_importer_settle(space, refs[i].slot);
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

    for (uint32_t i = 0; i < count; i++) {
        uint32_t slot = kvi_pool_slot(&space->pool, client->hits[i].index);

        if (!kvi_importer_has(space, slot, client->hits[i].generation))
            kvi_importer_settle(space, slot); /* a job may just be mapping it */
    }
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
    kvi_importer_settle_all(space);
    while (space->mapped_first != KVI_POOL_NO_SEGMENT)
        kvi_importer_unmap(space, space->mapped_first);
}
