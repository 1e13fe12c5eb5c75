/* SPDX-License-Identifier: Apache-2.0
 *
 * See dirtwin.h: requests for blocks, from the plan to waiting.
 */
#include <stdlib.h>
#include <string.h>

#include <kvmem/error.h>

#include "support/dirtwin_internal.h"

enum outcome {
    FOUND,
    NOTHING,
    HELD
};

static struct kvt_twin_request *request_of(struct kvt_twin *twin, uint32_t client, uint32_t space)
{
    return &twin->clients[client].requests[space];
}

static uint64_t lacking(struct kvt_twin *twin, uint32_t client, uint32_t space)
{
    const struct kvt_twin_request *r = request_of(twin, client, space);

    return r->want > r->granted ? r->want - r->granted : 0;
}

static uint64_t newest_stamp(const struct kvt_twin *twin, uint32_t number)
{
    const struct kvt_twin_segment *segment = &twin->segments[number];
    uint64_t newest = 0;

    for (uint32_t b = 0; b < twin->spaces[segment->space].block_count; b++)
        if (segment->blocks[b].is_entry && !kvt_twin_is_referenced(&segment->blocks[b]) &&
            segment->blocks[b].stamp > newest)
            newest = segment->blocks[b].stamp;
    return newest;
}

/* ---- grants ---- */

uint64_t kvt_twin_obtainable(const struct kvt_twin *twin, uint32_t client, uint32_t space)
{
    const struct kvt_twin_space *s = &twin->spaces[space];
    uint64_t bytes = kvt_twin_free_bytes(twin, s->device);
    uint64_t blocks = 0, used = kvt_twin_space_segments(twin, space), segments;

    for (uint32_t i = 0; i < twin->segment_limit; i++) {
        const struct kvt_twin_segment *segment = &twin->segments[i];
        uint32_t referenced = kvt_twin_count(twin, i, KVT_TWIN_REFERENCED);

        if (segment->state == KVI_SEGMENT_HANDED_IN && segment->space != space && referenced == 0 &&
            twin->spaces[segment->space].device == s->device)
            bytes += twin->spaces[segment->space].segment_bytes;
        if (segment->state == KVI_SEGMENT_HANDED_IN && segment->space == space &&
            segment->is_tainted && referenced == 0) {
            bytes += s->segment_bytes;
            used--;
        }
        if (segment->state == KVI_SEGMENT_HANDED_IN && segment->space == space &&
            !segment->is_tainted)
            blocks += s->block_count - referenced;
        if (segment->state == KVI_SEGMENT_OWNED && segment->space == space &&
            segment->owner == (int)client)
            blocks += kvt_twin_count(twin, i, KVT_TWIN_ENTRIES) - referenced;
    }
    segments = bytes / s->segment_bytes;
    if (s->quota_bytes != 0) {
        uint64_t room = s->quota_bytes / s->segment_bytes - used;

        segments = segments < room ? segments : room;
    }
    return blocks + segments * s->block_count;
}

static void send_grant(struct kvt_twin *twin, uint32_t client, uint32_t space, uint32_t flags)
{
    struct kvt_twin_message *made = &twin->grant;
    struct kvt_twin_message *grant =
        kvt_twin_expect(twin, client, KVI_OP_GRANT, request_of(twin, client, space)->serial);

    memcpy(grant->items, made->items, sizeof(made->items));
    memcpy(grant->blocks, made->blocks, sizeof(made->blocks));
    grant->item_count = made->item_count;
    grant->fields[0] = kvt_twin_space_id(twin, space);
    grant->fields[1] = flags;
    grant->fields[2] = kvt_twin_obtainable(twin, client, space);
    twin->clients[client].fds_sent += (uint32_t)made->fields[3];
    memset(made, 0, sizeof(*made));
}

