/* SPDX-License-Identifier: Apache-2.0
 *
 * The directory against its naive twin (support/dirtwin.h), driven by random operations of a few
 * clients on one or two devices of at most 64 segments of 1, 4 or 8 blocks. After every operation:
 * the messages that came out are those the twin predicted, in the same order, with the same hits,
 * states, segments, blocks and codes (so the victims are the exact least recently used ones); the
 * counters are the twin's; kvi_dir_check finds nothing; the backend holds what the twin says.
 *
 *   KVMEM_MODEL_OPS   operations in all (default 3,200,000; 400,000 with sanitizers)
 *   KVMEM_SEED        one seed instead of the list
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/dirtwin.h"
#include "support/dirworld.h"

#ifdef KVI_SANITIZE
#define DEFAULT_OPS 400000u
#else
#define DEFAULT_OPS 3200000u
#endif
#define NAMES 160u

struct model {
    struct kvt_world *world;
    struct kvt_twin twin;
    uint64_t random;
    uint64_t seed;
    uint64_t op;
    uint32_t granules;
    int is_eager; /* creations are answered at once */
};

/* Events of all runs, to see that they were worth their time. */
static struct kvi_msg_stats_reply sum;
static uint64_t sum_refused, sum_listed, sum_cut, sum_dropped, sum_renamed, sum_pages, sum_second,
    sum_moved, sum_tainted;

static uint32_t pick(struct model *m, uint32_t limit)
{
    return (uint32_t)(kvt_random(&m->random) % limit);
}

static void failed(const struct model *m, const char *what)
{
    cr_assert_fail("seed %llu, operation %llu: %s", (unsigned long long)m->seed,
                   (unsigned long long)m->op, what);
}

/* ---- what came out, in the form of the twin ---- */

static void canonical_grant(const struct kvi_msg_grant *grant, struct kvt_twin_message *out)
{
    const struct kvi_rec_segment_grant *segments = kvi_wire_tail_const(grant, 0);
    const struct kvi_rec_block_range *ranges = kvi_wire_tail_const(grant, 1);

    out->fields[0] = grant->space;
    out->fields[1] = grant->flags;
    out->fields[2] = grant->obtainable_blocks;
    for (uint32_t i = 0; i < grant->segment_count; i++) {
        out->items[out->item_count++] = segments[i].slot;
        out->items[out->item_count++] = segments[i].generation;
        out->items[out->item_count++] = segments[i].flags;
    }
    for (uint32_t i = 0; i < grant->range_count; i++)
        for (uint32_t b = 0; b < ranges[i].count; b++) {
            uint32_t index = ranges[i].first + b;
            uint64_t bit = UINT64_C(1) << index % 64;

            cr_assert(!(out->blocks[index / 64] & bit), "a block is granted twice");
            out->blocks[index / 64] |= bit;
        }
}

static void copy_items(const void *records, uint32_t words, struct kvt_twin_message *out)
{
    memcpy(out->items, records, words * sizeof(uint32_t));
    out->item_count = words;
}

static void add_fences(const struct kvi_rec_fence *fences, uint32_t count,
                       struct kvt_twin_message *out)
{
    for (uint32_t i = 0; i < count; i++) {
        out->items[out->item_count++] = fences[i].timeline;
        out->items[out->item_count++] = fences[i].kind;
        out->items[out->item_count++] = (uint32_t)fences[i].value;
    }
}

