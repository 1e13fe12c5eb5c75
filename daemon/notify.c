/* SPDX-License-Identifier: Apache-2.0
 *
 * One socket a call: there are two calls in a daemon's life.
 */
#include "notify.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "log.h"

void kvd_notify(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t path_bytes;
    int fd;

    if (path == NULL || path[0] == '\0')
        return;
    path_bytes = strlen(path);
    if ((path[0] != '/' && path[0] != '@') || path_bytes >= sizeof(address.sun_path)) {
        kvd_log("NOTIFY_SOCKET: '%.80s' is no path or @name of at most 107 bytes", path);
        return;
    }
    memcpy(address.sun_path, path, path_bytes);
    if (path[0] == '@')
        address.sun_path[0] = '\0'; /* abstract: a zero byte first, none at the end */
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&address,
                         (socklen_t)(offsetof(struct sockaddr_un, sun_path) + path_bytes)) < 0)
        kvd_log("NOTIFY_SOCKET: '%.80s': %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
}