static void grant_segment(struct kvt_twin *twin, uint32_t client, uint32_t space, uint32_t number,
                          uint32_t flags)
{
    struct kvt_twin_message *made = &twin->grant;
    struct kvt_twin_segment *segment = &twin->segments[number];

    if (made->item_count == 3 * KVI_MESSAGE_FDS)
        send_grant(twin, client, space, 0);
    if (!(segment->mappers >> client & 1)) {
        flags |= KVI_SEGMENT_HAS_FD;
        made->fields[3]++;
        segment->mappers |= 1u << client;
    }
    made->items[made->item_count++] = segment->slot;
    made->items[made->item_count++] = segment->generation;
    made->items[made->item_count++] = flags;
}

static void grant_block(struct kvt_twin *twin, uint32_t number, uint32_t block)
{
    uint32_t index = kvt_twin_index(twin, &twin->segments[number], block);

    twin->grant.blocks[index / 64] |= UINT64_C(1) << index % 64;
}

static int is_grant_empty(const struct kvt_twin *twin)
{
    uint64_t any = twin->grant.item_count;

    for (uint32_t w = 0; w < sizeof(twin->grant.blocks) / 8; w++)
        any |= twin->grant.blocks[w];
    return any == 0;
}

/* ---- the plan ---- */

/* Descriptors promised to the grant that is being made count as in flight. */
static int has_fd_room(const struct kvt_twin *twin, uint32_t client)
{
    return kvt_twin_fd_room(twin, client) > twin->grant.fields[3];
}

static enum outcome adopt(struct kvt_twin *twin, uint32_t client, uint32_t space, uint32_t number)
{
    struct kvt_twin_segment *segment = &twin->segments[number];

    if (!(segment->mappers >> client & 1) && !has_fd_room(twin, client))
        return HELD;
    segment->state = KVI_SEGMENT_OWNED;
    segment->owner = (int)client;
    twin->totals.adopted_segments++;
    grant_segment(twin, client, space, number, KVI_SEGMENT_ADOPTED);
    for (uint32_t b = 0; b < twin->spaces[space].block_count; b++)
        if (!segment->blocks[b].is_entry) {
            grant_block(twin, number, b);
            request_of(twin, client, space)->granted++;
        }
    return FOUND;
}

static enum outcome adopt_idle(struct kvt_twin *twin, uint32_t client, uint32_t space)
{
    while (lacking(twin, client, space) > 0) {
        uint64_t best = UINT64_MAX;
        uint32_t chosen = 0;

        for (uint32_t i = 0; i < twin->segment_limit; i++) {
            const struct kvt_twin_segment *segment = &twin->segments[i];
            uint64_t key;

            if (segment->state != KVI_SEGMENT_HANDED_IN || segment->space != space ||
                segment->is_tainted || kvt_twin_count(twin, i, KVT_TWIN_IDLE) == 0)
                continue;
            key = kvt_twin_count(twin, i, KVT_TWIN_IDLE) * 1000ull + segment->slot;
            if (key < best) {
                best = key;
                chosen = i;
            }
        }
        if (best == UINT64_MAX)
            return NOTHING;
        if (adopt(twin, client, space, chosen) == HELD)
            return HELD;
    }
    return FOUND;
}

static int is_same_device(const struct kvt_twin *twin, uint32_t one, uint32_t other)
{
    return twin->spaces[one].device == twin->spaces[other].device;
}

static int may_create(struct kvt_twin *twin, uint32_t client, uint32_t space)
{
    return request_of(twin, client, space)->create_code == 0 && kvt_twin_quota_allows(twin, space);
}

static uint32_t free_number(const struct kvt_twin *twin)
{
    uint32_t number = 0;

    while (twin->segments[number].state != KVI_SEGMENT_FREE)
        number++;
    return number;
}

/* A segment of the space, in the lowest free slot. */
static void place(struct kvt_twin *twin, uint32_t client, uint32_t space, uint32_t number,
                  enum kvi_segment_state state)
{
    struct kvt_twin_space *s = &twin->spaces[space];
    struct kvt_twin_segment *segment = &twin->segments[number];
    uint32_t slot = 0;

