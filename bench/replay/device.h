/* SPDX-License-Identifier: Apache-2.0
 *
 * Where K and V lie, and who touches them there: the host, or kernels on a GPU. The scheduler, the
 * checks and the planted faults are one code over this table.
 *
 *   write        behind everything that was enqueued before; returns at once
 *   count_wrong  compare in place; waits for its answer
 *   attend       attention in double; waits for its answer
 *   attend_fast  attention by the library's kernels (kva_attention_run), as an engine runs it;
 * waits wait         until all that was enqueued is done, as a serving engine waits for its step
 *
 * On a GPU everything goes on one stream of the engine's own, which `stream` names and
 * kvb_device_fence() makes fences of. A failure of the device is kept in `error`, the first one;
 * what is asked of the device after it is answered with nothing, and whoever runs an engine looks
 * at `error` once a step. One thread.
 */
#ifndef KVB_REPLAY_DEVICE_H
#define KVB_REPLAY_DEVICE_H

#include <kvmem.h>

#include "bytes.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Tokens [first, end) of a sequence: its blocks, and the history at each position. */
struct kvb_span {
    const int32_t *table;
    const uint64_t *history;
    uint32_t first;
    uint32_t end;
};

/* One query of a layer; query (heads, head_dim) float. */
struct kvb_query {
    const float *query;
    uint32_t heads;
    uint32_t layer;
};

#define KVB_UNREADABLE (-1)
#define KVB_NO_MEMORY  1
#define KVB_NO_KERNEL  2

struct kvb_device;

struct kvb_device_ops {
    /* Write K and V of all layers and heads of `count` spans; at most KVB_WRITE_TOKENS in all. */
    void (*write)(struct kvb_device *device, const struct kvb_span *spans, uint32_t count);
    /* kvb_count_wrong_bytes. */
    uint64_t (*count_wrong)(struct kvb_device *device, const struct kvb_view *view,
                            const uint64_t *history, uint32_t first, uint32_t end);
    /* Attention over all tokens of `view`, whose table covers its length; out (heads, head_dim)
     * double. 0, KVB_NO_MEMORY, or KVB_UNREADABLE: a block is missing, or (GPU) reading a
     * contiguous copy of the same blocks gave other bits. */
    int (*attend)(struct kvb_device *device, const struct kvb_view *view,
                  const struct kvb_query *query, double *out);
    /* The same by kva_attention_run; out (heads, head_dim) float. Queries are rounded to *dtype, in
     * which the kernel answers. 0, KVB_NO_MEMORY, KVB_NO_KERNEL: none takes this model; or
     * KVB_UNREADABLE. */
    int (*attend_fast)(struct kvb_device *device, const struct kvb_view *view,
                       const struct kvb_query *query, float *out, uint32_t *dtype);
    /* Memory that `count_wrong` can read as a block; NULL: none left. */
    void *(*allocate)(struct kvb_device *device, uint64_t bytes);
    void (*release)(struct kvb_device *device, void *memory);
    /* Copy between any of blocks, allocated memory and the host's; done on return. */
    void (*copy)(struct kvb_device *device, void *to, const void *from, uint64_t bytes);
    void (*wait)(struct kvb_device *device);
    void (*close)(struct kvb_device *device);
};

struct kvb_device {
    const struct kvb_device_ops *ops; /* NULL: not opened */
    const struct kvb_shape *shape;
    const char *base; /* of block 0, where it is read, */
    char *write_base; /* and where it is written */
    void *stream;     /* CUstream; NULL on the host */
    void *own;        /* the implementation's */
    char error[256];
};

#define KVB_WRITE_TOKENS 16384u

/* Where block 0 is read and where it is written; the two may be the same. */
struct kvb_bases {
    const void *read;
    void *write;
};

/* Open for blocks there, as *shape says; it must stay. CUDA: the GPU of `info`; 0, or −1 and
 * device->error. */
void kvb_device_open_host(struct kvb_device *device, const struct kvb_shape *shape,
                          struct kvb_bases bases);
int kvb_device_open_cuda(struct kvb_device *device, const struct kvb_shape *shape,
                         struct kvb_bases bases, const struct kvmem_device_info *info);
void kvb_device_close(struct kvb_device *device);

/* kvb_vector() as compiled with the kernels, for the host; −1: there are none in this build. */
int kvb_cuda_vector(const struct kvb_shape *shape, uint64_t history, uint32_t layer, uint32_t is_v,
                    uint32_t head, uint64_t *out);

/* The fence of all that was asked of the device. */
static inline struct kvmem_fence kvb_device_fence(const struct kvb_device *device)
{
    return device->stream == NULL ? kvmem_fence_none() : kvmem_fence_stream(device->stream);
}

#ifdef __cplusplus
}
#endif
#endif
