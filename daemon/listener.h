/* SPDX-License-Identifier: Apache-2.0
 *
 * The socket in the file system: one kvmemd a path, proved by a lock on "<path>.lock" that the
 * kernel drops with its holder, whatever kills it. The lock file stays when the daemon goes
 * (removing one that another is about to lock would let two run); the socket does not.
 *
 *   lock free, nobody answers at the path  ──▶ its socket is taken over
 *   lock held, or somebody answers         ──▶ refused, naming path and pid
 */
#ifndef KVD_LISTENER_H
#define KVD_LISTENER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "options.h"

struct kvd_listener {
    int socket_fd;    /* −1 = closed */
    int directory_fd; /* the socket's directory, verified */
    int lock_fd;
    char path[KVD_SOCKET_PATH_BYTES];
    dev_t device; /* of the socket file, so that we remove no other */
    ino_t inode;
};

/* Lock, clear away, bind (mode 0600) and listen. BUSY when another serves the path, EXISTS when
 * something else is there, PERMISSION, SYSTEM. */
int kvd_listener_open(struct kvd_listener *listener, const char *path, bool is_private);

/* The next connection: a non-blocking, close-on-exec socket of the caller's; −1 with errno. */
int kvd_listener_accept(const struct kvd_listener *listener);

/* Accept no more and remove the socket, if it is still ours. Stopped is fine. */
void kvd_listener_stop(struct kvd_listener *listener);

/* Stop, and let go of the lock: another may serve the path. Closed is fine. */
void kvd_listener_close(struct kvd_listener *listener);

#endif
