/* SPDX-License-Identifier: Apache-2.0
 *
 * A GPU's memory for the scenes of support/attention.h.
 */
#ifndef KVT_GPU_ATTENTION_H
#define KVT_GPU_ATTENTION_H

#include "support/attention.h"

/* On the calling thread's device. A device error ends the program, with the case. */
struct kvt_memory kvt_gpu_attention_memory(void *stream);

/* The same, but what is larger than KVT_GPU_FAR_BYTES is an address range that has memory only
 * where something was put: what else a kernel touches there is a fault. One at a time. */
#define KVT_GPU_FAR_BYTES (UINT64_C(64) << 30)
struct kvt_memory kvt_gpu_attention_far_memory(void *stream);

#endif
