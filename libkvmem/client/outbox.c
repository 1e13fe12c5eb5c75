/* SPDX-License-Identifier: Apache-2.0
 *
 * The ring of things to say, and turning it into messages; see outbox.h.
 */
#include "client/outbox.h"

#include <assert.h>
#include <string.h>

#include "client/client.h"
#include "client/space.h"
#include "util/error.h"

#define HEADROOM      4096u /* records beyond the users' limit */
#define PUBLISH_LIMIT 1024u
#define RELEASE_LIMIT 8192u

int kvi_outbox_init(struct kvi_outbox *outbox, const struct kvi_alloc *alloc, uint32_t limit)
{
    uint32_t size = 1;

    memset(outbox, 0, sizeof(*outbox));
    while (size < limit + HEADROOM)
        size *= 2;
    outbox->records = kvi_allocate(alloc, (size_t)size * sizeof(*outbox->records));
    if (!outbox->records)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "no memory for %u outbox records", limit);
    outbox->mask = size - 1;
    outbox->limit = limit;
    return 0;
}

void kvi_outbox_fini(struct kvi_outbox *outbox, const struct kvi_alloc *alloc)
{
    kvi_release(alloc, outbox->records, ((size_t)outbox->mask + 1) * sizeof(*outbox->records));
    memset(outbox, 0, sizeof(*outbox));
}

/* The oldest records that need no answer leave the ring once they are sent. */
static void advance_tail(struct kvi_outbox *outbox)
{
    while (outbox->tail < outbox->sent &&
           kvi_outbox_at(outbox, outbox->tail)->kind != KVI_OUTBOX_PUBLISH)
        outbox->tail++;
    if (outbox->tail == outbox->head) /* empty: begin again where the ring is in the cache */
        outbox->tail = outbox->sent = outbox->head = 0;
}

struct kvi_outbox_record *kvi_outbox_append(struct kvmem_client *client, enum kvi_outbox_kind kind,
                                            uint32_t space, uint32_t block)
{
    struct kvi_outbox *outbox = &client->outbox;
    struct kvi_outbox_record *record;

    if (outbox->head - outbox->tail > outbox->mask && !client->is_lost) {
        kvi_outbox_flush(client, kvi_client_deadline_ns(client->timeout_ns));
        if (outbox->head - outbox->tail > outbox->mask && !client->is_lost)
            kvi_client_lose(client, kvi_error_set(KVMEM_E_DAEMON_LOST,
                                                  "the daemon does not take what is sent"));
    }
    record = client->is_lost ? &outbox->ignored : kvi_outbox_at(outbox, outbox->head++);
    memset(record, 0, sizeof(*record));
    record->kind = (uint8_t)kind;
    record->space = (uint16_t)space;
    record->block = block;
    return record;
}

/* What is to be reached before others read the block, unless it is already. */
static void set_fence(const struct kvmem_client *client, uint64_t fence,
                      struct kvi_rec_publication *row)
{
    uint32_t lane = fence % KVI_LANE_COUNT;
    uint64_t value = fence / KVI_LANE_COUNT;

    if (!value || kvi_lane_poll(&client->fences.own.lanes[lane], value) != KVI_LANE_PENDING)
        return;
    row->fence_kind = KVMEM_FENCE_TIMELINE;
    row->fence_lane = lane;
    row->fence_value = value;
}

/* Lay out the run of publications at `sent`. Returns the records that it takes. */
static uint64_t build_publish(struct kvmem_client *client, struct kvmem_space *space)
{
    struct kvi_outbox *outbox = &client->outbox;
    struct kvi_msg_publish *message = client->tx;
    uint64_t at = outbox->sent;
    struct kvi_rec_publication *rows;

    kvi_wire_begin(message, KVI_OP_PUBLISH, ++client->last_serial);
    message->space = space->id;
    rows = kvi_wire_tail(message, 0);
    for (; at < outbox->head && message->record_count < PUBLISH_LIMIT; at++) {
        struct kvi_outbox_record *record = kvi_outbox_at(outbox, at);
        struct kvi_rec_publication *row = &rows[message->record_count];

        if (record->kind != KVI_OUTBOX_PUBLISH || record->space != space->place)
            break;
        record->serial = message->header.serial;
        memset(row, 0, sizeof(*row));
        memcpy(row->name, record->bytes, sizeof(row->name));
        row->index = record->block;
        row->token_count = space->block_tokens;
        set_fence(client, record->fence, row);
        message->record_count++;
    }
    return at - outbox->sent;
}