static void canonical(const struct kvt_sent *sent, struct kvt_twin_message *out)
{
    const void *message = sent->message;
    const struct kvi_header *header = message;

    memset(out, 0, sizeof(*out));
    out->client = sent->client;
    out->opcode = header->opcode;
    out->serial = header->serial;
    if (header->opcode == KVI_OP_GRANT) {
        canonical_grant(message, out);
    } else if (header->opcode == KVI_OP_ERROR) {
        out->code = ((const struct kvi_msg_error *)message)->code;
        out->fields[0] = ((const struct kvi_msg_error *)message)->opcode;
    } else if (header->opcode == KVI_OP_DONE) {
        out->fields[0] = ((const struct kvi_msg_done *)message)->opcode;
    } else if (header->opcode == KVI_OP_SPACE_OPENED) {
        const struct kvi_msg_space_opened *opened = message;

        out->fields[0] = opened->space;
        out->fields[1] = opened->blocks_per_segment;
        out->fields[2] = opened->segment_bytes;
        out->fields[3] = opened->obtainable_blocks;
        out->fields[4] = opened->segment_limit;
        out->fields[5] = opened->device;
    } else if (header->opcode == KVI_OP_SEGMENT_FDS) {
        out->fields[0] = ((const struct kvi_msg_segment_fds *)message)->space;
        copy_items(kvi_wire_tail_const(message, 0), sent->segment_count * 2, out);
    } else if (header->opcode == KVI_OP_LOOKUP_REPLY) {
        const struct kvi_msg_lookup_reply *reply = message;

        out->fields[0] = reply->space;
        out->fields[1] = reply->hit_count;
        out->fields[2] = reply->foreign_hits;
        out->fields[3] = reply->fence_count;
        copy_items(kvi_wire_tail_const(message, 0), reply->record_count * 2, out);
        add_fences(kvi_wire_tail_const(message, 1), reply->fence_count, out);
    } else if (header->opcode == KVI_OP_PUBLISH_REPLY) {
        const struct kvi_msg_publish_reply *reply = message;

        out->fields[0] = reply->space;
        copy_items(kvi_wire_tail_const(message, 0), reply->record_count, out);
    } else if (header->opcode == KVI_OP_TIMELINE_FD) {
        out->fields[0] = ((const struct kvi_msg_timeline_fd *)message)->timeline;
        out->fields[1] = ((const struct kvi_msg_timeline_fd *)message)->client;
    } else if (header->opcode == KVI_OP_PIN_REPLY) {
        out->fields[0] = ((const struct kvi_msg_pin_reply *)message)->pinned_count;
    } else if (header->opcode == KVI_OP_PRESSURE) {
        const struct kvi_msg_pressure *pressure = message;

        out->fields[0] = pressure->deadline_ns;
        out->fields[1] = pressure->space;
        out->fields[2] = pressure->segment_count;
    } else if (header->opcode == KVI_OP_SEGMENT_GONE) {
        const struct kvi_msg_segment_gone *gone = message;

        out->fields[0] = gone->space;
        out->fields[1] = gone->slot;
        out->fields[2] = gone->generation;
    }
}

static void print_message(const char *who, const struct kvt_twin_message *m)
{
    fprintf(stderr, "%s: %s to %u serial %u code %d fields %llu %llu %llu %llu %llu items", who,
            kvi_wire_name(m->opcode), m->client, m->serial, m->code,
            (unsigned long long)m->fields[0], (unsigned long long)m->fields[1],
            (unsigned long long)m->fields[2], (unsigned long long)m->fields[3],
            (unsigned long long)m->fields[4]);
    for (uint32_t i = 0; i < m->item_count; i++)
        fprintf(stderr, " %u", m->items[i]);
    fprintf(stderr, " blocks");
    for (uint32_t i = 0; i < sizeof(m->blocks) * 8; i++)
        if (m->blocks[i / 64] >> i % 64 & 1)
            fprintf(stderr, " %u", i);
    fprintf(stderr, "\n");
}

static void compare_stats(struct model *m)
{
    struct kvi_msg_stats_reply came, wanted;
    char text[256];

    memset(&came, 0, sizeof(came));
    kvi_dir_stats(m->world->dir, &came);
    kvt_twin_stats(&m->twin, &wanted);
    wanted.granule_bytes = came.granule_bytes;
    wanted.uptime_ns = came.uptime_ns;
    if (memcmp(&came, &wanted, sizeof(came)) != 0) {
        const uint64_t *a = (const void *)&came, *b = (const void *)&wanted;

        for (size_t i = 2; i < sizeof(came) / 8; i++)
            if (a[i] != b[i])
                fprintf(stderr, "stats_reply field %zu: %llu, the twin says %llu\n", i - 2,
                        (unsigned long long)a[i], (unsigned long long)b[i]);
        failed(m, "the counters differ");
    }
    for (uint32_t d = 0; d < m->twin.device_count; d++)
        if (m->world->device_bytes[d] + kvt_twin_free_bytes(&m->twin, d) != m->twin.device_bytes[d])
            failed(m, "the backend holds something else");
    if (kvi_dir_check(m->world->dir, text, sizeof(text)) != 0)
        failed(m, text);
}

