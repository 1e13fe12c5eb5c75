/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernels that copy lists as kvi_kernel_copy does, to be timed beside it (tests/gpu/blocks_lab.c).
 * They take its parameters. The fake driver runs every kernel called kvt_lab_... as that copy.
 */
#ifndef KVT_LAB_H
#define KVT_LAB_H

#include <stdint.h>

/* Of the bulk kernels: one warp, whose first thread works. Dynamic shared memory is STAGES pieces
 * for those that run on, one piece for those with a thread block a piece; and EXTRA bytes. */
#define KVT_LAB_BULK_THREADS 32u
#define KVT_LAB_BULK_STAGES  4u
#define KVT_LAB_BULK_EXTRA   128u

#if !defined(__CUDACC__)
extern const unsigned char kvt_lab_image[] __attribute__((visibility("hidden")));
extern const uint64_t kvt_lab_image_bytes __attribute__((visibility("hidden")));
#endif

#endif
