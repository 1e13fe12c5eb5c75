/* SPDX-License-Identifier: Apache-2.0
 *
 * PyTorch's attention on the CPU as a peer: torch_cpu.py in a process of its own, which runs once
 * each time it is asked.
 */
#ifndef KVB_ATTENTION_PEER_H
#define KVB_ATTENTION_PEER_H

#include <stdio.h>

#include "shape.h"

struct kvb_peer {
    int pid; /* 0: not there */
    FILE *ask;
    FILE *answer;
};

/* Starts it; that may take minutes the first time, when PyTorch is installed (torch_cpu.py). */
void kvb_peer_start(struct kvb_peer *peer, const struct kvb_shape *shape);

/* Nanoseconds of a run: the better of bf16 and fp32; 0 where there is no PyTorch. */
double kvb_peer_ns(struct kvb_peer *peer);

void kvb_peer_stop(struct kvb_peer *peer);

#endif
