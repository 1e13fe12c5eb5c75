/* SPDX-License-Identifier: Apache-2.0
 *
 * What the tests and benchmarks on a GPU need of CUDA's runtime, for C: streams, events, memory,
 * graphs. The runtime and the library under test share the device's primary context, so a stream
 * from here is one that kvmem_fence_stream takes, and an address of a space is one that kernels
 * read.
 *
 * What is not expected ends the program (kvt_die) with CUDA's name for it. Functions that may
 * fail on purpose return CUDA's result, 0 for success.
 */
#ifndef KVT_GPU_H
#define KVT_GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KVT_GPU_ILLEGAL_ADDRESS 700
#define KVT_GPU_OUT_OF_MEMORY   2

/* ---- devices ---- */

/* NULL when there is a GPU to test on, else why there is none. Static storage. Makes no context. */
const char *kvt_gpu_missing(void);
int kvt_gpu_count(void);
/* The calling thread's device from now on, with its context. */
void kvt_gpu_use(int device);
int kvt_gpu_current(void);
/* True in tests/fake_gpu (support/gpu_fake): no faults, no timing, less memory and less time. */
bool kvt_gpu_is_fake(void);
/* $KVMEM_CUDA_DEVICE, else 0. */
int kvt_gpu_ordinal(void);
uint64_t kvt_gpu_free_bytes(void); /* as the driver counts */
uint64_t kvt_gpu_total_bytes(void);
const char *kvt_gpu_result_name(int result);

/* ---- memory of the test's own ---- */

void *kvt_gpu_alloc(uint64_t bytes);
int kvt_gpu_try_alloc(uint64_t bytes, void **out);
void kvt_gpu_free(void *memory);
/* Pinned, zeroed, and at the same address for kernels. */
void *kvt_gpu_host_alloc(uint64_t bytes);
void kvt_gpu_host_free(void *memory);
/* Pin memory that is there (a mapped page); whole OS pages. */
void kvt_gpu_host_pin(void *memory, uint64_t bytes);

/* ---- streams, events, graphs: opaque pointers ---- */

void *kvt_gpu_stream_new(void); /* does not wait for the default stream */
void kvt_gpu_stream_drop(void *stream);
/* Wait; CUDA's result. */
int kvt_gpu_try_sync(void *stream);
void kvt_gpu_sync(void *stream);
/* Nothing is under way on the stream. */
bool kvt_gpu_is_done(void *stream);
/* False when the stream still has work after `limit_ns`. */
bool kvt_gpu_done_within(void *stream, int64_t limit_ns);

void *kvt_gpu_event_new(void);
void kvt_gpu_event_drop(void *event);
void kvt_gpu_event_record(void *event, void *stream);
void kvt_gpu_event_sync(void *event);
double kvt_gpu_event_us(void *from, void *to); /* both done */

/* Any direction, ordered on the stream. */
void kvt_gpu_copy(void *to, const void *from, uint64_t bytes, void *stream);
void kvt_gpu_set(void *to, int byte, uint64_t bytes, void *stream);

/* What a graph holds. A stream memory operation (a fence) is a node and no launch. */
struct kvt_gpu_nodes {
    size_t all;
    size_t kernels;
};

/* What the stream gets between the two becomes a graph; the strictest mode, as PyTorch's. `nodes`
 * may be NULL. */
void kvt_gpu_capture_begin(void *stream);
void *kvt_gpu_capture_end(void *stream, struct kvt_gpu_nodes *nodes);
void kvt_gpu_graph_launch(void *graph, void *stream);
void kvt_gpu_graph_drop(void *graph);

#ifdef __cplusplus
}
#endif
#endif
