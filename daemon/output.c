/* SPDX-License-Identifier: Apache-2.0
 *
 * The output queue: a list in the order of sending.
 */
#include "output.h"

#include <string.h>
#include <unistd.h>

#include "util/error.h"
#include "wire/socket.h"

struct kvd_output_message {
    struct kvd_output_message *next;
    uint32_t bytes;
    uint32_t fd_count;
    int fds[KVI_MESSAGE_FDS];
    unsigned char datagram[];
};

static void close_all(const int *fds, uint32_t fd_count)
{
    for (uint32_t i = 0; i < fd_count; i++)
        close(fds[i]);
}

/* 1 = sent, 0 = the socket takes nothing now, or a code. */
static int send_now(int socket, const void *datagram, size_t bytes, const int *fds,
                    uint32_t fd_count)
{
    int rc = kvi_socket_send_dup(socket, datagram, bytes, fds, fd_count);

    if (rc == KVI_SOCKET_END)
        return kvi_error_set(KVMEM_E_DAEMON_LOST, "nobody reads at the other end");
    if (rc == KVI_SOCKET_AGAIN)
        return 0;
    return rc < 0 ? rc : 1;
}

static int enqueue(struct kvd_output *output, const void *datagram, size_t bytes, const int *fds,
                   uint32_t fd_count)
{
    struct kvd_output_message *message;

    if (output->message_count == KVD_OUTPUT_MESSAGES ||
        bytes > KVD_OUTPUT_BYTES - output->message_bytes)
        return kvi_error_set(KVMEM_E_LIMIT, "it does not read: %u messages, %u bytes wait for it",
                             output->message_count, output->message_bytes);
    message = kvi_allocate(output->alloc, sizeof(*message) + bytes);
    if (message == NULL)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "output queue, %zu bytes", bytes);
    message->bytes = (uint32_t)bytes;
    message->fd_count = fd_count;
    if (fd_count > 0)
        memcpy(message->fds, fds, fd_count * sizeof(int));
    memcpy(message->datagram, datagram, bytes);
    if (output->last != NULL)
        output->last->next = message;
    else
        output->first = message;
    output->last = message;
    output->message_count++;
    output->message_bytes += message->bytes;
    return 0;
}

static void drop_first(struct kvd_output *output)
{
    struct kvd_output_message *message = output->first;

    close_all(message->fds, message->fd_count);
    output->first = message->next;
    if (output->first == NULL)
        output->last = NULL;
    output->message_count--;
    output->message_bytes -= message->bytes;
    kvi_release(output->alloc, message, sizeof(*message) + message->bytes);
}

int kvd_output_send_consume(struct kvd_output *output, int socket, const void *datagram,
                            size_t bytes, const int *fds, uint32_t fd_count)
{
    int rc = 0;

    if (!kvd_output_is_waiting(output))
        rc = send_now(socket, datagram, bytes, fds, fd_count);
    if (rc == 0) {
        rc = enqueue(output, datagram, bytes, fds, fd_count);
        if (rc == 0)
            return 0; /* the descriptors wait too */
    }
    close_all(fds, fd_count);
    return rc < 0 ? rc : 0;
}

int kvd_output_flush(struct kvd_output *output, int socket)
{
    while (kvd_output_is_waiting(output)) {
        const struct kvd_output_message *message = output->first;
        int rc =
            send_now(socket, message->datagram, message->bytes, message->fds, message->fd_count);

        if (rc <= 0)
            return rc;
        drop_first(output);
    }
    return 0;
}

void kvd_output_fini(struct kvd_output *output)
{
    while (kvd_output_is_waiting(output))
        drop_first(output);
}