static void compare_messages(struct model *m)
{
    struct kvt_twin_message came;
    uint32_t count =
        m->world->sent_count > m->twin.wanted_count ? m->world->sent_count : m->twin.wanted_count;

    for (uint32_t i = 0; i < count; i++) {
        memset(&came, 0, sizeof(came));
        if (i < m->world->sent_count)
            canonical(&m->world->sent[i], &came);
        if (i < m->world->sent_count && i < m->twin.wanted_count &&
            memcmp(&came, &m->twin.wanted[i], sizeof(came)) == 0) {
            sum_refused += came.opcode == KVI_OP_ERROR;
            continue;
        }
        if (i < m->world->sent_count)
            print_message("came", &came);
        if (i < m->twin.wanted_count)
            print_message("twin", &m->twin.wanted[i]);
        compare_stats(m);
        failed(m, "the messages differ");
    }
    m->twin.wanted_count = 0;
}

/* ---- operations ---- */

static uint32_t told(struct model *m, uint32_t client)
{
    return m->world->fds_told[client];
}

static int pick_client(struct model *m)
{
    uint32_t first = pick(m, KVT_TWIN_CLIENTS);

    for (uint32_t i = 0; i < KVT_TWIN_CLIENTS; i++)
        if (m->twin.clients[(first + i) % KVT_TWIN_CLIENTS].state == KVT_TWIN_ALIVE)
            return (int)((first + i) % KVT_TWIN_CLIENTS);
    return -1;
}

/* Mostly a space that the client has open. */
static uint32_t pick_space(struct model *m, uint32_t client, uint32_t *space)
{
    *space = pick(m, KVT_TWIN_SPACES);
    for (uint32_t i = 0; i < KVT_TWIN_SPACES && m->twin.clients[client].opened[*space] == 0; i++)
        *space = (*space + 1) % KVT_TWIN_SPACES;
    return kvt_twin_space_id(&m->twin, *space) + (pick(m, 200) == 0 ? 256 : 0);
}

/* Mostly a segment of the space, of the client's own if `is_own`. */
static void pick_segment(struct model *m, uint32_t client, uint32_t space, int is_own,
                         uint32_t *slot, uint32_t *generation)
{
    uint32_t first = pick(m, m->granules);

    *slot = pick(m, 8);
    *generation = 1;
    if (pick(m, 20) == 0)
        return;
    for (uint32_t i = 0; i < m->granules; i++) {
        const struct kvt_twin_segment *s = &m->twin.segments[(first + i) % m->granules];

        if (s->state == KVI_SEGMENT_FREE || s->space != space ||
            (is_own && s->owner != (int)client))
            continue;
        *slot = s->slot;
        *generation = s->generation + (pick(m, 50) == 0);
        return;
    }
}

/* Indices of blocks that the client owns and has not published, or that it leases. */
static uint32_t pick_blocks(struct model *m, uint32_t client, uint32_t space, int is_leased,
                            uint32_t limit, uint32_t *indices)
{
    uint32_t first = pick(m, m->granules * KVT_TWIN_BLOCKS);
    uint32_t count = 0;

    for (uint32_t i = 0; i < m->granules * KVT_TWIN_BLOCKS && count < limit; i++) {
        uint32_t at = (first + i) % (m->granules * KVT_TWIN_BLOCKS);
        const struct kvt_twin_segment *s = &m->twin.segments[at / KVT_TWIN_BLOCKS];
        const struct kvt_twin_block *block = &s->blocks[at % KVT_TWIN_BLOCKS];

        if (s->state == KVI_SEGMENT_FREE || s->space != space ||
            at % KVT_TWIN_BLOCKS >= m->twin.spaces[space].block_count)
            continue;
        if (is_leased ? block->leases >> client & 1 : s->owner == (int)client && !block->is_entry)
            indices[count++] = kvt_twin_index(&m->twin, s, at % KVT_TWIN_BLOCKS);
    }
    while (count < limit && (count == 0 || pick(m, 30) == 0))
        indices[count++] = pick(m, m->granules * 4);
    return count;
}

static void op_join(struct model *m)
{
    uint32_t version = pick(m, 6) == 0 ? 1 : KVI_PROTOCOL_VERSION;
    uint32_t twin = kvt_twin_join(&m->twin, version);
    uint32_t client = kvt_join_old(m->world, KVMEM_ROLE_LEADER, version);

    if (twin != client)
        failed(m, "another client number");
    kvt_forget(m->world); /* the welcome */
}