    for (int is_taken = 1; is_taken; slot += (uint32_t)is_taken) {
        is_taken = 0;
        for (uint32_t i = 0; i < twin->segment_limit; i++)
            is_taken |= twin->segments[i].state != KVI_SEGMENT_FREE &&
                        twin->segments[i].space == space && twin->segments[i].slot == slot;
    }
    memset(segment, 0, sizeof(*segment));
    segment->state = state;
    segment->space = space;
    segment->slot = slot;
    segment->generation = ++s->slot_generation[slot];
    segment->owner = (int)client;
    request_of(twin, client, space)->granted += s->block_count;
}

static void create(struct kvt_twin *twin, uint32_t client, uint32_t space, uint32_t number)
{
    place(twin, client, space, number, KVI_SEGMENT_CREATING);
}

static void move(struct kvt_twin *twin, uint32_t client, uint32_t space, uint32_t number)
{
    uint32_t from = twin->segments[number].space;

    kvt_twin_empty(twin, number);
    place(twin, client, space, number, KVI_SEGMENT_OWNED);
    kvt_twin_settle(twin, from);
    grant_segment(twin, client, space, number, 0);
    for (uint32_t b = 0; b < twin->spaces[space].block_count; b++)
        grant_block(twin, number, b);
    twin->moved++;
}

/* The same size and domain: the memory need not be released. */
static int may_move(const struct kvt_twin *twin, uint32_t number, uint32_t space)
{
    const struct kvt_twin_space *from = &twin->spaces[twin->segments[number].space];

    return from->segment_bytes == twin->spaces[space].segment_bytes &&
           from->domain == twin->spaces[space].domain;
}

static enum outcome create_free(struct kvt_twin *twin, uint32_t client, uint32_t space)
{
    while (lacking(twin, client, space) > 0 && may_create(twin, client, space) &&
           kvt_twin_free_bytes(twin, twin->spaces[space].device) >=
               twin->spaces[space].segment_bytes) {
        if (!has_fd_room(twin, client))
            return HELD;
        create(twin, client, space, free_number(twin));
    }
    return FOUND;
}

static uint64_t own_cold(struct kvt_twin *twin, uint32_t client, uint32_t space, uint32_t *number,
                         uint32_t *block)
{
    uint64_t oldest = UINT64_MAX;

    for (uint32_t i = 0; i < twin->segment_limit; i++) {
        const struct kvt_twin_segment *s = &twin->segments[i];

        if (s->space != space || s->is_tainted ||
            !(s->state == KVI_SEGMENT_HANDED_IN ||
              (s->state == KVI_SEGMENT_OWNED && s->owner == (int)client)))
            continue;
        for (uint32_t b = 0; b < twin->spaces[space].block_count; b++)
            if (s->blocks[b].is_entry && !kvt_twin_is_referenced(&s->blocks[b]) &&
                s->blocks[b].stamp < oldest) {
                oldest = s->blocks[b].stamp;
                *number = i;
                *block = b;
            }
    }
    return oldest;
}

/* The coldest foreign segments that make enough bytes, in order; their last one's stamp. */
static uint64_t foreign_cold(struct kvt_twin *twin, uint32_t client, uint32_t space,
                             uint32_t *chosen, uint32_t *chosen_count)
{
    uint64_t bytes = kvt_twin_free_bytes(twin, twin->spaces[space].device);
    uint64_t need = twin->spaces[space].segment_bytes;
    uint64_t stamp = UINT64_MAX;
    int is_chosen[KVT_TWIN_SEGMENTS] = {0};

    *chosen_count = 0;
    if (!may_create(twin, client, space))
        return UINT64_MAX;
    while (bytes < need) {
        uint64_t best = UINT64_MAX;
        uint32_t which = 0;

        for (uint32_t i = 0; i < twin->segment_limit; i++)
            if (twin->segments[i].state == KVI_SEGMENT_HANDED_IN &&
                twin->segments[i].space != space && !is_chosen[i] &&
                is_same_device(twin, twin->segments[i].space, space) &&
                kvt_twin_count(twin, i, KVT_TWIN_REFERENCED) == 0 && newest_stamp(twin, i) < best) {
                best = newest_stamp(twin, i);
                which = i;
            }
        if (best == UINT64_MAX)
            return UINT64_MAX;
        is_chosen[which] = 1;
        chosen[(*chosen_count)++] = which;
        bytes += twin->spaces[twin->segments[which].space].segment_bytes;
        stamp = best;
    }
    return stamp;
}

