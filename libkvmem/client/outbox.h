/* SPDX-License-Identifier: Apache-2.0
 *
 * The outbox: what the client has to say and needs no answer for now, in program order.
 *
 *        tail            sent              head
 *   ──────┼───────────────┼─────────────────┼──────▶
 *         │ publications  │ recorded, not   │ free
 *         │ not answered  │ sent yet        │
 *
 * One ring, allocated once. Runs of publications and releases of one space leave as one message.
 * A publication stays in the ring until its answer has come: the answer names it by position.
 * Users may fill `limit` records and check kvi_outbox_room() first; the ring is larger, so that
 * what must not fail (a hand-in, the release of a block whose publication was just answered)
 * finds a place.
 *
 * tail ≤ sent ≤ head ≤ tail + ring size; PUBLISHING blocks = publish records in [tail, head).
 * A release record whose block is not RELEASING when it is sent was taken back and is dropped.
 */
#ifndef KVI_CLIENT_OUTBOX_H
#define KVI_CLIENT_OUTBOX_H

#include <kvmem/types.h>

#include "util/alloc.h"
#include "wire/protocol.h"

struct kvmem_client;

enum kvi_outbox_kind {
    KVI_OUTBOX_NOTHING = 0, /* was taken back */
    KVI_OUTBOX_PUBLISH,
    KVI_OUTBOX_RELEASE,
    KVI_OUTBOX_HAND_IN,
    KVI_OUTBOX_UNMAPPED,
    KVI_OUTBOX_UNPIN,
    KVI_OUTBOX_SPACE_CLOSE
};

struct kvi_outbox_record {
    uint8_t bytes[32];   /* PUBLISH: the name; UNPIN: the pin in the first 8 */
    uint64_t fence;      /* PUBLISH: value << 6 | lane to reach before reading; 0 = none */
    uint32_t block;      /* PUBLISH, RELEASE: index; HAND_IN, UNMAPPED: slot */
    uint32_t generation; /* HAND_IN, UNMAPPED */
    uint32_t serial;     /* PUBLISH: of the message it left with */
    uint16_t space;      /* place in client->spaces; SPACE_CLOSE: see block (the id) */
    uint8_t kind;        /* enum kvi_outbox_kind */
    uint8_t reserved;
};

struct kvi_outbox {
    struct kvi_outbox_record *records;
    struct kvi_outbox_record ignored; /* what is appended once the daemon is lost */
    uint32_t mask;                    /* ring size − 1 */
    uint32_t limit;                   /* of users */
    uint64_t tail;
    uint64_t sent;
    uint64_t head;
};

/* NO_MEMORY. */
int kvi_outbox_init(struct kvi_outbox *outbox, const struct kvi_alloc *alloc, uint32_t limit);
void kvi_outbox_fini(struct kvi_outbox *outbox, const struct kvi_alloc *alloc);

/* Records that users may still append. */
static inline uint64_t kvi_outbox_room(const struct kvi_outbox *outbox)
{
    uint64_t used = outbox->head - outbox->tail;

    return used < outbox->limit ? outbox->limit - used : 0;
}

static inline struct kvi_outbox_record *kvi_outbox_at(const struct kvi_outbox *outbox, uint64_t at)
{
    return &outbox->records[at & outbox->mask];
}

/* Append a record, zeroed but for these. Never fails: when the whole ring is full it is sent
 * first, and a daemon that does not take it within the time limit is lost. */
struct kvi_outbox_record *kvi_outbox_append(struct kvmem_client *client, enum kvi_outbox_kind kind,
                                            uint32_t space, uint32_t block);

/* Send what is there, waiting for room until `deadline_ns` (0: not at all). 0 when all is sent,
 * TIMED_OUT, DAEMON_LOST. */
int kvi_outbox_flush(struct kvmem_client *client, int64_t deadline_ns);

/* Send everything and wait for all answers, at most until `deadline_ns`. */
int kvi_outbox_drain(struct kvmem_client *client, int64_t deadline_ns);

/* An answer to publications came (or an error for them: `reply` NULL, all refused). */
int kvi_outbox_answered(struct kvmem_client *client, uint32_t serial,
                        const struct kvi_msg_publish_reply *reply);

/* Is this the serial of the oldest publish message without an answer? */
int kvi_outbox_awaits(const struct kvi_outbox *outbox, uint32_t serial);

/* Forget the records of a space that is closed. */
void kvi_outbox_forget(struct kvi_outbox *outbox, uint32_t space);

#endif