static void op_open(struct model *m, uint32_t client)
{
    static const char *const names[] = {"a", "b", "c", "d", "a@other"};
    static const enum kvt_geometry shapes[] = {KVT_SMALL, KVT_LARGE, KVT_SINGLE, KVT_TINY,
                                               KVT_SMALL};
    static const uint32_t blocks[] = {4, 8, 8, 1}; /* of a segment, by geometry */
    uint32_t name = pick(m, 5), is_other = name == 4;
    enum kvt_geometry geometry = shapes[name];
    uint64_t quota = name == 2 ? 5 * KVT_GRANULE_BYTES : 0;
    uint32_t device = pick(m, 3) == 0 ? 1 + pick(m, m->twin.device_count) : 0;
    uint32_t serial;

    if (pick(m, 40) == 0)
        device = 3;
    if (pick(m, 20) == 0)
        geometry = (enum kvt_geometry)pick(m, 4);
    if (pick(m, 20) == 0)
        quota = 6 * KVT_GRANULE_BYTES;
    serial = kvt_open_with(m->world, client, names[name], geometry, quota, device << 8);
    kvt_twin_open(&m->twin, client, told(m, client), serial, is_other ? 0 : name, is_other,
                  blocks[geometry], geometry == KVT_LARGE ? 12288 : 4096, quota, device);
}

static void op_request(struct model *m, uint32_t client)
{
    uint32_t space, id = pick_space(m, client, &space);
    uint32_t want = pick(m, 4) == 0 ? 1 + pick(m, 40) : 1 + pick(m, 6);
    uint32_t flags = pick(m, 3) == 0 ? 0 : KVI_REQUEST_MAY_WAIT;
    uint32_t serial = kvt_request(m->world, client, id, want, flags);

    kvt_twin_request(&m->twin, client, told(m, client), serial, id, want, flags);
}

static void op_hand_in(struct model *m, uint32_t client)
{
    uint32_t space, id = pick_space(m, client, &space);
    uint32_t slot, generation, serial;

    pick_segment(m, client, space, 1, &slot, &generation);
    serial = kvt_hand_in(m->world, client, id, slot, generation);
    kvt_twin_hand_in(&m->twin, client, told(m, client), serial, id, slot, generation);
}

static void op_map(struct model *m, uint32_t client)
{
    uint32_t space, id = pick_space(m, client, &space);
    struct kvi_rec_segment_ref ref;
    uint32_t serial;

    pick_segment(m, client, space, 0, &ref.slot, &ref.generation);
    serial = kvt_map(m->world, client, id, 1, &ref);
    kvt_twin_map(&m->twin, client, told(m, client), serial, id, ref.slot, ref.generation);
}

static void op_unmapped(struct model *m, uint32_t client)
{
    uint32_t space, id = pick_space(m, client, &space);
    uint32_t slot, generation;

    pick_segment(m, client, space, 0, &slot, &generation);
    kvt_unmapped(m->world, client, id, slot, generation);
    kvt_twin_unmapped(&m->twin, client, told(m, client), id, slot, generation);
}

static uint32_t pick_names(struct model *m, uint32_t *names)
{
    uint32_t count = 1 + pick(m, 8);
    uint32_t first = pick(m, NAMES);

    for (uint32_t i = 0; i < count; i++)
        names[i] = pick(m, 12) == 0 ? pick(m, NAMES) : (first + i) % NAMES;
    return count;
}

static void op_publish(struct model *m, uint32_t client)
{
    uint32_t space, id = pick_space(m, client, &space);
    uint32_t names[8], indices[8], lanes[8];
    uint32_t count = pick_names(m, names);
    struct kvt_fence fences[8];
    uint64_t values[8];
    uint32_t serial;

    count = pick_blocks(m, client, space, 0, count, indices);
    for (uint32_t i = 0; i < count; i++) {
        lanes[i] = pick(m, KVT_TWIN_LANES);
        values[i] = pick(m, 2) == 0 ? 0 : m->twin.clients[client].reached[lanes[i]] + pick(m, 4);
        fences[i] = (struct kvt_fence){lanes[i], values[i]};
    }
    serial = kvt_publish_fenced(m->world, client, id, count, names, indices, fences);
    kvt_twin_publish(&m->twin, client, told(m, client), serial, id, count, names, indices, lanes,
                     values);
}

