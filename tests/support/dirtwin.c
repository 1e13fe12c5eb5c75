/* SPDX-License-Identifier: Apache-2.0
 *
 * See dirtwin.h: clients, spaces, segments. Entries and pins are in dirtwin_prefix.c, the plan of
 * a request is in dirtwin_plan.c.
 */
#include "support/dirtwin.h"

#include <stdlib.h>
#include <string.h>

#include <kvmem/error.h>

#include "support/dirtwin_internal.h"

/* ---- small questions ---- */

uint32_t kvt_twin_space_id(const struct kvt_twin *twin, uint32_t space)
{
    return space | twin->spaces[space].generation << 8;
}

uint32_t kvt_twin_index(const struct kvt_twin *twin, const struct kvt_twin_segment *segment,
                        uint32_t block)
{
    return segment->slot * twin->spaces[segment->space].block_count + block;
}

uint64_t kvt_twin_free_bytes(const struct kvt_twin *twin, uint32_t device)
{
    uint64_t bytes = twin->device_bytes[device];

    for (uint32_t i = 0; i < twin->segment_limit; i++)
        if (twin->segments[i].state != KVI_SEGMENT_FREE &&
            twin->spaces[twin->segments[i].space].device == device)
            bytes -= twin->spaces[twin->segments[i].space].segment_bytes;
    return bytes;
}

int kvt_twin_is_referenced(const struct kvt_twin_block *block)
{
    return block->is_entry && (block->leases != 0 || block->pins != 0);
}

uint32_t kvt_twin_count(const struct kvt_twin *twin, uint32_t number, int what)
{
    const struct kvt_twin_segment *segment = &twin->segments[number];
    uint32_t count = 0;

    for (uint32_t b = 0; b < twin->spaces[segment->space].block_count; b++) {
        const struct kvt_twin_block *block = &segment->blocks[b];

        if (what == KVT_TWIN_IDLE)
            count += !block->is_entry;
        else if (what == KVT_TWIN_ENTRIES)
            count += block->is_entry != 0;
        else
            count += kvt_twin_is_referenced(block) != 0;
    }
    return count;
}

uint32_t kvt_twin_space_segments(const struct kvt_twin *twin, uint32_t space)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < twin->segment_limit; i++)
        count += twin->segments[i].state != KVI_SEGMENT_FREE && twin->segments[i].space == space;
    return count;
}

int kvt_twin_quota_allows(const struct kvt_twin *twin, uint32_t space)
{
    const struct kvt_twin_space *s = &twin->spaces[space];

    return s->quota_bytes == 0 ||
           (kvt_twin_space_segments(twin, space) + 1) * s->segment_bytes <= s->quota_bytes;
}

uint32_t kvt_twin_fd_room(const struct kvt_twin *twin, uint32_t client)
{
    const struct kvt_twin_client *c = &twin->clients[client];
    uint32_t taken = c->fds_sent - c->fds_acknowledged;

    for (uint32_t i = 0; i < twin->segment_limit; i++) {
        const struct kvt_twin_segment *segment = &twin->segments[i];

        if (segment->owner == (int)client &&
            (segment->state == KVI_SEGMENT_CREATING || segment->is_ready))
            taken++;
    }
    return taken < twin->fd_limit ? twin->fd_limit - taken : 0;
}

static int find_slot(const struct kvt_twin *twin, uint32_t space, uint32_t slot,
                     uint32_t generation)
{
    for (uint32_t i = 0; i < twin->segment_limit; i++) {
        const struct kvt_twin_segment *segment = &twin->segments[i];

        if (segment->state != KVI_SEGMENT_FREE && segment->space == space &&
            segment->slot == slot && segment->generation == generation)
            return (int)i;
    }
    return -1;
}

/* The segment and block of an index of the space; 0 when there is no such segment. */
int kvt_twin_find_index(struct kvt_twin *twin, uint32_t space, uint32_t index,
                        struct kvt_twin_segment **segment, struct kvt_twin_block **block)
{
    for (uint32_t i = 0; i < twin->segment_limit; i++) {
        struct kvt_twin_segment *s = &twin->segments[i];

        if (s->state == KVI_SEGMENT_FREE || s->space != space)
            continue;
        for (uint32_t b = 0; b < twin->spaces[space].block_count; b++)
            if (kvt_twin_index(twin, s, b) == index) {
                *segment = s;
                *block = &s->blocks[b];
                return 1;
            }
    }
    return 0;
}

