/* SPDX-License-Identifier: Apache-2.0
 *
 * Who a peer is, and a pidfd that says when it is gone. The end of a connection proves nothing:
 * a killed process' GPU work goes on after the socket's end of file (60 of 60), never after its
 * pidfd fired (FACTS). What a client may have written is used again only then.
 *
 * A connection belongs to the process that connected: when that is gone, it ends, whoever else
 * holds the socket.
 */
#ifndef KVD_RECLAIM_H
#define KVD_RECLAIM_H

#include "directory/directory.h"

struct kvd_peer {
    struct kvi_dir_peer identity;
    int pidfd; /* close-on-exec, the holder closes it */
};

/* The process behind a socket that was just accepted. PERMISSION when it is neither of our own
 * user nor root, DAEMON_LOST when it is gone already, LIMIT when we are out of fds, SYSTEM. */
int kvd_peer_identify(int fd, struct kvd_peer *out);

/* What kvd_peer_identify does on kernels without SO_PEERPIDFD (before 6.5). For its test. */
int kvd_peer_pidfd_by_number(int fd, const struct kvi_dir_peer *identity, int *out_pidfd);

#endif
