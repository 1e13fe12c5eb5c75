/* SPDX-License-Identifier: Apache-2.0
 *
 * Spaces, and a client's opening of one.
 *
 * A space is found by (domain, name). It lives while a client has it open or a segment of it
 * exists; one without clients keeps segments only for the sake of entries:
 *
 *   clients = 0 and entries = 0  ⇒  its HANDED_IN segments are released
 *   clients = 0 and segments = 0 ⇒  the space ends, its id is stale, its name is free
 *
 * All of a space lies on one device, which its first opener names or leaves to us. Eviction,
 * adoption and pressure never look beyond it.
 *
 * The id is number | generation << 8, so that an id of a space that ended is never taken for the
 * next one in its place. The first opener sets geometry, fingerprint and quota.
 */
#include "directory/directory_internal.h"

#include <stdio.h>

#include "util/error.h"
#include "util/geometry.h"

#define GENERATION_LIMIT (1u << 24)

uint32_t kvi_dir_space_id(const struct kvi_dir *dir, const struct kvi_dir_space *space)
{
    return (uint32_t)(space - dir->spaces) | space->generation << 8;
}

int kvi_dir_space_quota_allows(const struct kvi_dir_space *space)
{
    if (space->quota_bytes == 0)
        return 1;
    return (space->segment_count + UINT64_C(1)) * space->geometry.segment_bytes <=
           space->quota_bytes;
}

struct kvi_dir_open *kvi_dir_open_find(struct kvi_dir *dir, const struct kvi_dir_client *client,
                                       uint32_t space_id)
{
    for (struct kvi_dir_open *open = client->opens; open; open = open->next)
        if (kvi_dir_space_id(dir, &dir->spaces[open->space]) == space_id)
            return open;
    return NULL;
}

struct kvi_dir_open *kvi_dir_open_need(struct kvi_dir *dir, const struct kvi_dir_client *client,
                                       const struct kvi_header *header, uint32_t space_id)
{
    struct kvi_dir_open *open = kvi_dir_open_find(dir, client, space_id);

    if (!open)
        kvi_dir_refuse(dir, client, header->opcode, header->serial, KVMEM_E_STALE,
                       "%s.space: the client has no space %u open", kvi_wire_name(header->opcode),
                       space_id);
    return open;
}

/* ---- what may be opened ---- */

/* Where a space lies and how. */
struct place {
    uint32_t device;
    struct kvmem_geometry geometry;
};

/* A refusal before it is sent. */
struct refusal {
    int code;
    char text[192];
};

static int refuse(struct refusal *r, int code, const char *text)
{
    r->code = code;
    snprintf(r->text, sizeof(r->text), "%.191s", text);
    return code;
}

static int check_supported(const struct kvi_dir *dir, const struct kvi_msg_space_open *m,
                           struct refusal *r)
{
    if (m->name[0] == '\0')
        return refuse(r, KVMEM_E_INVALID, "space_open.name: is empty, 1 to 63 bytes are needed");
    if (m->domain[0] == '\0')
        return refuse(r, KVMEM_E_INVALID, "space_open.domain: is empty, 1 to 31 bytes are needed");
    if (m->group_count > 1)
        return refuse(r, KVMEM_E_NOT_SUPPORTED,
                      "space_open.group_count: more than 1 is not supported yet");
    if (m->shard_count > 1)
        return refuse(r, KVMEM_E_NOT_SUPPORTED,
                      "space_open.shard_count: more than 1 is not supported yet");
    if (m->shard_index >= m->shard_count)
        return refuse(r, KVMEM_E_INVALID, "space_open.shard_index: is not below shard_count");
    if (m->flags & 0xfe)
        return refuse(r, KVMEM_E_INVALID, "space_open.flags: bits 1 to 7 are not defined");
    if (m->flags >> 8 > dir->options.device_count) {
        r->code = KVMEM_E_INVALID;
        snprintf(r->text, sizeof(r->text), "space_open.flags: device %u is outside 0..%u",
                 (m->flags >> 8) - 1, dir->options.device_count - 1);
        return r->code;
    }
    if (m->layout == KVMEM_LAYOUT_PER_LAYER)
        return refuse(r, KVMEM_E_NOT_SUPPORTED, "space_open.layout: 4 is not supported yet");
    return 0;
}

/* Version 1 knows of one device and of no flags. */
static int check_version(const struct kvi_dir_client *client, const struct kvi_dir_space *space,
                         const struct kvi_msg_space_open *m, struct refusal *r)
{
    if (client->version >= KVI_VERSION_FENCES)
        return 0;
    if (m->flags != 0)
        return refuse(r, KVMEM_E_INVALID, "space_open.flags: version 1 defines none");
    if (space && space->device != 0)
        return refuse(
            r, KVMEM_E_NOT_SUPPORTED,
            "space_open.name: the space is not on the first device, which needs version 2 "
            "of the protocol");
    return 0;
}

