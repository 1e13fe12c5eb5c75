/* SPDX-License-Identifier: Apache-2.0
 *
 * Datagrams with descriptors over SOCK_SEQPACKET Unix sockets, for both ends.
 *
 * Codes: negative as everywhere, with the detail set; positive values are conditions that the
 * caller handles. Whoever receives descriptors owns them. Nothing here raises SIGPIPE.
 */
#ifndef KVI_WIRE_SOCKET_H
#define KVI_WIRE_SOCKET_H

#include <stddef.h>
#include <stdint.h>

#include "wire/protocol.h"

/* Conditions. */
#define KVI_SOCKET_AGAIN 1 /* nothing there, or no room; poll and try again */
#define KVI_SOCKET_END   2 /* the peer has closed the connection */

/* A received datagram. */
struct kvi_datagram {
    size_t bytes;
    uint32_t fd_count;
    int fds[KVI_MESSAGE_FDS]; /* the receiver's; close-on-exec */
};

/* Connect to the socket at `path`, waiting for a place in the listener's backlog until
 * `deadline_ns` (kvi_socket_now_ns()). Returns a non-blocking, close-on-exec descriptor that the
 * caller owns; INVALID (path empty or too long), DAEMON_LOST (nobody listens there), PERMISSION,
 * TIMED_OUT, SYSTEM. */
int kvi_socket_connect(const char *path, uint64_t deadline_ns);

/* Send `bytes` of `datagram` with copies of `fds` (0 .. KVI_MESSAGE_FDS of them; they stay the
 * caller's). Does not wait. 0, AGAIN (no room), END, or SYSTEM (ETOOMANYREFS: too many
 * descriptors in flight for this user). */
int kvi_socket_send_dup(int socket, const void *datagram, size_t bytes, const int *fds,
                        uint32_t fd_count);

/* Take one datagram of at most `limit` bytes into `buffer`. Does not wait. 0, AGAIN, END, SYSTEM;
 * PROTOCOL when it is longer than `limit` or brought more descriptors than fit or this process
 * may have: then all that came with it are closed and *out is empty. */
int kvi_socket_receive(int socket, void *buffer, size_t limit, struct kvi_datagram *out);

/* The same, but wait for it as long as kvi_socket_set_patience() said; then AGAIN. One system call
 * where poll and receive are two. */
int kvi_socket_receive_patiently(int socket, void *buffer, size_t limit, struct kvi_datagram *out);

/* Make the socket a blocking one whose receives wait `patience_ns`. 0 or SYSTEM. */
int kvi_socket_set_patience(int socket, int64_t patience_ns);

/* Wait until `socket` has any of the poll `events` (or has come to its end). 0, KVI_SOCKET_AGAIN
 * when `deadline_ns` has passed (checked once even if it has), SYSTEM. Restarts after signals. */
int kvi_socket_wait(int socket, short events, uint64_t deadline_ns);

/* Close `count` descriptors and set them to −1. */
void kvi_socket_close_fds(int *fds, uint32_t count);

/* CLOCK_MONOTONIC. */
uint64_t kvi_socket_now_ns(void);

/* `timeout_ns` from now: <= 0 is now, and what would overflow is UINT64_MAX, which never comes. */
uint64_t kvi_socket_deadline_ns(int64_t timeout_ns);

#endif