/* The same for releases; a block leaves its state as it enters the message, once. */
static uint64_t build_release(struct kvmem_client *client, struct kvmem_space *space)
{
    struct kvi_outbox *outbox = &client->outbox;
    struct kvi_msg_release *message = client->tx;
    uint64_t at = outbox->sent;
    struct kvi_rec_index *rows;

    kvi_wire_begin(message, KVI_OP_RELEASE, 0);
    message->space = space->id;
    rows = kvi_wire_tail(message, 0);
    for (; at < outbox->head && message->index_count < RELEASE_LIMIT; at++) {
        const struct kvi_outbox_record *record = kvi_outbox_at(outbox, at);

        if (record->kind != KVI_OUTBOX_RELEASE || record->space != space->place)
            break;
        if (space->pool.state[record->block] != KVI_BLOCK_RELEASING)
            continue;
        kvi_pool_end_release(&space->pool, record->block);
        rows[message->index_count++].index = record->block;
    }
    return at - outbox->sent;
}

static void undo_release(struct kvmem_client *client, struct kvmem_space *space)
{
    const struct kvi_msg_release *message = client->tx;
    const struct kvi_rec_index *rows = kvi_wire_tail_const(message, 0);

    for (uint32_t i = 0; i < message->index_count; i++) {
        kvi_pool_lease(&space->pool, rows[i].index);
        kvi_pool_begin_release(&space->pool, rows[i].index);
    }
}

static void build_single(struct kvmem_client *client, const struct kvi_outbox_record *record)
{
    const struct kvmem_space *space = client->spaces[record->space];

    if (record->kind == KVI_OUTBOX_HAND_IN) {
        struct kvi_msg_segment_hand_in *message = client->tx;

        kvi_wire_begin(message, KVI_OP_SEGMENT_HAND_IN, 0);
        message->space = space->id;
        message->slot = record->block;
        message->generation = record->generation;
    } else if (record->kind == KVI_OUTBOX_UNMAPPED) {
        struct kvi_msg_segment_unmapped *message = client->tx;

        kvi_wire_begin(message, KVI_OP_SEGMENT_UNMAPPED, 0);
        message->space = space->id;
        message->slot = record->block;
        message->generation = record->generation;
    } else if (record->kind == KVI_OUTBOX_UNPIN) {
        struct kvi_msg_unpin *message = client->tx;

        kvi_wire_begin(message, KVI_OP_UNPIN, ++client->last_serial);
        memcpy(&message->pin, record->bytes, sizeof(message->pin));
    } else {
        struct kvi_msg_space_close *message = client->tx;

        kvi_wire_begin(message, KVI_OP_SPACE_CLOSE, ++client->last_serial);
        message->space = record->block;
    }
}

/* Send the run at `sent`. */
static int send_run(struct kvmem_client *client, int64_t timeout_ns)
{
    struct kvi_outbox *outbox = &client->outbox;
    const struct kvi_outbox_record *record = kvi_outbox_at(outbox, outbox->sent);
    struct kvmem_space *space = client->spaces[record->space];
    const struct kvi_msg_release *release = client->tx;
    uint64_t taken = 1;
    int is_release = record->kind == KVI_OUTBOX_RELEASE;
    int code = 0;

    if (record->kind == KVI_OUTBOX_PUBLISH)
        taken = build_publish(client, space);
    else if (is_release)
        taken = build_release(client, space);
    else if (record->kind != KVI_OUTBOX_NOTHING)
        build_single(client, record);
    if (record->kind != KVI_OUTBOX_NOTHING && (!is_release || release->index_count))
        code = kvi_client_post(client, client->tx, timeout_ns);
    if (code) {
        if (is_release)
            undo_release(client, space);
        return code;
    }
    outbox->sent += taken;
    advance_tail(outbox);
    return 0;
}

