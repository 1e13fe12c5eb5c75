/* SPDX-License-Identifier: Apache-2.0
 *
 * Starting, watching and stopping a kvmemd.
 */
#include "support/daemon.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <kvmem/client.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define POLL_NS   KVT_MS(1)
#define LOG_BYTES (64 * 1024)
#define READY     "kvmemd: ready: "

/* ---- the log ---- */

size_t kvt_daemon_log(const struct kvt_daemon *daemon, char *text, size_t text_bytes)
{
    int fd = open(daemon->log_path, O_RDONLY | O_CLOEXEC);
    ssize_t bytes = fd < 0 ? 0 : read(fd, text, text_bytes - 1);

    if (fd >= 0)
        close(fd);
    text[bytes > 0 ? bytes : 0] = '\0';
    return bytes > 0 ? (size_t)bytes : 0;
}

static bool is_running(const struct kvt_daemon *daemon)
{
    struct pollfd state = {.fd = daemon->process.pidfd, .events = POLLIN};

    return daemon->process.pid > 0 && poll(&state, 1, 0) == 0;
}

bool kvt_daemon_logged(const struct kvt_daemon *daemon, const char *text, int64_t timeout_ns)
{
    static char log[LOG_BYTES];
    uint64_t deadline_ns = kvt_now_ns() + (uint64_t)timeout_ns;

    for (;;) {
        bool runs = is_running(daemon); /* before the look: its last line counts */

        kvt_daemon_log(daemon, log, sizeof(log));
        if (strstr(log, text) != NULL)
            return true;
        if (!runs || kvt_now_ns() > deadline_ns)
            return false;
        kvt_sleep_ns(POLL_NS);
    }
}

static _Noreturn void die_with_log(const struct kvt_daemon *daemon, const char *what)
{
    static char log[LOG_BYTES];

    kvt_daemon_log(daemon, log, sizeof(log));
    kvt_die("kvmemd on %s %s; its log:\n%s", daemon->socket_path, what, log);
}

/* ---- the process ---- */

void kvt_daemon_prepare(struct kvt_daemon *daemon)
{
    const char *base = getenv("TMPDIR");

    memset(daemon, 0, sizeof(*daemon));
    if (!base || strlen(base) > 48) /* a socket's path has 107 bytes at most */
        base = "/tmp";
    snprintf(daemon->directory, sizeof(daemon->directory), "%s/kvmem-test-XXXXXX", base);
    if (!mkdtemp(daemon->directory))
        kvt_die("mkdtemp %s: %s", daemon->directory, strerror(errno));
    snprintf(daemon->socket_path, sizeof(daemon->socket_path), "%s/kvmemd.sock", daemon->directory);
    snprintf(daemon->log_path, sizeof(daemon->log_path), "%s/log", daemon->directory);
}

void kvt_daemon_fake_cuda(const char *words)
{
    char folder[512];

    if (words == NULL) {
        unsetenv("LD_LIBRARY_PATH");
        unsetenv("KVMEM_FAKE_CUDA");
        return;
    }
    snprintf(folder, sizeof(folder), "%s", kvt_program_path("tests/fake_cuda"));
    setenv("LD_LIBRARY_PATH", folder, 1);
    setenv("KVMEM_FAKE_CUDA", words, 1);
    setenv("CUDA_MPS_PIPE_DIRECTORY", "/nonexistent", 1);
}

static void spawn(struct kvt_process *process, const struct kvt_daemon *daemon, const char *program,
                  const char *const *arguments)
{
    struct kvt_spawn_options options = {
        .program = program, .log = daemon->log_path, .is_output_logged = true};
    size_t count = 0;

    for (; arguments != NULL && arguments[count] != NULL; count++) {
        if (count == KVT_ARGUMENTS)
            kvt_die("%s: more than %d arguments", program, KVT_ARGUMENTS);
        options.arguments[count] = arguments[count];
    }
    kvt_spawn(process, &options);
}

void kvt_daemon_spawn(struct kvt_daemon *daemon, const char *program, const char *const *arguments)
{
    spawn(&daemon->process, daemon, program, arguments);
}

