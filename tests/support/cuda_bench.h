/* SPDX-License-Identifier: Apache-2.0
 *
 * What each operation of the CUDA backend costs, as one JSON line each.
 */
#ifndef KVT_CUDA_BENCH_H
#define KVT_CUDA_BENCH_H

#include "support/backend_compliance.h"

/* All operations on segments of `bytes`, on a device that may create four of them. Prints
 * {"bench": "backend_cuda", "operation": ..., "bytes": ..., "median_us": ..., "p99_us": ...}. */
void kvt_cuda_bench(struct kvt_backend *t, uint64_t bytes);

#endif
