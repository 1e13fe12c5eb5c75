/* SPDX-License-Identifier: Apache-2.0
 *
 * The fat binary of kernels.cu inside the library. The Makefile says where it is, if there is an
 * nvcc; without one the image is empty, and the backend does without kernels.
 */
#include "backend/image.h"
#include "backend/kernels.h"

#ifdef KVI_KERNELS_IMAGE
KVI_IMAGE("kvi_kernels_image", KVI_KERNELS_IMAGE);
#else
const unsigned char kvi_kernels_image[1];
const uint64_t kvi_kernels_image_bytes = 0;
#endif
