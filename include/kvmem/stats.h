/* SPDX-License-Identifier: Apache-2.0
 *
 * Counters of this process. What the daemon knows of all clients: kvmemctl stats.
 */
#ifndef KVMEM_STATS_H
#define KVMEM_STATS_H

#include <kvmem/space.h>

#ifdef __cplusplus
extern "C" {
#endif

struct kvmem_client_stats {
    uint32_t size; /* sizeof(struct kvmem_client_stats), set by the caller */
    uint32_t outbox_used_records;
    uint64_t messages_sent;
    uint64_t messages_received;
    uint64_t dispatches;
    uint64_t segments_imported;
    uint64_t pressure_requests;
    /* Jobs, of one to three driver calls: a segment or a view is mapped or unmapped, or gets or
     * loses its writable mapping; adjoining views that are unmapped together are one. */
    uint64_t helper_jobs;         /* by the helper thread */
    uint64_t driver_calls_inline; /* by the calling thread */
};

struct kvmem_space_stats {
    uint32_t size; /* sizeof(struct kvmem_space_stats), set by the caller */
    uint32_t live_seqs;
    uint64_t free_blocks;
    uint64_t private_blocks; /* in sequences or cooling, not entries */
    uint64_t leased_blocks;  /* entries that this client holds */
    uint64_t cooling_blocks; /* references given up with a fence that has not passed yet */
    uint64_t owned_segments;
    uint64_t mapped_segments; /* owned ones included */
    uint64_t appended_tokens; /* since the space was opened */
    uint64_t tail_copies;     /* copy-on-write copies */
    uint64_t lookup_blocks;   /* names asked for */
    uint64_t hit_blocks;      /* and found */
    uint64_t published_blocks;
    uint64_t publish_exists_blocks;
    uint64_t publish_refused_blocks;
    uint64_t handed_in_segments;
    uint64_t adopted_segments; /* came with entries in place */
    uint64_t refills;          /* answers to requests for blocks */
    uint64_t out_of_blocks;    /* calls refused with OUT_OF_BLOCKS or REFILL_PENDING */
};

/* Fill *out (size set by the caller). INVALID: NULL or size. No IPC. */
KVMEM_API int kvmem_client_stats(const struct kvmem_client *client, struct kvmem_client_stats *out);
KVMEM_API int kvmem_space_stats(const struct kvmem_space *space, struct kvmem_space_stats *out);

#ifdef __cplusplus
}
#endif
#endif
