/* SPDX-License-Identifier: Apache-2.0
 *
 * The client: a link, backends that import, an outbox and the opened spaces.
 *
 *   call      a request that the caller waits for; one at a time; matched by its serial
 *   event     whatever else arrives: taken in at once, in the order of arrival
 *   late      the reply to a call whose time limit passed; until it is there nothing is sent
 *             (what it says may contradict what we would send), and what it grants is given back
 *   lost      the daemon is gone or broke the protocol: for good. Calls that need it return
 *             DAEMON_LOST; owned and mapped memory stays; leases have nobody to be returned to.
 *
 * Ownership: the client has the link, its arrays, the backends that it made, and the spaces.
 * Every descriptor that arrives is counted, and consumed by the backend, handed to the mapper or
 * closed before the next message is received. Threads: one at a time; the mapper's helper touches
 * nothing here, and what it has done is taken in by dispatch and by whoever waits.
 */
#ifndef KVI_CLIENT_CLIENT_H
#define KVI_CLIENT_CLIENT_H

#include <kvmem/client.h>
#include <kvmem/stats.h>
#include <stdbool.h>

#include "backend/backend.h"
#include "client/device.h"
#include "client/guard.h"
#include "client/link.h"
#include "client/mapper.h"
#include "client/outbox.h"
#include "util/alloc.h"
#include "wire/protocol.h"

#define KVI_CLIENT_TIMEOUT_NS     INT64_C(5000000000)
#define KVI_CLIENT_OUTBOX_RECORDS 65536u
#define KVI_CLIENT_OUTBOX_MIN     1024u
#define KVI_CLIENT_OUTBOX_MAX     16777216u
#define KVI_CLIENT_LOOKUP_NAMES   1024u

struct kvmem_client {
    struct kvi_link *link;
    bool is_lost;
    bool is_observer;
    bool is_waiting;   /* for blocks, in a call with a time limit: it works and looks itself */
    bool is_abandoned; /* work that nobody waited for may be under way: see kvi_space_close */
    int64_t timeout_ns;

    uint32_t last_serial;
    uint32_t fds_received;
    bool owes_ack;        /* a grant goes on when the daemon knows that descriptors have arrived */
    uint32_t late_serial; /* of a call that timed out and is not answered yet, or 0 */
    int fds[KVI_MESSAGE_FDS]; /* of the message in rx; −1 once consumed */
    uint32_t fd_count;
    void *ask;                /* KVI_MESSAGE_BYTES each: the call being made, */
    void *tx;                 /* what the outbox sends, */
    void *rx;                 /* and what arrived last */
    struct kvi_rec_hit *hits; /* [KVI_CLIENT_LOOKUP_NAMES] of the lookup being made */
    struct kvi_rec_fence hit_fences[KVI_GUARD_POINTS]; /* that came with them */
    struct kvi_guard_builder builder;                  /* of the lookup or attach being made */

    void *status_page; /* NULL: nothing is shown */
    size_t status_bytes;
    struct kvi_outbox outbox;
    struct kvi_mapper *mapper;
    int epoll_fd; /* the link's and the helper's descriptors; −1 until it is asked for */
    struct kvi_fences fences;
    struct kvmem_space *spaces[KVI_SPACE_LIMIT + 1]; /* NULL where none is open, and the last */
    uint32_t space_high;                             /* places from here on were never used */

    struct kvi_msg_welcome welcome;
    struct kvi_devices devices;
    uint64_t messages_sent;
    uint64_t messages_received;
    uint64_t dispatches;
    uint64_t pressure_requests;
    uint64_t segments_imported;
    uint64_t stray_errors; /* refusals of what needs no answer */
    struct kvmem_client *next_abandoned;
    struct kvi_alloc alloc;
};

struct kvi_client_options {
    struct kvi_backend *backend;               /* the caller's, or NULL: made for each device */
    const char *name;                          /* NULL or at most 31 bytes */
    const struct kvmem_session_token *session; /* NULL: a new one */
    uint32_t role;
    uint32_t outbox_records; /* 0 = KVI_CLIENT_OUTBOX_RECORDS */
    int64_t timeout_ns;      /* 0 = KVI_CLIENT_TIMEOUT_NS */
    bool has_helper;
};

/* Say hello over `link`, which is consumed: closed with the client, and on failure. Codes of
 * kvmem_client_connect. */
int kvi_client_create(struct kvi_link *link, const struct kvi_alloc *alloc,
                      const struct kvi_client_options *options, struct kvmem_client **out);
void kvi_client_destroy(struct kvmem_client *client);

int kvi_client_dispatch(struct kvmem_client *client, int64_t timeout_ns);
int kvi_client_check(const struct kvmem_client *client);

/* What polls readable when dispatch has something to do: the link's descriptor; with a helper, an
 * epoll of that and the helper's eventfd, made when it is first asked for. SYSTEM. */
int kvi_client_poll_fd(struct kvmem_client *client);

/* ---- calls ---- */

/* Begin a call in client->ask. */
void *kvi_client_begin(struct kvmem_client *client, enum kvi_opcode opcode);

/* Send the outbox, then the message in client->ask, and wait for its answer: 0 and *reply (in
 * client->rx, until the next receive), or the code of the error that answered, DAEMON_LOST,
 * TIMED_OUT, PROTOCOL. */
int kvi_client_call(struct kvmem_client *client, enum kvi_opcode expected, const void **reply);

/* Send the message in client->ask without waiting for an answer: 0, TIMED_OUT (no room now),
 * DAEMON_LOST. */
int kvi_client_post(struct kvmem_client *client, void *message, int64_t timeout_ns);

/* Take in at most one message, waiting until `deadline_ns` (0: not at all), or until the helper
 * has finished something, which is taken in first. A client that is_waiting looks for some time
 * before it sleeps. 1, 0 (none), DAEMON_LOST, PROTOCOL. */
int kvi_client_pump(struct kvmem_client *client, int64_t deadline_ns);

/* Act on the message in client->rx that answers no call (handle.c). 0 or a code. */
int kvi_client_handle(struct kvmem_client *client);

/* 0, or DAEMON_LOST with its text. */
int kvi_client_is_lost(const struct kvmem_client *client);

/* The daemon is gone, or said what it must not: returns `code`, which was set by the caller. */
int kvi_client_lose(struct kvmem_client *client, int code);

/* PROTOCOL with `what`; the client is lost. */
int kvi_client_protocol(struct kvmem_client *client, const char *what);

/* The descriptor of the message in rx that comes next; −1 when there is none. The caller owns it.
 */
int kvi_client_steal_fd(struct kvmem_client *client);

/* The opened space with this id, or NULL. */
struct kvmem_space *kvi_client_space(const struct kvmem_client *client, uint32_t id);

/* CLOCK_MONOTONIC. */
int64_t kvi_client_now_ns(void);

/* `timeout_ns` from now, INT64_MAX at most; 0 (do not wait) for 0 and less. */
int64_t kvi_client_deadline_ns(int64_t timeout_ns);

#endif
