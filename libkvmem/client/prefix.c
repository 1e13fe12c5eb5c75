/* SPDX-License-Identifier: Apache-2.0
 *
 * Looking up, attaching, giving back, pins; see prefix.h. Publishing is in publish.c.
 */
#include "client/prefix.h"

#include <inttypes.h>
#include <string.h>

#include "client/guard.h"
#include "client/importer.h"
#include "client/region.h"
#include "client/seq.h"
#include "util/error.h"

/* ---- lookup ---- */

/* How many of the names that are left go into the next message. */
static uint32_t part_of(uint32_t left)
{
    return left < KVI_CLIENT_LOOKUP_NAMES ? left : KVI_CLIENT_LOOKUP_NAMES;
}

static int ask_names(struct kvmem_space *space, uint32_t count, const struct kvmem_name *names,
                     uint32_t flags, const struct kvi_msg_lookup_reply **out)
{
    struct kvmem_client *client = space->client;
    struct kvi_msg_lookup *message = kvi_client_begin(client, KVI_OP_LOOKUP);
    const struct kvi_msg_lookup_reply *reply;
    const void *answer;
    int code;

    message->space = space->id;
    message->flags = flags;
    message->name_count = count;
    memcpy(kvi_wire_tail(message, 0), names, count * sizeof(*names));
    code = kvi_client_call(client, KVI_OP_LOOKUP_REPLY, &answer);
    if (code)
        return code;
    reply = answer;
    if (reply->space != space->id || reply->hit_count > count ||
        reply->record_count != (flags & KVI_LOOKUP_PEEK ? 0 : reply->hit_count))
        return kvi_client_protocol(client, "a lookup_reply that does not match its lookup");
    *out = reply;
    return 0;
}

static bool is_entry_or_none(uint8_t state)
{
    return state == KVI_BLOCK_NONE || state == KVI_BLOCK_LEASED || state == KVI_BLOCK_RELEASING;
}

static int check_hits(struct kvmem_space *space, const struct kvi_msg_lookup_reply *reply)
{
    const struct kvi_rec_hit *hits = kvi_wire_tail_const(reply, 0);
    const struct kvi_rec_fence *fences = kvi_wire_tail_const(reply, 1);

    for (uint32_t i = 0; i < reply->record_count; i++) {
        if (hits[i].index >= space->pool.index_range)
            return kvi_client_protocol(space->client, "a hit outside the space");
        /* All misses at once: hits lie anywhere, and hold() would take them one by one. */
        __builtin_prefetch(&space->pool.state[hits[i].index], 1);
        __builtin_prefetch(&space->refs[hits[i].index], 1);
        __builtin_prefetch(&space->held[hits[i].index], 1);
    }
    for (uint32_t i = 0; i < reply->record_count; i++)
        if (!is_entry_or_none(space->pool.state[hits[i].index]))
            return kvi_client_protocol(space->client, "a hit on a block that is no entry");
    for (uint32_t i = 0; i < reply->fence_count; i++)
        if (fences[i].kind != KVMEM_FENCE_TIMELINE || !fences[i].value ||
            fences[i].value >= KVI_FENCE_LIMIT)
            return kvi_client_protocol(space->client, "a fence that no timeline has");
    return 0;
}

/* ---- what hits wait for ---- */

#define TRIES 4 /* of a look-up whose producers die meanwhile */

/* Fences of the message in rx: they are wanted after the next one has come. */
static uint32_t keep_fences(struct kvmem_client *client, const struct kvi_msg_lookup_reply *reply)
{
    memcpy(client->hit_fences, kvi_wire_tail_const(reply, 1),
           reply->fence_count * sizeof(*client->hit_fences));
    return reply->fence_count;
}

/* Add what is not reached to the guard of the look-up. NOT_FOUND: a producer is gone, or has left
 * the sharing domain (PERMISSION). */
