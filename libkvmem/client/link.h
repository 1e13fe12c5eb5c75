/* SPDX-License-Identifier: Apache-2.0
 *
 * A link carries datagrams between a client and a directory: over a socket to a daemon
 * (link_socket.c), or by function calls to a directory in the same process (link_embedded.c).
 * The client above it is the same code for both.
 *
 * Messages that come out of a link are checked (kvi_wire_check) and complete. Descriptors that
 * come along belong to the caller; all are close-on-exec.
 */
#ifndef KVI_CLIENT_LINK_H
#define KVI_CLIENT_LINK_H

#include <stddef.h>
#include <stdint.h>

#include "backend/backend.h"
#include "wire/protocol.h"

struct kvi_link;

struct kvi_link_ops {
    /* Send one finished message. Waits at most `timeout_ns` for room. 0, DAEMON_LOST, TIMED_OUT. */
    int (*send)(struct kvi_link *link, const void *message, int64_t timeout_ns);
    /* Take one message of at most `limit` bytes into `buffer` (8-aligned), its descriptors into
     * fds (KVI_MESSAGE_FDS of them). Waits at most `timeout_ns` (0: not at all).
     * 1 = one came, 0 = none, DAEMON_LOST, PROTOCOL. */
    int (*receive)(struct kvi_link *link, void *buffer, size_t limit, int *fds, uint32_t *fd_count,
                   int64_t timeout_ns);
    /* Polls readable when receive would return 1. */
    int (*poll_fd)(const struct kvi_link *link);
    void (*close)(struct kvi_link *link);
};

struct kvi_link {
    const struct kvi_link_ops *ops;
};

/* Connect to a daemon's socket. 0, INVALID (path too long), DAEMON_LOST (nobody listens there),
 * PERMISSION, SYSTEM. */
int kvi_link_connect(const char *socket_path, int64_t timeout_ns, struct kvi_link **out);

/* The same over a connected, non-blocking SEQPACKET socket, which is consumed. 0, NO_MEMORY. */
int kvi_link_from_socket_consume(int fd, struct kvi_link **out);

/* A directory and a host device of `device_bytes` (a multiple of the granule) in this process;
 * `granule_bytes` 0 = 64 KiB. 0, INVALID, NO_MEMORY, SYSTEM. */
int kvi_link_embed(uint64_t device_bytes, uint64_t granule_bytes, struct kvi_link **out);

/* The same over the GPU that the driver calls `ordinal`, whose granule is the driver's. Beside the
 * codes above NOT_SUPPORTED (no driver, or one that lacks something) and DEVICE_FULL. */
int kvi_link_embed_cuda(uint64_t device_bytes, uint32_t ordinal, struct kvi_link **out);

/* Default socket path: $KVMEM_SOCKET, else $XDG_RUNTIME_DIR/kvmem/kvmemd.sock, else
 * /run/kvmem/kvmemd.sock when root, else /run/user/UID/kvmem/kvmemd.sock. 0 or INVALID
 * (too long for a socket address). */
int kvi_socket_path(const char *option, char *path, size_t path_bytes);

#endif
