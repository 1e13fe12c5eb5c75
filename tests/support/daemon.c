/* SPDX-License-Identifier: Apache-2.0
 *
 * Starting, asking and stopping a kvmemd.
 */
#include "support/daemon.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <kvmem/client.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_LIMIT_NS  (KVT_SLOWDOWN * KVT_MS(10000))
#define ANSWER_LIMIT_NS (KVT_SLOWDOWN * KVT_MS(10000))

/* ---- the process ---- */

/* Copies the log to stderr; returns 1 when `word` is in it. */
static int log_has(const struct kvt_kvmemd *daemon, const char *word, int is_shown)
{
    char line[512];
    FILE *log = fopen(daemon->log_path, "re");
    int found = 0;

    while (log && fgets(line, sizeof(line), log)) {
        found |= strstr(line, word) != NULL;
        if (is_shown)
            fputs(line, stderr);
    }
    if (log)
        fclose(log);
    return found;
}

static void wait_until_ready(struct kvt_kvmemd *daemon)
{
    uint64_t deadline = kvt_now_ns() + (uint64_t)START_LIMIT_NS;

    while (!log_has(daemon, "ready", 0)) {
        if (kvt_now_ns() > deadline || waitpid(daemon->process.pid, NULL, WNOHANG) != 0) {
            log_has(daemon, "ready", 1);
            kvt_die("kvmemd did not become ready on %s", daemon->socket_path);
        }
        kvt_sleep_ns(KVT_MS(1));
    }
}

static void observe(struct kvt_kvmemd *daemon)
{
    daemon->wire = malloc(sizeof(*daemon->wire));
    if (!daemon->wire)
        kvt_die("no memory");
    kvt_wire_open(daemon->wire, daemon->socket_path, KVMEM_ROLE_OBSERVER, "observer");
}

void kvt_kvmemd_restart(struct kvt_kvmemd *daemon)
{
    struct kvt_spawn_options options = {
        .program = "bin/kvmemd",
        .arguments = {"--device", "host", "--device-bytes", daemon->device_bytes, "--granule-bytes",
                      daemon->granule_bytes, "--socket", daemon->socket_path},
        .log = daemon->log_path};

    snprintf(daemon->log_path, sizeof(daemon->log_path), "%s/kvmemd-%u.log", daemon->directory,
             ++daemon->starts);
    kvt_spawn(&daemon->process, &options);
    wait_until_ready(daemon);
    observe(daemon);
}

void kvt_kvmemd_start(struct kvt_kvmemd *daemon, const char *device_bytes,
                      const char *granule_bytes)
{
    const char *base = getenv("TMPDIR");

    memset(daemon, 0, sizeof(*daemon));
    if (!base || strlen(base) > 48) /* a socket's path has 107 bytes at most */
        base = "/tmp";
    snprintf(daemon->directory, sizeof(daemon->directory), "%s/kvmem-test-XXXXXX", base);
    if (!mkdtemp(daemon->directory))
        kvt_die("mkdtemp %s: %s", daemon->directory, strerror(errno));
    snprintf(daemon->socket_path, sizeof(daemon->socket_path), "%s/kvmemd.sock", daemon->directory);
    snprintf(daemon->device_bytes, sizeof(daemon->device_bytes), "%s", device_bytes);
    snprintf(daemon->granule_bytes, sizeof(daemon->granule_bytes), "%s", granule_bytes);
    kvt_kvmemd_restart(daemon);
}

void kvt_kvmemd_kill(struct kvt_kvmemd *daemon)
{
    kvt_kill(&daemon->process);
    kvt_reap(&daemon->process, ANSWER_LIMIT_NS);
    daemon->wire->link->ops->close(daemon->wire->link);
    free(daemon->wire);
    daemon->wire = NULL;
}

void kvt_kvmemd_remove(struct kvt_kvmemd *daemon)
{
    DIR *directory = opendir(daemon->directory);
    struct dirent *entry;

    while (directory && (entry = readdir(directory)) != NULL)
        unlinkat(dirfd(directory), entry->d_name, 0);
    if (directory)
        closedir(directory);
    if (rmdir(daemon->directory))
        kvt_die("rmdir %s: %s", daemon->directory, strerror(errno));
}

static int is_alone(const struct kvi_msg_stats_reply *stats)
{
    return stats->client_count == 1;
}