static int add_fences(struct kvmem_client *client, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct kvi_point point = {client->hit_fences[i].timeline, client->hit_fences[i].value};
        int code;

        if (!kvi_fence_is_own(client, point.timeline)) {
            client->builder.has_foreign = true;
            code = kvi_fence_producer_page(client, point.timeline);
            if (code)
                return code == KVMEM_E_PERMISSION ? KVMEM_E_NOT_FOUND : code;
        }
        switch (kvi_fence_state(client, &point)) {
        case KVI_LANE_PENDING: code = kvi_guard_add(&client->builder, &point); break;
        case KVI_LANE_REACHED: code = 0; break;
        default: code = KVMEM_E_NOT_FOUND; break;
        }
        if (code)
            return code;
    }
    return 0;
}

/* The fence of all that was found, and the guard, kept by block for whoever attaches them. */
static int guard_hits(struct kvmem_space *space, uint32_t count, const int32_t *blocks,
                      struct kvmem_fence *ready)
{
    struct kvmem_client *client = space->client;
    const struct kvi_guard_builder *builder = &client->builder;
    struct kvmem_fence fence = kvmem_fence_none();
    uint32_t number = KVI_GUARD_NONE;
    int code = 0;

    if (builder->has_foreign || builder->count > 1) {
        code = kvi_guard_make(client, builder, &number);
        fence = kvi_guard_fence(client, number);
    } else if (builder->count) {
        fence = kvi_fence_of(&builder->points[0]);
    }
    if (code)
        return code;
    if (!builder->has_foreign)
        number = KVI_GUARD_NONE;
    if (kvi_guard_is_any(client))
        for (uint32_t i = 0; i < count; i++)
            space->guards[blocks[i]] = number;
    if (ready)
        *ready = fence;
    return 0;
}

static void hold(struct kvmem_space *space, uint32_t block)
{
    if (space->pool.state[block] != KVI_BLOCK_LEASED)
        kvi_pool_lease(&space->pool, block);
    space->refs[block]++;
    space->held[block]++;
}

/* The last of them first. */
static void unhold(struct kvmem_space *space, uint32_t from, uint32_t end, const int32_t *blocks)
{
    for (uint32_t i = end; i-- > from;) {
        space->held[blocks[i]]--;
        kvi_space_unref(space, (uint32_t)blocks[i]);
    }
}

/* One message: look up, hold, map. Leading hits that are readable, and their fences. */
static int lookup_once(struct kvmem_space *space, uint32_t count, const struct kvmem_name *names,
                       int32_t *blocks, uint32_t *fence_count)
{
    struct kvmem_client *client = space->client;
    const struct kvi_msg_lookup_reply *reply;
    uint32_t missing = 0;
    uint32_t hits;
    int mapped;
    int code = ask_names(space, count, names, 0, &reply);

    if (!code)
        code = check_hits(space, reply);
    if (code)
        return code;
    hits = reply->hit_count;
    memcpy(client->hits, kvi_wire_tail_const(reply, 0), hits * sizeof(*client->hits));
    *fence_count = keep_fences(client, reply);
    for (uint32_t i = 0; i < hits; i++) {
        uint32_t index = client->hits[i].index;

        hold(space, index);
        blocks[i] = (int32_t)index;
        missing += !kvi_importer_has(space, kvi_pool_slot(&space->pool, index),
                                     client->hits[i].generation);
    }
    if (!missing)
        return (int)hits;
    mapped = kvi_importer_map_hits(space, hits);
    unhold(space, mapped < 0 ? 0 : (uint32_t)mapped, hits, blocks);
    return mapped;
}

/* The same with its fences in the builder. When a producer is gone, what it had not reached is no
 * entry any more: ask again. */
static int lookup_some(struct kvmem_space *space, uint32_t count, const struct kvmem_name *names,
                       int32_t *blocks)
{
    for (uint32_t tries = 0; tries < TRIES; tries++) {
        uint32_t fence_count = 0;
        int hits = lookup_once(space, count, names, blocks, &fence_count);
        int code;

        if (hits <= 0 || !fence_count)
            return hits;
        code = add_fences(space->client, fence_count);
        if (!code)
            return hits;
        unhold(space, 0, (uint32_t)hits, blocks);
        if (code != KVMEM_E_NOT_FOUND)
            return code;
    }
    return 0;
}

