/* SPDX-License-Identifier: Apache-2.0
 *
 * What the benchmarks on a GPU share. Each is a program: it starts a kvmemd of its own on the GPU,
 * and itself again where a second process is needed (tests/support/gpu/cases.h), checks the bytes
 * first, warms up, and prints its rows.
 *
 *   KVMEM_SAMPLES=n    fewer or more samples than usual
 */
#ifndef KVB_GPU_COMMON_H
#define KVB_GPU_COMMON_H

#include "common/bench.h"
#include "support/gpu/cases.h"
#include "support/gpu/engine.h"

/* Begin, take the device. */
void kvb_gpu_begin(int argc, char **argv, const struct kvt_role *roles);

/* $KVMEM_SAMPLES, else `usual`. */
uint32_t kvb_gpu_samples(uint32_t usual);

/* A row of one figure; 0 when it meets its limit. */
int kvb_gpu_figure(const char *bench, const char *metric, double value, double limit);

/* Driver calls of the client that map, change or unmap memory, so far: on its threads, the helper's
 * included. */
double kvb_gpu_memory_calls(const struct kvt_gpu_engine *engine);

/* Memory of the benchmark's own, `bytes` a multiple of 2 MiB, gets random bytes: zeros move
 * faster. */
void kvb_gpu_fill(void *memory, uint64_t bytes, void *stream);

/* Time on the GPU alone: a spin goes first, so that all is enqueued before it begins. */
struct kvb_gpu_timer {
    void *from;
    void *to;
    void *stream;
};
void kvb_gpu_timer_begin(struct kvb_gpu_timer *timer, void *stream);
/* Waits; µs between begin and here. */
double kvb_gpu_timer_end(struct kvb_gpu_timer *timer);

#endif