/* A kernel has run; of a process that is going, too. */
static void op_reach(struct model *m)
{
    uint32_t client = pick(m, KVT_TWIN_CLIENTS), lane = pick(m, KVT_TWIN_LANES);

    if (m->twin.clients[client].state == KVT_TWIN_FREE)
        return;
    m->twin.clients[client].reached[lane] += 1 + pick(m, 2);
    m->world->lanes[client][lane] = m->twin.clients[client].reached[lane];
}

/* Mostly of somebody who is there, or was until a moment ago. */
static void op_timeline(struct model *m, uint32_t client)
{
    uint32_t is_own = pick(m, 4) == 0;
    uint32_t session = m->twin.clients[pick(m, KVT_TWIN_CLIENTS)].session;
    uint32_t timeline = is_own ? 0 : session * 64 + pick(m, 64);
    uint32_t serial = kvt_timeline(m->world, client, timeline, is_own);

    kvt_twin_timeline(&m->twin, client, told(m, client), serial, timeline, is_own);
}

static void op_lookup(struct model *m, uint32_t client)
{
    uint32_t space, id = pick_space(m, client, &space);
    uint32_t flags = pick(m, 6) == 0 ? KVI_LOOKUP_PEEK : 0;
    uint32_t names[8];
    uint32_t count = pick_names(m, names);
    uint32_t serial = kvt_lookup(m->world, client, id, count, names, flags);

    kvt_twin_lookup(&m->twin, client, told(m, client), serial, id, count, names, flags);
}

static void op_release(struct model *m, uint32_t client)
{
    uint32_t space, id = pick_space(m, client, &space);
    uint32_t indices[16];
    uint32_t count = pick_blocks(m, client, space, 1, 1 + pick(m, 16), indices);
    uint32_t serial = kvt_release(m->world, client, id, count, indices);

    kvt_twin_release(&m->twin, client, told(m, client), serial, id, count, indices);
}

static void op_pin(struct model *m, uint32_t client)
{
    uint32_t space, id = pick_space(m, client, &space);
    uint64_t lifetime_ns = pick(m, 4) == 0 ? 0 : 1 + pick(m, 3000);
    uint32_t names[8], live = 0;
    uint32_t count = pick_names(m, names);
    const struct kvi_msg_pin_reply *reply;
    uint32_t serial;

    for (uint32_t p = 0; p < KVT_TWIN_PINS; p++)
        live += m->twin.pins[p].id != 0;
    if (live > 12)
        return;
    m->twin.new_pin = KVT_TWIN_PINS;
    serial = kvt_pin(m->world, client, id, count, names, lifetime_ns);
    kvt_twin_pin(&m->twin, client, told(m, client), serial, id, count, names, lifetime_ns);
    if (m->twin.new_pin == KVT_TWIN_PINS)
        return;
    reply = m->world->sent[0].message;
    if (m->world->sent_count == 0 || reply->header.opcode != KVI_OP_PIN_REPLY)
        failed(m, "no answer to pin");
    m->twin.pins[m->twin.new_pin].id = reply->pin;
}

static void op_unpin(struct model *m, uint32_t client)
{
    const struct kvt_twin_pin *pin = &m->twin.pins[pick(m, 16)];
    uint64_t id = pin->id == 0 ? 1 + pick(m, 1000) : pin->id;
    uint32_t serial = kvt_unpin(m->world, client, id);

    kvt_twin_unpin(&m->twin, client, told(m, client), serial, id);
}

static void op_close(struct model *m, uint32_t client)
{
    uint32_t space, id = pick_space(m, client, &space);
    uint32_t serial = kvt_close(m->world, client, id);

    kvt_twin_close(&m->twin, client, told(m, client), serial, id);
}

static void op_leave(struct model *m, uint32_t client)
{
    switch (pick(m, 3)) {
    case 0: {
        uint32_t serial = kvt_plain(m->world, client, KVI_OP_GOODBYE, 0);

        kvt_twin_goodbye(&m->twin, client, told(m, client), serial);
        break;
    }
    case 1:
        kvi_dir_client_eof(m->world->dir, client);
        kvt_twin_eof(&m->twin, client);
        break;
    default: kvi_dir_client_exited(m->world->dir, client); kvt_twin_exited(&m->twin, client);
    }
}

