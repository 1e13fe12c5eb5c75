/* SPDX-License-Identifier: Apache-2.0
 *
 * The daemon's middle: the directory with the world that it asks for (struct kvi_dir_env), the
 * connections by client number, and time.
 *
 *   listener ─▶ connection ─▶ kvi_dir_message ─▶ env.send ─▶ connection ─▶ socket
 *                                            └─▶ env.segment_create ─▶ device
 *                                            └─▶ env.client_close ─▶ list of ending connections
 *
 * The directory may not be called from inside its own calls. So its callbacks only take down what
 * is wanted (memory, the end of a connection), and kvd_server_settle() carries it out after each
 * call from outside, until nothing is left to do.
 *
 *   connections in the table = clients of the directory
 *   awaiting_count = connections without a hello ≤ connections
 *
 * One thread runs everything here.
 */
#ifndef KVD_SERVER_H
#define KVD_SERVER_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "arena.h"
#include "devices.h"
#include "directory/directory.h"
#include "listener.h"
#include "loop.h"
#include "options.h"

struct kvd_connection;

#define KVD_BUFFER_BYTES   (KVI_MESSAGE_BYTES + 64u) /* one datagram, and that it was too long */
#define KVD_FDS_PER_CLIENT 68u /* 64 descriptors in its queue, socket, pidfd, two pages */
#define KVD_FDS_OWN        32u

struct kvd_server {
    const struct kvi_alloc *alloc;
    struct kvd_options options;
    struct kvd_loop *loop;
    struct kvd_devices *devices;
    struct kvi_dir *dir;
    struct kvd_listener listener;
    struct kvd_watch accept_watch;
    struct kvd_watch device_watch; /* of what the devices' workers have to say */
    struct kvd_watch signal_watch; /* of a signalfd; −1 before it is there */
    struct kvd_arena_pool arenas;
    struct kvd_connection *connections[KVI_CLIENT_LIMIT];
    struct kvd_connection *ending_first;
    struct kvd_connection *ending_last;
    uint32_t open_count; /* connections whose socket is open */
    uint32_t awaiting_count;
    size_t status_bytes;
    uint64_t resume_ns;         /* when to accept again; KVD_NEVER_NS: not paused */
    uint64_t drain_deadline_ns; /* KVD_NEVER_NS: not draining */
    bool is_short; /* of descriptors or memory: said once, until a connection is accepted */
    bool is_done;
    unsigned char *buffer; /* KVD_BUFFER_BYTES: the datagram that is being carried out */
};

/* Everything up to the listening socket. `signals` are blocked by the caller and end the daemon.
 * BUSY when another daemon serves the socket, LIMIT when fewer descriptors may be open than the
 * devices need, and what the parts answer; the detail says it. */
int kvd_server_create(const struct kvd_options *options, const sigset_t *signals,
                      struct kvd_server **out);

/* Serve until a signal ends it. 0, or SYSTEM. */
int kvd_server_run(struct kvd_server *server);

/* False when a device's driver holds on to a thread of ours: the process must end with _exit. NULL
 * is allowed. */
bool kvd_server_destroy(struct kvd_server *server);

/* ---- for connection.c ---- */

/* Carry out what the directory asked for. After each of its calls; may free connections. */
void kvd_server_settle(struct kvd_server *server);

/* kvd_server_settle() closes it. */
void kvd_server_push_ending(struct kvd_server *server, struct kvd_connection *connection);

/* Its processes are gone, or never had memory: the directory takes everything back; frees it. */
void kvd_server_reclaim(struct kvd_server *server, struct kvd_connection *connection);

#endif
