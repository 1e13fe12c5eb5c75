/* SPDX-License-Identifier: Apache-2.0
 *
 * Where everything lies in a block, and how large a segment is (DESIGN rule 6). Pure.
 */
#ifndef KVI_UTIL_GEOMETRY_H
#define KVI_UTIL_GEOMETRY_H

#include <kvmem/space.h>

/* Segments of a space, and of a directory: a number + 1 fits 16 bits, beside 0 for none. */
#define KVI_SEGMENT_LIMIT 65534u

/* What a plan follows from. */
struct kvi_geometry_input {
    uint32_t layout; /* enum kvmem_layout; 0 = PAGE_HEAD_TOKEN */
    uint32_t flags;  /* 0 or KVMEM_SPACE_REGIONS: a segment is one block */
    uint32_t block_tokens;
    const struct kvmem_group_options *group;
    uint64_t device_bytes;
    uint64_t granule_bytes;
};

/* Plan one group. The directory and the clients call this with the same input and get the same
 * answer. 0; KVMEM_E_INVALID naming the field, its value and its range, or, when no segment pads
 * at most 1 %, the nearest block_tokens that works (with KVMEM_SPACE_REGIONS, where nothing may
 * be padded, the smallest); KVMEM_E_NOT_SUPPORTED naming layout or window_tokens. */
int kvi_geometry_plan(const struct kvi_geometry_input *input, struct kvmem_geometry *out);

/* Blocks of `block_bytes` (a multiple of 16) in a segment of `segment_bytes` at an exact stride:
 * the largest n >= count_min for which segment_bytes = n * stride, stride a multiple of 16 and
 * >= block_bytes, and n <= 2^24. 0 when there is none. */
uint32_t kvi_geometry_fit(uint64_t block_bytes, uint64_t segment_bytes, uint32_t count_min);

/* Bytes of one element; 0 for NONE and for unknown values. */
uint32_t kvi_geometry_dtype_bytes(uint32_t dtype);

/* Check everything in the options but their strings' bytes beyond the terminator: ranges,
 * combinations, what is not supported yet. The first offender is named. */
int kvi_space_options_check(const struct kvmem_space_options *options);

#endif
