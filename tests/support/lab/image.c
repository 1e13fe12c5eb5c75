/* SPDX-License-Identifier: Apache-2.0
 *
 * The laboratory's fat binary; empty without nvcc.
 */
#include "backend/image.h"
#include "support/lab/lab.h"

#ifdef KVT_LAB_IMAGE
KVI_IMAGE("kvt_lab_image", KVT_LAB_IMAGE);
#else
const unsigned char kvt_lab_image[1];
const uint64_t kvt_lab_image_bytes = 0;
#endif
