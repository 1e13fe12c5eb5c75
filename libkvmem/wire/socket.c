/* SPDX-License-Identifier: Apache-2.0
 *
 * SEQPACKET with descriptors. What is not obvious:
 *
 *   - The control buffer has room for KVI_MESSAGE_FDS descriptors and nothing more, not even the
 *     padding in which another one would fit: a peer that sends more is found out by MSG_CTRUNC.
 *     The kernel sets the same flag when this process has reached RLIMIT_NOFILE; it has then
 *     installed some of them, which are closed here.
 *   - MSG_CMSG_CLOEXEC, so that no descriptor is ever without close-on-exec.
 *   - A connection's end is a recvmsg of 0 bytes. When the peer left unread data behind, an
 *     ECONNRESET comes first, once, before datagrams that are still queued (a refusal and its
 *     reason, say): it is passed over. An empty datagram is taken for the end: no message is empty.
 *   - A full listener: connect() of a non-blocking Unix socket fails with EAGAIN and there is
 *     nothing to poll for. It is tried again every millisecond until the deadline.
 *
 * No state; any thread. Not here: what the bytes mean (protocol.c), who waits (client, daemon).
 */
#include "wire/socket.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "util/error.h"

#define NS_A_SECOND      UINT64_C(1000000000)
#define NS_A_MS          UINT64_C(1000000)
#define CONNECT_RETRY_NS NS_A_MS

uint64_t kvi_socket_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_A_SECOND + (uint64_t)now.tv_nsec;
}

uint64_t kvi_socket_deadline_ns(int64_t timeout_ns)
{
    uint64_t now = kvi_socket_now_ns();

    if (timeout_ns <= 0)
        return now;
    return now + (uint64_t)timeout_ns < now ? UINT64_MAX : now + (uint64_t)timeout_ns;
}

void kvi_socket_close_fds(int *fds, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (fds[i] >= 0)
            close(fds[i]);
        fds[i] = -1;
    }
}

/* ---- connecting ---- */

static int refused(const char *path, int errno_value)
{
    switch (errno_value) {
    case ENOENT:
    case ECONNREFUSED:
    case ENOTDIR:
        return kvi_error_sys(KVMEM_E_DAEMON_LOST, errno_value,
                             "no kvmemd listens at %s; start one or set KVMEM_SOCKET", path);
    case EACCES:
    case EPERM:
        return kvi_error_sys(KVMEM_E_PERMISSION, errno_value, "may not connect to %s", path);
    case EPROTOTYPE:
        return kvi_error_sys(KVMEM_E_DAEMON_LOST, errno_value,
                             "the socket at %s is not kvmemd's (not SOCK_SEQPACKET)", path);
    default: return kvi_error_sys(KVMEM_E_SYSTEM, errno_value, "connect to %s", path);
    }
}

static int connect_until(int fd, const struct sockaddr_un *address, uint64_t deadline_ns)
{
    static const struct timespec pause = {0, CONNECT_RETRY_NS};

    for (;;) {
        if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0)
            return 0;
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            return refused(address->sun_path, errno);
        if (kvi_socket_now_ns() >= deadline_ns)
            return kvi_error_set(KVMEM_E_TIMED_OUT, "kvmemd at %s accepts nobody",
                                 address->sun_path);
        nanosleep(&pause, NULL);
    }
}

int kvi_socket_connect(const char *path, uint64_t deadline_ns)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(path);
    int fd;
    int rc;

    if (length == 0 || length >= sizeof(address.sun_path))
        return kvi_error_set(KVMEM_E_INVALID, "socket_path: %zu bytes long, expected 1..%zu",
                             length, sizeof(address.sun_path) - 1);
    memcpy(address.sun_path, path, length);
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "socket");
    rc = connect_until(fd, &address, deadline_ns);
    if (rc) {
        close(fd);
        return rc;
    }
    return fd;
}

/* ---- datagrams ---- */

/* Room for the descriptors of one message, aligned as control messages are. */
union control {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(KVI_MESSAGE_FDS * sizeof(int))];
};

