/* SPDX-License-Identifier: Apache-2.0
 *
 * Everything happens in the verified directory: lock and socket are opened, looked at and
 * removed through its fd. Only bind and connect know no such thing; after bind we look through
 * the fd whether the socket landed there.
 */
#include "listener.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "clock.h"
#include "runtime_dir.h"
#include "util/error.h"

#define DYING_NS        KVD_SECOND_NS
#define DYING_PAUSE_NS  5000000L
#define LOCK_NAME_BYTES (KVD_SOCKET_PATH_BYTES + sizeof(".lock"))

static struct sockaddr_un address_of(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    memcpy(address.sun_path, path, strlen(path)); /* checked with the options: it fits */
    return address;
}

static int busy(const char *path, long pid)
{
    if (pid > 0)
        return kvi_error_set(KVMEM_E_BUSY,
                             "another kvmemd (pid %ld) serves %s: end it, or give another --socket",
                             pid, path);
    return kvi_error_set(KVMEM_E_BUSY, "another kvmemd serves %s: end it, or give another --socket",
                         path);
}

/* ---- the lock ---- */

static long pid_in(int lock_fd)
{
    char text[24] = "";

    return pread(lock_fd, text, sizeof(text) - 1, 0) > 0 ? strtol(text, NULL, 10) : 0;
}

static int lock_take(struct kvd_listener *listener)
{
    char name[LOCK_NAME_BYTES];
    struct stat status;
    int fd;
    int rc;

    snprintf(name, sizeof(name), "%s.lock", kvd_runtime_dir_name(listener->path));
    fd = openat(listener->directory_fd, name,
                O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0600);
    if (fd < 0)
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "lock file %s.lock", listener->path);
    if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode) || status.st_uid != geteuid()) {
        rc = kvi_error_set(KVMEM_E_PERMISSION, "%s.lock is no file of user %u", listener->path,
                           (unsigned)geteuid());
        goto fail_fd;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        rc = errno == EWOULDBLOCK
                 ? busy(listener->path, pid_in(fd))
                 : kvi_error_sys(KVMEM_E_SYSTEM, errno, "lock %s.lock", listener->path);
        goto fail_fd;
    }
    /* For whoever is refused; the lock itself is what counts. */
    if (ftruncate(fd, 0) == 0)
        dprintf(fd, "%ld\n", (long)getpid());
    listener->lock_fd = fd;
    return 0;

fail_fd:
    close(fd);
    return rc;
}

/* ---- what is at the path ---- */

/* Does somebody listen there? A full backlog counts. */
static int answer_test(const char *path, long *pid)
{
    struct sockaddr_un address = address_of(path);
    struct ucred peer = {0};
    socklen_t bytes = sizeof(peer);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int answers;

    if (fd < 0)
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "socket");
    answers = connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0 || errno == EAGAIN ||
              errno == EPROTOTYPE;
    if (answers && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0)
        *pid = peer.pid;
    close(fd);
    return answers;
}

/* We have the lock, so that whoever listens is no kvmemd that lives. It may be one that was
 * killed: the kernel takes an io_uring and the sockets that it watches down some milliseconds
 * after the process is gone. */
static int answer_test_again(const char *path, long *pid)
{
    uint64_t deadline_ns = kvd_now_ns() + DYING_NS;
    int rc = answer_test(path, pid);

    while (rc > 0 && kvd_now_ns() < deadline_ns) {
        nanosleep(&(struct timespec){.tv_nsec = DYING_PAUSE_NS}, NULL);
        rc = answer_test(path, pid);
    }
    return rc;
}

static int clear_away(struct kvd_listener *listener)
{
    const char *name = kvd_runtime_dir_name(listener->path);
    struct stat status;
    long pid = 0;
    int rc;

    if (fstatat(listener->directory_fd, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0
                               : kvi_error_sys(KVMEM_E_SYSTEM, errno, "socket %s", listener->path);
    if (!S_ISSOCK(status.st_mode))
        return kvi_error_set(KVMEM_E_EXISTS,
                             "%s exists and is no socket: remove it, or give "
                             "another --socket",
                             listener->path);
    rc = answer_test_again(listener->path, &pid);
    if (rc != 0)
        return rc < 0 ? rc : busy(listener->path, pid);
    if (unlinkat(listener->directory_fd, name, 0) < 0 && errno != ENOENT)
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "cannot remove the dead socket %s",
                             listener->path);
    return 0;
}

static int bind_and_listen(struct kvd_listener *listener)
{
    struct sockaddr_un address = address_of(listener->path);
    struct stat status;
    mode_t mask = umask(0177); /* mode 0600 from birth */
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int rc = fd < 0 ? -1 : bind(fd, (struct sockaddr *)&address, sizeof(address));

    umask(mask);
    if (rc < 0 ||
        fstatat(listener->directory_fd, kvd_runtime_dir_name(listener->path), &status,
                AT_SYMLINK_NOFOLLOW) < 0 ||
        listen(fd, SOMAXCONN) < 0) {
        rc = kvi_error_sys(KVMEM_E_SYSTEM, errno, "socket %s", listener->path);
        if (fd >= 0)
            close(fd);
        return rc;
    }
    listener->device = status.st_dev;
    listener->inode = status.st_ino;
    listener->socket_fd = fd;
    return 0;
}

/* ---- ---- */

int kvd_listener_open(struct kvd_listener *listener, const char *path, bool is_private)
{
    int rc;

    *listener = (struct kvd_listener){.socket_fd = -1, .directory_fd = -1, .lock_fd = -1};
    memcpy(listener->path, path, strlen(path));
    rc = kvd_runtime_dir_open(path, is_private, &listener->directory_fd);
    if (rc == 0)
        rc = lock_take(listener);
    if (rc == 0)
        rc = clear_away(listener);
    if (rc == 0)
        rc = bind_and_listen(listener);
    if (rc < 0)
        kvd_listener_close(listener);
    return rc;
}

int kvd_listener_accept(const struct kvd_listener *listener)
{
    int fd;

    do
        fd = accept4(listener->socket_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    while (fd < 0 && errno == EINTR);
    return fd;
}

void kvd_listener_stop(struct kvd_listener *listener)
{
    const char *name = kvd_runtime_dir_name(listener->path);
    struct stat status;

    if (listener->socket_fd < 0)
        return;
    if (fstatat(listener->directory_fd, name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
        status.st_dev == listener->device && status.st_ino == listener->inode)
        unlinkat(listener->directory_fd, name, 0);
    close(listener->socket_fd);
    listener->socket_fd = -1;
}

void kvd_listener_close(struct kvd_listener *listener)
{
    kvd_listener_stop(listener);
    if (listener->lock_fd >= 0)
        close(listener->lock_fd);
    if (listener->directory_fd >= 0)
        close(listener->directory_fd);
    listener->directory_fd = listener->lock_fd = -1;
}
