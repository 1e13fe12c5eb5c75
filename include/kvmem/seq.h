/* SPDX-License-Identifier: Apache-2.0
 *
 * Sequences: a request's tokens as two marks, and a block table.
 *
 *        0 ........... committed ........ appended
 *        |  K/V is there  |  slots are yours |
 *   blocks: [ sealed ][ sealed ][ tail, unsealed ]
 *
 * append takes slots, the engine writes K and V there, commit says that they are written.
 * fork shares all blocks; whoever appends first into a shared tail gets a copy of it, made before
 * append returns (copy-on-write; on a GPU: on the stream of the fence). truncate takes tokens
 * back; into a sealed block it keeps the block readable and the next append copies.
 *
 * What is given up with a fence that has not passed *cools*: its blocks are neither free nor
 * released until it has. kvmem_client_dispatch looks, and so does a call that lacks blocks. A
 * shared tail stays shared while a reference to it cools.
 *
 * A tail's copy is work on its blocks like a kernel of the caller's: on a GPU, who appends to what
 * was forked or truncated gives free and truncate a fence of that append's stream, even if nothing
 * was launched since. With none the copy may be made when the block is another sequence's already.
 *
 * None of these calls does IPC, a system call or an allocation, with three exceptions: a free or
 * truncate that ends more leases than the whole outbox holds sends as it goes (may block for the
 * client's time limit), a table longer than all before may take memory for itself once, and the
 * client's first fence of a stream asks the daemon for its timeline. All are all-or-nothing: on an
 * error nothing changed, in batch forms for no sequence.
 * Codes common to all: STALE (the sequence was freed), INVALID, NOT_SUPPORTED (fence.kind), with a
 * STREAM fence SYSTEM and the codes of kvmem_fence_record.
 * Out of memory is KVMEM_E_REFILL_PENDING (dispatch, then again) or KVMEM_E_OUT_OF_BLOCKS (give
 * something back first: preempt). KVMEM_E_OUTBOX_FULL: call kvmem_client_dispatch.
 */
#ifndef KVMEM_SEQ_H
#define KVMEM_SEQ_H

#include <kvmem/space.h>

#ifdef __cplusplus
extern "C" {
#endif

/* New empty sequences. LIMIT when seq_limit are alive. `seqs`: n ids out. */
KVMEM_API int kvmem_seq_create(struct kvmem_space *space, struct kvmem_seq *seq);
KVMEM_API int kvmem_seqs_create(struct kvmem_space *space, uint32_t n, struct kvmem_seq *seqs);

/* Give the sequence up. `fence`: the last work that reads or writes its blocks. OUTBOX_FULL, or
 * with a fence that has not passed BUSY: too much waits for fences (the detail says how much; wait
 * for one, then dispatch). In O(1) a sequence then. With a region TIMED_OUT: `fence`, and that of a
 * truncate which left blocks ahead, are of two timelines, and the latter is waited for. */
KVMEM_API int kvmem_seq_free(struct kvmem_space *space, struct kvmem_seq seq,
                             struct kvmem_fence fence);
KVMEM_API int kvmem_seqs_free(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                              struct kvmem_fence fence);

/* *child shares all of parent's blocks, with the same marks. Copies no bytes. LIMIT.
 * The batch form makes n children of one parent. */
KVMEM_API int kvmem_seq_fork(struct kvmem_space *space, struct kvmem_seq parent,
                             struct kvmem_seq *child);
KVMEM_API int kvmem_seqs_fork(struct kvmem_space *space, struct kvmem_seq parent, uint32_t n,
                              struct kvmem_seq *children);

/* Take blocks so that `tokens` more can be appended without running out. LIMIT: the table
 * would exceed the space's index range. */
KVMEM_API int kvmem_seq_reserve(struct kvmem_space *space, struct kvmem_seq seq, uint32_t tokens);

/* Append `tokens` slots (0 allowed). `fence`: where tail copies are ordered, all of a batch by one
 * launch. On a GPU: STREAM on that stream, TIMELINE on the default stream once it has passed, NONE
 * and HOST on the default stream; not while the stream is being captured. On the host a copy is
 * made at once: BUSY when its fence has not passed. BUSY also as in kvmem_seq_free. With a region
 * (<kvmem/region.h>): LIMIT beyond its tokens; a copy waits for the fence: TIMED_OUT. */
KVMEM_API int kvmem_seq_append(struct kvmem_space *space, struct kvmem_seq seq, uint32_t tokens,
                               struct kvmem_fence fence);
/* counts[i] tokens to seqs[i]; `counts` NULL = one each. A sequence may appear once. */
KVMEM_API int kvmem_seqs_append(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                                const uint32_t *counts, struct kvmem_fence fence);

/* Say that the next `tokens` of the appended slots hold their K and V. INVALID beyond the
 * appended mark. */
KVMEM_API int kvmem_seq_commit(struct kvmem_space *space, struct kvmem_seq seq, uint32_t tokens);
KVMEM_API int kvmem_seqs_commit(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                                const uint32_t *counts);

/* Keep the first `tokens` tokens; both marks become at most that. INVALID beyond the appended
 * mark, OUTBOX_FULL, BUSY as in kvmem_seq_free, NO_MEMORY; with a region TIMED_OUT. */
KVMEM_API int kvmem_seq_truncate(struct kvmem_space *space, struct kvmem_seq seq, uint64_t tokens,
                                 struct kvmem_fence fence);

/* What is known of a sequence. STALE, INVALID (size). */
struct kvmem_seq_info {
    uint32_t size;        /* sizeof(struct kvmem_seq_info), set by the caller */
    uint32_t block_count; /* blocks in the table, reserved ones included */
    uint64_t appended_tokens;
    uint64_t committed_tokens;
    uint32_t published_blocks; /* leading blocks that are entries (attached ones included) */
    uint32_t shared_blocks;    /* blocks that another sequence of this process also has */
};
KVMEM_API int kvmem_seq_info(const struct kvmem_space *space, struct kvmem_seq seq,
                             struct kvmem_seq_info *out);

#ifdef __cplusplus
}
#endif
#endif
