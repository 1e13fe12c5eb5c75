/* SPDX-License-Identifier: Apache-2.0
 *
 * tests/helpers/client_shell from a test's side: an engine in a process of its own, which does
 * what it is told. Every failure ends the test (kvt_die).
 */
#ifndef KVT_SHELL_H
#define KVT_SHELL_H

#include "support/daemon.h"

/* Start tests/helpers/client_shell; returns its client number. `quota`: bytes as text, or NULL;
 * `refill`: blocks that it wants to have free, as text, or NULL. */
uint32_t kvt_shell_start_with(struct kvt_process *shell, const struct kvt_daemon *daemon,
                              const char *name, const char *space, const char *quota,
                              const char *refill);
uint32_t kvt_shell_start(struct kvt_process *shell, const struct kvt_daemon *daemon,
                         const char *name, const char *space);

/* Let it close its session, with as many fds and mappings as before, and exit with status 0. */
void kvt_shell_end(struct kvt_process *shell);

/* Ask a shell, and require "ok" or "error CODE ..." as the answer's beginning. The answer is in
 * static storage. */
const char *kvt_shell(struct kvt_process *shell, const char *beginning, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
