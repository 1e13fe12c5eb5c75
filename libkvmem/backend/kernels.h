/* SPDX-License-Identifier: Apache-2.0
 *
 * The library's own kernels as host code and device code see them: names, parameters, shapes of
 * launches. kernels.cu is compiled to a fat binary (machine code for sm_80 and sm_90, PTX for what
 * comes later), which kernels_image.c puts into the library; backend_cuda_kernels.c loads it.
 *
 * A list goes by value, in the kernel's parameters, of which there are 4 KiB: no staging memory,
 * nothing to wait for, and a graph that captures the launch repeats it with the same blocks.
 *
 *   block        | piece | piece | piece | pie |     all of one list are `pieces` long; the last
 *                  thread block i takes pieces        one is shorter
 *                  i, i + grid, i + 2 × grid ...
 */
#ifndef KVI_BACKEND_KERNELS_H
#define KVI_BACKEND_KERNELS_H

#include <stdint.h>

#define KVI_KERNEL_BLOCKS 500 /* a launch; KVI_BACKEND_BLOCKS_MAX */

/* (struct kvi_kernel_blocks) */
#define KVI_KERNEL_COPY "kvi_kernel_copy"
#define KVI_KERNEL_ZERO "kvi_kernel_zero"
/* (uint64_t base, uint64_t cells, uint32_t count) */
#define KVI_KERNEL_CELLS "kvi_kernel_cells"

#define KVI_KERNEL_THREADS 256u

struct kvi_kernel_blocks {
    uint64_t to_base;
    uint64_t from_base; /* not of the zero kernel */
    uint64_t stride_bytes;
    uint64_t bytes;       /* a block; a multiple of 16 */
    uint32_t piece_bytes; /* a multiple of 16 */
    uint32_t pieces;      /* a block: ⌈bytes ÷ piece_bytes⌉ */
    uint32_t count;
    uint32_t reserved;
    int32_t to[KVI_KERNEL_BLOCKS];
    int32_t from[KVI_KERNEL_BLOCKS]; /* not of the zero kernel */
};

#if !defined(__CUDACC__)
_Static_assert(sizeof(struct kvi_kernel_blocks) <= 4096, "kernel parameters are 4 KiB at most");

/* The fat binary; 0 bytes in a library that was built without nvcc. */
extern const unsigned char kvi_kernels_image[] __attribute__((visibility("hidden")));
extern const uint64_t kvi_kernels_image_bytes __attribute__((visibility("hidden")));
#endif

#endif
