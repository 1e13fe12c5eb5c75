/* SPDX-License-Identifier: Apache-2.0
 *
 * Random cases for kva_merge_run, held against the formula in double. Used on the CPU and on a GPU.
 */
#ifndef KVT_ATTENTION_MERGE_H
#define KVT_ATTENTION_MERGE_H

#include <kvmem/attention_merge.h>

struct kvt_merge_world {
    uint64_t seed;
    struct kva_merge what;
    uint8_t *parts;
    float *part_lse;
    uint64_t part_bytes;
    uint64_t part_lse_bytes;
    uint64_t out_bytes;
    uint64_t lse_bytes;
};

void kvt_merge_make(struct kvt_merge_world *world, uint64_t seed);
void kvt_merge_drop(struct kvt_merge_world *world);

/* NULL in text[0], or what is wrong with out and lse (host memory; lse may be NULL). */
void kvt_merge_compare(const struct kvt_merge_world *world, const void *out, const float *lse,
                       char text[200]);

#endif
