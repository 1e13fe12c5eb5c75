/* SPDX-License-Identifier: Apache-2.0
 *
 * A link to a daemon: one SEQPACKET socket, which is also what users poll. A receive that may wait
 * long sleeps in recvmsg itself, PATIENCE at a time, so that an answer costs one system call; the
 * rest of its time, and a send, wait in poll.
 *
 * What comes is copied in, checked, then handed out (DESIGN rule 15): after a datagram that does
 * not keep to the protocol, or brings another number of descriptors than its header says, the
 * descriptors are closed and the link is of no use any more.
 *
 * A send that finds the connection closed leaves what was received before to be read: the daemon's
 * reason for closing it may be there. Once receive has said DAEMON_LOST, it always will.
 *
 * One thread at a time. Not here: serials, replies, versions (client.c).
 */
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/link.h"
#include "util/error.h"
#include "wire/socket.h"

#define PATIENCE_NS INT64_C(100000000)

struct link_socket {
    struct kvi_link base;
    int fd;
    bool is_broken; /* the daemon broke the protocol; fd is shut down but stays pollable */
};

static struct link_socket *of(struct kvi_link *link)
{
    return (struct link_socket *)link;
}

static int lost(void)
{
    return kvi_error_set(KVMEM_E_DAEMON_LOST, "kvmemd has closed the connection");
}

static int socket_send(struct kvi_link *link, const void *message, int64_t timeout_ns)
{
    const struct kvi_header *header = message;
    uint64_t deadline = 0;
    int rc;

    for (;;) {
        rc = kvi_socket_send_dup(of(link)->fd, message, header->length_bytes, NULL, 0);
        if (rc == KVI_SOCKET_END)
            return lost();
        if (rc != KVI_SOCKET_AGAIN)
            return rc;
        if (deadline == 0)
            deadline = kvi_socket_deadline_ns(timeout_ns);
        rc = kvi_socket_wait(of(link)->fd, POLLOUT, deadline);
        if (rc == KVI_SOCKET_AGAIN)
            return kvi_error_set(KVMEM_E_TIMED_OUT,
                                 "kvmemd took no message for %" PRId64 " ms (%s waits)",
                                 timeout_ns / 1000000, kvi_wire_name(header->opcode));
        if (rc)
            return rc;
    }
}

/* A datagram has come. 1, or PROTOCOL. */
static int accept_datagram(struct link_socket *link, const void *buffer,
                           struct kvi_datagram *datagram, int *fds, uint32_t *fd_count)
{
    char text[160] = "";

    if (kvi_wire_check(buffer, datagram->bytes, datagram->fd_count, KVI_TO_CLIENT, text,
                       sizeof(text)) != KVI_WIRE_OK) {
        kvi_socket_close_fds(datagram->fds, datagram->fd_count);
        shutdown(link->fd, SHUT_RDWR);
        link->is_broken = true;
        return kvi_error_set(KVMEM_E_PROTOCOL, "kvmemd sent %s", text);
    }
    for (uint32_t i = 0; i < datagram->fd_count; i++)
        fds[i] = datagram->fds[i];
    *fd_count = datagram->fd_count;
    return 1;
}

/* 0, AGAIN after a wait, END, SYSTEM, PROTOCOL. */
static int receive_by(int fd, void *buffer, size_t limit, uint64_t deadline_ns,
                      struct kvi_datagram *datagram)
{
    int rc;

    while (deadline_ns - kvi_socket_now_ns() >= (uint64_t)PATIENCE_NS &&
           kvi_socket_now_ns() < deadline_ns) {
        rc = kvi_socket_receive_patiently(fd, buffer, limit, datagram);
        if (rc != KVI_SOCKET_AGAIN)
            return rc;
    }
    rc = kvi_socket_wait(fd, POLLIN, deadline_ns);
    return rc ? rc : kvi_socket_receive(fd, buffer, limit, datagram);
}

static int socket_receive(struct kvi_link *link, void *buffer, size_t limit, int *fds,
                          uint32_t *fd_count, int64_t timeout_ns)
{
    struct kvi_datagram datagram;
    int fd = of(link)->fd;
    int rc;

    *fd_count = 0;
    if (of(link)->is_broken)
        return lost();
    if (timeout_ns <= 0)
        rc = kvi_socket_receive(fd, buffer, limit, &datagram);
    else
        rc = receive_by(fd, buffer, limit, kvi_socket_deadline_ns(timeout_ns), &datagram);
    if (rc == 0)
        return accept_datagram(of(link), buffer, &datagram, fds, fd_count);
    if (rc == KVI_SOCKET_END)
        return lost();
    return rc < 0 ? rc : 0;
}

static int socket_poll_fd(const struct kvi_link *link)
{
    return ((const struct link_socket *)link)->fd;
}

static void socket_close(struct kvi_link *link)
{
    close(of(link)->fd);
    free(link);
}

static const struct kvi_link_ops socket_ops = {socket_send, socket_receive, socket_poll_fd,
                                               socket_close};

int kvi_link_from_socket_consume(int fd, struct kvi_link **out)
{
    struct link_socket *link;
    int rc = kvi_socket_set_patience(fd, PATIENCE_NS);

    if (rc) {
        close(fd);
        return rc;
    }
    link = calloc(1, sizeof(*link));
    if (!link) {
        close(fd);
        return kvi_error_set(KVMEM_E_NO_MEMORY, "no memory for a link");
    }
    link->base.ops = &socket_ops;
    link->fd = fd;
    *out = &link->base;
    return 0;
}

int kvi_link_connect(const char *socket_path, int64_t timeout_ns, struct kvi_link **out)
{
    int fd = kvi_socket_connect(socket_path, kvi_socket_deadline_ns(timeout_ns));

    return fd < 0 ? fd : kvi_link_from_socket_consume(fd, out);
}