/* The device of a new space: the one that was named, or that with the most free bytes. */
static uint32_t choose_device(const struct kvi_dir *dir, const struct kvi_dir_client *client,
                              const struct kvi_msg_space_open *m)
{
    uint32_t best = 0;

    if (client->version < KVI_VERSION_FENCES)
        return 0; /* knows of no other */
    if (m->flags >> 8 != 0)
        return (m->flags >> 8) - 1;
    for (uint32_t i = 1; i < dir->options.device_count; i++)
        if (dir->memory[i].free_bytes > dir->memory[best].free_bytes)
            best = i;
    return best;
}

static int plan_geometry(const struct kvi_dir_device *device, const struct kvi_msg_space_open *m,
                         const struct kvi_rec_group *group, struct kvmem_geometry *geometry,
                         struct refusal *r)
{
    const struct kvmem_group_options options = {.layer_count = group->layer_count,
                                                .kv_head_count = group->kv_head_count,
                                                .head_dim_k = group->head_dim_k,
                                                .head_dim_v = group->head_dim_v,
                                                .dtype_k = group->dtype_k,
                                                .dtype_v = group->dtype_v,
                                                .scale_mode = group->scale_mode,
                                                .scale_dtype = group->scale_dtype,
                                                .window_tokens = group->window_tokens};
    const struct kvi_geometry_input input = {.layout = m->layout,
                                             .flags = m->flags & KVI_SPACE_REGIONS,
                                             .block_tokens = m->block_tokens,
                                             .group = &options,
                                             .device_bytes = device->device_bytes,
                                             .granule_bytes = device->granule_bytes};
    int code;

    if (group->window_tokens != 0)
        return refuse(r, KVMEM_E_NOT_SUPPORTED,
                      "space_open.window_tokens: windows are not supported yet");
    code = kvi_geometry_plan(&input, geometry);
    if (code != 0)
        return refuse(r, code, kvmem_error_detail()->text);
    if (geometry->blocks_per_segment > KVI_DIR_BLOCK_LIMIT)
        return refuse(r, KVMEM_E_INVALID,
                      "space_open.block_tokens: a segment would have more than 2^24 blocks");
    if (m->quota_bytes != 0 && m->quota_bytes < geometry->segment_bytes) {
        r->code = KVMEM_E_INVALID;
        snprintf(r->text, sizeof(r->text),
                 "space_open.quota_bytes: %llu is below a segment of the space, %llu",
                 (unsigned long long)m->quota_bytes, (unsigned long long)geometry->segment_bytes);
    }
    return r->code;
}

/* The first property in which an existing space differs, or NULL. */
static const char *difference(const struct kvi_dir_space *space, const struct kvi_msg_space_open *m,
                              const struct kvi_rec_group *group)
{
    if (memcmp(space->fingerprint, m->fingerprint, sizeof(space->fingerprint)) != 0)
        return "fingerprint";
    if (space->layout != m->layout)
        return "layout";
    if (space->geometry.block_tokens != m->block_tokens)
        return "block_tokens";
    if (space->flags != (m->flags & KVI_SPACE_REGIONS))
        return "flags";
    if (m->quota_bytes != 0 && space->quota_bytes != m->quota_bytes)
        return "quota_bytes";
    if (m->flags >> 8 != 0 && space->device != (m->flags >> 8) - 1)
        return "flags (device)";
#define SAME_FIELD(name)                  \
    if (space->group.name != group->name) \
        return "group." #name;
    SAME_FIELD(layer_count)
    SAME_FIELD(kv_head_count)
    SAME_FIELD(head_dim_k)
    SAME_FIELD(head_dim_v)
    SAME_FIELD(dtype_k)
    SAME_FIELD(dtype_v)
    SAME_FIELD(scale_mode)
    SAME_FIELD(scale_dtype)
#undef SAME_FIELD
    return NULL;
}

static struct kvi_dir_space *find_space(struct kvi_dir *dir, const struct kvi_msg_space_open *m)
{
    for (uint32_t i = 0; i < dir->options.space_limit; i++) {
        struct kvi_dir_space *space = &dir->spaces[i];

        if (space->is_used && strcmp(space->name, m->name) == 0 &&
            strcmp(space->domain, m->domain) == 0)
            return space;
    }
    return NULL;
}

/* ---- creating and ending a space ---- */

static size_t slots_bytes(const struct kvi_dir_space *space)
{
    return sizeof(struct kvi_dir_slot) * space->segment_limit;
}

void kvi_dir_space_fini(struct kvi_dir *dir, struct kvi_dir_space *space)
{
    kvi_release(&dir->env.alloc, space->slots, slots_bytes(space));
    *space = (struct kvi_dir_space){.generation = space->generation};
}

