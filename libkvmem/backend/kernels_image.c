/* SPDX-License-Identifier: Apache-2.0
 *
 * The fat binary of kernels.cu inside the library. The Makefile says where it is, if there is an
 * nvcc; without one the image is empty, and the backend does without kernels.
 */
#include "backend/kernels.h"

#ifdef KVI_KERNELS_IMAGE

__asm__(".pushsection .rodata\n"
        ".balign 64\n"
        ".globl kvi_kernels_image\n"
        ".hidden kvi_kernels_image\n"
        "kvi_kernels_image:\n"
        ".incbin \"" KVI_KERNELS_IMAGE "\"\n"
        "1:\n"
        ".balign 8\n"
        ".globl kvi_kernels_image_bytes\n"
        ".hidden kvi_kernels_image_bytes\n"
        "kvi_kernels_image_bytes:\n"
        ".quad 1b - kvi_kernels_image\n"
        ".popsection\n");

#else

const unsigned char kvi_kernels_image[1];
const uint64_t kvi_kernels_image_bytes = 0;

#endif