/* ---- messages that are expected ---- */

struct kvt_twin_message *kvt_twin_expect(struct kvt_twin *twin, uint32_t client, uint32_t opcode,
                                         uint32_t serial)
{
    struct kvt_twin_message *message = &twin->wanted[twin->wanted_count++];

    if (twin->wanted_count > KVT_TWIN_WANTED)
        abort();
    memset(message, 0, sizeof(*message));
    message->client = client;
    message->opcode = opcode;
    message->serial = serial;
    return message;
}

void kvt_twin_refuse(struct kvt_twin *twin, uint32_t client, uint32_t serial, int code,
                     uint32_t opcode)
{
    struct kvt_twin_message *message = kvt_twin_expect(twin, client, KVI_OP_ERROR, serial);

    message->code = code;
    message->fields[0] = opcode;
}

void kvt_twin_done(struct kvt_twin *twin, uint32_t client, uint32_t serial, uint32_t opcode)
{
    kvt_twin_expect(twin, client, KVI_OP_DONE, serial)->fields[0] = opcode;
}

/* ---- references and segments ---- */

void kvt_twin_unreferenced(struct kvt_twin *twin, struct kvt_twin_block *block)
{
    if (kvt_twin_is_referenced(block))
        return;
    block->stamp = ++twin->stamp;
    twin->memory_came_back = 1;
}

void kvt_twin_evict(struct kvt_twin *twin, struct kvt_twin_block *block)
{
    memset(block, 0, sizeof(*block));
    twin->totals.evicted_blocks++;
}

static void disown(struct kvt_twin *twin, struct kvt_twin_segment *segment)
{
    segment->owner = -1;
    segment->is_ready = 0;
    segment->state = KVI_SEGMENT_HANDED_IN;
    twin->memory_came_back = 1;
}

void kvt_twin_free_segment(struct kvt_twin *twin, uint32_t number)
{
    memset(&twin->segments[number], 0, sizeof(twin->segments[number]));
    twin->segments[number].owner = -1;
    twin->memory_came_back = 1;
}

/* Evict all that is in it, tell its mappers. */
void kvt_twin_empty(struct kvt_twin *twin, uint32_t number)
{
    struct kvt_twin_segment *segment = &twin->segments[number];

    if (kvt_twin_count(twin, number, KVT_TWIN_ENTRIES) > 0)
        twin->totals.evicted_segments++;
    for (uint32_t b = 0; b < twin->spaces[segment->space].block_count; b++)
        if (segment->blocks[b].is_entry)
            kvt_twin_evict(twin, &segment->blocks[b]);
    for (uint32_t c = 0; c < KVT_TWIN_CLIENTS; c++) {
        struct kvt_twin_message *gone;

        if (!(segment->mappers >> c & 1) || twin->clients[c].state != KVT_TWIN_ALIVE)
            continue;
        gone = kvt_twin_expect(twin, c, KVI_OP_SEGMENT_GONE, 0);
        gone->fields[0] = kvt_twin_space_id(twin, segment->space);
        gone->fields[1] = segment->slot;
        gone->fields[2] = segment->generation;
    }
}

void kvt_twin_drop(struct kvt_twin *twin, uint32_t number)
{
    kvt_twin_empty(twin, number);
    twin->totals.released_segments++;
    kvt_twin_free_segment(twin, number);
}

static uint32_t openers(const struct kvt_twin *twin, uint32_t space)
{
    uint32_t count = 0;

    for (uint32_t c = 0; c < KVT_TWIN_CLIENTS; c++)
        count += twin->clients[c].opened[space] != 0;
    return count;
}