int kvi_prefix_lookup(struct kvmem_space *space, uint32_t count, const struct kvmem_name *names,
                      int32_t *blocks, struct kvmem_fence *ready)
{
    uint32_t done = 0;
    int code;

    if (!count)
        return kvi_client_is_lost(space->client);
    kvi_guard_begin(&space->client->builder);
    while (done < count) {
        uint32_t part = part_of(count - done);
        int hits = lookup_some(space, part, names + done, blocks + done);

        if (hits < 0) {
            unhold(space, 0, done, blocks);
            return hits;
        }
        done += (uint32_t)hits;
        space->stats.lookup_blocks += part;
        space->stats.hit_blocks += (uint32_t)hits;
        if ((uint32_t)hits < part)
            break;
    }
    code = guard_hits(space, done, blocks, ready);
    if (code) {
        unhold(space, 0, done, blocks);
        return code;
    }
    return (int)done;
}

int kvi_prefix_peek(struct kvmem_space *space, uint32_t count, const struct kvmem_name *names)
{
    uint32_t done = 0;

    if (!count)
        return kvi_client_is_lost(space->client);
    while (done < count) {
        uint32_t part = part_of(count - done);
        const struct kvi_msg_lookup_reply *reply;
        int code = ask_names(space, part, names + done, KVI_LOOKUP_PEEK, &reply);

        if (code)
            return code;
        done += reply->hit_count;
        if (reply->hit_count < part)
            break;
    }
    return (int)done;
}

int kvi_prefix_late_hits(struct kvmem_space *space, const struct kvi_msg_lookup_reply *reply)
{
    const struct kvi_rec_hit *hits = kvi_wire_tail_const(reply, 0);
    int code = check_hits(space, reply);

    for (uint32_t i = 0; !code && i < reply->record_count; i++) {
        /* LEASED: held anyway. RELEASING: its record waits behind this answer. */
        if (space->pool.state[hits[i].index] != KVI_BLOCK_NONE)
            continue;
        kvi_pool_lease(&space->pool, hits[i].index);
        kvi_space_drop(space, hits[i].index);
    }
    return code;
}

/* ---- references of the caller ---- */

static void give_held(struct kvmem_space *space, uint32_t count, const int32_t *blocks)
{
    while (count--)
        space->held[blocks[count]]++;
}

/* Take `count` references out of held[]; nothing is taken unless all are there. */
static int take_held(struct kvmem_space *space, uint32_t count, const int32_t *blocks)
{
    for (uint32_t i = 0; i < count; i++) {
        if (blocks[i] >= 0 && (uint32_t)blocks[i] < space->pool.index_range &&
            space->held[blocks[i]]) {
            space->held[blocks[i]]--;
            continue;
        }
        give_held(space, i, blocks);
        return kvi_error_set(KVMEM_E_INVALID,
                             "blocks[%" PRIu32 "]: %" PRId32 " is not held from a lookup", i,
                             blocks[i]);
    }
    return 0;
}

/* The guard that a sequence of these blocks has: usually they come from one look-up. */
static int guard_of(struct kvmem_space *space, uint32_t count, const int32_t *blocks,
                    uint32_t *number)
{
    struct kvmem_client *client = space->client;
    uint32_t first = KVI_GUARD_NONE;
    bool is_one = true;
    int code = 0;

    *number = KVI_GUARD_NONE;
    if (!kvi_guard_is_any(client))
        return 0;
    kvi_guard_begin(&client->builder);
    for (uint32_t i = 0; !code && i < count; i++) {
        uint32_t guard = space->guards[blocks[i]];

        if (guard == KVI_GUARD_NONE || guard == first)
            continue;
        if (kvi_guard_state(client, guard) == KVI_LANE_REACHED) {
            space->guards[blocks[i]] = KVI_GUARD_NONE;
            continue;
        }
        is_one = first == KVI_GUARD_NONE;
        first = guard;
        code = kvi_guard_add_guard(client, &client->builder, guard);
    }
    *number = first;
    return code || is_one ? code : kvi_guard_make(client, &client->builder, number);
}

