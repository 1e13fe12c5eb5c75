/* SPDX-License-Identifier: Apache-2.0
 *
 * Where kvmemd listens when nobody says otherwise. The daemon, the admin program and the library
 * ask here, so that they agree. No predictable name in a folder that others may write to: the
 * runtime directories belong to the user, or to root. No state but the environment.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/un.h>
#include <unistd.h>

#include "client/link.h"
#include "util/error.h"

static const char *from_environment(const char *name)
{
    const char *value = secure_getenv(name);

    return value && *value ? value : NULL;
}

int kvi_socket_path(const char *option, char *path, size_t path_bytes)
{
    const size_t limit = sizeof(((struct sockaddr_un *)NULL)->sun_path);
    const char *given = option ? option : from_environment("KVMEM_SOCKET");
    const char *runtime = from_environment("XDG_RUNTIME_DIR");
    int length;

    if (given)
        length = snprintf(path, path_bytes, "%s", given);
    else if (runtime)
        length = snprintf(path, path_bytes, "%s/kvmem/kvmemd.sock", runtime);
    else if (geteuid() == 0)
        length = snprintf(path, path_bytes, "/run/kvmem/kvmemd.sock");
    else
        length =
            snprintf(path, path_bytes, "/run/user/%lu/kvmem/kvmemd.sock", (unsigned long)geteuid());
    if (length > 0 && (size_t)length < limit && (size_t)length < path_bytes)
        return 0;
    return kvi_error_set(KVMEM_E_INVALID, "socket_path: %d bytes long, expected 1..%zu", length,
                         (path_bytes < limit ? path_bytes : limit) - 1);
}
