/* SPDX-License-Identifier: Apache-2.0
 *
 * The twin's entries: what is found, published, released and pinned, and what is not ready.
 */
#include <stddef.h>

#include <kvmem/error.h>
#include <kvmem/fence.h>
#include <kvmem/prefix.h>

#include "support/dirtwin_internal.h"

static int find_name(struct kvt_twin *twin, uint32_t space, uint32_t name, uint32_t *segment,
                     uint32_t *block)
{
    for (uint32_t i = 0; i < twin->segment_limit; i++) {
        const struct kvt_twin_segment *s = &twin->segments[i];

        if (s->state == KVI_SEGMENT_FREE || s->space != space)
            continue;
        for (uint32_t b = 0; b < twin->spaces[space].block_count; b++)
            if (s->blocks[b].is_entry && s->blocks[b].name == name) {
                *segment = i;
                *block = b;
                return 1;
            }
    }
    return 0;
}

/* ---- fences ---- */

static int is_pending(const struct kvt_twin *twin, const struct kvt_twin_block *block)
{
    for (uint32_t c = 0; c < KVT_TWIN_CLIENTS; c++)
        if (twin->clients[c].state != KVT_TWIN_FREE && twin->clients[c].session == block->publisher)
            return twin->clients[c].reached[block->lane] < block->value;
    return 0;
}

/* One for each lane, at items[from ...]: timeline, kind, value. */
static void list_fence(struct kvt_twin_message *reply, uint32_t from,
                       const struct kvt_twin_block *block)
{
    uint32_t timeline = block->publisher * 64 + block->lane;

    for (uint32_t i = from; i < reply->item_count; i += 3)
        if (reply->items[i] == timeline) {
            if (reply->items[i + 2] < block->value)
                reply->items[i + 2] = (uint32_t)block->value;
            return;
        }
    reply->items[reply->item_count++] = timeline;
    reply->items[reply->item_count++] = KVMEM_FENCE_TIMELINE;
    reply->items[reply->item_count++] = (uint32_t)block->value;
}

void kvt_twin_break(struct kvt_twin *twin, uint32_t client)
{
    for (uint32_t i = 0; i < twin->segment_limit; i++) {
        struct kvt_twin_segment *s = &twin->segments[i];

        if (s->state == KVI_SEGMENT_FREE)
            continue;
        for (uint32_t b = 0; b < KVT_TWIN_BLOCKS; b++) {
            struct kvt_twin_block *block = &s->blocks[b];

            if (!block->is_entry || block->publisher != twin->clients[client].session ||
                !is_pending(twin, block))
                continue;
            block->value = 0;
            if (kvt_twin_is_referenced(block) || s->state == KVI_SEGMENT_OWNED) {
                block->name = KVT_TWIN_NO_NAME;
                twin->fences.renamed++;
            } else {
                kvt_twin_evict(twin, block);
                twin->memory_came_back = 1;
                twin->fences.dropped++;
            }
        }
        kvt_twin_settle(twin, s->space);
    }
}

/* ---- prefixes ---- */

static void lookup(struct kvt_twin *twin, uint32_t client, uint32_t serial, uint32_t space,
                   uint32_t count, const uint32_t *names, uint32_t flags)
{
    struct kvt_twin_message *reply = kvt_twin_expect(twin, client, KVI_OP_LOOKUP_REPLY, serial);
    int is_peek = (flags & KVI_LOOKUP_PEEK) != 0;
    uint32_t hits = 0, segment, block, listed;
    const struct kvt_twin_block *pending[8];
    uint32_t pending_count = 0;

    for (; hits < count && find_name(twin, space, names[hits], &segment, &block); hits++) {
        struct kvt_twin_segment *s = &twin->segments[segment];
        int is_ready = !is_pending(twin, &s->blocks[block]);

        if (!is_ready && twin->clients[client].version < 2) {
            twin->fences.cut++;
            break;
        }
        if (!is_ready && !is_peek)
            pending[pending_count++] = &s->blocks[block];

        if (s->blocks[block].publisher != twin->clients[client].session) {
            reply->fields[2]++;
            twin->totals.foreign_hit_blocks++;
        }
        if (is_peek)
            continue;
        s->blocks[block].leases |= 1u << client;
        reply->items[reply->item_count++] = kvt_twin_index(twin, s, block);
        reply->items[reply->item_count++] = s->generation;
    }
    listed = reply->item_count;
    for (uint32_t i = 0; i < pending_count; i++)
        list_fence(reply, listed, pending[i]);
    twin->fences.listed += pending_count;
    reply->fields[0] = kvt_twin_space_id(twin, space);
    reply->fields[1] = hits;
    reply->fields[3] = (reply->item_count - listed) / 3;
    twin->totals.lookups++;
    twin->totals.lookup_blocks += count;
    twin->totals.hit_blocks += hits;
}

void kvt_twin_lookup(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged, uint32_t serial,
                     uint32_t space_id, uint32_t count, const uint32_t *names, uint32_t flags)
{
    int space;

    kvt_twin_arrived(twin, client, acknowledged);
    space = kvt_twin_need(twin, client, serial, KVI_OP_LOOKUP, space_id);
    if (space >= 0)
        lookup(twin, client, serial, (uint32_t)space, count, names, flags);
    kvt_twin_carried_out(twin, client);
}

