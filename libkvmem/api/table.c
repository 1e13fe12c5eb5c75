/* SPDX-License-Identifier: Apache-2.0
 *
 * Public functions of kvmem/table.h.
 */
#include "client/table.h"

#include "api/check.h"

static int check_batch(const struct kvmem_space *space, uint32_t group, uint32_t n,
                       const struct kvmem_seq *seqs)
{
    int code = space ? kvi_api_check_group(space, group) : kvi_api_is_null("space");

    return code ? code : kvi_api_check_array(seqs, n, "seqs");
}

int kvmem_table_padded(const struct kvmem_space *space, uint32_t group, uint32_t n,
                       const struct kvmem_seq *seqs, uint32_t max_blocks, int32_t *tables,
                       int32_t *lengths)
{
    int code = check_batch(space, group, n, seqs);

    if (!code && n && max_blocks && !tables)
        code = kvi_api_is_null("tables");
    return code ? code : kvi_table_padded(space, n, seqs, max_blocks, tables, lengths);
}

int kvmem_table_csr(const struct kvmem_space *space, uint32_t group, uint32_t n,
                    const struct kvmem_seq *seqs, uint32_t indices_limit, int32_t *indptr,
                    int32_t *indices, int32_t *last_lengths)
{
    int code = check_batch(space, group, n, seqs);

    if (!code && !indptr)
        code = kvi_api_is_null("indptr");
    if (!code && indices_limit && !indices)
        code = kvi_api_is_null("indices");
    if (!code && n && !last_lengths)
        code = kvi_api_is_null("last_lengths");
    if (code)
        return code;
    return kvi_table_csr(space, n, seqs, indices_limit, indptr, indices, last_lengths);
}

int kvmem_table_slots(const struct kvmem_space *space, uint32_t group, uint32_t n,
                      const struct kvmem_seq *seqs, const uint32_t *counts, uint32_t slots_limit,
                      int64_t *slots)
{
    int code = check_batch(space, group, n, seqs);

    if (!code && slots_limit && !slots)
        code = kvi_api_is_null("slots");
    return code ? code : kvi_table_slots(space, n, seqs, counts, slots_limit, slots);
}

int kvmem_table_view(const struct kvmem_space *space, uint32_t group, struct kvmem_seq seq,
                     const int32_t **blocks)
{
    int code = check_batch(space, group, 0, NULL);

    if (!code && !blocks)
        code = kvi_api_is_null("blocks");
    return code ? code : kvi_table_view(space, seq, blocks);
}
