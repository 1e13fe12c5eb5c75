/* SPDX-License-Identifier: Apache-2.0
 *
 * PyTorch's attention as a peer: a script in a process of its own (torch_cpu.py, torch_gpu.py),
 * which answers each line that it is sent with a number.
 */
#ifndef KVB_ATTENTION_PEER_H
#define KVB_ATTENTION_PEER_H

#include <stdio.h>

struct kvb_peer {
    int pid; /* 0: not there */
    FILE *ask;
    FILE *answer;
};

/* Starts the script with one argument, by $KVMEM_TORCH or python3, and waits for its line "ready";
 * that may take minutes the first time, when PyTorch is installed (torch_cpu.py). */
void kvb_peer_start(struct kvb_peer *peer, const char *script, const char *argument);

/* The time that a run took, in the script's unit; 0 where there is no PyTorch or it refuses. */
double kvb_peer_ask(struct kvb_peer *peer, const char *line);

void kvb_peer_stop(struct kvb_peer *peer);

#endif
