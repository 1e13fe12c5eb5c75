/* SPDX-License-Identifier: Apache-2.0
 *
 * A client's connection, from accept to the proof that its process is gone.
 *
 *   OPEN ──end──▶ ENDING ──kvd_connection_close──▶ CLOSED ──pidfd, or nothing to wait for──▶ freed
 *
 *   OPEN     messages come and go
 *   ENDING   something asked for its end, perhaps the directory from inside a call; in the
 *            server's list of those to be closed once that call has returned
 *   CLOSED   the socket is closed, the directory knows (kvi_dir_client_eof); the client may
 *            still write what it has mapped
 *
 * Owns socket, pidfd, status page, timeline page and arena; lives in its arena itself. A fresh
 * datagram is read into the server's one buffer, so that an idle connection costs no buffer.
 * Descriptors from a client never reach our table: we offer no room for them, and the kernel says
 * that it dropped some (MSG_CTRUNC).
 */
#ifndef KVD_CONNECTION_H
#define KVD_CONNECTION_H

#include <stdbool.h>
#include <stdint.h>

#include "arena.h"
#include "loop.h"
#include "output.h"
#include "reclaim.h"
#include "status_page.h"
#include "timeline_page.h"

struct kvd_server;

enum kvd_connection_state {
    KVD_OPEN,
    KVD_ENDING,
    KVD_CLOSED
};

struct kvd_connection {
    struct kvd_server *server;
    struct kvd_arena *arena;
    uint32_t client; /* number in the directory */
    enum kvd_connection_state state;
    struct kvi_dir_peer peer;
    struct kvd_watch socket_watch; /* fd −1 once closed */
    struct kvd_watch exit_watch;   /* of the pidfd */
    struct kvd_status_page status;
    struct kvd_timeline_page timeline; /* once it, or a reader of its blocks, has asked */
    struct kvd_output output;
    uint64_t hello_deadline_ns; /* KVD_NEVER_NS once welcomed */
    bool may_hold_memory;       /* it was sent a segment, or has a timeline */
    bool said_goodbye;
    bool is_dead; /* its pidfd fired */
    int end_code; /* 0: nothing to complain about */
    char end_text[192];
    struct kvd_connection *next_ending;
};

/* A connection over `socket` of `peer`, added to the directory; takes both fds when it succeeds.
 * LIMIT, NO_MEMORY, SYSTEM. */
int kvd_connection_create(struct kvd_server *server, int socket, const struct kvd_peer *peer,
                          struct kvd_connection **out);

/* Close pidfd and pages, give the arena back. Only when the directory has freed its
 * number; in state CLOSED. */
void kvd_connection_destroy(struct kvd_connection *connection);

/* Send a datagram and close `fds`. A connection that is not open drops it; a failure ends it. */
void kvd_connection_send_consume(struct kvd_connection *connection, const void *datagram,
                                 size_t bytes, const int *fds, uint32_t fd_count);

/* Let it end: code 0 for an ordinary reason, else the log tells code and text. The first caller
 * counts. Safe inside calls of the directory. */
void kvd_connection_end(struct kvd_connection *connection, int code, const char *text);

/* The second half: send what still goes, close the socket. ENDING becomes CLOSED. */
void kvd_connection_close(struct kvd_connection *connection);

/* Close `socket` so that what was sent can still be read at the other end. */
void kvd_socket_close_consume(int socket);

#endif
