/* SPDX-License-Identifier: Apache-2.0
 *
 * SO_PEERPIDFD names the very process that connected. pidfd_open takes a number, which may belong
 * to another process by the time of the call; so we look afterwards whether credentials and the
 * process' user are still those of the connection and the connection is still open.
 */
#include "reclaim.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util/error.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5; newer than Debian 12's headers */
#endif

static int failed(int errno_value, const char *what)
{
    int code = KVMEM_E_SYSTEM;

    if (errno_value == EMFILE || errno_value == ENFILE || errno_value == ENOMEM)
        code = KVMEM_E_LIMIT;
    else if (errno_value == ESRCH || errno_value == EINVAL || errno_value == ENODATA)
        code = KVMEM_E_DAEMON_LOST; /* the other side, here: the peer was reaped */
    return kvi_error_sys(code, errno_value, "%s", what);
}

static int credentials(int fd, struct kvi_dir_peer *out)
{
    struct ucred peer;
    socklen_t bytes = sizeof(peer);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) < 0)
        return failed(errno, "SO_PEERCRED");
    *out = (struct kvi_dir_peer){.pid = (uint32_t)peer.pid, .uid = peer.uid, .gid = peer.gid};
    return 0;
}

int kvd_peer_pidfd_by_number(int fd, const struct kvi_dir_peer *identity, int *out_pidfd)
{
    struct pollfd socket_state = {.fd = fd, .events = POLLRDHUP};
    struct kvi_dir_peer again;
    struct stat status;
    char path[32];
    int pidfd;

    if (identity->pid == 0)
        return kvi_error_set(KVMEM_E_PERMISSION, "the peer is in another pid namespace, and this "
                                                 "kernel cannot say when it ends (SO_PEERPIDFD)");
    pidfd = (int)syscall(SYS_pidfd_open, (pid_t)identity->pid, 0);
    if (pidfd < 0)
        return failed(errno, "pidfd_open");
    snprintf(path, sizeof(path), "/proc/%u", identity->pid);
    if (credentials(fd, &again) == 0 && again.pid == identity->pid && again.uid == identity->uid &&
        stat(path, &status) == 0 && status.st_uid == identity->uid &&
        poll(&socket_state, 1, 0) == 0) {
        *out_pidfd = pidfd;
        return 0;
    }
    close(pidfd);
    return failed(ESRCH, "the peer left while it connected");
}

static int peer_pidfd(int fd, const struct kvi_dir_peer *identity, int *out_pidfd)
{
    socklen_t bytes = sizeof(*out_pidfd);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, out_pidfd, &bytes) == 0)
        return 0;
    if (errno == ENOPROTOOPT)
        return kvd_peer_pidfd_by_number(fd, identity, out_pidfd);
    return failed(errno, "SO_PEERPIDFD");
}

int kvd_peer_identify(int fd, struct kvd_peer *out)
{
    struct kvd_peer peer = {.pidfd = -1};
    int rc = credentials(fd, &peer.identity);

    if (rc < 0)
        return rc;
    if (peer.identity.uid != geteuid() && peer.identity.uid != 0)
        return kvi_error_set(KVMEM_E_PERMISSION, "user %u may not connect: only %u and root may",
                             peer.identity.uid, (unsigned)geteuid());
    rc = peer_pidfd(fd, &peer.identity, &peer.pidfd);
    if (rc < 0)
        return rc;
    *out = peer;
    return 0;
}