int kvi_seq_attach(struct kvmem_space *space, struct kvmem_seq id, uint32_t count,
                   const int32_t *blocks)
{
    struct kvi_seq *seq = kvi_seq_find(space, id);
    uint32_t guard;
    int code;

    if (!seq)
        return kvi_seq_stale(id);
    /* Blocks ahead of a region make way. */
    if (seq->has_region ? seq->appended > 0 : seq->block_count > 0)
        return kvi_error_set(KVMEM_E_INVALID, "seq: has %" PRIu32 " blocks, must be empty",
                             seq->block_count);
    if (!count)
        return 0;
    if (count > space->pool.index_range)
        return kvi_error_set(KVMEM_E_INVALID, "count: %" PRIu32 " is outside 0..%" PRIu32, count,
                             space->pool.index_range);
    code = kvi_seq_table_grow(space, seq, count);
    if (!code)
        code = take_held(space, count, blocks);
    if (code)
        return code;
    code = guard_of(space, count, blocks, &guard);
    if (!code && seq->has_region)
        code = kvi_region_attach(kvi_region_of(space, seq), count, blocks);
    if (code) {
        give_held(space, count, blocks);
        return code;
    }
    memcpy(seq->blocks, blocks, count * sizeof(*blocks));
    seq->block_count = count;
    seq->appended = (uint64_t)count * space->block_tokens;
    seq->committed = seq->appended;
    seq->guard = guard;
    return 0;
}

/* The references wait for `fence`. */
static int cool_held(struct kvmem_space *space, uint32_t count, const int32_t *blocks,
                     const struct kvmem_fence *fence)
{
    struct kvi_cooling_place place;
    struct kvi_point point;
    int code = kvi_cooling_reserve(space, count, &place);

    if (code)
        return code;
    code = take_held(space, count, blocks);
    if (code)
        goto no_blocks;
    code = kvi_fence_take(space->client, kvi_space_backend(space), fence, &point);
    if (code)
        goto no_fence;
    kvi_cooling_add(space, &point, blocks, count, &place);
    return 0;

no_fence:
    give_held(space, count, blocks);
no_blocks:
    kvi_cooling_cancel(space, &place);
    return code;
}

int kvi_prefix_release(struct kvmem_space *space, uint32_t count, const int32_t *blocks,
                       const struct kvmem_fence *fence)
{
    int code;

    if (count && kvi_fence_is_pending(space->client, fence))
        return cool_held(space, count, blocks, fence);
    code = kvi_space_room(space, count);
    if (!code)
        code = take_held(space, count, blocks);
    if (code)
        return code;
    for (uint32_t i = count; i-- > 0;)
        kvi_space_unref(space, (uint32_t)blocks[i]);
    return 0;
}

/* ---- pins ---- */

int kvi_prefix_pin(struct kvmem_space *space, uint32_t count, const struct kvmem_name *names,
                   int64_t lifetime_ns, uint64_t *pin)
{
    struct kvmem_client *client = space->client;
    struct kvi_msg_pin *message = kvi_client_begin(client, KVI_OP_PIN);
    const struct kvi_msg_pin_reply *reply;
    const void *answer;
    int code;

    message->space = space->id;
    message->lifetime_ns = (uint64_t)lifetime_ns;
    message->name_count = count;
    memcpy(kvi_wire_tail(message, 0), names, count * sizeof(*names));
    code = kvi_client_call(client, KVI_OP_PIN_REPLY, &answer);
    if (code)
        return code;
    reply = answer;
    if (reply->pinned_count > count)
        return kvi_client_protocol(client, "a pin_reply that does not match its pin");
    *pin = reply->pin;
    return (int)reply->pinned_count;
}

int kvi_prefix_unpin(struct kvmem_space *space, uint64_t pin)
{
    struct kvi_msg_unpin *message = kvi_client_begin(space->client, KVI_OP_UNPIN);
    const void *reply;

    message->pin = pin;
    return kvi_client_call(space->client, KVI_OP_DONE, &reply);
}
