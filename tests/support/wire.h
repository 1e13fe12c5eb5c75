/* SPDX-License-Identifier: Apache-2.0
 *
 * A plain wire connection to a kvmemd: as an OBSERVER it asks what the daemon knows, as a LEADER
 * it is a client without the library that reads only when it is told to. Every failure ends the
 * test (kvt_die); support/raw_client.h is for those that expect failures.
 */
#ifndef KVT_WIRE_H
#define KVT_WIRE_H

#include <stdbool.h>

#include "client/link.h"

struct kvt_wire {
    struct kvi_link *link;
    uint32_t serial;
    uint32_t fds_received;
    uint32_t client; /* its number */
    uint64_t buffer[KVI_MESSAGE_BYTES / sizeof(uint64_t)];
};

/* Connect and say hello as `role` (enum kvmem_role). */
void kvt_wire_open(struct kvt_wire *wire, const char *socket_path, uint32_t role, const char *name);

/* Number and finish the message, and send it. */
void kvt_wire_send(struct kvt_wire *wire, void *message);

/* Send, then read until the reply, which must be `reply`; it lies in wire->buffer. */
const void *kvt_wire_ask(struct kvt_wire *wire, void *message, enum kvi_opcode reply);

/* Say goodbye and hang up. */
void kvt_wire_close(struct kvt_wire *wire);

/* ---- what an observer asks ---- */

void kvt_wire_stats(struct kvt_wire *wire, struct kvi_msg_stats_reply *out);

/* True when every invariant of the directory holds; else the violation is printed. */
bool kvt_wire_is_clean(struct kvt_wire *wire);

/* True when the client is there (alive, or not reclaimed yet). */
bool kvt_wire_client(struct kvt_wire *wire, uint32_t client, struct kvi_rec_client_info *out);

/* Segments whose owner is the client. */
uint32_t kvt_wire_owned_by(struct kvt_wire *wire, uint32_t client);

/* Poll the stats until `condition` holds for them; death after `timeout_ns`. */
void kvt_wire_wait(struct kvt_wire *wire, int (*condition)(const struct kvi_msg_stats_reply *stats),
                   const char *what, int64_t timeout_ns);

/* Sums over all clients. */
struct kvt_wire_sums {
    uint64_t clients, leases, fds_in_flight, owned_segments;
};
struct kvt_wire_sums kvt_wire_sums(struct kvt_wire *wire);

#endif