void kvt_twin_settle(struct kvt_twin *twin, uint32_t space)
{
    uint32_t entries = 0;

    if (!twin->spaces[space].is_used || openers(twin, space) > 0)
        return;
    for (uint32_t i = 0; i < twin->segment_limit; i++)
        if (twin->segments[i].state != KVI_SEGMENT_FREE && twin->segments[i].space == space)
            entries += kvt_twin_count(twin, i, KVT_TWIN_ENTRIES);
    if (entries > 0)
        return;
    for (uint32_t slot = 0; slot < KVT_TWIN_SEGMENTS; slot++)
        for (uint32_t i = 0; i < twin->segment_limit; i++)
            if (twin->segments[i].state == KVI_SEGMENT_HANDED_IN &&
                twin->segments[i].space == space && twin->segments[i].slot == slot)
                kvt_twin_drop(twin, i);
    if (kvt_twin_space_segments(twin, space) == 0) {
        uint32_t generation = twin->spaces[space].generation;

        memset(&twin->spaces[space], 0, sizeof(twin->spaces[space]));
        twin->spaces[space].generation = generation;
    }
}

static void drop_request(struct kvt_twin *twin, uint32_t client, uint32_t space)
{
    memset(&twin->clients[client].requests[space], 0, sizeof(struct kvt_twin_request));
    for (uint32_t i = 0; i < twin->segment_limit; i++) {
        struct kvt_twin_segment *segment = &twin->segments[i];

        if (segment->space != space || segment->owner != (int)client)
            continue;
        segment->is_ready = 0;
        if (segment->state == KVI_SEGMENT_CREATING)
            segment->owner = -1;
    }
}

void kvt_twin_drop_pin(struct kvt_twin *twin, struct kvt_twin_pin *pin)
{
    for (uint32_t r = 0; r < pin->ref_count; r++) {
        struct kvt_twin_block *block =
            &twin->segments[pin->refs[r].segment].blocks[pin->refs[r].block];

        block->pins--;
        kvt_twin_unreferenced(twin, block);
    }
    pin->id = 0;
    pin->ref_count = 0;
}

static void drop_leases(struct kvt_twin *twin, uint32_t client, uint32_t space)
{
    uint32_t limit = KVT_TWIN_SEGMENTS * KVT_TWIN_BLOCKS;

    for (uint32_t index = limit; index > 0; index--) {
        struct kvt_twin_segment *segment;
        struct kvt_twin_block *block;

        if (!kvt_twin_find_index(twin, space, index - 1, &segment, &block) ||
            !(block->leases >> client & 1))
            continue;
        block->leases &= ~(1u << client);
        kvt_twin_unreferenced(twin, block);
    }
}

static void close_open(struct kvt_twin *twin, uint32_t client, uint32_t space)
{
    drop_request(twin, client, space);
    twin->clients[client].is_pressed[space] = 0;
    for (uint32_t p = KVT_TWIN_PINS; p > 0; p--)
        if (twin->pins[p - 1].id != 0 && twin->pins[p - 1].client == client &&
            twin->pins[p - 1].space == space)
            kvt_twin_drop_pin(twin, &twin->pins[p - 1]);
    drop_leases(twin, client, space);
    for (uint32_t i = 0; i < twin->segment_limit; i++) {
        struct kvt_twin_segment *segment = &twin->segments[i];

        if (segment->state == KVI_SEGMENT_FREE || segment->space != space)
            continue;
        if (segment->owner == (int)client)
            disown(twin, segment);
        segment->mappers &= ~(1u << client);
    }
    twin->clients[client].opened[space] = 0;
    kvt_twin_settle(twin, space);
    twin->memory_came_back = 1;
}

/* The client's space that was opened last of those opened before `before`; −1: none. */
int kvt_twin_newest_open(const struct kvt_twin *twin, uint32_t client, uint64_t before)
{
    int found = -1;
    uint64_t best = 0;

    for (uint32_t s = 0; s < KVT_TWIN_SPACES; s++) {
        uint64_t when = twin->clients[client].opened[s];

        if (when != 0 && when < before && when > best) {
            best = when;
            found = (int)s;
        }
    }
    return found;
}

/* ---- clients ---- */