static void op_end(struct model *m)
{
    uint32_t client = pick(m, KVT_TWIN_CLIENTS);

    if (m->twin.clients[client].state == KVT_TWIN_GOODBYE) {
        kvi_dir_client_eof(m->world->dir, client);
        kvt_twin_eof(&m->twin, client);
    } else if (m->twin.clients[client].state == KVT_TWIN_GONE) {
        kvi_dir_client_exited(m->world->dir, client);
        kvt_twin_exited(&m->twin, client);
    } else if (m->twin.clients[client].state == KVT_TWIN_FREE) {
        op_join(m);
    }
}

static void op_created(struct model *m)
{
    struct kvt_world *world = m->world;
    uint32_t at;
    int code = 0;

    if (world->creating_count == 0)
        return;
    at = pick(m, world->creating_count);
    if (pick(m, 10) == 0)
        code = pick(m, 2) == 0 ? KVMEM_E_DEVICE_FULL : KVMEM_E_SYSTEM;
    kvt_twin_created(&m->twin, kvt_create_one(world, at, code), code);
}

static void op_tick(struct model *m)
{
    m->world->now_ns += pick(m, 600);
    m->twin.now_ns = m->world->now_ns;
    kvi_dir_tick(m->world->dir);
    kvt_twin_tick(&m->twin);
}

static void operate(struct model *m)
{
    uint32_t what = pick(m, 100);
    int client = pick_client(m);

    if (client < 0 || what < 2)
        op_end(m);
    else if (what < 4)
        op_open(m, (uint32_t)client);
    else if (what < 22)
        op_request(m, (uint32_t)client);
    else if (what < 32)
        op_hand_in(m, (uint32_t)client);
    else if (what < 50)
        op_publish(m, (uint32_t)client);
    else if (what < 62)
        op_lookup(m, (uint32_t)client);
    else if (what < 77)
        op_release(m, (uint32_t)client);
    else if (what < 79)
        op_map(m, (uint32_t)client);
    else if (what < 82)
        op_unmapped(m, (uint32_t)client);
    else if (what < 84)
        op_pin(m, (uint32_t)client);
    else if (what < 86)
        op_unpin(m, (uint32_t)client);
    else if (what < 93)
        op_created(m);
    else if (what < 95)
        op_tick(m);
    else if (what < 96 && pick(m, 4) == 0)
        op_timeline(m, (uint32_t)client);
    else if (what < 97)
        op_reach(m);
    else if (what < 98)
        m->world->is_silent[client] = pick(m, 4) == 0;
    else if (pick(m, 8) == 0)
        op_leave(m, (uint32_t)client);
    else if (pick(m, 8) == 0)
        op_close(m, (uint32_t)client);
}

/* ---- runs ---- */

static void add_to_sum(const struct model *m)
{
    sum.evicted_blocks += m->twin.totals.evicted_blocks;
    sum.evicted_segments += m->twin.totals.evicted_segments;
    sum.adopted_segments += m->twin.totals.adopted_segments;
    sum.refusals += m->twin.totals.refusals;
    sum.pressure_requests += m->twin.totals.pressure_requests;
    sum.pressure_missed += m->twin.totals.pressure_missed;
    sum.foreign_hit_blocks += m->twin.totals.foreign_hit_blocks;
    sum.orphaned_segments += m->twin.totals.orphaned_segments;
    sum_listed += m->twin.fences.listed;
    sum_cut += m->twin.fences.cut;
    sum_dropped += m->twin.fences.dropped;
    sum_renamed += m->twin.fences.renamed;
    sum_pages += m->twin.fences.pages;
    sum_second += m->twin.on_second;
    sum_moved += m->twin.moved;
    sum_tainted += m->twin.tainted;
}

static void drain_creations(struct model *m)
{
    while (m->world->creating_count > 0 && m->is_eager)
        op_created(m);
}

static void compare(struct model *m)
{
    compare_messages(m);
    compare_stats(m);
    kvt_forget(m->world);
}

