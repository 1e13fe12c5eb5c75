/* SPDX-License-Identifier: Apache-2.0
 *
 * Receiving with a budget, sending with a bound, ending in two halves.
 */
#include "connection.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "log.h"
#include "server.h"
#include "util/error.h"

#define MESSAGES_PER_TURN 16u                    /* then the others have their turn, */
#define TURN_NS           (200 * UINT64_C(1000)) /* and also after this time: some are costly */
#define HELLO_NS          KVD_SECOND_NS

static struct kvd_connection *of_socket(struct kvd_watch *watch)
{
    return (void *)((char *)watch - offsetof(struct kvd_connection, socket_watch));
}

static struct kvd_connection *of_exit(struct kvd_watch *watch)
{
    return (void *)((char *)watch - offsetof(struct kvd_connection, exit_watch));
}

static void arm(struct kvd_connection *connection)
{
    uint32_t events = POLLIN | POLLRDHUP;

    if (connection->state != KVD_OPEN)
        return;
    if (kvd_output_is_waiting(&connection->output))
        events |= POLLOUT;
    kvd_loop_arm(connection->server->loop, &connection->socket_watch, events);
}

/* ---- receiving ---- */

/* recv gave 0 bytes: the end, or an empty datagram? */
static bool is_hung_up(int socket)
{
    struct pollfd state = {.fd = socket, .events = POLLRDHUP};

    return poll(&state, 1, 0) == 1 && (state.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

/* Take one datagram and carry it out. False when there is none, or the connection ends. */
static bool receive_one(struct kvd_connection *connection)
{
    struct kvd_server *server = connection->server;
    int socket = connection->socket_watch.fd;
    struct iovec part = {.iov_base = server->buffer, .iov_len = KVD_BUFFER_BYTES};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    ssize_t bytes = recvmsg(socket, &message, MSG_DONTWAIT);

    if (bytes < 0) {
        if (errno != EAGAIN && errno != EINTR)
            kvd_connection_end(connection, 0, "the socket failed");
        return false;
    }
    if (bytes == 0 && is_hung_up(socket)) {
        kvd_connection_end(connection, 0, "closed by the client");
        return false;
    }
    /* The buffer is longer than any message, so that one that was cut off is too long. */
    kvi_dir_message(server->dir, connection->client, server->buffer, (size_t)bytes,
                    (message.msg_flags & MSG_CTRUNC) != 0 ? 1 : 0);
    return connection->state == KVD_OPEN;
}

static void socket_ready(struct kvd_watch *watch, uint32_t events)
{
    struct kvd_connection *connection = of_socket(watch);
    struct kvd_server *server = connection->server;
    uint64_t end_ns = kvd_now_ns() + TURN_NS;

    if ((events & POLLOUT) != 0 && kvd_output_flush(&connection->output, watch->fd) < 0)
        kvd_connection_end(connection, 0, "nobody reads at the other end");
    if (connection->state == KVD_OPEN)
        for (unsigned i = 0; i < MESSAGES_PER_TURN && receive_one(connection); i++)
            if (kvd_now_ns() >= end_ns)
                break;
    arm(connection);
    kvd_server_settle(server);
}

/* ---- the process' end ---- */

static void exit_ready(struct kvd_watch *watch, uint32_t events)
{
    struct kvd_connection *connection = of_exit(watch);
    struct kvd_server *server = connection->server;
    struct pollfd state = {.fd = watch->fd, .events = POLLIN};

    /* A request that failed is no proof of a death: memory that is taken back too early is
     * written by two. */
    if ((events & POLLIN) == 0 || poll(&state, 1, 0) != 1 || (state.revents & POLLIN) == 0) {
        kvd_log("client %u: its pidfd fired with events %#x, but its process lives",
                connection->client, events);
        kvd_loop_arm(server->loop, watch, POLLIN);
        return;
    }
    connection->is_dead = true;
    if (connection->state == KVD_CLOSED)
        kvd_server_reclaim(server, connection);
    else
        kvd_connection_end(connection, 0, "its process is gone");
    kvd_server_settle(server);
}

/* ---- sending ---- */

void kvd_connection_send_consume(struct kvd_connection *connection, const void *datagram,
                                 size_t bytes, const int *fds, uint32_t fd_count)
{
    int rc;

    if (connection->state != KVD_OPEN) {
        for (uint32_t i = 0; i < fd_count; i++)
            close(fds[i]);
        return;
    }
    rc = kvd_output_send_consume(&connection->output, connection->socket_watch.fd, datagram, bytes,
                                 fds, fd_count);
    if (rc == KVMEM_E_DAEMON_LOST) /* it closed: what it sent before is read first */
        rc = 0;
    if (rc < 0)
        kvd_connection_end(connection, rc, kvmem_error_detail()->text);
    else if (kvd_output_is_waiting(&connection->output))
        arm(connection);
}

/* ---- life ---- */

/* Everything but the directory's number. */
static int make(struct kvd_server *server, struct kvd_arena *arena, const struct kvd_peer *peer,
                int socket, struct kvd_connection **out)
{
    struct kvd_connection *connection = kvi_allocate(&arena->alloc, sizeof(*connection));
    int rc;

    if (connection == NULL)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "connection");
    *connection = (struct kvd_connection){
        .server = server,
        .arena = arena,
        .state = KVD_OPEN,
        .peer = peer->identity,
        .socket_watch = {.fd = socket, .ready = socket_ready},
        .exit_watch = {.fd = peer->pidfd, .ready = exit_ready},
        .output = {.alloc = &arena->alloc},
        .hello_deadline_ns = kvd_now_ns() + HELLO_NS,
    };
    rc = kvd_status_page_init(&connection->status, server->status_bytes);
    if (rc < 0) {
        kvi_release(&arena->alloc, connection, sizeof(*connection));
        return rc;
    }
    *out = connection;
    return 0;
}

int kvd_connection_create(struct kvd_server *server, int socket, const struct kvd_peer *peer,
                          struct kvd_connection **out)
{
    struct kvd_connection *connection = NULL;
    struct kvd_arena *arena;
    int rc = kvd_arena_acquire(&server->arenas, &arena);

    if (rc < 0)
        return rc;
    rc = make(server, arena, peer, socket, &connection);
    if (rc < 0)
        goto fail_arena;
    rc = kvi_dir_client_add(server->dir, &peer->identity, &connection->client);
    if (rc < 0) {
        kvi_error_set(rc,
                      "no place for another client: %u may be connected, or waiting until "
                      "their processes have ended; try again when one has left",
                      KVI_CLIENT_LIMIT);
        goto fail_connection;
    }
    kvd_loop_arm(server->loop, &connection->exit_watch, POLLIN);
    arm(connection);
    *out = connection;
    return 0;

fail_connection:
    kvd_status_page_fini(&connection->status);
    kvi_release(&arena->alloc, connection, sizeof(*connection));
fail_arena:
    kvd_arena_release(&server->arenas, arena);
    return rc;
}

void kvd_connection_destroy(struct kvd_connection *connection)
{
    struct kvd_server *server = connection->server;
    struct kvd_arena *arena = connection->arena;

    assert(connection->state == KVD_CLOSED);
    kvd_loop_disarm(server->loop, &connection->exit_watch);
    close(connection->exit_watch.fd);
    kvd_timeline_page_fini(&connection->timeline);
    kvd_status_page_fini(&connection->status);
    kvi_release(&arena->alloc, connection, sizeof(*connection));
    kvd_arena_release(&server->arenas, arena);
}

void kvd_connection_end(struct kvd_connection *connection, int code, const char *text)
{
    if (connection->state != KVD_OPEN)
        return;
    connection->state = KVD_ENDING;
    connection->end_code = code;
    snprintf(connection->end_text, sizeof(connection->end_text), "%.191s", text);
    kvd_server_push_ending(connection->server, connection);
}

void kvd_connection_close(struct kvd_connection *connection)
{
    int socket = connection->socket_watch.fd;

    assert(connection->state == KVD_ENDING);
    if (connection->end_code < 0)
        kvd_log("client %u (pid %u, user %u) dropped: %s: %s", connection->client,
                connection->peer.pid, connection->peer.uid, kvmem_error_name(connection->end_code),
                connection->end_text);
    else if (connection->may_hold_memory && !connection->said_goodbye)
        kvd_log("client %u (pid %u, user %u): %s, without goodbye", connection->client,
                connection->peer.pid, connection->peer.uid, connection->end_text);
    kvd_output_flush(&connection->output, socket);
    kvd_output_fini(&connection->output);
    kvd_loop_disarm(connection->server->loop, &connection->socket_watch);
    kvd_socket_close_consume(socket);
    connection->socket_watch.fd = -1;
    connection->state = KVD_CLOSED;
}

void kvd_socket_close_consume(int socket)
{
    /* Closing a Unix socket with datagrams unread gives the other end ECONNRESET before what we
     * sent; after the shutdown nothing new comes in, and what is there goes. */
    shutdown(socket, SHUT_RDWR);
    while (recv(socket, NULL, 0, MSG_DONTWAIT | MSG_TRUNC) > 0)
        ;
    close(socket);
}