/* Nothing belongs to anybody. */
static void expect_nothing_held(struct kvt_wire *wire)
{
    struct kvi_msg_stats_reply stats;

    kvt_wire_wait(wire, is_alone, "all clients to be reclaimed", ANSWER_LIMIT_NS);
    kvt_wire_stats(wire, &stats);
    if (!kvt_wire_is_clean(wire) || stats.leaked_blocks || stats.owned_segments ||
        stats.owner_blocks || stats.lease_count || stats.pin_count || stats.leased_blocks ||
        stats.fds_in_flight || stats.protocol_errors)
        kvt_die("after the last client: leaked %" PRIu64 ", owned segments %" PRIu64
                ", owner blocks %" PRIu64 ", leases %" PRIu64 ", pins %" PRIu64
                ", fds in flight %" PRIu64 ", protocol errors %" PRIu64,
                stats.leaked_blocks, stats.owned_segments, stats.owner_blocks, stats.lease_count,
                stats.pin_count, stats.fds_in_flight, stats.protocol_errors);
}

void kvt_kvmemd_stop(struct kvt_kvmemd *daemon)
{
    int status;

    expect_nothing_held(daemon->wire);
    kvt_wire_close(daemon->wire);
    free(daemon->wire);
    daemon->wire = NULL;
    if (kill(daemon->process.pid, SIGTERM))
        kvt_die("kill: %s", strerror(errno));
    status = kvt_reap(&daemon->process, ANSWER_LIMIT_NS);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        log_has(daemon, "ready", 1);
        kvt_die("kvmemd ended with wait status 0x%x", (unsigned)status);
    }
    kvt_kvmemd_remove(daemon);
}

/* ---- clients ---- */

uint32_t kvt_shell_start(struct kvt_process *shell, const struct kvt_kvmemd *daemon,
                         const char *name, const char *space)
{
    return kvt_shell_start_with(shell, daemon, name, space, NULL, NULL);
}

uint32_t kvt_shell_start_with(struct kvt_process *shell, const struct kvt_kvmemd *daemon,
                              const char *name, const char *space, const char *quota,
                              const char *refill)
{
    struct kvt_spawn_options options = {
        .program = "tests/helpers/client_shell",
        .arguments = {daemon->socket_path, name, space, quota ? quota : "0", refill}};
    char line[KVT_LINE_BYTES];

    kvt_spawn(shell, &options);
    if (kvt_hear(shell, line, KVT_ANSWER_LIMIT) != 1 || strncmp(line, "ok ", 3) != 0)
        kvt_die("client_shell %s did not start: %s", name, line);
    return (uint32_t)kvt_answer_number(line, "client");
}

const char *kvt_shell(struct kvt_process *shell, const char *beginning, const char *format, ...)
{
    static char answer[KVT_LINE_BYTES];
    char command[64];
    va_list args;

    va_start(args, format);
    vsnprintf(command, sizeof(command), format, args);
    va_end(args);
    kvt_ask(shell, answer, "%s", command);
    if (strncmp(answer, beginning, strlen(beginning)) != 0)
        kvt_die("client_shell %d: \"%s\" gave \"%s\", not \"%s\"", shell->pid, command, answer,
                beginning);
    return answer;
}

void kvt_shell_end(struct kvt_process *shell)
{
    int status;

    kvt_shell(shell, "ok", "check");
    if (kvt_answer_number(kvt_shell(shell, "ok", "close"), "same") != 1)
        kvt_die("client_shell %d left descriptors or mappings behind", shell->pid);
    kvt_tell(shell, "quit");
    status = kvt_reap(shell, ANSWER_LIMIT_NS);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        kvt_die("client_shell ended with wait status 0x%x", (unsigned)status);
}

/* ---- the connection ---- */

static void must(int result, const char *what)
{
    if (result < 0)
        kvt_die("%s: %s: %s", what, kvmem_error_name(result), kvmem_error_detail()->text);
}

void kvt_wire_send(struct kvt_wire *wire, void *message)
{
    struct kvi_header *header = message;

    header->serial = ++wire->serial;
    header->fds_received = wire->fds_received;
    kvi_wire_finish(message);
    must(wire->link->ops->send(wire->link, message, ANSWER_LIMIT_NS), "send");
}

const void *kvt_wire_ask(struct kvt_wire *wire, void *message, enum kvi_opcode reply)
{
    const struct kvi_header *header = (const void *)wire->buffer;
    int fds[KVI_MESSAGE_FDS];
    uint32_t fd_count;

    kvt_wire_send(wire, message);
    do {
        int result = wire->link->ops->receive(wire->link, wire->buffer, sizeof(wire->buffer), fds,
                                              &fd_count, ANSWER_LIMIT_NS);

        must(result, "receive");
        if (result == 0)
            kvt_die("kvmemd did not answer in time");
        wire->fds_received += fd_count;
        for (uint32_t i = 0; i < fd_count; i++)
            close(fds[i]);
    } while (header->serial != wire->serial);
    if (header->opcode == KVI_OP_ERROR)
        kvt_die("kvmemd: %s", ((const struct kvi_msg_error *)(const void *)header)->text);
    if (header->opcode != reply)
        kvt_die("kvmemd answered %s", kvi_wire_name(header->opcode));
    return wire->buffer;
}

