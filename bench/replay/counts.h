/* SPDX-License-Identifier: Apache-2.0
 *
 * What a replay counts. A client process sends its counts to the parent as one JSON object with
 * these keys; the parent adds them up.
 */
#ifndef KVB_REPLAY_COUNTS_H
#define KVB_REPLAY_COUNTS_H

#include <stdint.h>

/* X(name): numbers that add up over clients. */
#define KVB_COUNT_TABLE(X)    \
    X(requests)               \
    X(prompt_tokens)          \
    X(output_tokens)          \
    X(lookup_blocks)          \
    X(hit_blocks)             \
    X(stale_prefixes)         \
    X(preemptions)            \
    X(published_blocks)       \
    X(publish_exists_blocks)  \
    X(publish_refused_blocks) \
    X(blocks_checked)         \
    X(wrong_bytes)            \
    X(attention_checked)      \
    X(attention_wrong)        \
    X(kernels_checked)        \
    X(kernels_wrong)          \
    X(planted_faults)         \
    X(found_faults)           \
    X(held_blocks_at_end)     \
    X(reused_entry_blocks)    \
    X(adopted_segments)       \
    X(steps)                  \
    X(peak_resident_bytes)

struct kvb_counts {
#define KVB_COUNT_FIELD(name) uint64_t name;
    KVB_COUNT_TABLE(KVB_COUNT_FIELD)
#undef KVB_COUNT_FIELD
    double attention_max_error; /* the largest of all clients */
    double waste_ratio;         /* embedded only, else −1 */
    double unused_slot_ratio;   /* embedded only, else −1 */
};

#endif
