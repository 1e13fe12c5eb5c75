/* SPDX-License-Identifier: Apache-2.0
 *
 * Starting, asking and ending a client_shell.
 */
#include "support/shell.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

uint32_t kvt_shell_start(struct kvt_process *shell, const struct kvt_daemon *daemon,
                         const char *name, const char *space)
{
    return kvt_shell_start_with(shell, daemon, name, space, NULL, NULL);
}

uint32_t kvt_shell_start_with(struct kvt_process *shell, const struct kvt_daemon *daemon,
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
    status = kvt_reap(shell, KVT_ANSWER_LIMIT);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        kvt_die("client_shell ended with wait status 0x%x", (unsigned)status);
}
