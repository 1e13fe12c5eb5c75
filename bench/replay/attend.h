/* SPDX-License-Identifier: Apache-2.0
 *
 * The replayed model as kva_attention_run wants it: one sequence, one query, as decoding does.
 */
#ifndef KVB_REPLAY_ATTEND_H
#define KVB_REPLAY_ATTEND_H

#include <kvmem/attention.h>

#include "device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Where the arrays lie: where the kernel runs. */
struct kvb_attend_arrays {
    const char *base;      /* of block 0 */
    const int32_t *table;  /* (blocks) */
    const int32_t *length; /* (1) */
};

/* q and out (heads, head_dim) of `dtype`; what is wrong with it kva_attention_info says. */
struct kva_attention kvb_describe_attention(const struct kvb_shape *shape,
                                            const struct kvb_attend_arrays *arrays, uint32_t tokens,
                                            uint32_t heads, uint32_t dtype, uint32_t device);

#ifdef __cplusplus
}
#endif
#endif
