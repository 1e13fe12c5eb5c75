/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of attention.h share: how a scene gets its memory (attention_layout.c), its
 * contents (attention_fill.c) and its truth (attention_truth.c).
 */
#ifndef KVT_ATTENTION_SCENE_H
#define KVT_ATTENTION_SCENE_H

#include "support/attention.h"

#define KVT_ATTENTION_GUARD 4096u

/* Zeroes are replaced by what they stand for. */
void kvt_attention_resolve(struct kvt_attention_case *c);

/* Lengths, offsets, tables, strides, and all host memory, poisoned. */
void kvt_attention_lay_out(struct kvt_attention_scene *scene);
/* The tokens in use, q, sinks, slopes, tree. */
void kvt_attention_fill(struct kvt_attention_scene *scene);
/* Memory of the device, with what the host's arrays hold. False when there is too little. */
bool kvt_attention_send(struct kvt_attention_scene *scene);
/* scene->exact, plain and their rows, of what the host's arrays hold now. */
void kvt_attention_find_truth(struct kvt_attention_scene *scene);

/* Zeroed; the program dies without memory. */
void *kvt_attention_need(uint64_t bytes);

uint32_t kvt_attention_dtype_bytes(uint32_t dtype);

#endif
