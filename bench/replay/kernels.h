/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels of kvmem-replay. Each is enqueued on `stream` and returns without waiting; pointers
 * are the GPU's. *shape travels by value.
 */
#ifndef KVB_REPLAY_KERNELS_H
#define KVB_REPLAY_KERNELS_H

#include <cuda_runtime_api.h>

#include "byte_function.h"

/* A token: what its K and V come from, and where they lie. */
struct kvb_place {
    uint64_t history;
    int32_t block; /* KVMEM_BLOCK_NONE: nowhere */
    uint32_t slot;
};

#define KVB_PLACES_LIMIT 65535u /* in a launch: one each row of the grid */

/* Write all layers and heads of places (count); every block is there. */
cudaError_t kvb_kernel_write(const struct kvb_shape *shape, char *base,
                             const struct kvb_place *places, uint32_t count, cudaStream_t stream);

/* Compare them: counts[i] += bytes that differ in the i-th block, where places[0] is in slot
 * `first_slot` of block 0 and the others follow without a gap. A token without a block differs as a
 * whole. */
cudaError_t kvb_kernel_count_wrong(const struct kvb_shape *shape, const char *base,
                                   const struct kvb_place *places, uint32_t count,
                                   uint32_t first_slot, uint32_t *counts, cudaStream_t stream);

/* A layer's K and V as attention reads them: block i of the sequence is at
 * base + table[i] × block_stride_bytes. */
struct kvb_layer_view {
    const char *base;
    uint64_t block_stride_bytes;
    const int32_t *table;
    uint32_t length; /* tokens, > 0 */
};

/* Copy the view's blocks one behind the other: out (blocks, layer_stride_bytes), and
 * identity (blocks) = 0, 1, 2, ... */
cudaError_t kvb_kernel_gather(const struct kvb_shape *shape, const struct kvb_layer_view *view,
                              char *out, int32_t *identity, cudaStream_t stream);

/* query (heads, head_dim) float; weights (heads, length) double, scratch; out (heads, head_dim)
 * double. All sums are in double and in an order that depends on the shapes alone: equal K and V
 * give equal bits wherever they lie. */
cudaError_t kvb_kernel_attend(const struct kvb_shape *shape, const struct kvb_layer_view *view,
                              const float *query, uint32_t heads, double *weights, double *out,
                              cudaStream_t stream);

#endif