void kvt_twin_init(struct kvt_twin *twin, const struct kvi_dir_options *options,
                   uint32_t segment_limit, uint64_t now_ns)
{
    memset(twin, 0, sizeof(*twin));
    twin->device_count = options->device_count;
    for (uint32_t i = 0; i < options->device_count; i++)
        twin->device_bytes[i] = options->devices[i].device_bytes;
    for (uint32_t i = 0; i < options->device_count; i++)
        twin->exit_proves_nothing[i] = options->devices[i].exit_proves_nothing;
    twin->segment_limit = segment_limit;
    twin->fd_limit = options->unacked_fd_limit;
    twin->pressure_ns = options->pressure_ns;
    twin->now_ns = now_ns;
    for (uint32_t i = 0; i < KVT_TWIN_SEGMENTS; i++)
        twin->segments[i].owner = -1;
}

uint32_t kvt_twin_join(struct kvt_twin *twin, uint32_t version)
{
    for (uint32_t c = 0; c < KVT_TWIN_CLIENTS; c++) {
        struct kvt_twin_client *client = &twin->clients[c];

        if (client->state != KVT_TWIN_FREE)
            continue;
        memset(client, 0, sizeof(*client));
        client->state = KVT_TWIN_ALIVE;
        client->session = ++twin->sessions;
        client->version = version;
        return c;
    }
    return KVI_NO_CLIENT;
}

static void quarantine(struct kvt_twin *twin, uint32_t client)
{
    twin->clients[client].state = KVT_TWIN_GONE;
    for (uint32_t s = 0; s < KVT_TWIN_SPACES; s++) {
        if (twin->clients[client].opened[s] == 0)
            continue;
        drop_request(twin, client, s);
        twin->clients[client].is_pressed[s] = 0;
    }
    for (uint32_t i = 0; i < twin->segment_limit; i++)
        if (twin->segments[i].owner == (int)client)
            twin->segments[i].state = KVI_SEGMENT_QUARANTINED;
}

static void sweep_tainted(struct kvt_twin *twin)
{
    for (uint32_t i = 0; i < twin->segment_limit; i++) {
        uint32_t space = twin->segments[i].space;

        if (twin->segments[i].state != KVI_SEGMENT_HANDED_IN || !twin->segments[i].is_tainted ||
            kvt_twin_count(twin, i, KVT_TWIN_ENTRIES) > 0)
            continue;
        kvt_twin_drop(twin, i);
        kvt_twin_settle(twin, space);
    }
}

static void reclaim(struct kvt_twin *twin, uint32_t client)
{
    int space;

    for (uint32_t i = 0; i < twin->segment_limit; i++) {
        struct kvt_twin_segment *s = &twin->segments[i];

        if (s->owner != (int)client || twin->clients[client].state != KVT_TWIN_GONE)
            continue;
        twin->totals.orphaned_segments++;
        s->is_tainted = twin->exit_proves_nothing[twin->spaces[s->space].device];
        twin->tainted += s->is_tainted != 0;
    }
    twin->clients[client].state = KVT_TWIN_GONE;
    while ((space = kvt_twin_newest_open(twin, client, UINT64_MAX)) >= 0)
        close_open(twin, client, (uint32_t)space);
    kvt_twin_break(twin, client);
    sweep_tainted(twin);
    twin->clients[client].state = KVT_TWIN_FREE;
    twin->totals.reclaimed_clients++;
}

void kvt_twin_eof(struct kvt_twin *twin, uint32_t client)
{
    if (twin->clients[client].state == KVT_TWIN_GOODBYE)
        reclaim(twin, client);
    else if (twin->clients[client].state == KVT_TWIN_ALIVE)
        quarantine(twin, client);
    kvt_twin_retry(twin);
}

void kvt_twin_exited(struct kvt_twin *twin, uint32_t client)
{
    if (twin->clients[client].state == KVT_TWIN_FREE)
        return;
    if (twin->clients[client].state == KVT_TWIN_ALIVE)
        quarantine(twin, client);
    reclaim(twin, client);
    kvt_twin_retry(twin);
}

/* Before a message is carried out. */
void kvt_twin_arrived(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged)
{
    twin->clients[client].fds_acknowledged = acknowledged;
}

/* After it was. */
void kvt_twin_carried_out(struct kvt_twin *twin, uint32_t client)
{
    uint64_t before = UINT64_MAX;
    int space;

    while (twin->clients[client].state == KVT_TWIN_ALIVE &&
           (space = kvt_twin_newest_open(twin, client, before)) >= 0) {
        before = twin->clients[client].opened[space];
        if (twin->clients[client].requests[space].is_held && kvt_twin_fd_room(twin, client) > 0)
            kvt_twin_advance(twin, client, (uint32_t)space);
    }
    kvt_twin_retry(twin);
}

