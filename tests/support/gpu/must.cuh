/* SPDX-License-Identifier: Apache-2.0
 *
 * Calls of CUDA's runtime that must succeed. kvt_die is declared here as C has it: spawn.h is no
 * C++.
 */
#ifndef KVT_GPU_MUST_CUH
#define KVT_GPU_MUST_CUH

#include <cuda_runtime.h>

extern "C" void kvt_die(const char *format, ...);

#define KVT_CUDA(call)                                                                            \
    do {                                                                                          \
        cudaError_t kvt_result = (call);                                                          \
        if (kvt_result != cudaSuccess)                                                            \
            kvt_die("%s:%d: %s: %s (%d)", __FILE__, __LINE__, #call,                              \
                    cudaGetErrorString(kvt_result), (int)kvt_result);                             \
    } while (0)

#endif