int kvi_socket_send_dup(int socket, const void *datagram, size_t bytes, const int *fds,
                        uint32_t fd_count)
{
    union control control;
    struct iovec iov = {.iov_base = (void *)(uintptr_t)datagram, .iov_len = bytes};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    ssize_t sent;

    if (fd_count > KVI_MESSAGE_FDS)
        return kvi_error_set(KVMEM_E_INVALID, "fd_count: %u is outside 0..%u", fd_count,
                             KVI_MESSAGE_FDS);
    if (fd_count) {
        memset(&control, 0, sizeof(control));
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(fd_count * sizeof(int));
        memcpy(CMSG_DATA(&control.header), fds, fd_count * sizeof(int));
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
    }
    do {
        sent = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (sent < 0 && errno == EINTR);
    if (sent >= 0)
        return 0; /* a datagram goes whole */
    if (errno == EAGAIN)
        return KVI_SOCKET_AGAIN;
    if (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN)
        return KVI_SOCKET_END;
    return kvi_error_sys(KVMEM_E_SYSTEM, errno, "sendmsg of %zu bytes, %u descriptors", bytes,
                         fd_count);
}

/* Put all descriptors of the control data into *out; no more can be in there than it has room. */
static void take_fds(struct msghdr *message, struct kvi_datagram *out)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        size_t count;

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        if (count > KVI_MESSAGE_FDS - out->fd_count)
            count = KVI_MESSAGE_FDS - out->fd_count;
        memcpy(&out->fds[out->fd_count], CMSG_DATA(c), count * sizeof(int));
        out->fd_count += (uint32_t)count;
    }
}

static ssize_t take_datagram(int socket, struct msghdr *message, int flags)
{
    bool was_reset = false;
    ssize_t got;

    for (;;) {
        got = recvmsg(socket, message, MSG_CMSG_CLOEXEC | flags);
        if (got < 0 && errno == ECONNRESET && !was_reset)
            was_reset = true;
        else if (got >= 0 || errno != EINTR)
            return got;
    }
}

static int receive(int socket, void *buffer, size_t limit, int flags, struct kvi_datagram *out)
{
    union control control;
    struct iovec iov = {.iov_base = buffer, .iov_len = limit};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = CMSG_LEN(KVI_MESSAGE_FDS * sizeof(int))};
    ssize_t got;

    out->bytes = 0;
    out->fd_count = 0;
    got = take_datagram(socket, &message, flags);
    if (got < 0 && errno == EAGAIN)
        return KVI_SOCKET_AGAIN;
    if (got < 0 && (errno == ECONNRESET || errno == ENOTCONN))
        return KVI_SOCKET_END;
    if (got < 0)
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "recvmsg");
    take_fds(&message, out);
    if (got > 0 && !(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
        out->bytes = (size_t)got;
        return 0;
    }
    kvi_socket_close_fds(out->fds, out->fd_count);
    out->fd_count = 0;
    if (message.msg_flags & MSG_TRUNC)
        return kvi_error_set(KVMEM_E_PROTOCOL, "a datagram of more than %zu bytes came", limit);
    if (message.msg_flags & MSG_CTRUNC)
        return kvi_error_set(KVMEM_E_PROTOCOL,
                             "a datagram came with more descriptors than %u, or than this process "
                             "may open (RLIMIT_NOFILE)",
                             KVI_MESSAGE_FDS);
    return KVI_SOCKET_END;
}

int kvi_socket_receive(int socket, void *buffer, size_t limit, struct kvi_datagram *out)
{
    return receive(socket, buffer, limit, MSG_DONTWAIT, out);
}

int kvi_socket_receive_patiently(int socket, void *buffer, size_t limit, struct kvi_datagram *out)
{
    return receive(socket, buffer, limit, 0, out);
}

int kvi_socket_set_patience(int socket, int64_t patience_ns)
{
    struct timeval patience = {.tv_sec = patience_ns / (int64_t)NS_A_SECOND,
                               .tv_usec = patience_ns % (int64_t)NS_A_SECOND / 1000};
    int flags = fcntl(socket, F_GETFL);

    if (flags < 0 || fcntl(socket, F_SETFL, flags & ~O_NONBLOCK) ||
        setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)))
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "SO_RCVTIMEO");
    return 0;
}

/* ---- waiting ---- */

/* Milliseconds for poll, rounded up so that it does not return just before the deadline. */
static int poll_ms(uint64_t deadline_ns)
{
    uint64_t now = kvi_socket_now_ns();
    uint64_t ms;

    if (deadline_ns == UINT64_MAX)
        return -1;
    if (deadline_ns <= now)
        return 0;
    ms = (deadline_ns - now + NS_A_MS - 1) / NS_A_MS;
    return ms > INT_MAX ? INT_MAX : (int)ms;
}

int kvi_socket_wait(int socket, short events, uint64_t deadline_ns)
{
    struct pollfd wait = {.fd = socket, .events = events};
    int rc;

    for (;;) {
        rc = poll(&wait, 1, poll_ms(deadline_ns));
        if (rc > 0)
            return 0;
        if (rc < 0 && errno != EINTR)
            return kvi_error_sys(KVMEM_E_SYSTEM, errno, "poll");
        if (kvi_socket_now_ns() >= deadline_ns)
            return KVI_SOCKET_AGAIN;
    }
}
