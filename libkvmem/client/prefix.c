/* SPDX-License-Identifier: Apache-2.0
 *
 * Prefix sharing, the client's side; see prefix.h.
 */
#include "client/prefix.h"

#include <inttypes.h>
#include <string.h>

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
        if (fences[i].kind > KVMEM_FENCE_HOST)
            return kvi_client_protocol(space->client, "a fence that the host does not have");
    return 0;
}

static void hold(struct kvmem_space *space, uint32_t block)
{
    if (space->pool.state[block] != KVI_BLOCK_LEASED)
        kvi_pool_lease(&space->pool, block);
    space->refs[block]++;
    space->held[block]++;
}

static void unhold(struct kvmem_space *space, uint32_t block)
{
    space->held[block]--;
    kvi_space_unref(space, block);
}

static int lookup_some(struct kvmem_space *space, uint32_t count, const struct kvmem_name *names,
                       int32_t *blocks)
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
    for (uint32_t i = hits; i-- > (mapped < 0 ? 0 : (uint32_t)mapped);)
        unhold(space, (uint32_t)blocks[i]);
    return mapped;
}

int kvi_prefix_lookup(struct kvmem_space *space, uint32_t count, const struct kvmem_name *names,
                      int32_t *blocks)
{
    uint32_t done = 0;

    if (!count)
        return kvi_client_is_lost(space->client);
    while (done < count) {
        uint32_t part = part_of(count - done);
        int hits = lookup_some(space, part, names + done, blocks + done);

        if (hits < 0) {
            while (done--)
                unhold(space, (uint32_t)blocks[done]);
            return hits;
        }
        done += (uint32_t)hits;
        space->stats.lookup_blocks += part;
        space->stats.hit_blocks += (uint32_t)hits;
        if ((uint32_t)hits < part)
            break;
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
    for (uint32_t i = 0; i < count; i++)
        space->held[blocks[i]]++;
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

int kvi_seq_attach(struct kvmem_space *space, struct kvmem_seq id, uint32_t count,
                   const int32_t *blocks)
{
    struct kvi_seq *seq = kvi_seq_find(space, id);
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
    if (seq->has_region)
        code = kvi_region_attach(kvi_region_of(space, seq), count, blocks);
    if (code) {
        give_held(space, count, blocks);
        return code;
    }
    memcpy(seq->blocks, blocks, count * sizeof(*blocks));
    seq->block_count = count;
    seq->appended = (uint64_t)count * space->block_tokens;
    seq->committed = seq->appended;
    return 0;
}

int kvi_prefix_release(struct kvmem_space *space, uint32_t count, const int32_t *blocks)
{
    int code = kvi_space_room(space, count);

    if (!code)
        code = take_held(space, count, blocks);
    if (code)
        return code;
    for (uint32_t i = count; i-- > 0;)
        kvi_space_unref(space, (uint32_t)blocks[i]);
    return 0;
}

/* ---- publish ---- */

int kvi_seq_publish(struct kvmem_space *space, struct kvmem_seq id, uint32_t first_block,
                    uint32_t count, const struct kvmem_name *names)
{
    const struct kvi_seq *seq = kvi_seq_find(space, id);
    uint64_t full, records = 0;
    int code;

    if (!seq)
        return kvi_seq_stale(id);
    code = kvi_client_is_lost(space->client);
    if (code)
        return code;
    full = kvi_space_whole_blocks(space, seq->committed);
    if ((uint64_t)first_block + count > full)
        return kvi_error_set(KVMEM_E_INVALID,
                             "first_block, count: %" PRIu32 ", %" PRIu32
                             " reach beyond the %" PRIu64 " full and committed blocks",
                             first_block, count, full);
    for (uint32_t i = 0; i < count; i++)
        records += space->pool.state[seq->blocks[first_block + i]] == KVI_BLOCK_PRIVATE;
    if (records > kvi_outbox_room(&space->client->outbox))
        return kvi_error_set(KVMEM_E_OUTBOX_FULL, "room for %" PRIu64 " of %" PRIu64 " records",
                             kvi_outbox_room(&space->client->outbox), records);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t block = (uint32_t)seq->blocks[first_block + i];
        struct kvi_outbox_record *record;

        if (space->pool.state[block] != KVI_BLOCK_PRIVATE)
            continue;
        kvi_pool_seal(&space->pool, block);
        record = kvi_outbox_append(space->client, KVI_OUTBOX_PUBLISH, space->place, block);
        memcpy(record->bytes, names[i].bytes, sizeof(record->bytes));
    }
    return 0;
}

int kvi_publish_results(struct kvmem_space *space, uint32_t limit,
                        struct kvmem_publish_result *results)
{
    uint32_t taken = 0;

    while (taken < limit && space->results_tail < space->results_head)
        results[taken++] = space->results[space->results_tail++ % KVI_SPACE_RESULTS];
    return (int)taken;
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