int kvi_outbox_flush(struct kvmem_client *client, int64_t deadline_ns)
{
    struct kvi_outbox *outbox = &client->outbox;
    int code = 0;

    if (client->is_lost)
        return kvi_client_is_lost(client);
    /* What a late answer says may contradict a record: wait for it (handle.c). */
    if (client->late_serial)
        return outbox->sent == outbox->head
                   ? 0
                   : kvi_error_set(KVMEM_E_TIMED_OUT, "an earlier call is not answered yet");
    while (!code && outbox->sent < outbox->head) {
        int64_t left_ns = deadline_ns ? deadline_ns - kvi_client_now_ns() : 0;

        code = send_run(client, left_ns > 0 ? left_ns : 0);
    }
    return code;
}

/* Take in a message. A helper's work that is over ends a wait as well: not the whole of it. */
static int pump_on(struct kvmem_client *client, int64_t deadline_ns)
{
    int code = kvi_client_pump(client, deadline_ns);

    while (code == 0 && deadline_ns && kvi_client_now_ns() < deadline_ns)
        code = kvi_client_pump(client, deadline_ns);
    return code;
}

int kvi_outbox_drain(struct kvmem_client *client, int64_t deadline_ns)
{
    struct kvi_outbox *outbox = &client->outbox;
    int code;

    while (client->late_serial && !client->is_lost) {
        code = pump_on(client, deadline_ns);
        if (code <= 0)
            return code ? code : kvi_error_set(KVMEM_E_TIMED_OUT, "a late answer did not come");
    }
    code = kvi_outbox_flush(client, deadline_ns);
    while (!code && outbox->tail < outbox->head) {
        code = pump_on(client, deadline_ns);
        if (code == 0)
            return kvi_error_set(KVMEM_E_TIMED_OUT, "publications are not answered in time");
        if (code > 0)
            code = kvi_outbox_flush(client, deadline_ns);
    }
    return code;
}

int kvi_outbox_awaits(const struct kvi_outbox *outbox, uint32_t serial)
{
    const struct kvi_outbox_record *record = kvi_outbox_at(outbox, outbox->tail);

    return outbox->tail < outbox->sent && record->kind == KVI_OUTBOX_PUBLISH &&
           record->serial == serial;
}

/* Records of the oldest message: publications in a row with its serial. */
static uint32_t run_length(const struct kvi_outbox *outbox, uint32_t serial)
{
    uint64_t at = outbox->tail;

    while (at < outbox->sent && kvi_outbox_at(outbox, at)->kind == KVI_OUTBOX_PUBLISH &&
           kvi_outbox_at(outbox, at)->serial == serial)
        at++;
    return (uint32_t)(at - outbox->tail);
}

int kvi_outbox_answered(struct kvmem_client *client, uint32_t serial,
                        const struct kvi_msg_publish_reply *reply)
{
    struct kvi_outbox *outbox = &client->outbox;
    const struct kvi_rec_state *states = reply ? kvi_wire_tail_const(reply, 0) : NULL;
    const struct kvmem_space *of;
    uint32_t count;

    if (!kvi_outbox_awaits(outbox, serial))
        return kvi_client_protocol(client, "an answer to a publish that was not sent");
    count = run_length(outbox, serial);
    of = client->spaces[kvi_outbox_at(outbox, outbox->tail)->space];
    if (reply && (reply->record_count != count || (of && of->id != reply->space)))
        return kvi_client_protocol(client, "a publish_reply that does not match its publish");
    for (uint32_t i = 0; i < count; i++) {
        /* The record's place is free before what it leads to is appended. */
        const struct kvi_outbox_record *record = kvi_outbox_at(outbox, outbox->tail++);
        struct kvmem_space *space = client->spaces[record->space];
        uint32_t block = record->block;

        if (space)
            kvi_space_published(space, block, states ? states[i].state : KVMEM_PUBLISH_REFUSED);
    }
    advance_tail(outbox);
    return 0;
}

void kvi_outbox_forget(struct kvi_outbox *outbox, uint32_t space)
{
    for (uint64_t at = outbox->tail; at < outbox->head; at++) {
        struct kvi_outbox_record *record = kvi_outbox_at(outbox, at);

        if (record->space != space || record->kind == KVI_OUTBOX_UNPIN ||
            record->kind == KVI_OUTBOX_SPACE_CLOSE)
            continue;
        record->space = KVI_SPACE_LIMIT; /* a place where no space ever is */
        if (at >= outbox->sent || record->kind != KVI_OUTBOX_PUBLISH)
            record->kind = KVI_OUTBOX_NOTHING;
    }
    advance_tail(outbox);
}
