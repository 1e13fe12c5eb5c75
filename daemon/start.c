/* SPDX-License-Identifier: Apache-2.0
 *
 * Putting a server together and taking it apart, in reverse. kvd_server_destroy() takes what is
 * half built, too: every part knows when it is not there.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "clock.h"
#include "connection.h"
#include "server.h"
#include "util/error.h"
#include "world.h"

/* Two watches a connection, listener, signals. */
#define WATCH_LIMIT (2 * KVI_CLIENT_LIMIT + 2)

/* Raise the limit of descriptors to what we are allowed, and see whether that is enough: with
 * fewer, a grant could fail half way for a client that did nothing wrong. */
static int fd_limit_check(uint32_t segment_limit)
{
    uint64_t needed = (uint64_t)segment_limit + KVI_CLIENT_LIMIT * KVD_FDS_PER_CLIENT + KVD_FDS_OWN;
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "RLIMIT_NOFILE");
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "RLIMIT_NOFILE");
    if (limit.rlim_max < needed)
        return kvi_error_set(KVMEM_E_LIMIT,
                             "at most %llu descriptors may be open here, %llu are needed: one for "
                             "each of %u segments, %u for each of %u clients, %u more. Raise "
                             "the hard limit (ulimit -Hn, LimitNOFILE=)",
                             (unsigned long long)limit.rlim_max, (unsigned long long)needed,
                             segment_limit, KVD_FDS_PER_CLIENT, KVI_CLIENT_LIMIT, KVD_FDS_OWN);
    return 0;
}

static int directory_create(struct kvd_server *server)
{
    const struct kvi_backend_info *info = kvd_device_info(server->device);
    struct kvi_dir_env env = kvd_world(server);
    struct kvi_dir_options options = {
        .devices = {{.kind = info->kind,
                     .device_bytes = info->device_bytes,
                     .granule_bytes = info->granule_bytes,
                     .releases_reclaim_mapped = (info->flags & KVI_BACKEND_RECLAIMS_MAPPED) != 0}},
        .device_count = 1,
        .status_bytes = server->status_bytes,
    };

    snprintf(options.devices[0].name, sizeof(options.devices[0].name), "%.47s", info->name);
    return kvi_dir_create(&options, &env, &server->dir);
}

static int build(struct kvd_server *server, const sigset_t *signals)
{
    struct kvd_device_options device = {server->options.device_bytes,
                                        server->options.granule_bytes};
    uint32_t segment_limit;
    int rc = kvd_device_create(server->alloc, &device, &server->device);

    if (rc < 0)
        return rc;
    segment_limit = kvd_device_segment_limit(server->device);
    server->status_bytes = kvd_status_page_bytes(segment_limit);
    rc = fd_limit_check(segment_limit);
    if (rc < 0)
        return rc;
    server->buffer = kvi_allocate(server->alloc, KVD_BUFFER_BYTES);
    if (server->buffer == NULL)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "a buffer of %u bytes", KVD_BUFFER_BYTES);
    rc = directory_create(server);
    if (rc < 0)
        return rc;
    server->signal_watch.fd = signalfd(-1, signals, SFD_CLOEXEC | SFD_NONBLOCK);
    if (server->signal_watch.fd < 0)
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "signalfd");
    /* The socket last but one: who connects from here on is answered. */
    rc = kvd_listener_open(&server->listener, server->options.socket_path,
                           server->options.socket_is_default);
    if (rc < 0)
        return rc;
    server->accept_watch.fd = server->listener.socket_fd;
    return kvd_loop_create(server->alloc, WATCH_LIMIT, &server->loop);
}

int kvd_server_create(const struct kvd_options *options, const sigset_t *signals,
                      struct kvd_server **out)
{
    struct kvd_server *server = kvi_allocate(&kvi_alloc_libc, sizeof(*server));
    int rc;

    if (server == NULL)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "server");
    server->alloc = &kvi_alloc_libc;
    server->options = *options;
    server->listener = (struct kvd_listener){.socket_fd = -1, .directory_fd = -1, .lock_fd = -1};
    server->signal_watch.fd = -1;
    server->resume_ns = KVD_NEVER_NS;
    server->drain_deadline_ns = KVD_NEVER_NS;
    rc = build(server, signals);
    if (rc < 0) {
        kvd_server_destroy(server);
        return rc;
    }
    *out = server;
    return 0;
}

void kvd_server_destroy(struct kvd_server *server)
{
    if (server == NULL)
        return;
    /* Clients that live on keep reading what they have mapped. */
    if (server->device != NULL)
        kvd_device_leave(server->device);
    kvi_dir_destroy(server->dir);
    for (uint32_t client = 0; client < KVI_CLIENT_LIMIT; client++)
        if (server->connections[client] != NULL)
            kvd_connection_destroy(server->connections[client]);
    kvd_loop_destroy(server->loop);
    kvd_listener_close(&server->listener);
    if (server->signal_watch.fd >= 0)
        close(server->signal_watch.fd);
    kvi_release(server->alloc, server->buffer, KVD_BUFFER_BYTES);
    kvd_device_destroy(server->device);
    kvi_release(server->alloc, server, sizeof(*server));
}