void kvt_daemon_start(struct kvt_daemon *daemon, const char *const *options)
{
    const char *arguments[KVT_ARGUMENTS + 1] = {"--socket", daemon->socket_path};

    for (int i = 0; options != NULL && options[i] != NULL && i + 2 < KVT_ARGUMENTS; i++)
        arguments[i + 2] = options[i];
    unlink(daemon->log_path);
    kvt_daemon_spawn(daemon, "bin/kvmemd", arguments);
    if (!kvt_daemon_logged(daemon, READY, KVT_DAEMON_LIMIT))
        die_with_log(daemon, "did not become ready");
}

static int reap(struct kvt_process *process, int64_t timeout_ns)
{
    int status = kvt_reap(process, timeout_ns);

    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int kvt_daemon_run_other(const struct kvt_daemon *daemon, const char *const *arguments)
{
    struct kvt_process other;

    spawn(&other, daemon, "bin/kvmemd", arguments);
    return reap(&other, KVT_DAEMON_LIMIT);
}

int kvt_daemon_wait(struct kvt_daemon *daemon, int64_t timeout_ns)
{
    return reap(&daemon->process, timeout_ns);
}

int kvt_daemon_stop(struct kvt_daemon *daemon)
{
    if (kill(daemon->process.pid, SIGTERM))
        kvt_die("kill: %s", strerror(errno));
    return kvt_daemon_wait(daemon, KVT_DAEMON_LIMIT);
}

void kvt_daemon_kill(struct kvt_daemon *daemon)
{
    kvt_kill(&daemon->process);
    kvt_daemon_wait(daemon, KVT_DAEMON_LIMIT);
    if (daemon->wire)
        daemon->wire->link->ops->close(daemon->wire->link);
    free(daemon->wire);
    daemon->wire = NULL;
}

/* The directory is flat, but for one level that tests of the runtime directory make. */
static void remove_tree(const char *path, int depth)
{
    DIR *directory = opendir(path);
    struct dirent *entry;
    char name[512];

    while (directory != NULL && (entry = readdir(directory)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);
        if (unlink(name) < 0 && depth > 0)
            remove_tree(name, depth - 1);
    }
    if (directory != NULL)
        closedir(directory);
    if (rmdir(path))
        kvt_die("rmdir %s: %s", path, strerror(errno));
}

void kvt_daemon_end(struct kvt_daemon *daemon)
{
    if (daemon->process.pid > 0)
        kvt_daemon_kill(daemon);
    if (daemon->directory[0] != '\0')
        remove_tree(daemon->directory, 1);
    memset(daemon, 0, sizeof(*daemon));
}

/* ---- with an observer ---- */

void kvt_daemon_start_observed(struct kvt_daemon *daemon, const char *device_bytes,
                               const char *granule_bytes)
{
    const char *device = getenv("KVT_DEVICE");
    const char *const options[] = {
        "--device",   device ? device : "host",          "--device-bytes",
        device_bytes, device ? NULL : "--granule-bytes", granule_bytes,
        NULL};

    if (daemon->directory[0] == '\0')
        kvt_daemon_prepare(daemon);
    kvt_daemon_start(daemon, options);
    daemon->wire = malloc(sizeof(*daemon->wire));
    if (!daemon->wire)
        kvt_die("no memory");
    kvt_wire_open(daemon->wire, daemon->socket_path, KVMEM_ROLE_OBSERVER, "observer");
}

static int is_alone(const struct kvi_msg_stats_reply *stats)
{
    return stats->client_count == 1;
}

/* Nothing belongs to anybody. */
static void expect_nothing_held(struct kvt_wire *wire)
{
    struct kvi_msg_stats_reply stats;

    kvt_wire_wait(wire, is_alone, "all clients to be reclaimed", KVT_DAEMON_LIMIT);
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

void kvt_daemon_end_observed(struct kvt_daemon *daemon)
{
    expect_nothing_held(daemon->wire);
    kvt_wire_close(daemon->wire);
    free(daemon->wire);
    daemon->wire = NULL;
    if (kvt_daemon_stop(daemon) != 0)
        die_with_log(daemon, "did not end with status 0");
    kvt_daemon_end(daemon);
}
