/* SPDX-License-Identifier: Apache-2.0
 *
 * A kvmemd of a test's own, in a fresh private runtime directory, and a plain wire connection to
 * it: as an OBSERVER it asks what the daemon knows, as a LEADER it is a client without the library
 * that reads only when it is told to. Every failure ends the test (kvt_die).
 */
#ifndef KVT_DAEMON_H
#define KVT_DAEMON_H

#include "client/link.h"
#include "support/spawn.h"

struct kvt_wire;

struct kvt_kvmemd {
    struct kvt_process process;
    char directory[96];
    char socket_path[112];
    char log_path[128]; /* stderr of the running daemon */
    char device_bytes[24];
    char granule_bytes[24];
    uint32_t starts;
    struct kvt_wire *wire; /* an observer, connected while the daemon runs */
};

/* Make the directory and start kvmemd with --device-bytes and --granule-bytes as given. */
void kvt_kvmemd_start(struct kvt_kvmemd *daemon, const char *device_bytes,
                      const char *granule_bytes);

/* Start another kvmemd on the same socket, after the one before has died. */
void kvt_kvmemd_restart(struct kvt_kvmemd *daemon);

/* SIGKILL, and wait for the exit. The dead socket stays. */
void kvt_kvmemd_kill(struct kvt_kvmemd *daemon);

/* All clients have left: see that nothing is held, owned, in flight or leaked any more and that
 * the directory is clean; then SIGTERM, exit status 0, and the directory is removed. */
void kvt_kvmemd_stop(struct kvt_kvmemd *daemon);

/* Remove the directory of a daemon that is dead. */
void kvt_kvmemd_remove(struct kvt_kvmemd *daemon);

/* ---- clients ---- */

/* Start tests/helpers/client_shell; returns its client number. `quota`: bytes as text, or NULL;
 * `refill`: blocks that it wants to have free, as text, or NULL. */
uint32_t kvt_shell_start_with(struct kvt_process *shell, const struct kvt_kvmemd *daemon,
                              const char *name, const char *space, const char *quota,
                              const char *refill);
uint32_t kvt_shell_start(struct kvt_process *shell, const struct kvt_kvmemd *daemon,
                         const char *name, const char *space);

/* Let it close its session, with as many fds and mappings as before, and exit with status 0. */
void kvt_shell_end(struct kvt_process *shell);

/* Ask a shell, and require "ok" or "error CODE ..." as the answer's beginning. The answer is in
 * static storage. */
const char *kvt_shell(struct kvt_process *shell, const char *beginning, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* ---- a connection ---- */

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

/* 1 when every invariant of the directory holds; else the violation is printed. */
bool kvt_wire_is_clean(struct kvt_wire *wire);

/* 1 when the client is there (alive, or not reclaimed yet). */
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
