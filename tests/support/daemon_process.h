/* SPDX-License-Identifier: Apache-2.0
 *
 * A kvmemd of a test's own: started from the build that the test belongs to, in a directory of
 * its own, which is removed with it.
 */
#ifndef KVT_DAEMON_PROCESS_H
#define KVT_DAEMON_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define KVT_DAEMON_TIMEOUT_MS 10000

struct kvt_daemon {
    pid_t pid; /* 0 when none runs */
    char directory[64];
    char socket_path[96];
    char log_path[96]; /* its stderr */
};

/* Path of a program of this build, such as "bin/kvmemd"; static storage, one path at a time. */
const char *kvt_build_path(const char *program);

/* A fresh directory, 0700; true when made. No daemon yet. */
bool kvt_daemon_prepare(struct kvt_daemon *daemon);

/* Run kvmemd there with --socket and `options` (NULL-terminated, or NULL) and wait until it is
 * ready. False when it ended or did not come up in time. */
bool kvt_daemon_start(struct kvt_daemon *daemon, const char *const *options);

/* Run any command with its stderr and stdout added to the log. Sets daemon->pid. */
bool kvt_daemon_spawn(struct kvt_daemon *daemon, const char *const *command);

/* Wait for the line with `text` in the log. */
bool kvt_daemon_logged(const struct kvt_daemon *daemon, const char *text, int timeout_ms);

/* The log from its start; bytes read, zero-terminated. */
size_t kvt_daemon_log(const struct kvt_daemon *daemon, char *text, size_t text_bytes);

/* Wait for its end: the exit status, 128 + signal, or −1 when it still runs after that time. */
int kvt_daemon_wait(struct kvt_daemon *daemon, int timeout_ms);

/* SIGTERM, then wait. */
int kvt_daemon_stop(struct kvt_daemon *daemon);

/* Kill what still runs, remove the directory. */
void kvt_daemon_end(struct kvt_daemon *daemon);

/* Open descriptors, resident bytes, and CPU time used, of a process. −1 when unknown. */
int kvt_process_fd_count(pid_t pid);
int64_t kvt_process_resident_bytes(pid_t pid);
int64_t kvt_process_cpu_ms(pid_t pid);

/* Milliseconds, monotonic. */
int64_t kvt_now_ms(void);
void kvt_sleep_ms(int ms);

#endif
