/* SPDX-License-Identifier: Apache-2.0
 *
 * What the rows of a GPU are measured with: one stream, one piece of memory from which all arrays
 * of a row are cut, graphs of many runs, and a kernel that only reads.
 *
 * A sample is a graph's time ÷ its launches. Run i of a graph takes layer i modulo the layers, so
 * that nothing is read again while caches hold it.
 */
#ifndef KVB_ATTENTION_CUDA_DEVICE_H
#define KVB_ATTENTION_CUDA_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- a kernel that only reads (roof.cu) ---- */

/* `bytes` at a multiple of 16. */
void kvb_cuda_read(const void *from, uint64_t bytes, void *stream);
const char *kvb_cuda_name(void);
/* GB/s that it must reach on this card, or a run proves nothing; 0 where no one has measured. */
double kvb_cuda_roof_gbps(void);

#ifdef __cplusplus
}
#else

#include "../peer.h"
#include "../shape.h"
#include "common/bench.h"

/* ---- memory ---- */

/* Take the device and a stream, or end the program with 77 and the reason. */
void kvb_cuda_begin(void);

/* All memory that is free, but for what other programs and the checks need, at most `bytes`; what
 * was cut from the last such piece is gone. Cheap when nothing changes. */
void kvb_cuda_take(uint64_t bytes);

/* ---- what is timed ---- */

#define KVB_CUDA_DECODE_ROWS 16u /* of a sequence; more are prefill */

struct kvb_timed {
    void *graph;
    uint32_t launches;
    /* Or another process, asked with this line. */
    struct kvb_peer *peer;
    char line[48];
    /* Once without timing, before each sample: where others use the GPU in between. */
    bool is_warmed;
};

struct kvb_cuda_problem {
    struct kvb_problem problem;
    struct kvb_timed timed;
};

enum kvb_cuda_flag {
    KVB_CUDA_WITH_PLAN = 1 /* a plan is in the graph, before the runs of all layers */
};

/* A shape laid out (with fewer layers, halved until they fit), planned, run, compared with
 * attention in double on the device, and made a graph. What is wrong ends the program. */
void kvb_cuda_problem(struct kvb_cuda_problem *own, const struct kvb_shape *shape, uint32_t flags);

/* The same memory in another layout, checked as well. */
void kvb_cuda_other_layout(struct kvb_cuda_problem *other, const struct kvb_cuda_problem *own,
                           uint32_t layout);

/* Standard attention of the same arrays, checked; *bytes gets its workspace. */
void kvb_cuda_standard(struct kvb_timed *timed, struct kvb_cuda_problem *own, uint64_t *bytes);

/* As many bytes read as the problem's K and V have. */
void kvb_cuda_reading(struct kvb_timed *timed, const struct kvb_cuda_problem *own);

/* µs a launch; 0 when a peer does not answer. */
double kvb_timed_us(struct kvb_timed *timed);

#endif
#endif