/* A new space in the first free place; NULL with a refusal when there is none, or no memory. */
static struct kvi_dir_space *create_space(struct kvi_dir *dir, const struct kvi_msg_space_open *m,
                                          const struct kvi_rec_group *group,
                                          const struct place *place, struct refusal *r)
{
    struct kvi_dir_space *space = dir->spaces;
    uint32_t generation;

    while (space < dir->spaces + dir->options.space_limit && space->is_used)
        space++;
    if (space == dir->spaces + dir->options.space_limit) {
        refuse(r, KVMEM_E_LIMIT, "space_open: the daemon has no place for another space");
        return NULL;
    }
    generation = space->generation % (GENERATION_LIMIT - 1) + 1;
    *space = (struct kvi_dir_space){.generation = space->generation,
                                    .quota_bytes = m->quota_bytes,
                                    .layout = m->layout,
                                    .flags = m->flags & KVI_SPACE_REGIONS,
                                    .group = *group,
                                    .device = place->device,
                                    .geometry = place->geometry,
                                    .segment_limit = place->geometry.segment_limit};
    space->slots = kvi_allocate(&dir->env.alloc, slots_bytes(space));
    if (!space->slots) {
        refuse(r, KVMEM_E_NO_MEMORY, "space_open: no memory for the records of the space");
        return NULL;
    }
    for (uint32_t i = 0; i < space->segment_limit; i++)
        space->slots[i].segment = KVI_DIR_NONE;
    memcpy(space->name, m->name, sizeof(space->name));
    memcpy(space->domain, m->domain, sizeof(space->domain));
    memcpy(space->fingerprint, m->fingerprint, sizeof(space->fingerprint));
    space->generation = generation;
    space->is_used = 1;
    return space;
}

static void drop_new_space(struct kvi_dir *dir, struct kvi_dir_space *space)
{
    uint32_t generation = space->generation;

    kvi_dir_space_fini(dir, space);
    space->generation = generation - 1; /* as if it had never been */
}

void kvi_dir_space_settle(struct kvi_dir *dir, struct kvi_dir_space *space)
{
    if (!space->is_used || space->client_count > 0 || space->entry_count > 0)
        return;
    for (uint32_t slot = 0; slot < space->slot_high; slot++) {
        uint32_t number = space->slots[slot].segment;

        if (number != KVI_DIR_NONE && dir->segments[number].state == KVI_SEGMENT_HANDED_IN)
            kvi_dir_segment_drop(dir, number);
    }
    if (space->is_used && space->segment_count == 0)
        kvi_dir_space_fini(dir, space);
}

/* ---- opening and closing ---- */

static size_t lease_bytes(const struct kvi_dir_space *space)
{
    uint64_t bits = (uint64_t)space->segment_limit * space->geometry.blocks_per_segment;

    return (size_t)((bits + 63) / 64 * sizeof(uint64_t));
}

void kvi_dir_open_free(struct kvi_dir *dir, struct kvi_dir_open *open)
{
    kvi_release(&dir->env.alloc, open->lease_bits, lease_bytes(&dir->spaces[open->space]));
    kvi_release(&dir->env.alloc, open, sizeof(*open));
}

/* Most entries that the devices can hold: each in the smallest stride of its spaces. */
static uint64_t most_entries(const struct kvi_dir *dir)
{
    uint64_t count = 0;

    for (uint32_t device = 0; device < dir->options.device_count; device++) {
        uint64_t stride = UINT64_MAX;

        for (uint32_t i = 0; i < dir->options.space_limit; i++)
            if (dir->spaces[i].is_used && dir->spaces[i].device == device &&
                dir->spaces[i].geometry.index_stride_bytes < stride)
                stride = dir->spaces[i].geometry.index_stride_bytes;
        count += dir->options.devices[device].device_bytes / stride;
    }
    return count;
}

static struct kvi_dir_open *create_open(struct kvi_dir *dir, struct kvi_dir_client *client,
                                        struct kvi_dir_space *space)
{
    const struct kvi_alloc *alloc = &dir->env.alloc;
    struct kvi_dir_open *open = kvi_allocate(alloc, sizeof(*open));

    if (!open)
        return NULL;
    *open =
        (struct kvi_dir_open){.client = client->number, .space = (uint32_t)(space - dir->spaces)};
    open->lease_bits = kvi_allocate(alloc, lease_bytes(space));
    if (!open->lease_bits || kvi_index_reserve(&dir->index, alloc, most_entries(dir)) != 0) {
        kvi_dir_open_free(dir, open);
        return NULL;
    }
    open->next = client->opens;
    client->opens = open;
    space->client_count++;
    return open;
}

