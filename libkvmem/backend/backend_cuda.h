/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA device: memory of one GPU, from the driver's virtual memory management. See
 * backend_cuda.c for how, and backend.h for the contract.
 *
 * Beside the contract, on CUDA:
 *   - no KVI_BACKEND_RECLAIMS_MAPPED: the bytes of a released segment come back when the last
 *     handle, fd and mapping of it, in any process, is gone;
 *   - DEVICE_FULL also from import and map, whose page tables take device memory;
 *   - values of fences are below 2^63, since the hardware compares them cyclically;
 *   - a copy from or to host memory that is not pinned may wait for its stream, also for a fence
 *     that the stream waits for;
 *   - a counter's page may be pinned by several backends of a process, if the later ones' range
 *     lies within the first one's;
 *   - destroy does not wait for the device: what still runs must not use its mappings.
 */
#ifndef KVI_BACKEND_BACKEND_CUDA_H
#define KVI_BACKEND_BACKEND_CUDA_H

#include <stdbool.h>

#include "backend/backend.h"
#include "util/alloc.h"

#define KVI_BACKEND_CUDA_FENCE_VALUE_MAX ((uint64_t)INT64_MAX)

/* Zeroes are defaults; set options_bytes to sizeof. */
struct kvi_backend_cuda_options {
    uint32_t options_bytes;
    uint32_t device_index;         /* the driver's ordinal, from 0, after CUDA_VISIBLE_DEVICES */
    uint64_t device_bytes;         /* 0: only imports; else a multiple of the granule */
    const char *driver_path;       /* NULL: libcuda.so.1; copied */
    const struct kvi_alloc *alloc; /* NULL: libc's; must outlive the backend */
};

/* What a device is, known without taking anything of it. */
struct kvi_backend_cuda_device {
    int driver_version; /* 13000 for 13.0 */
    int capability;     /* 90 for sm_90 */
    uint32_t device_count;
    bool rdma_capable; /* segments carry the GPUDirect RDMA flag */
    bool under_mps;    /* the driver says so; before CUDA 12.1 it does not know */
    uint8_t uuid[16];  /* the same in every process */
    uint64_t granule_bytes;
    uint64_t total_bytes;
    char name[64];
};

/* Is there such a device, and can it do what a backend needs? Only driver_path and device_index
 * of `options` are looked at. NOT_SUPPORTED without a driver or a device, with one that is too
 * old or lacks an attribute (named in the detail); INVALID for an ordinal that does not exist;
 * NO_MEMORY; SYSTEM. */
int kvi_backend_cuda_query(const struct kvi_backend_cuda_options *options,
                           struct kvi_backend_cuda_device *out);

/* Create a backend on a device, with its primary context retained until kvi_backend_destroy().
 * The codes of kvi_backend_cuda_query(); INVALID naming the option and its range; DEVICE_FULL
 * when there is no memory left for a context. */
int kvi_backend_cuda_create(const struct kvi_backend_cuda_options *options,
                            struct kvi_backend **out);

/* Walk all tables. 0, or CORRUPT with the first violated equation in the detail. INVALID when
 * `b` is no CUDA backend. */
int kvi_backend_cuda_check(struct kvi_backend *b);

#endif