static uint32_t publish_one(struct kvt_twin *twin, uint32_t client, uint32_t space, uint32_t name,
                            uint32_t index, uint32_t lane, uint64_t value)
{
    struct kvt_twin_segment *segment;
    struct kvt_twin_block *block;
    uint32_t other_segment = 0, other_block = 0;
    int exists = find_name(twin, space, name, &other_segment, &other_block);

    if (!kvt_twin_find_index(twin, space, index, &segment, &block) ||
        segment->owner != (int)client || segment->state != KVI_SEGMENT_OWNED || segment->is_ready ||
        (value > 0 && twin->clients[client].version < 2))
        return KVMEM_PUBLISH_REFUSED;
    if (block->is_entry)
        return block->name == name ? KVMEM_PUBLISH_EXISTS : KVMEM_PUBLISH_REFUSED;
    if (exists)
        return KVMEM_PUBLISH_EXISTS;
    *block = (struct kvt_twin_block){.is_entry = 1,
                                     .name = name,
                                     .leases = 1u << client,
                                     .lane = lane,
                                     .value = value,
                                     .publisher = twin->clients[client].session};
    return KVMEM_PUBLISHED;
}

void kvt_twin_publish(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged,
                      uint32_t serial, uint32_t space_id, uint32_t count, const uint32_t *names,
                      const uint32_t *indices, const uint32_t *lanes, const uint64_t *values)
{
    struct kvt_twin_message *reply;
    int space;

    kvt_twin_arrived(twin, client, acknowledged);
    space = kvt_twin_need(twin, client, serial, KVI_OP_PUBLISH, space_id);
    if (space >= 0) {
        reply = kvt_twin_expect(twin, client, KVI_OP_PUBLISH_REPLY, serial);
        reply->fields[0] = space_id;
        for (uint32_t i = 0; i < count; i++) {
            uint32_t state = publish_one(twin, client, (uint32_t)space, names[i], indices[i],
                                         lanes[i], values[i]);

            reply->items[reply->item_count++] = state;
            twin->totals.published_blocks += state == KVMEM_PUBLISHED;
            twin->totals.publish_exists_blocks += state == KVMEM_PUBLISH_EXISTS;
            twin->totals.publish_refused_blocks += state == KVMEM_PUBLISH_REFUSED;
        }
    }
    kvt_twin_carried_out(twin, client);
}

void kvt_twin_release(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged,
                      uint32_t serial, uint32_t space_id, uint32_t count, const uint32_t *indices)
{
    int space;

    kvt_twin_arrived(twin, client, acknowledged);
    space = kvt_twin_need(twin, client, serial, KVI_OP_RELEASE, space_id);
    for (uint32_t i = 0; space >= 0 && i < count; i++) {
        struct kvt_twin_segment *segment;
        struct kvt_twin_block *block;

        if (!kvt_twin_find_index(twin, (uint32_t)space, indices[i], &segment, &block) ||
            !(block->leases >> client & 1))
            continue;
        block->leases &= ~(1u << client);
        kvt_twin_unreferenced(twin, block);
    }
    kvt_twin_carried_out(twin, client);
}

/* ---- pins ---- */

static void pin(struct kvt_twin *twin, uint32_t client, uint32_t serial, uint32_t space,
                uint32_t count, const uint32_t *names, uint64_t lifetime_ns)
{
    struct kvt_twin_pin *found = NULL;
    struct kvt_twin_message *reply;

    for (uint32_t p = KVT_TWIN_PINS; p > 0; p--)
        if (twin->pins[p - 1].id == 0) {
            found = &twin->pins[p - 1];
            twin->new_pin = p - 1;
        }
    found->id = UINT64_MAX; /* the reply tells it */
    found->client = client;
    found->space = space;
    found->deadline_ns = lifetime_ns == 0 ? UINT64_MAX : twin->now_ns + lifetime_ns;
    found->ref_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t segment, block;

        if (!find_name(twin, space, names[i], &segment, &block))
            continue;
        twin->segments[segment].blocks[block].pins++;
        found->refs[found->ref_count].segment = segment;
        found->refs[found->ref_count++].block = block;
    }
    reply = kvt_twin_expect(twin, client, KVI_OP_PIN_REPLY, serial);
    reply->fields[0] = found->ref_count;
}

void kvt_twin_pin(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged, uint32_t serial,
                  uint32_t space_id, uint32_t count, const uint32_t *names, uint64_t lifetime_ns)
{
    int space;

    kvt_twin_arrived(twin, client, acknowledged);
    space = kvt_twin_need(twin, client, serial, KVI_OP_PIN, space_id);
    if (space >= 0)
        pin(twin, client, serial, (uint32_t)space, count, names, lifetime_ns);
    kvt_twin_carried_out(twin, client);
}

void kvt_twin_unpin(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged, uint32_t serial,
                    uint64_t id)
{
    struct kvt_twin_pin *found = NULL;

    kvt_twin_arrived(twin, client, acknowledged);
    for (uint32_t p = 0; p < KVT_TWIN_PINS; p++)
        if (twin->pins[p].id == id && twin->pins[p].client == client)
            found = &twin->pins[p];
    if (found) {
        kvt_twin_drop_pin(twin, found);
        kvt_twin_done(twin, client, serial, KVI_OP_UNPIN);
    } else {
        kvt_twin_refuse(twin, client, serial, KVMEM_E_NOT_FOUND, KVI_OP_UNPIN);
    }
    kvt_twin_carried_out(twin, client);
}