static int coldest_whole(const struct kvt_twin *twin, uint32_t space)
{
    uint64_t best = UINT64_MAX;
    int which = -1;

    for (uint32_t i = 0; i < twin->segment_limit; i++)
        if (twin->segments[i].state == KVI_SEGMENT_HANDED_IN && twin->segments[i].space == space &&
            !twin->segments[i].is_tainted && kvt_twin_count(twin, i, KVT_TWIN_ENTRIES) > 0 &&
            kvt_twin_count(twin, i, KVT_TWIN_REFERENCED) == 0 && newest_stamp(twin, i) < best) {
            best = newest_stamp(twin, i);
            which = (int)i;
        }
    return which;
}

static enum outcome take_whole(struct kvt_twin *twin, uint32_t client, uint32_t space,
                               uint32_t which)
{
    if (!(twin->segments[which].mappers >> client & 1) && !has_fd_room(twin, client))
        return HELD;
    for (uint32_t b = 0; b < twin->spaces[space].block_count; b++)
        if (twin->segments[which].blocks[b].is_entry)
            kvt_twin_evict(twin, &twin->segments[which].blocks[b]);
    return adopt(twin, client, space, which);
}

static enum outcome evict_block(struct kvt_twin *twin, uint32_t client, uint32_t space,
                                uint32_t number, uint32_t block)
{
    if (twin->segments[number].state == KVI_SEGMENT_HANDED_IN &&
        adopt(twin, client, space, number) == HELD)
        return HELD;
    kvt_twin_evict(twin, &twin->segments[number].blocks[block]);
    grant_block(twin, number, block);
    request_of(twin, client, space)->granted++;
    return FOUND;
}

/* The first tainted segment whose bytes would help. */
static int droppable_tainted(struct kvt_twin *twin, uint32_t client, uint32_t space)
{
    for (uint32_t i = 0; i < twin->segment_limit; i++)
        if (twin->segments[i].state == KVI_SEGMENT_HANDED_IN && twin->segments[i].is_tainted &&
            kvt_twin_count(twin, i, KVT_TWIN_REFERENCED) == 0 &&
            is_same_device(twin, twin->segments[i].space, space) &&
            request_of(twin, client, space)->create_code == 0 &&
            (twin->segments[i].space == space || kvt_twin_quota_allows(twin, space)))
            return (int)i;
    return -1;
}

