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

#define SCRIPT "bench/attention/torch_cpu.py"

static _Noreturn void run_script(const struct kvb_shape *s, const int *in, const int *out)
{
    char numbers[128];

    snprintf(numbers, sizeof(numbers), "%u,%u,%u,%u,%u,%u,%u,%u", s->seqs, s->heads, s->kv_heads,
             s->rows, s->length, s->dim_k, s->rows > 1 && s->flags & KVA_CAUSAL ? 1 : 0,
             s->threads);
    dup2(in[0], STDIN_FILENO);
    dup2(out[1], STDOUT_FILENO);
    for (int i = 0; i < 2; i++) {
        close(in[i]);
        close(out[i]);
    }
    execlp("python3", "python3", SCRIPT, numbers, (char *)NULL);
    _exit(127);
}

void kvb_peer_start(struct kvb_peer *peer, const struct kvb_shape *shape)
{
    char line[256] = "";
    int in[2], out[2];

    memset(peer, 0, sizeof(*peer));
    if (pipe(in) || pipe(out))
        kvb_fail("pipe failed");
    fflush(stdout);
    peer->pid = fork();
    if (peer->pid == 0)
        run_script(shape, in, out);
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

double kvb_peer_ns(struct kvb_peer *peer)
{
    char line[64];

    if (!peer->pid)
        return 0;
    fputs("run\n", peer->ask);
    fflush(peer->ask);
    if (!fgets(line, sizeof(line), peer->answer))
        kvb_fail(SCRIPT ": ended early");
    return strtod(line, NULL);
}

void kvb_peer_stop(struct kvb_peer *peer)
{
    if (!peer->pid)
        return;
    fclose(peer->ask);
    fclose(peer->answer);
    waitpid(peer->pid, NULL, 0);
}
