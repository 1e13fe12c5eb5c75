/* SPDX-License-Identifier: Apache-2.0
 *
 * Putting a server together and taking it apart, in reverse. kvd_server_destroy() takes what is
 * half built, too: every part knows when it is not there.
 */
#include <errno.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "clock.h"
#include "connection.h"
#include "server.h"
#include "util/error.h"
#include "world.h"

/* Two watches a connection, listener, signals, devices. */
#define WATCH_LIMIT (2 * KVI_CLIENT_LIMIT + 3)

/* Raise the limit of descriptors to what we are allowed, and see whether that is enough: with
 * fewer, a grant could fail half way for a client that did nothing wrong. */
static int fd_limit_check(uint32_t device_fds)
{
    uint64_t needed = (uint64_t)device_fds + KVI_CLIENT_LIMIT * KVD_FDS_PER_CLIENT + KVD_FDS_OWN;
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "RLIMIT_NOFILE");
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "RLIMIT_NOFILE");
    if (limit.rlim_max < needed)
        return kvi_error_set(
            KVMEM_E_LIMIT,
            "at most %llu descriptors may be open here, %llu are needed: %u for "
            "segments and their devices, %u for each of %u clients, %u more. Raise "
            "the hard limit (ulimit -Hn, LimitNOFILE=)",
            (unsigned long long)limit.rlim_max, (unsigned long long)needed, device_fds,
            KVD_FDS_PER_CLIENT, KVI_CLIENT_LIMIT, KVD_FDS_OWN);
    return 0;
}

static int devices_create(struct kvd_server *server)
{
    const struct kvd_options *options = &server->options;
    struct kvd_device_options devices[KVI_DEVICE_LIMIT];

    for (uint32_t i = 0; i < options->device_count; i++)
        devices[i] = (struct kvd_device_options){.kind = options->device_kind,
                                                 .ordinal = options->ordinals[i],
                                                 .device_bytes = options->device_bytes,
                                                 .granule_bytes = options->granule_bytes,
                                                 .mps = options->mps};
    return kvd_devices_create(server->alloc, devices, options->device_count, &server->devices);
}

static int directory_create(struct kvd_server *server)
{
    struct kvi_dir_env env = kvd_world(server);
    struct kvi_dir_options options = {
        .device_count = kvd_devices_count(server->devices),
        .status_bytes = server->status_bytes,
    };

    for (uint32_t i = 0; i < options.device_count; i++)
        options.devices[i] = *kvd_device_about(kvd_devices_at(server->devices, i));
    return kvi_dir_create(&options, &env, &server->dir);
}

static int build(struct kvd_server *server, const sigset_t *signals)
{
    int rc = devices_create(server);

    if (rc < 0)
        return rc;
    server->device_watch.fd = kvd_devices_fd(server->devices);
    server->status_bytes = kvd_status_page_bytes(kvd_devices_segment_limit(server->devices));
    rc = fd_limit_check(kvd_devices_fd_limit(server->devices));
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

bool kvd_server_destroy(struct kvd_server *server)
{
    bool all;

    if (server == NULL)
        return true;
    /* Clients that live on keep reading what they have mapped. */
    if (server->devices != NULL)
        kvd_devices_leave(server->devices);
    kvi_dir_destroy(server->dir);
    for (uint32_t client = 0; client < KVI_CLIENT_LIMIT; client++)
        if (server->connections[client] != NULL)
            kvd_connection_destroy(server->connections[client]);
    kvd_loop_destroy(server->loop);
    kvd_listener_close(&server->listener);
    if (server->signal_watch.fd >= 0)
        close(server->signal_watch.fd);
    kvi_release(server->alloc, server->buffer, KVD_BUFFER_BYTES);
    all = kvd_devices_destroy(server->devices);
    kvi_release(server->alloc, server, sizeof(*server));
    return all;
}
