/* SPDX-License-Identifier: Apache-2.0
 *
 * A GPU's memory for the scenes of support/attention.h.
 */
#ifndef KVT_GPU_ATTENTION_H
#define KVT_GPU_ATTENTION_H

#include "support/attention.h"

/* On the calling thread's device. A device error ends the program, with the case. */
struct kvt_memory kvt_gpu_attention_memory(void *stream);

#endif
