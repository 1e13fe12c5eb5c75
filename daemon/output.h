/* SPDX-License-Identifier: Apache-2.0
 *
 * What is on its way to a client. Datagrams leave at once while the socket takes them; then they
 * wait here, in order, up to a limit. Who lets the limit be reached does not read: its connection
 * ends, nobody waits for it.
 *
 *   message_count ≤ KVD_OUTPUT_MESSAGES, message_bytes ≤ KVD_OUTPUT_BYTES
 *   descriptors here ≤ what the directory lets a client leave unacknowledged
 *
 * Messages are copied into the connection's arena; descriptors of a waiting message are ours
 * until it has left. Never blocks. One thread.
 */
#ifndef KVD_OUTPUT_H
#define KVD_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/alloc.h"

#define KVD_OUTPUT_MESSAGES 512u
#define KVD_OUTPUT_BYTES    (4u * 1024u * 1024u)

struct kvd_output_message;

struct kvd_output {
    const struct kvi_alloc *alloc;
    struct kvd_output_message *first;
    struct kvd_output_message *last;
    uint32_t message_count;
    uint32_t message_bytes;
};

/* Send or queue a datagram with `fd_count` descriptors, which are closed in every case once they
 * are not needed any more. 0; LIMIT when the queue is full, DAEMON_LOST when nobody is at the
 * other end, NO_MEMORY, SYSTEM: then the connection must end, a message is missing. */
int kvd_output_send_consume(struct kvd_output *output, int socket, const void *datagram,
                            size_t bytes, const int *fds, uint32_t fd_count);

/* Send what waits, as far as the socket takes it. The same codes. */
int kvd_output_flush(struct kvd_output *output, int socket);

static inline bool kvd_output_is_waiting(const struct kvd_output *output)
{
    return output->first != NULL;
}

/* Give up what waits. */
void kvd_output_fini(struct kvd_output *output);

#endif
