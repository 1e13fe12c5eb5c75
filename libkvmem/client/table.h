/* SPDX-License-Identifier: Apache-2.0
 *
 * Block tables in the forms that kernels read (kvmem/table.h). Reads sequences, writes the
 * caller's memory; all ids and sizes are checked before the first write.
 */
#ifndef KVI_CLIENT_TABLE_H
#define KVI_CLIENT_TABLE_H

#include "client/seq.h"

int kvi_table_padded(const struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                     uint32_t max_blocks, int32_t *tables, int32_t *lengths);
int kvi_table_csr(const struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                  uint32_t indices_limit, int32_t *indptr, int32_t *indices, int32_t *last_lengths);
int kvi_table_slots(const struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                    const uint32_t *counts, uint32_t slots_limit, int64_t *slots);
int kvi_table_view(const struct kvmem_space *space, struct kvmem_seq id, const int32_t **blocks);

#endif
