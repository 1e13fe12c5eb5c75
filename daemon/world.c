/* SPDX-License-Identifier: Apache-2.0
 *
 * Clock, randomness, sending, memory, and the pages that clients share with us.
 */
#include "world.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "client/status.h"
#include "clock.h"
#include "connection.h"
#include "log.h"
#include "server.h"
#include "util/error.h"

static uint64_t world_now_ns(void *context)
{
    (void)context;
    return kvd_now_ns();
}

static void world_random(void *context, void *bytes, size_t count)
{
    (void)context;
    while (count > 0) {
        ssize_t got = getrandom(bytes, count, 0);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) { /* session tokens must not be guessable: no fallback */
            kvd_log_always("getrandom: %s", strerror(errno));
            abort();
        }
        bytes = (char *)bytes + got;
        count -= (size_t)got;
    }
}

/* The page of whom the message names. */
static int timeline_fd(struct kvd_server *server, const struct kvi_msg_timeline_fd *message,
                       int *fds)
{
    struct kvd_connection *producer = server->connections[message->client];
    int rc;

    if (producer == NULL)
        return kvi_error_set(KVMEM_E_CORRUPT, "the timeline of client %u, which is gone",
                             message->client);
    rc = kvd_timeline_page_export(&producer->timeline, &fds[0]);
    if (rc < 0)
        return rc;
    producer->may_hold_memory = true; /* lanes are broken when its processes are gone, too */
    return 1;
}

/* Descriptors that go with a message. Their number, or a code and none. */
static int message_fds(struct kvd_server *server, struct kvd_connection *connection,
                       const void *datagram, const uint32_t *segments, uint32_t segment_count,
                       int *fds)
{
    uint32_t opcode = ((const struct kvi_header *)datagram)->opcode;

    if (opcode == KVI_OP_TIMELINE_FD)
        return timeline_fd(server, datagram, fds);
    if (opcode == KVI_OP_WELCOME) {
        fds[0] = connection->status.fd;
        connection->status.fd = -1;
        return 1;
    }
    if (segment_count > KVI_MESSAGE_FDS)
        return kvi_error_set(KVMEM_E_CORRUPT, "a message with %u descriptors", segment_count);
    for (uint32_t i = 0; i < segment_count; i++) {
        int rc = kvd_devices_segment_export(server->devices, segments[i], &fds[i]);

        if (rc < 0) {
            while (i-- > 0)
                close(fds[i]);
            return rc;
        }
    }
    connection->may_hold_memory |= segment_count > 0;
    return (int)segment_count;
}

static void world_send(void *context, uint32_t client, const void *datagram, size_t bytes,
                       const uint32_t *segments, uint32_t segment_count)
{
    struct kvd_server *server = context;
    struct kvd_connection *connection = server->connections[client];
    const struct kvi_header *header = datagram;
    int fds[KVI_MESSAGE_FDS];
    int fd_count;

    if (connection == NULL || connection->state != KVD_OPEN)
        return;
    if (header->opcode == KVI_OP_WELCOME && connection->hello_deadline_ns != KVD_NEVER_NS) {
        connection->hello_deadline_ns = KVD_NEVER_NS;
        server->awaiting_count--;
    }
    fd_count = message_fds(server, connection, datagram, segments, segment_count, fds);
    if (fd_count < 0)
        kvd_connection_end(connection, fd_count, kvmem_error_detail()->text);
    else
        kvd_connection_send_consume(connection, datagram, bytes, fds, (uint32_t)fd_count);
}

static void world_segment_create(void *context, uint32_t segment, uint32_t device, uint64_t bytes)
{
    struct kvd_server *server = context;

    kvd_devices_segment_create(server->devices, segment, device, bytes);
}

static void world_segment_release(void *context, uint32_t segment)
{
    struct kvd_server *server = context;

    kvd_devices_segment_release(server->devices, segment);
}

static void world_client_close(void *context, uint32_t client, int code, const char *text)
{
    struct kvd_server *server = context;
    struct kvd_connection *connection = server->connections[client];

    if (connection == NULL)
        return;
    if (code == 0 && connection->state == KVD_OPEN)
        connection->said_goodbye = true;
    kvd_connection_end(connection, code, text != NULL ? text : "");
}

static int world_usage(void *context, uint32_t client, uint32_t space, uint32_t slot,
                       uint32_t generation, uint32_t block_count, struct kvi_dir_usage *out)
{
    struct kvd_server *server = context;
    const struct kvd_connection *connection = server->connections[client];

    if (connection == NULL)
        return 0;
    return kvi_status_read(connection->status.memory, connection->status.bytes, space, slot,
                           generation, block_count, out);
}

static int world_timeline_reached(void *context, uint32_t client, uint32_t lane, uint64_t value)
{
    struct kvd_server *server = context;
    const struct kvd_connection *connection = server->connections[client];

    return connection != NULL && kvd_timeline_page_reached(&connection->timeline, lane, value);
}

static int world_device_is_stuck(void *context, uint32_t device)
{
    struct kvd_server *server = context;

    return kvd_device_is_stuck(kvd_devices_at(server->devices, device));
}

struct kvi_dir_env kvd_world(struct kvd_server *server)
{
    return (struct kvi_dir_env){
        .version = KVI_DIR_ENV_VERSION,
        .size = sizeof(struct kvi_dir_env),
        .context = server,
        .alloc = *server->alloc,
        .now_ns = world_now_ns,
        .random = world_random,
        .send = world_send,
        .segment_create = world_segment_create,
        .segment_release = world_segment_release,
        .client_close = world_client_close,
        .usage = world_usage,
        .timeline_reached = world_timeline_reached,
        .device_is_stuck = world_device_is_stuck,
    };
}
