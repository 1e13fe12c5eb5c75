/* SPDX-License-Identifier: Apache-2.0
 *
 * peer.h: two pipes, a line each way.
 */
#include "peer.h"

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/bench.h"

static _Noreturn void run_script(const char *script, const char *argument, const int *in,
                                 const int *out)
{
    const char *python = getenv("KVMEM_TORCH");

    python = python ? python : "python3";
    dup2(in[0], STDIN_FILENO);
    dup2(out[1], STDOUT_FILENO);
    for (int i = 0; i < 2; i++) {
        close(in[i]);
        close(out[i]);
    }
    execlp(python, python, script, argument, (char *)NULL);
    _exit(127);
}

void kvb_peer_start(struct kvb_peer *peer, const char *script, const char *argument)
{
    char line[256] = "";
    int in[2], out[2];

    memset(peer, 0, sizeof(*peer));
    if (pipe(in) || pipe(out))
        kvb_fail("pipe failed");
    fflush(stdout);
    peer->pid = fork();
    if (peer->pid == 0)
        run_script(script, argument, in, out);
    close(in[0]);
    close(out[1]);
    peer->ask = fdopen(in[1], "w");
    peer->answer = fdopen(out[0], "r");
    if (fgets(line, sizeof(line), peer->answer) && !strncmp(line, "ready", 5)) {
        fprintf(stderr, "%s", line);
        return;
    }
    fprintf(stderr, "no PyTorch to compare with: %s\n", line);
    fclose(peer->ask);
    fclose(peer->answer);
    waitpid(peer->pid, NULL, 0);
    peer->pid = 0;
}

double kvb_peer_ask(struct kvb_peer *peer, const char *line)
{
    char answer[256];

    if (!peer->pid)
        return 0;
    fprintf(peer->ask, "%s\n", line);
    fflush(peer->ask);
    if (!fgets(answer, sizeof(answer), peer->answer))
        kvb_fail("PyTorch ended before it answered \"%s\"", line);
    return strtod(answer, NULL);
}

void kvb_peer_stop(struct kvb_peer *peer)
{
    if (!peer->pid)
        return;
    fclose(peer->ask);
    fclose(peer->answer);
    waitpid(peer->pid, NULL, 0);
}