static enum outcome plan(struct kvt_twin *twin, uint32_t client, uint32_t space)
{
    if (adopt_idle(twin, client, space) == HELD)
        return HELD;
    for (;;) {
        uint32_t chosen[KVT_TWIN_SEGMENTS], chosen_count, number, block;
        uint64_t own, foreign;
        int whole, tainted;

        if (create_free(twin, client, space) == HELD)
            return HELD;
        if (lacking(twin, client, space) == 0)
            return FOUND;
        tainted = droppable_tainted(twin, client, space);
        if (tainted >= 0 && !has_fd_room(twin, client))
            return HELD;
        if (tainted >= 0) {
            uint32_t victims = twin->segments[tainted].space;

            kvt_twin_drop(twin, (uint32_t)tainted);
            kvt_twin_settle(twin, victims);
            continue;
        }
        own = own_cold(twin, client, space, &number, &block);
        foreign = foreign_cold(twin, client, space, chosen, &chosen_count);
        whole = coldest_whole(twin, space);
        if (foreign < own) {
            uint32_t fresh = free_number(twin); /* taken before the others are dropped */

            if (!has_fd_room(twin, client))
                return HELD;
            if (chosen_count == 1 && may_move(twin, chosen[0], space)) {
                move(twin, client, space, chosen[0]);
                continue;
            }
            for (uint32_t i = 0; i < chosen_count; i++) {
                uint32_t victims = twin->segments[chosen[i]].space;

                kvt_twin_drop(twin, chosen[i]);
                kvt_twin_settle(twin, victims);
            }
            create(twin, client, space, fresh);
        } else if (own == UINT64_MAX) {
            return FOUND;
        } else if (whole >= 0 && lacking(twin, client, space) >= twin->spaces[space].block_count) {
            if (take_whole(twin, client, space, (uint32_t)whole) == HELD)
                return HELD;
        } else if (evict_block(twin, client, space, number, block) == HELD) {
            return HELD;
        }
    }
}

/* ---- the course of a request ---- */

static uint32_t creating(const struct kvt_twin *twin, uint32_t client, uint32_t space)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < twin->segment_limit; i++)
        count += twin->segments[i].state == KVI_SEGMENT_CREATING &&
                 twin->segments[i].space == space && twin->segments[i].owner == (int)client;
    return count;
}

static void refuse(struct kvt_twin *twin, uint32_t client, uint32_t space, int code)
{
    struct kvt_twin_request *request = request_of(twin, client, space);

    kvt_twin_refuse(twin, client, request->serial, code, KVI_OP_BLOCKS_REQUEST);
    if (code == KVMEM_E_QUOTA || code == KVMEM_E_DEVICE_FULL)
        twin->totals.refusals++;
    memset(request, 0, sizeof(*request));
}

static int exhausted(const struct kvt_twin *twin, uint32_t space)
{
    return kvt_twin_quota_allows(twin, space) ? KVMEM_E_DEVICE_FULL : KVMEM_E_QUOTA;
}

static uint32_t owned(const struct kvt_twin *twin, uint32_t client, uint32_t space)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < twin->segment_limit; i++)
        count += twin->segments[i].state != KVI_SEGMENT_FREE && twin->segments[i].space == space &&
                 twin->segments[i].owner == (int)client;
    return count;
}

static int is_memory_coming(const struct kvt_twin *twin, uint32_t space, int same_space)
{
    for (uint32_t i = 0; i < twin->segment_limit; i++) {
        const struct kvt_twin_segment *s = &twin->segments[i];

        if (s->state == KVI_SEGMENT_FREE || (same_space && s->space != space) ||
            !is_same_device(twin, s->space, space))
            continue;
        if (s->state == KVI_SEGMENT_CREATING && s->owner < 0)
            return 1;
        if (s->owner >= 0 && twin->clients[s->owner].state != KVT_TWIN_ALIVE)
            return 1;
    }
    return 0;
}

static void press(struct kvt_twin *twin, uint32_t client, uint32_t space, uint64_t want_bytes)
{
    uint64_t unit = twin->spaces[space].segment_bytes;
    uint64_t segments = (want_bytes + unit - 1) / unit;
    uint32_t told = 0; /* segments that the owner knows of */
    struct kvt_twin_message *message;

    for (uint32_t i = 0; i < twin->segment_limit; i++)
        told += twin->segments[i].state == KVI_SEGMENT_OWNED && !twin->segments[i].is_ready &&
                twin->segments[i].space == space && twin->segments[i].owner == (int)client;
    if (twin->clients[client].is_pressed[space] || told == 0)
        return;
    twin->clients[client].is_pressed[space] = 1;
    twin->clients[client].pressed_until_ns[space] = twin->now_ns + twin->pressure_ns;
    twin->totals.pressure_requests++;
    if (segments > told)
        segments = told;
    message = kvt_twin_expect(twin, client, KVI_OP_PRESSURE, 0);
    message->fields[0] = twin->pressure_ns;
    message->fields[1] = kvt_twin_space_id(twin, space);
    message->fields[2] = segments;
}

