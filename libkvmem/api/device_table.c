/* SPDX-License-Identifier: Apache-2.0
 *
 * Public functions of kvmem/device_table.h.
 */
#include "client/device_table.h"

#include "api/check.h"

static int check_limit(const char *name, uint32_t value, uint32_t limit)
{
    if (value >= 1 && value <= limit)
        return 0;
    return kvi_error_set(KVMEM_E_INVALID, "%s: %" PRIu32 " is outside 1..%" PRIu32, name, value,
                         limit);
}

static int check_options(const struct kvmem_space *space,
                         const struct kvmem_device_table_options *options)
{
    int code = kvi_api_check_size(options->size, sizeof(*options));

    if (!code)
        code = kvi_api_check_group(space, options->group);
    if (!code)
        code = check_limit("row_limit", options->row_limit, KVI_DEVICE_TABLE_ROWS);
    if (!code)
        code = check_limit("block_limit", options->block_limit, KVI_DEVICE_TABLE_BLOCKS);
    if (!code && (uint64_t)options->row_limit * options->block_limit > INT32_MAX)
        code = kvi_error_set(KVMEM_E_INVALID,
                             "row_limit, block_limit: %" PRIu32 " × %" PRIu32
                             " cells, must be below 2^31",
                             options->row_limit, options->block_limit);
    return code;
}

int kvmem_device_table_create(struct kvmem_space *space,
                              const struct kvmem_device_table_options *options,
                              struct kvmem_device_table **out)
{
    int code;

    if (!space || !options || !out)
        return kvi_api_is_null(!space ? "space" : !options ? "options" : "out");
    code = check_options(space, options);
    return code ? code : kvi_device_table_create(space, kvi_space_backend(space), options, out);
}

void kvmem_device_table_destroy(struct kvmem_device_table *table)
{
    kvi_device_table_destroy(table);
}

int kvmem_device_table_update(struct kvmem_device_table *table, uint32_t n,
                              const struct kvmem_seq *seqs, void *stream)
{
    int code = table ? kvi_api_check_array(seqs, n, "seqs") : kvi_api_is_null("table");

    return code ? code : kvi_device_table_update(table, n, seqs, (uintptr_t)stream);
}

int kvmem_device_table_info(const struct kvmem_device_table *table,
                            struct kvmem_device_table_info *out)
{
    int code;

    if (!table || !out)
        return kvi_api_is_null(table ? "out" : "table");
    code = kvi_api_check_size(out->size, sizeof(*out));
    if (code)
        return code;
    out->row_limit = table->row_limit;
    out->block_limit = table->block_limit;
    out->rows = table->rows;
    out->tables = (int32_t *)(uintptr_t)table->device;
    out->lengths = out->tables + table->lengths_at;
    out->updates = table->updates;
    out->cells = table->cells_written;
    return 0;
}