void kvt_twin_goodbye(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged,
                      uint32_t serial)
{
    kvt_twin_arrived(twin, client, acknowledged);
    for (uint32_t s = 0; s < KVT_TWIN_SPACES; s++) {
        if (twin->clients[client].opened[s] == 0)
            continue;
        drop_request(twin, client, s);
        twin->clients[client].is_pressed[s] = 0;
    }
    kvt_twin_done(twin, client, serial, KVI_OP_GOODBYE);
    twin->clients[client].state = KVT_TWIN_GOODBYE;
    kvt_twin_retry(twin);
}

/* ---- spaces ---- */

/* The number of the space as the client has it open; −1 after refusing. */
int kvt_twin_need(struct kvt_twin *twin, uint32_t client, uint32_t serial, uint32_t opcode,
                  uint32_t space_id)
{
    uint32_t space = space_id & 255;

    if (space < KVT_TWIN_SPACES && twin->clients[client].opened[space] != 0 &&
        kvt_twin_space_id(twin, space) == space_id)
        return (int)space;
    kvt_twin_refuse(twin, client, serial, KVMEM_E_STALE, opcode);
    return -1;
}

static int space_by_name(const struct kvt_twin *twin, uint32_t name, uint32_t domain)
{
    for (uint32_t s = 0; s < KVT_TWIN_SPACES; s++)
        if (twin->spaces[s].is_used && twin->spaces[s].name == name &&
            twin->spaces[s].domain == domain)
            return (int)s;
    return -1;
}

/* The named one, the first for version 1, else that with the most free bytes. */
static uint32_t device_for(const struct kvt_twin *twin, uint32_t client, uint32_t device)
{
    uint32_t best = 0;

    if (device > 0 || twin->clients[client].version < 2)
        return device > 0 ? device - 1 : 0;
    for (uint32_t d = 0; d < twin->device_count; d++)
        if (kvt_twin_free_bytes(twin, d) > kvt_twin_free_bytes(twin, best))
            best = d;
    return best;
}

static int new_space(struct kvt_twin *twin, uint32_t name, uint32_t domain, uint32_t block_count,
                     uint64_t segment_bytes, uint64_t quota_bytes, uint32_t device)
{
    for (uint32_t s = 0; s < KVT_TWIN_SPACES; s++) {
        struct kvt_twin_space *space = &twin->spaces[s];

        if (space->is_used)
            continue;
        space->is_used = 1;
        space->generation++;
        space->name = name;
        space->domain = domain;
        space->block_count = block_count;
        space->segment_bytes = segment_bytes;
        space->quota_bytes = quota_bytes;
        space->device = device;
        return (int)s;
    }
    return -1;
}

static void open_space(struct kvt_twin *twin, uint32_t client, uint32_t serial, uint32_t name,
                       uint32_t domain, uint32_t block_count, uint64_t segment_bytes,
                       uint64_t quota_bytes, uint32_t device)
{
    int s = space_by_name(twin, name, domain);
    int is_old = twin->clients[client].version < 2;
    struct kvt_twin_message *opened;

    /* Version 1 has no flags: neither devices nor regions, which have one block a segment. */
    if (device > (is_old ? 0 : twin->device_count) || (is_old && block_count == 1)) {
        kvt_twin_refuse(twin, client, serial, KVMEM_E_INVALID, KVI_OP_SPACE_OPEN);
        return;
    }
    if (s >= 0 && is_old && twin->spaces[s].device > 0) {
        kvt_twin_refuse(twin, client, serial, KVMEM_E_NOT_SUPPORTED, KVI_OP_SPACE_OPEN);
        return;
    }
    if (s >= 0 && (twin->spaces[s].block_count != block_count ||
                   twin->spaces[s].segment_bytes != segment_bytes ||
                   (quota_bytes != 0 && twin->spaces[s].quota_bytes != quota_bytes) ||
                   (device > 0 && twin->spaces[s].device != device - 1))) {
        kvt_twin_refuse(twin, client, serial, KVMEM_E_EXISTS, KVI_OP_SPACE_OPEN);
        return;
    }
    if (s >= 0 && twin->clients[client].opened[s] != 0) {
        kvt_twin_refuse(twin, client, serial, KVMEM_E_BUSY, KVI_OP_SPACE_OPEN);
        return;
    }
    if (s < 0)
        s = new_space(twin, name, domain, block_count, segment_bytes, quota_bytes,
                      device_for(twin, client, device));
    if (s < 0) {
        kvt_twin_refuse(twin, client, serial, KVMEM_E_LIMIT, KVI_OP_SPACE_OPEN);
        return;
    }
    twin->clients[client].opened[s] = ++twin->opens;
    opened = kvt_twin_expect(twin, client, KVI_OP_SPACE_OPENED, serial);
    opened->fields[0] = kvt_twin_space_id(twin, (uint32_t)s);
    opened->fields[1] = block_count;
    opened->fields[2] = segment_bytes;
    opened->fields[3] = kvt_twin_obtainable(twin, client, (uint32_t)s);
    opened->fields[4] = twin->device_bytes[twin->spaces[s].device] / segment_bytes * 2;
    opened->fields[5] = twin->spaces[s].device;
    twin->on_second += twin->spaces[s].device == 1;
}

