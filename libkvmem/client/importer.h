/* SPDX-License-Identifier: Apache-2.0
 *
 * The importer: which segments of a space are mapped in this process, and how.
 *
 *   segment.access      0 = not mapped, RO = others write it, RW = ours
 *   segment.generation  of what is mapped; a slot is used again with another one
 *   address             base + slot × segment_bytes, always
 *
 * Mapped segments are in one list. Descriptors are consumed; the backend keeps what it needs.
 */
#ifndef KVI_CLIENT_IMPORTER_H
#define KVI_CLIENT_IMPORTER_H

#include "client/space.h"

/* Is this very segment mapped? */
static inline bool kvi_importer_has(const struct kvmem_space *space, uint32_t slot,
                                    uint32_t generation)
{
    const struct kvi_segment *segment = &space->pool.segments[slot];

    return segment->access && segment->generation == generation;
}

/* Map the segment behind `fd`, which is consumed. The slot is not mapped. Codes of the backend;
 * then nothing is mapped. */
int kvi_importer_map(struct kvmem_space *space, uint32_t slot, uint32_t generation, int fd,
                     enum kvi_access access);

/* Change what we may do there. Codes of the backend; then it is as it was. */
int kvi_importer_set_access(struct kvmem_space *space, uint32_t slot, enum kvi_access access);

/* Take the mapping out; the slot is mapped. */
void kvi_importer_unmap(struct kvmem_space *space, uint32_t slot);

/* The slot is used again or about to be: unmap what is there and say so. PROTOCOL when it is
 * owned or leases are left in it. */
int kvi_importer_vacate(struct kvmem_space *space, uint32_t slot);

/* Map the segments of client->hits[0 .. count) that are not. Returns how many leading hits are
 * readable now (fewer when the daemon had no descriptor for the next one), or a code. */
int kvi_importer_map_hits(struct kvmem_space *space, uint32_t count);

/* A segment_fds that nobody waits for any more: close, say unmapped. */
int kvi_importer_late_fds(struct kvmem_space *space, const struct kvi_msg_segment_fds *message);

/* Unmap all. */
void kvi_importer_fini(struct kvmem_space *space);

#endif
