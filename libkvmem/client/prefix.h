/* SPDX-License-Identifier: Apache-2.0
 *
 * Lookup, attach, release, publish, pin (kvmem/prefix.h): where leases begin and end.
 *
 *   lookup  hit on NONE, RELEASING → LEASED with one reference; on LEASED one reference more
 *   attach  a reference moves from held[] to a table
 *   publish PRIVATE → PUBLISHING, a record; see kvi_space_published() for the answer
 *
 * Hits whose producers are not done come with fences. They make a guard (guard.h), which stays with
 * the blocks, goes to the sequence that they are attached to, and to its forks: none of them can
 * publish before it is reached, nor ever when it broke.
 */
#ifndef KVI_CLIENT_PREFIX_H
#define KVI_CLIENT_PREFIX_H

#include "client/space.h"

int kvi_prefix_lookup(struct kvmem_space *space, uint32_t count, const struct kvmem_name *names,
                      int32_t *blocks, struct kvmem_fence *ready);
int kvi_prefix_peek(struct kvmem_space *space, uint32_t count, const struct kvmem_name *names);
int kvi_seq_attach(struct kvmem_space *space, struct kvmem_seq id, uint32_t count,
                   const int32_t *blocks);
int kvi_prefix_release(struct kvmem_space *space, uint32_t count, const int32_t *blocks,
                       const struct kvmem_fence *fence);
int kvi_seq_publish(struct kvmem_space *space, struct kvmem_seq id, uint32_t first_block,
                    uint32_t count, const struct kvmem_name *names,
                    const struct kvmem_fence *fence);
int kvi_publish_results(struct kvmem_space *space, uint32_t limit,
                        struct kvmem_publish_result *results);
int kvi_prefix_pin(struct kvmem_space *space, uint32_t count, const struct kvmem_name *names,
                   int64_t lifetime_ns, uint64_t *pin);
int kvi_prefix_unpin(struct kvmem_space *space, uint64_t pin);

/* Leases that the answer to a timed-out lookup granted go back. */
int kvi_prefix_late_hits(struct kvmem_space *space, const struct kvi_msg_lookup_reply *reply);

#endif