static void send_opened(struct kvi_dir *dir, struct kvi_dir_client *client,
                        const struct kvi_dir_open *open, uint32_t serial)
{
    const struct kvi_dir_space *space = &dir->spaces[open->space];
    struct kvi_msg_space_opened opened;

    kvi_wire_begin(&opened, KVI_OP_SPACE_OPENED, serial);
    opened.space = kvi_dir_space_id(dir, space);
    opened.blocks_per_segment = space->geometry.blocks_per_segment;
    opened.segment_bytes = space->geometry.segment_bytes;
    opened.index_stride_bytes = space->geometry.index_stride_bytes;
    opened.obtainable_blocks = kvi_dir_obtainable_blocks(dir, open);
    opened.segment_limit = space->segment_limit;
    opened.device = space->device;
    kvi_dir_reply(dir, client, &opened);
}

/* Everything is checked; 0 or a refusal. */
static int open_checked(struct kvi_dir *dir, struct kvi_dir_client *client,
                        const struct kvi_msg_space_open *m, const struct kvi_rec_group *group,
                        const struct place *place, struct refusal *r)
{
    struct kvi_dir_space *space = find_space(dir, m);
    struct kvi_dir_open *open;
    int is_new = !space;

    if (is_new)
        space = create_space(dir, m, group, place, r);
    if (!space)
        return r->code;
    open = create_open(dir, client, space);
    if (!open) {
        if (is_new)
            drop_new_space(dir, space);
        return refuse(r, KVMEM_E_NO_MEMORY, "space_open: no memory for the client's leases");
    }
    send_opened(dir, client, open, m->header.serial);
    return 0;
}

void kvi_dir_space_open(struct kvi_dir *dir, struct kvi_dir_client *client,
                        const struct kvi_msg_space_open *m)
{
    const struct kvi_rec_group *group = kvi_wire_tail_const(m, 0);
    struct kvi_dir_space *space = find_space(dir, m);
    struct place place = {.device = space ? space->device : choose_device(dir, client, m)};
    struct refusal r = {0};
    const char *field;

    if (dir->is_draining)
        refuse(&r, KVMEM_E_BUSY, "space_open: the daemon is ending");
    else if (check_version(client, space, m, &r) == 0 && check_supported(dir, m, &r) == 0)
        plan_geometry(&dir->options.devices[place.device], m, group, &place.geometry, &r);
    if (r.code == 0 && space && (field = difference(space, m, group)) != NULL) {
        r.code = KVMEM_E_EXISTS;
        snprintf(r.text, sizeof(r.text), "space_open.%s: the space '%s' exists with another one",
                 field, space->name);
    }
    if (r.code == 0 && space && kvi_dir_open_find(dir, client, kvi_dir_space_id(dir, space)))
        refuse(&r, KVMEM_E_BUSY, "space_open.name: the client has this space open already");
    if (r.code == 0)
        open_checked(dir, client, m, group, &place, &r);
    if (r.code != 0)
        kvi_dir_refuse(dir, client, KVI_OP_SPACE_OPEN, m->header.serial, r.code, "%s", r.text);
}

/* The segments of the space that the client writes or maps. */
static void give_segments_back(struct kvi_dir *dir, const struct kvi_dir_open *open)
{
    struct kvi_dir_space *space = &dir->spaces[open->space];

    for (uint32_t slot = 0; slot < space->slot_high; slot++) {
        uint32_t number = space->slots[slot].segment;
        struct kvi_dir_segment *segment;

        if (number == KVI_DIR_NONE)
            continue;
        segment = &dir->segments[number];
        if (segment->owner == open->client)
            kvi_dir_segment_disown(dir, segment);
        kvi_dir_segment_remove_mapper(dir, number, open->client);
    }
}

void kvi_dir_open_close(struct kvi_dir *dir, struct kvi_dir_open *open)
{
    struct kvi_dir_client *client = &dir->clients[open->client];
    struct kvi_dir_space *space = &dir->spaces[open->space];
    struct kvi_dir_open **link = &client->opens;

    kvi_dir_request_drop(dir, open);
    kvi_dir_pressure_end(dir, open);
    kvi_dir_pin_drop(dir, open->client, open->space);
    kvi_dir_entry_unlease_all(dir, open);
    give_segments_back(dir, open);
    while (*link != open)
        link = &(*link)->next;
    *link = open->next;
    kvi_dir_open_free(dir, open);
    space->client_count--;
    kvi_dir_space_settle(dir, space);
    dir->memory_came_back = 1;
}

void kvi_dir_space_close(struct kvi_dir *dir, struct kvi_dir_client *client,
                         const struct kvi_msg_space_close *m)
{
    struct kvi_dir_open *open = kvi_dir_open_need(dir, client, &m->header, m->space);

    if (!open)
        return;
    kvi_dir_open_close(dir, open);
    kvi_dir_done(dir, client, &m->header);
}
