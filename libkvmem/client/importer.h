/* SPDX-License-Identifier: Apache-2.0
 *
 * The importer: which segments of a space are mapped in this process, and how.
 *
 *   segment.access      0 = not mapped, RO = others write it, RW = ours: has an alias
 *   segment.generation  of what is mapped; a slot is used again with another one
 *   segment.job         1 = the helper is at work there; at most one job a segment
 *   address             base + slot × segment_bytes, read-only, always
 *   its alias           write_base + slot × segment_bytes, read-write: with access RW alone
 *
 *        RO                     RW                     RO                      ··
 *   base        |rrrr|  raise   |rrrr|  lower   |rrrr|  vacate   |    |
 *   write_base  |    |  ─────▶  |wwww|  ─────▶  |    |  ──────▶  |    |    the r stay as they are
 *
 * Driver calls go through the client's mapper: the plain functions below make them on the calling
 * thread, the _submit functions leave them to the helper, when there is one with room. While a job
 * is under way, access is what was there before it; only of an unmap it is 0 already. What is read
 * (access not 0) stays readable during a raise or a lower; who relies on the alias, or on anything
 * that the job makes, waits for it (kvi_importer_settle).
 *
 * Mapped segments are in one list. Descriptors are consumed; the backend keeps what it needs.
 */
#ifndef KVI_CLIENT_IMPORTER_H
#define KVI_CLIENT_IMPORTER_H

#include "client/mapper.h"
#include "client/space.h"

/* Is this very segment mapped? */
static inline bool kvi_importer_has(const struct kvmem_space *space, uint32_t slot,
                                    uint32_t generation)
{
    const struct kvi_segment *segment = &space->pool.segments[slot];

    return segment->access && segment->generation == generation;
}

/* Wait for the job that is under way there, if one is. */
void kvi_importer_settle(struct kvmem_space *space, uint32_t slot);

/* The same for all segments of the space. */
void kvi_importer_settle_all(struct kvmem_space *space);

/* Map the segment behind `fd`, which is consumed; with access RW its alias too. The slot is not
 * mapped. Codes of the backend; then nothing is mapped. */
int kvi_importer_map(struct kvmem_space *space, uint32_t slot, uint32_t generation, int fd,
                     enum kvi_access access);

/* Map the alias of a segment that is mapped, or take it out. Codes of the backend; then it is as
 * it was. */
int kvi_importer_raise(struct kvmem_space *space, uint32_t slot);
int kvi_importer_lower(struct kvmem_space *space, uint32_t slot);

/* The same by the helper: map the segment behind `fd`, or the alias, or take that out. False
 * without a helper that has room: nothing has happened, `fd` is the caller's. `done` gets
 * job->context = the space and job->tag = the slot, and calls kvi_importer_finish first. */
bool kvi_importer_submit_map(struct kvmem_space *space, uint32_t slot, uint32_t generation, int fd,
                             enum kvi_access access, void (*done)(const struct kvi_mapping *job));
bool kvi_importer_submit_raise(struct kvmem_space *space, uint32_t slot,
                               void (*done)(const struct kvi_mapping *job));
bool kvi_importer_submit_lower(struct kvmem_space *space, uint32_t slot,
                               void (*done)(const struct kvi_mapping *job));

/* Take note of what a job has done. Returns its code. */
int kvi_importer_finish(const struct kvi_mapping *job);

/* Take the mapping out; the slot is mapped. */
void kvi_importer_unmap(struct kvmem_space *space, uint32_t slot);

/* The slot is used again or about to be: unmap what is there and say so. PROTOCOL when it is
 * owned or leases are left in it. */
int kvi_importer_vacate(struct kvmem_space *space, uint32_t slot);

/* The same by the helper when there is one; said when it is done. */
int kvi_importer_vacate_later(struct kvmem_space *space, uint32_t slot);

/* Map the segments of client->hits[0 .. count) that are not. Returns how many leading hits are
 * readable now (fewer when the daemon had no descriptor for the next one), or a code. */
int kvi_importer_map_hits(struct kvmem_space *space, uint32_t count);

/* A segment_fds that nobody waits for any more: close, say unmapped. */
int kvi_importer_late_fds(struct kvmem_space *space, const struct kvi_msg_segment_fds *message);

/* Wait for the helper, then unmap all. */
void kvi_importer_fini(struct kvmem_space *space);

#endif
