/* SPDX-License-Identifier: Apache-2.0
 *
 * Made first, then opened without following a link, then verified through the fd: what is
 * verified is what is used.
 */
#include "runtime_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "options.h"
#include "util/error.h"

const char *kvd_runtime_dir_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash != NULL ? slash + 1 : path;
}

/* The part before the last '/': "." when there is none. */
static void directory_of(const char *path, char *directory)
{
    const char *name = kvd_runtime_dir_name(path);
    size_t bytes = (size_t)(name - path);

    if (bytes == 0) {
        strcpy(directory, ".");
        return;
    }
    while (bytes > 1 && path[bytes - 1] == '/') /* keep the '/' of the root */
        bytes--;
    memcpy(directory, path, bytes);
    directory[bytes] = '\0';
}

static int verify(int fd, const char *directory, bool is_private)
{
    struct stat status;
    unsigned mode;

    if (fstat(fd, &status) < 0)
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "directory %s", directory);
    mode = (unsigned)(status.st_mode & 07777);
    if (status.st_uid != geteuid() && (is_private || status.st_uid != 0))
        return kvi_error_set(KVMEM_E_PERMISSION,
                             "directory %s belongs to user %u, not to %u: choose another with "
                             "--socket",
                             directory, (unsigned)status.st_uid, (unsigned)geteuid());
    if (is_private && mode != 0700)
        return kvi_error_set(KVMEM_E_PERMISSION,
                             "directory %s has mode %04o, expected 0700: chmod 700 it", directory,
                             mode);
    if ((mode & 0022) != 0)
        return kvi_error_set(KVMEM_E_PERMISSION,
                             "directory %s has mode %04o: others may write there and take the "
                             "socket's place; choose one of your own (mktemp -d makes one)",
                             directory, mode);
    return 0;
}

int kvd_runtime_dir_open(const char *socket_path, bool is_private, int *out_fd)
{
    char directory[KVD_SOCKET_PATH_BYTES];
    int fd;
    int rc;

    directory_of(socket_path, directory);
    if (is_private && mkdir(directory, 0700) < 0 && errno != EEXIST)
        return kvi_error_sys(KVMEM_E_SYSTEM, errno,
                             "cannot make the runtime directory %s; set XDG_RUNTIME_DIR or give "
                             "--socket",
                             directory);
    fd = open(directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && (errno == ELOOP || errno == ENOTDIR))
        return kvi_error_set(KVMEM_E_PERMISSION,
                             "%s is a symbolic link or no directory: name the directory itself",
                             directory);
    if (fd < 0)
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "directory %s", directory);
    rc = verify(fd, directory, is_private);
    if (rc < 0) {
        close(fd);
        return rc;
    }
    *out_fd = fd;
    return 0;
}
