/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention results that must be equal to the last bit. Each returns NULL, or what differed; a
 * kernel that does not take the case is told by *refused.
 */
#ifndef KVT_ATTENTION_EQUAL_H
#define KVT_ATTENTION_EQUAL_H

#include "support/attention.h"

/* The case in every layout, K and V being the same numbers. */
const char *kvt_attention_equal_layouts(const struct kvt_attention_case *c,
                                        const struct kvt_memory *memory, const char *kernel,
                                        bool *refused);

/* Run again, `times` times. */
const char *kvt_attention_equal_again(const struct kvt_attention_case *c,
                                      const struct kvt_memory *memory, const char *kernel,
                                      uint32_t times, bool *refused);

/* KVA_BATCH_INVARIANT: each sequence alone, and all but the first, with the same maxima. */
const char *kvt_attention_equal_alone(const struct kvt_attention_case *c,
                                      const struct kvt_memory *memory, const char *kernel,
                                      bool *refused);

#endif