void kvt_wire_open(struct kvt_wire *wire, const char *socket_path, uint32_t role, const char *name)
{
    struct kvi_msg_hello hello;
    const struct kvi_msg_welcome *welcome;

    memset(wire, 0, sizeof(*wire));
    must(kvi_link_connect(socket_path, ANSWER_LIMIT_NS, &wire->link), "connect");
    kvi_wire_begin(&hello, KVI_OP_HELLO, 0);
    hello.version = KVI_PROTOCOL_VERSION;
    hello.version_min = KVI_PROTOCOL_VERSION_MIN;
    hello.role = role;
    snprintf(hello.name, sizeof(hello.name), "%s", name);
    welcome = kvt_wire_ask(wire, &hello, KVI_OP_WELCOME);
    wire->client = welcome->client;
}

void kvt_wire_close(struct kvt_wire *wire)
{
    struct kvi_msg_goodbye goodbye;

    kvi_wire_begin(&goodbye, KVI_OP_GOODBYE, 0);
    kvt_wire_ask(wire, &goodbye, KVI_OP_DONE);
    wire->link->ops->close(wire->link);
    wire->link = NULL;
}

/* ---- what an observer asks ---- */

void kvt_wire_stats(struct kvt_wire *wire, struct kvi_msg_stats_reply *out)
{
    struct kvi_msg_stats stats;

    kvi_wire_begin(&stats, KVI_OP_STATS, 0);
    memcpy(out, kvt_wire_ask(wire, &stats, KVI_OP_STATS_REPLY), sizeof(*out));
}

void kvt_wire_wait(struct kvt_wire *wire, int (*condition)(const struct kvi_msg_stats_reply *stats),
                   const char *what, int64_t timeout_ns)
{
    uint64_t deadline = kvt_now_ns() + (uint64_t)timeout_ns;
    struct kvi_msg_stats_reply stats;

    while (kvt_wire_stats(wire, &stats), !condition(&stats)) {
        if (kvt_now_ns() > deadline)
            kvt_die("waited %lld ms for %s", (long long)(timeout_ns / 1000000), what);
        kvt_sleep_ns(KVT_MS(1));
    }
}

bool kvt_wire_is_clean(struct kvt_wire *wire)
{
    const struct kvi_msg_check_reply *reply;
    struct kvi_msg_check check;

    kvi_wire_begin(&check, KVI_OP_CHECK, 0);
    reply = kvt_wire_ask(wire, &check, KVI_OP_CHECK_REPLY);
    if (reply->violations)
        fprintf(stderr, "kvmemd check: %s\n", reply->text);
    return reply->violations == 0;
}

bool kvt_wire_client(struct kvt_wire *wire, uint32_t client, struct kvi_rec_client_info *out)
{
    const struct kvi_msg_clients_reply *reply;
    const struct kvi_rec_client_info *first;
    struct kvi_msg_clients clients;

    kvi_wire_begin(&clients, KVI_OP_CLIENTS, 0);
    clients.first = client;
    reply = kvt_wire_ask(wire, &clients, KVI_OP_CLIENTS_REPLY);
    first = kvi_wire_tail_const(reply, 0);
    if (reply->client_count == 0 || first->client != client)
        return false;
    *out = *first;
    return true;
}

uint32_t kvt_wire_owned_by(struct kvt_wire *wire, uint32_t client)
{
    uint32_t next = 0, owned = 0;

    do {
        const struct kvi_msg_segments_reply *reply;
        const struct kvi_rec_segment_info *segment;
        struct kvi_msg_segments segments;

        kvi_wire_begin(&segments, KVI_OP_SEGMENTS, 0);
        segments.first = next;
        reply = kvt_wire_ask(wire, &segments, KVI_OP_SEGMENTS_REPLY);
        segment = kvi_wire_tail_const(reply, 0);
        for (uint32_t i = 0; i < reply->segment_count; i++)
            owned += segment[i].owner == client;
        next = reply->next;
    } while (next);
    return owned;
}

struct kvt_wire_sums kvt_wire_sums(struct kvt_wire *wire)
{
    struct kvt_wire_sums sums = {0, 0, 0, 0};
    uint32_t next = 0;

    do {
        const struct kvi_msg_clients_reply *reply;
        const struct kvi_rec_client_info *client;
        struct kvi_msg_clients clients;

        kvi_wire_begin(&clients, KVI_OP_CLIENTS, 0);
        clients.first = next;
        reply = kvt_wire_ask(wire, &clients, KVI_OP_CLIENTS_REPLY);
        client = kvi_wire_tail_const(reply, 0);
        sums.clients += reply->client_count;
        for (uint32_t i = 0; i < reply->client_count; i++) {
            sums.leases += client[i].lease_count;
            sums.fds_in_flight += client[i].fds_in_flight;
            sums.owned_segments += client[i].owned_segments;
        }
        next = reply->next;
    } while (next);
    return sums;
}