void kvt_twin_open(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged, uint32_t serial,
                   uint32_t name, uint32_t domain, uint32_t block_count, uint64_t segment_bytes,
                   uint64_t quota_bytes, uint32_t device)
{
    kvt_twin_arrived(twin, client, acknowledged);
    open_space(twin, client, serial, name, domain, block_count, segment_bytes, quota_bytes, device);
    kvt_twin_carried_out(twin, client);
}

void kvt_twin_close(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged, uint32_t serial,
                    uint32_t space_id)
{
    int space;

    kvt_twin_arrived(twin, client, acknowledged);
    space = kvt_twin_need(twin, client, serial, KVI_OP_SPACE_CLOSE, space_id);
    if (space >= 0) {
        close_open(twin, client, (uint32_t)space);
        kvt_twin_done(twin, client, serial, KVI_OP_SPACE_CLOSE);
    }
    kvt_twin_carried_out(twin, client);
}

/* ---- segments ---- */

static void hand_in(struct kvt_twin *twin, uint32_t client, uint32_t serial, uint32_t space,
                    uint32_t slot, uint32_t generation)
{
    int number = find_slot(twin, space, slot, generation);
    struct kvt_twin_segment *segment = &twin->segments[number < 0 ? 0 : number];

    if (number < 0) {
        kvt_twin_refuse(twin, client, serial, KVMEM_E_STALE, KVI_OP_SEGMENT_HAND_IN);
    } else if (segment->owner != (int)client || segment->state != KVI_SEGMENT_OWNED ||
               segment->is_ready) {
        kvt_twin_refuse(twin, client, serial, KVMEM_E_PERMISSION, KVI_OP_SEGMENT_HAND_IN);
    } else {
        disown(twin, segment);
        twin->totals.handed_in_segments++;
        twin->clients[client].is_pressed[space] = 0;
    }
}

void kvt_twin_hand_in(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged,
                      uint32_t serial, uint32_t space_id, uint32_t slot, uint32_t generation)
{
    int space;

    kvt_twin_arrived(twin, client, acknowledged);
    space = kvt_twin_need(twin, client, serial, KVI_OP_SEGMENT_HAND_IN, space_id);
    if (space >= 0)
        hand_in(twin, client, serial, (uint32_t)space, slot, generation);
    kvt_twin_carried_out(twin, client);
}

static void map(struct kvt_twin *twin, uint32_t client, uint32_t serial, uint32_t space,
                uint32_t slot, uint32_t generation)
{
    int number = find_slot(twin, space, slot, generation);
    struct kvt_twin_message *fds;

    if (number >= 0 &&
        (twin->segments[number].is_ready || twin->segments[number].state == KVI_SEGMENT_CREATING))
        number = -1;
    if (number >= 0 && kvt_twin_fd_room(twin, client) == 0) {
        kvt_twin_refuse(twin, client, serial, KVMEM_E_BUSY, KVI_OP_SEGMENT_MAP);
        return;
    }
    fds = kvt_twin_expect(twin, client, KVI_OP_SEGMENT_FDS, serial);
    fds->fields[0] = kvt_twin_space_id(twin, space);
    if (number < 0)
        return;
    fds->items[fds->item_count++] = slot;
    fds->items[fds->item_count++] = generation;
    twin->segments[number].mappers |= 1u << client;
    twin->clients[client].fds_sent++;
}