static uint64_t run(uint64_t seed, uint64_t ops, int is_compared)
{
    static struct model model;
    struct model *m = &model;
    struct kvi_dir_options options;
    uint64_t digest;
    static const uint32_t fd_limits[] = {3, 8, 64};

    memset(m, 0, sizeof(*m));
    m->seed = seed;
    m->random = seed;
    m->granules = 9 + pick(m, 32);
    m->is_eager = pick(m, 3) != 0;
    options = kvt_dir_options(m->granules, KVT_TWIN_CLIENTS);
    options.devices[0].exit_proves_nothing = pick(m, 3) == 0;
    if (pick(m, 2) == 0) {
        uint32_t more = 6 + pick(m, 16);

        kvt_add_device(&options, more);
        m->granules += more;
    }
    options.unacked_fd_limit = fd_limits[pick(m, 3)];
    m->world = kvt_world_create(&options);
    m->world->random = seed;
    kvt_twin_init(&m->twin, &options, m->granules + 1, m->world->now_ns);
    for (m->op = 0; m->op < ops; m->op++) {
        operate(m);
        drain_creations(m);
        if (is_compared)
            compare(m);
        kvt_forget(m->world);
        m->twin.wanted_count = 0;
    }
    add_to_sum(m);
    digest = kvi_dir_digest(m->world->dir);
    cr_assert(kvt_world_destroy(m->world), "seed %llu: something leaked", (unsigned long long)seed);
    return digest;
}

static uint64_t number_of(const char *variable, uint64_t otherwise)
{
    const char *text = getenv(variable);

    return text ? strtoull(text, NULL, 0) : otherwise;
}

static void print_sums(uint64_t first, uint64_t last, uint64_t ops)
{
#define N(value) ((unsigned long long)(value))
    fprintf(stderr,
            "seeds %llu..%llu: %llu operations, %llu evicted, %llu adopted, %llu refused, "
            "%llu errors, %llu pressed, %llu missed, %llu foreign hits, %llu orphaned\n",
            N(first), N(last), N(ops), N(sum.evicted_blocks), N(sum.adopted_segments),
            N(sum.refusals), N(sum_refused), N(sum.pressure_requests), N(sum.pressure_missed),
            N(sum.foreign_hit_blocks), N(sum.orphaned_segments));
    fprintf(stderr,
            "fences: %llu listed, %llu hits cut, %llu entries dropped, %llu renamed, %llu pages\n",
            N(sum_listed), N(sum_cut), N(sum_dropped), N(sum_renamed), N(sum_pages));
    fprintf(stderr, "%llu spaces opened on the second device, %llu segments moved, %llu tainted\n",
            N(sum_second), N(sum_moved), N(sum_tainted));
#undef N
}

static void expect_events(void)
{
    cr_assert_geq(sum.evicted_blocks, 1000u);
    cr_assert_geq(sum.evicted_segments, 1000u);
    cr_assert_geq(sum.adopted_segments, 1000u);
    cr_assert_geq(sum.refusals, 1000u);
    cr_assert_geq(sum.pressure_missed, 100u);
    cr_assert_geq(sum.orphaned_segments, 100u);
    cr_assert_geq(sum_listed, 100u);
    cr_assert_geq(sum_cut, 5u);
    cr_assert_geq(sum_dropped, 100u);
    cr_assert_geq(sum_renamed, 5u);
    cr_assert_geq(sum_pages, 50u);
    cr_assert_geq(sum_second, 10u);
    cr_assert_geq(sum_moved, 100u);
    cr_assert_geq(sum_tainted, 50u);
}

Test(directory_model, does_what_its_twin_predicts, .timeout = 600)
{
    uint64_t ops = number_of("KVMEM_MODEL_OPS", DEFAULT_OPS);
    uint64_t seed = number_of("KVMEM_SEED", 0);
    uint64_t each = seed ? ops : 20000, done = 0;

    for (uint64_t s = seed ? seed : 1; done < ops; s++, done += each)
        run(s, each < ops - done ? each : ops - done, 1);
    print_sums(seed ? seed : 1, seed ? seed : done / each, done);
    cr_assert_geq(done, ops);
    if (!seed && ops >= 100000)
        expect_events();
}

Test(directory_model, the_same_seed_gives_the_same_digest, .timeout = 60)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        uint64_t first = run(seed, 5000, 0);

        cr_assert_eq(first, run(seed, 5000, 0), "seed %llu", (unsigned long long)seed);
        cr_assert_neq(first, run(seed + 1000, 5000, 0), "seed %llu", (unsigned long long)seed);
    }
}
