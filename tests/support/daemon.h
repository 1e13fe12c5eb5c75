/* SPDX-License-Identifier: Apache-2.0
 *
 * A kvmemd of a test's own, from the build that the test belongs to, in a private directory of
 * its own, which is removed with it. What a test does not expect ends it (kvt_die).
 *
 *   prepare ─▶ start ─▶ stop, kill or wait ─▶ start ... ─▶ end
 */
#ifndef KVT_DAEMON_H
#define KVT_DAEMON_H

#include "support/spawn.h"
#include "support/wire.h"

#define KVT_DAEMON_LIMIT (KVT_SLOWDOWN * KVT_MS(10000)) /* to become ready, to end */

struct kvt_daemon {
    struct kvt_process process; /* pid 0 when none runs */
    char directory[96];         /* empty before prepare and after end */
    char socket_path[112];
    char log_path[112];    /* its stdout and stderr */
    struct kvt_wire *wire; /* an observer, while one that was started with it runs */
};

/* Make the directory. No daemon yet. */
void kvt_daemon_prepare(struct kvt_daemon *daemon);

/* Daemons, and others, that are started from now on find the fake CUDA driver (fake_cuda.h), which
 * is told `words`, and no sign of MPS; NULL: none of this. */
void kvt_daemon_fake_cuda(const char *words);

/* Run kvmemd there with --socket and `options` (up to NULL), with a new log, and wait until it is
 * ready. */
void kvt_daemon_start(struct kvt_daemon *daemon, const char *const *options);

/* Run any program of the build (as for kvt_spawn) with its output added to the log. */
void kvt_daemon_spawn(struct kvt_daemon *daemon, const char *program, const char *const *arguments);

/* Run another kvmemd until it ends by itself, its output added to the log; its exit status. */
int kvt_daemon_run_other(const struct kvt_daemon *daemon, const char *const *arguments);

/* Wait for the text in the log. False when the daemon ended, or time did, without it. */
bool kvt_daemon_logged(const struct kvt_daemon *daemon, const char *text, int64_t timeout_ns);

/* The log from its start; bytes read, zero-terminated. */
size_t kvt_daemon_log(const struct kvt_daemon *daemon, char *text, size_t text_bytes);

/* Wait for its end: the exit status, or 128 + signal. */
int kvt_daemon_wait(struct kvt_daemon *daemon, int64_t timeout_ns);

/* SIGTERM, then wait. */
int kvt_daemon_stop(struct kvt_daemon *daemon);

/* SIGKILL, then wait. The dead socket stays. */
void kvt_daemon_kill(struct kvt_daemon *daemon);

/* Kill what still runs, remove the directory. */
void kvt_daemon_end(struct kvt_daemon *daemon);

/* ---- with an observer ---- */

/* Start on the host device with a pool of that size, and connect an observer. $KVT_DEVICE names
 * another device, whose granule is what it is (tests/scripts/test_ipc_cuda.sh). Prepares when that
 * has not been done, so that it starts the next one after a kill as well. */
void kvt_daemon_start_observed(struct kvt_daemon *daemon, const char *device_bytes,
                               const char *granule_bytes);

/* All clients have left: see that nothing is held, owned, in flight or leaked any more and that
 * the directory is clean; then stop, with exit status 0, and end. */
void kvt_daemon_end_observed(struct kvt_daemon *daemon);

#endif
