/* SPDX-License-Identifier: Apache-2.0
 *
 * Block tables in the forms that attention kernels read. All functions fill the caller's
 * memory, copy indices only, do no IPC and no allocation.
 * Common codes: STALE, INVALID (a group that is not there; a row does not fit: the detail
 * names the sequence and the room that it needs).
 */
#ifndef KVMEM_TABLE_H
#define KVMEM_TABLE_H

#include <kvmem/seq.h>

#ifdef __cplusplus
extern "C" {
#endif

/* tables (n, max_blocks) int32, row i = the blocks of seqs[i] that hold appended tokens, padded
 * with KVMEM_BLOCK_NONE; lengths (n) int32 = appended tokens, may be NULL. */
KVMEM_API int kvmem_table_padded(const struct kvmem_space *space, uint32_t group, uint32_t n,
                                 const struct kvmem_seq *seqs, uint32_t max_blocks, int32_t *tables,
                                 int32_t *lengths);

/* CSR as paged kernels take it: indptr (n + 1), indices (indptr[n]), last_lengths (n) = tokens
 * in the last block, 1 .. block_tokens (0 for an empty sequence). `indices_limit`: room in
 * indices. Returns the number of indices. */
KVMEM_API int kvmem_table_csr(const struct kvmem_space *space, uint32_t group, uint32_t n,
                              const struct kvmem_seq *seqs, uint32_t indices_limit, int32_t *indptr,
                              int32_t *indices, int32_t *last_lengths);

/* Slot mapping of the last counts[i] appended tokens of each sequence (NULL = one each), one
 * after the other: slot = block index × block_tokens + position in the block, int64.
 * `slots_limit`: room in slots. Returns the number of slots. */
KVMEM_API int kvmem_table_slots(const struct kvmem_space *space, uint32_t group, uint32_t n,
                                const struct kvmem_seq *seqs, const uint32_t *counts,
                                uint32_t slots_limit, int64_t *slots);

/* The table of one sequence where it lies: *blocks (count) int32, valid until the next call that
 * changes the sequence. Returns count, reserved blocks included. */
KVMEM_API int kvmem_table_view(const struct kvmem_space *space, uint32_t group,
                               struct kvmem_seq seq, const int32_t **blocks);

#ifdef __cplusplus
}
#endif
#endif
