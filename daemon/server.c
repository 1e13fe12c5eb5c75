/* SPDX-License-Identifier: Apache-2.0
 *
 * The loop's turns: accept, settle, deadlines, signals.
 */
#include "server.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "connection.h"
#include "log.h"
#include "notify.h"
#include "util/error.h"

#define ACCEPTS_PER_TURN 16u
#define PAUSE_NS         (100 * KVD_MILLISECOND_NS)
#define DRAIN_NS         KVD_SECOND_NS

/* ---- accepting ---- */

/* Tell who connected why it may not stay. */
static void refuse_consume(int socket, int code, const char *text)
{
    struct kvi_msg_error error;
    size_t bytes;

    kvi_wire_begin(&error, KVI_OP_ERROR, 0);
    error.code = code;
    error.opcode = KVI_OP_HELLO;
    snprintf(error.text, sizeof(error.text), "%.191s", text);
    bytes = kvi_wire_finish(&error);
    if (send(socket, &error, bytes, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        kvd_log("a refusal could not be sent: %s", strerror(errno));
    kvd_socket_close_consume(socket);
}

static void admit_consume(struct kvd_server *server, int socket)
{
    struct kvd_connection *connection = NULL;
    struct kvd_peer peer = {.pidfd = -1};
    int rc = kvd_peer_identify(socket, &peer);

    if (rc == KVMEM_E_DAEMON_LOST) { /* it left before we looked */
        close(socket);
        return;
    }
    if (rc == 0)
        rc = kvd_connection_create(server, socket, &peer, &connection);
    if (rc < 0) {
        kvd_log("connection of pid %u, user %u refused: %s: %s", peer.identity.pid,
                peer.identity.uid, kvmem_error_name(rc), kvmem_error_detail()->text);
        refuse_consume(socket, rc, kvmem_error_detail()->text);
        if (peer.pidfd >= 0)
            close(peer.pidfd);
        return;
    }
    assert(server->connections[connection->client] == NULL);
    server->connections[connection->client] = connection;
    server->open_count++;
    server->awaiting_count++;
}

static void accept_resume(struct kvd_server *server)
{
    if (server->resume_ns == KVD_NEVER_NS)
        return;
    server->resume_ns = KVD_NEVER_NS;
    kvd_loop_arm(server->loop, &server->accept_watch, POLLIN);
}

static void accept_ready(struct kvd_watch *watch, uint32_t events)
{
    struct kvd_server *server = (void *)((char *)watch - offsetof(struct kvd_server, accept_watch));

    (void)events;
    for (unsigned i = 0; i < ACCEPTS_PER_TURN; i++) {
        int socket = kvd_listener_accept(&server->listener);

        if (socket >= 0) {
            server->is_short = false;
            admit_consume(server, socket);
            continue;
        }
        if (errno == EAGAIN || errno == ECONNABORTED)
            break;
        /* Out of descriptors or memory: who waits stays in the backlog, and we look again when
         * a connection has closed, or after a while; asking at once would spin. */
        if (!server->is_short)
            kvd_log("cannot accept now, connections wait: %s", strerror(errno));
        server->is_short = true;
        server->resume_ns = kvd_now_ns() + PAUSE_NS;
        kvd_server_settle(server);
        return;
    }
    kvd_loop_arm(server->loop, watch, POLLIN);
    kvd_server_settle(server);
}

/* ---- settling ---- */

void kvd_server_push_ending(struct kvd_server *server, struct kvd_connection *connection)
{
    connection->next_ending = NULL;
    if (server->ending_last != NULL)
        server->ending_last->next_ending = connection;
    else
        server->ending_first = connection;
    server->ending_last = connection;
}

static struct kvd_connection *pop_ending(struct kvd_server *server)
{
    struct kvd_connection *connection = server->ending_first;

    if (connection != NULL) {
        server->ending_first = connection->next_ending;
        if (server->ending_first == NULL)
            server->ending_last = NULL;
    }
    return connection;
}

/* The directory has reclaimed it. Until then it looked at the lanes as they were. */
static void forget(struct kvd_server *server, struct kvd_connection *connection)
{
    kvd_timeline_page_break(&connection->timeline);
    server->connections[connection->client] = NULL;
    kvd_connection_destroy(connection);
}

void kvd_server_reclaim(struct kvd_server *server, struct kvd_connection *connection)
{
    if (connection->may_hold_memory)
        kvd_log("client %u (pid %u, user %u) is gone: its memory is taken back", connection->client,
                connection->peer.pid, connection->peer.uid);
    kvi_dir_client_exited(server->dir, connection->client);
    forget(server, connection);
}

static void close_ended(struct kvd_server *server, struct kvd_connection *connection)
{
    kvd_connection_close(connection);
    server->open_count--;
    if (connection->hello_deadline_ns != KVD_NEVER_NS)
        server->awaiting_count--;
    kvi_dir_client_eof(server->dir, connection->client);
    if (connection->said_goodbye)
        forget(server, connection); /* the end of file has reclaimed it */
    else if (connection->is_dead || !connection->may_hold_memory)
        kvd_server_reclaim(server, connection);
    accept_resume(server);
}

void kvd_server_settle(struct kvd_server *server)
{
    struct kvd_connection *connection;
    uint32_t segment;
    int code;

    for (;;) {
        if (kvd_devices_next_created(server->devices, &segment, &code))
            kvi_dir_segment_created(server->dir, segment, code);
        else if ((connection = pop_ending(server)) != NULL)
            close_ended(server, connection);
        else
            return;
    }
}

/* ---- devices ---- */

static void devices_ready(struct kvd_watch *watch, uint32_t events)
{
    struct kvd_server *server = (void *)((char *)watch - offsetof(struct kvd_server, device_watch));
    uint64_t count;

    (void)events;
    if (read(watch->fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
        kvd_log("the devices' eventfd: %s", strerror(errno));
    kvd_loop_arm(server->loop, watch, POLLIN);
    kvd_devices_look(server->devices); /* the log says why before a client hears of it */
    kvd_server_settle(server);
}

/* ---- deadlines ---- */

static uint64_t hello_deadline_ns(const struct kvd_server *server)
{
    uint64_t next_ns = KVD_NEVER_NS;

    if (server->awaiting_count == 0)
        return next_ns;
    for (uint32_t client = 0; client < KVI_CLIENT_LIMIT; client++)
        if (server->connections[client] != NULL && server->connections[client]->state == KVD_OPEN)
            next_ns = kvd_earlier_ns(next_ns, server->connections[client]->hello_deadline_ns);
    return next_ns;
}

static void end_silent(struct kvd_server *server, uint64_t now_ns)
{
    for (uint32_t client = 0; client < KVI_CLIENT_LIMIT; client++) {
        struct kvd_connection *connection = server->connections[client];

        if (connection != NULL && connection->hello_deadline_ns <= now_ns)
            kvd_connection_end(connection, KVMEM_E_TIMED_OUT, "no hello within a second");
    }
}

static void end_all(struct kvd_server *server)
{
    for (uint32_t client = 0; client < KVI_CLIENT_LIMIT; client++)
        if (server->connections[client] != NULL)
            kvd_connection_end(server->connections[client], 0, "the daemon ends");
    server->is_done = true;
}

static uint64_t next_deadline_ns(const struct kvd_server *server)
{
    uint64_t next_ns = kvi_dir_next_deadline_ns(server->dir);

    next_ns = kvd_earlier_ns(next_ns, hello_deadline_ns(server));
    next_ns = kvd_earlier_ns(next_ns, kvd_devices_deadline_ns(server->devices));
    next_ns = kvd_earlier_ns(next_ns, server->resume_ns);
    return kvd_earlier_ns(next_ns, server->drain_deadline_ns);
}

static void fire_deadlines(struct kvd_server *server)
{
    uint64_t now_ns = kvd_now_ns();

    kvd_devices_look(server->devices);
    if (kvi_dir_next_deadline_ns(server->dir) <= now_ns)
        kvi_dir_tick(server->dir);
    if (hello_deadline_ns(server) <= now_ns)
        end_silent(server, now_ns);
    if (server->resume_ns <= now_ns)
        accept_resume(server);
    if (server->drain_deadline_ns != KVD_NEVER_NS &&
        (server->drain_deadline_ns <= now_ns || server->open_count == 0))
        end_all(server);
    kvd_server_settle(server);
}

/* ---- signals ---- */

static void drain(struct kvd_server *server, const struct signalfd_siginfo *info)
{
    kvd_log_always("signal %u from pid %u, ending: %u clients have %.1f s to leave",
                   info->ssi_signo, info->ssi_pid, server->open_count,
                   (double)DRAIN_NS / (double)KVD_SECOND_NS);
    kvd_notify("STOPPING=1");
    server->resume_ns = KVD_NEVER_NS;
    kvd_loop_disarm(server->loop, &server->accept_watch);
    kvd_listener_stop(&server->listener);
    server->drain_deadline_ns = kvd_now_ns() + DRAIN_NS;
    kvi_dir_drain(server->dir, DRAIN_NS);
}

static void signal_ready(struct kvd_watch *watch, uint32_t events)
{
    struct kvd_server *server = (void *)((char *)watch - offsetof(struct kvd_server, signal_watch));
    struct signalfd_siginfo info;

    (void)events;
    while (read(watch->fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (server->drain_deadline_ns == KVD_NEVER_NS) {
            drain(server, &info);
            continue;
        }
        kvd_log_always("a second signal: ending now");
        end_all(server);
    }
    kvd_loop_arm(server->loop, watch, POLLIN);
    kvd_server_settle(server);
}

/* ---- running ---- */

/* "cuda:0 NVIDIA H200, 125.1 GiB in 2001 segments of 65536 KiB, granule 2048 KiB". */
static void describe(const struct kvd_server *server, uint32_t index, char *text, size_t bytes)
{
    const struct kvd_device *device = kvd_devices_at(server->devices, index);
    const struct kvi_dir_device *about = kvd_device_about(device);
    uint64_t target_bytes = kvd_device_target_bytes(device);
    bool is_chosen = about->kind == KVI_BACKEND_CUDA && server->options.device_bytes == 0;

    snprintf(text, bytes, "%s, %.1f GiB%s in %llu segments of %llu KiB, granule %llu KiB%s",
             about->name, (double)about->device_bytes / (double)(1u << 30),
             is_chosen ? " (90 % of what was free)" : "",
             (unsigned long long)(about->device_bytes / target_bytes),
             (unsigned long long)(target_bytes >> 10),
             (unsigned long long)(about->granule_bytes >> 10),
             about->exit_proves_nothing ? ", under MPS" : "");
}

static void say_ready(const struct kvd_server *server)
{
    uint32_t count = kvd_devices_count(server->devices);
    char text[256];

    for (uint32_t i = 0; i < count; i++) {
        describe(server, i, text, sizeof(text));
        if (count > 1)
            kvd_log_always("device %u: %s", i, text);
    }
    if (count > 1)
        snprintf(text, sizeof(text), "%u of them", count);
    kvd_log_always("ready: device%s %s, loop %s, socket %s", count > 1 ? "s," : "", text,
                   kvd_loop_engine(server->loop), server->listener.path);
    kvd_notify("READY=1");
}

int kvd_server_run(struct kvd_server *server)
{
    int rc = 0;

    server->accept_watch.ready = accept_ready;
    server->signal_watch.ready = signal_ready;
    server->device_watch.ready = devices_ready;
    kvd_loop_arm(server->loop, &server->device_watch, POLLIN);
    kvd_loop_arm(server->loop, &server->signal_watch, POLLIN);
    kvd_loop_arm(server->loop, &server->accept_watch, POLLIN);
    say_ready(server);
    while (!server->is_done && rc == 0) {
        uint64_t deadline_ns = next_deadline_ns(server);
        uint64_t now_ns = deadline_ns == KVD_NEVER_NS ? 0 : kvd_now_ns();

        if (deadline_ns != KVD_NEVER_NS)
            deadline_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
        rc = kvd_loop_turn(server->loop, deadline_ns);
        fire_deadlines(server);
    }
    if (rc < 0)
        end_all(server);
    kvd_server_settle(server);
    return rc;
}