/* Most segments first, then lower client, then lower space. */
static int ask_owners(struct kvt_twin *twin, uint32_t client, uint32_t space)
{
    int same_space = !kvt_twin_quota_allows(twin, space);
    int is_hopeful = is_memory_coming(twin, space, same_space);
    uint64_t want_bytes = request_of(twin, client, space)->want *
                          (twin->spaces[space].segment_bytes / twin->spaces[space].block_count);

    for (uint32_t count = KVT_TWIN_SEGMENTS; count > 0; count--)
        for (uint32_t c = 0; c < KVT_TWIN_CLIENTS; c++)
            for (uint32_t s = 0; s < KVT_TWIN_SPACES; s++)
                if (c != client && twin->clients[c].state == KVT_TWIN_ALIVE &&
                    twin->clients[c].opened[s] != 0 && (!same_space || s == space) &&
                    is_same_device(twin, s, space) && owned(twin, c, s) == count) {
                    press(twin, c, s, want_bytes);
                    is_hopeful = 1;
                }
    return is_hopeful;
}

static void starve(struct kvt_twin *twin, uint32_t client, uint32_t space)
{
    struct kvt_twin_request *request = request_of(twin, client, space);

    if (request->create_code != 0 && request->create_code != KVMEM_E_DEVICE_FULL) {
        refuse(twin, client, space, request->create_code);
        return;
    }
    if (request->flags & KVI_REQUEST_MAY_WAIT) {
        if (!request->is_pressing) {
            request->is_pressing = 1;
            request->deadline_ns = twin->now_ns + twin->pressure_ns;
        }
        if (twin->now_ns < request->deadline_ns && ask_owners(twin, client, space)) {
            request->create_code = 0;
            request->state = KVT_TWIN_WAITING;
            request->since = ++twin->arrivals;
            return;
        }
    }
    refuse(twin, client, space, exhausted(twin, space));
}

void kvt_twin_advance(struct kvt_twin *twin, uint32_t client, uint32_t space)
{
    struct kvt_twin_request *request = request_of(twin, client, space);
    enum outcome outcome = plan(twin, client, space);

    request->state = KVT_TWIN_RUNNING;
    request->is_held = outcome == HELD;
    if (outcome == HELD || creating(twin, client, space) > 0) {
        if (!is_grant_empty(twin))
            send_grant(twin, client, space, 0);
    } else if (request->granted > 0) {
        send_grant(twin, client, space, KVI_GRANT_LAST);
        twin->totals.grants++;
        memset(request, 0, sizeof(*request));
    } else {
        starve(twin, client, space);
    }
}

void kvt_twin_request(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged,
                      uint32_t serial, uint32_t space_id, uint32_t want, uint32_t flags)
{
    uint32_t space = space_id & 255;

    twin->clients[client].fds_acknowledged = acknowledged;
    if (space >= KVT_TWIN_SPACES || twin->clients[client].opened[space] == 0 ||
        kvt_twin_space_id(twin, space) != space_id) {
        kvt_twin_refuse(twin, client, serial, KVMEM_E_STALE, KVI_OP_BLOCKS_REQUEST);
    } else if (request_of(twin, client, space)->state != KVT_TWIN_NONE) {
        kvt_twin_refuse(twin, client, serial, KVMEM_E_BUSY, KVI_OP_BLOCKS_REQUEST);
    } else {
        *request_of(twin, client, space) =
            (struct kvt_twin_request){.serial = serial, .want = want, .flags = flags};
        kvt_twin_advance(twin, client, space);
    }
    kvt_twin_carried_out(twin, client);
}