void kvt_twin_map(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged, uint32_t serial,
                  uint32_t space_id, uint32_t slot, uint32_t generation)
{
    int space;

    kvt_twin_arrived(twin, client, acknowledged);
    space = kvt_twin_need(twin, client, serial, KVI_OP_SEGMENT_MAP, space_id);
    if (space >= 0)
        map(twin, client, serial, (uint32_t)space, slot, generation);
    kvt_twin_carried_out(twin, client);
}

void kvt_twin_unmapped(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged,
                       uint32_t space_id, uint32_t slot, uint32_t generation)
{
    uint32_t space = space_id & 255;
    int number = -1;

    kvt_twin_arrived(twin, client, acknowledged);
    if (space < KVT_TWIN_SPACES && twin->clients[client].opened[space] != 0 &&
        kvt_twin_space_id(twin, space) == space_id)
        number = find_slot(twin, space, slot, generation);
    if (number >= 0)
        twin->segments[number].mappers &= ~(1u << client);
    kvt_twin_carried_out(twin, client);
}

/* ---- time, and the sum of it all ---- */

void kvt_twin_tick(struct kvt_twin *twin)
{
    for (uint32_t p = 0; p < KVT_TWIN_PINS; p++)
        if (twin->pins[p].id != 0 && twin->pins[p].deadline_ns <= twin->now_ns)
            kvt_twin_drop_pin(twin, &twin->pins[p]);
    for (uint32_t c = 0; c < KVT_TWIN_CLIENTS; c++)
        for (uint32_t s = 0; s < KVT_TWIN_SPACES; s++)
            if (twin->clients[c].is_pressed[s] &&
                twin->clients[c].pressed_until_ns[s] <= twin->now_ns) {
                twin->clients[c].is_pressed[s] = 0;
                twin->totals.pressure_missed++;
            }
    kvt_twin_retry(twin);
    kvt_twin_expire(twin);
}

void kvt_twin_stats(const struct kvt_twin *twin, struct kvi_msg_stats_reply *out)
{
    *out = twin->totals;
    for (uint32_t d = 0; d < twin->device_count; d++) {
        out->device_bytes += twin->device_bytes[d];
        out->free_bytes += kvt_twin_free_bytes(twin, d);
    }
    out->segment_bytes = out->device_bytes - out->free_bytes;
    for (uint32_t i = 0; i < twin->segment_limit; i++) {
        const struct kvt_twin_segment *segment = &twin->segments[i];

        if (segment->state == KVI_SEGMENT_FREE)
            continue;
        out->segment_count++;
        out->owned_segments += segment->owner >= 0;
        out->total_blocks += twin->spaces[segment->space].block_count;
        out->entry_blocks += kvt_twin_count(twin, i, KVT_TWIN_ENTRIES);
        out->leased_blocks += kvt_twin_count(twin, i, KVT_TWIN_REFERENCED);
        if (segment->owner >= 0)
            out->owner_blocks += kvt_twin_count(twin, i, KVT_TWIN_IDLE);
        else
            out->idle_blocks += kvt_twin_count(twin, i, KVT_TWIN_IDLE);
        for (uint32_t b = 0; b < KVT_TWIN_BLOCKS; b++) {
            out->lease_count += (uint64_t)__builtin_popcount(segment->blocks[b].leases);
            out->pin_count += segment->blocks[b].pins;
        }
    }
    for (uint32_t s = 0; s < KVT_TWIN_SPACES; s++)
        out->space_count += twin->spaces[s].is_used != 0;
    for (uint32_t c = 0; c < KVT_TWIN_CLIENTS; c++) {
        if (twin->clients[c].state == KVT_TWIN_FREE)
            continue;
        out->client_count++;
        out->fds_in_flight += twin->clients[c].fds_sent - twin->clients[c].fds_acknowledged;
    }
}
