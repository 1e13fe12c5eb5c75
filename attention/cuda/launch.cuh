/* SPDX-License-Identifier: Apache-2.0
 *
 * What launch code needs of the device: its limits, asked once; whether a stream is of another one;
 * CUDA's errors in our words.
 */
#ifndef KVA_CUDA_LAUNCH_CUH
#define KVA_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

#include "../internal.h"

struct kva_cuda_device {
    int ordinal;
    int capability; /* 80, 90, ... */
    int sm_count;
    int shared_bytes;    /* of a thread block, at most */
    int sm_shared_bytes; /* of an SM; a thread block takes 1 KiB more than it asks for */
};

/* The calling thread's; asked once a device. NOT_SUPPORTED below 8.0, SYSTEM. */
int kva_cuda_device(struct kva_cuda_device *out);

/* INVALID when `stream` is not of `device`; the default streams are of any, and what is being
 * captured is not asked. */
int kva_cuda_check_stream(const struct kva_cuda_device *device, cudaStream_t stream);

/* 0, or SYSTEM with CUDA's name for the failure of `doing`. */
int kva_cuda_result(cudaError_t result, const char *doing);

/* Load `kernel` and let it have so much dynamic shared memory, once a device: what is loaded only
 * when it is launched would break a capture. */
int kva_cuda_prepare(const void *kernel, int shared_bytes);

#endif