void kvt_twin_created(struct kvt_twin *twin, uint32_t number, int code)
{
    struct kvt_twin_segment *segment = &twin->segments[number];
    uint32_t space = segment->space;
    int owner = segment->owner;
    struct kvt_twin_request *request;

    if (code == 0)
        twin->totals.created_segments++;
    if (code == 0 && owner < 0) {
        segment->state = KVI_SEGMENT_HANDED_IN;
        twin->memory_came_back = 1;
    } else if (code == 0) {
        segment->state = KVI_SEGMENT_OWNED;
        segment->is_ready = 1;
    } else {
        kvt_twin_free_segment(twin, number);
    }
    if (owner < 0) {
        kvt_twin_settle(twin, space);
        kvt_twin_retry(twin);
        return;
    }
    request = request_of(twin, (uint32_t)owner, space);
    if (code == 0) {
        request->ready[request->ready_count++] = number;
    } else {
        request->granted -= twin->spaces[space].block_count;
        request->create_code = code;
    }
    if (creating(twin, (uint32_t)owner, space) == 0 || request->ready_count == KVI_MESSAGE_FDS) {
        for (uint32_t i = 0; i < request->ready_count; i++) {
            twin->segments[request->ready[i]].is_ready = 0;
            grant_segment(twin, (uint32_t)owner, space, request->ready[i], 0);
            for (uint32_t b = 0; b < twin->spaces[space].block_count; b++)
                grant_block(twin, request->ready[i], b);
        }
        request->ready_count = 0;
        if (creating(twin, (uint32_t)owner, space) == 0 && !request->is_held)
            kvt_twin_advance(twin, (uint32_t)owner, space);
        else if (!is_grant_empty(twin))
            send_grant(twin, (uint32_t)owner, space, 0);
    }
    kvt_twin_retry(twin);
}

/* ---- waiting ---- */

/* The one that waits longest of those that came after `after` and not after `last`; 0: none. */
static int next_waiting(const struct kvt_twin *twin, uint64_t after, uint64_t last,
                        uint32_t *client, uint32_t *space)
{
    uint64_t best = UINT64_MAX;

    for (uint32_t c = 0; c < KVT_TWIN_CLIENTS; c++)
        for (uint32_t s = 0; s < KVT_TWIN_SPACES; s++) {
            const struct kvt_twin_request *r = &twin->clients[c].requests[s];

            if (r->state == KVT_TWIN_WAITING && r->since > after && r->since <= last &&
                r->since < best) {
                best = r->since;
                *client = c;
                *space = s;
            }
        }
    return best != UINT64_MAX;
}

static int retry_pass(struct kvt_twin *twin)
{
    uint64_t last = twin->arrivals, after = 0;
    uint32_t client, space;
    int is_served = 0;

    while (next_waiting(twin, after, last, &client, &space)) {
        after = twin->clients[client].requests[space].since;
        kvt_twin_advance(twin, client, space);
        is_served |= twin->clients[client].requests[space].state != KVT_TWIN_WAITING;
    }
    return is_served;
}

void kvt_twin_retry(struct kvt_twin *twin)
{
    uint32_t client, space;
    int is_served = 1;

    while (twin->memory_came_back && is_served &&
           next_waiting(twin, 0, UINT64_MAX, &client, &space)) {
        twin->memory_came_back = 0;
        is_served = retry_pass(twin);
    }
    twin->memory_came_back = 0;
}

void kvt_twin_expire(struct kvt_twin *twin)
{
    uint64_t after = 0;
    uint32_t client, space;

    while (next_waiting(twin, after, UINT64_MAX, &client, &space)) {
        after = twin->clients[client].requests[space].since;
        if (twin->clients[client].requests[space].deadline_ns <= twin->now_ns)
            refuse(twin, client, space, exhausted(twin, space));
    }
}
