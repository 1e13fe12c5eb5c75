/* SPDX-License-Identifier: Apache-2.0
 *
 * Public functions of kvmem/device_table.h.
 */
#include <kvmem/device_table.h>

#include "api/check.h"

static int not_supported(void)
{
    return kvi_error_set(KVMEM_E_NOT_SUPPORTED, "tables on the device are not supported yet");
}

int kvmem_device_table_create(struct kvmem_space *space,
                              const struct kvmem_device_table_options *options,
                              struct kvmem_device_table **out)
{
    (void)space, (void)options, (void)out;
    return not_supported();
}

void kvmem_device_table_destroy(struct kvmem_device_table *table)
{
    (void)table;
}

int kvmem_device_table_update(struct kvmem_device_table *table, uint32_t n,
                              const struct kvmem_seq *seqs, void *stream)
{
    (void)table, (void)n, (void)seqs, (void)stream;
    return not_supported();
}

int kvmem_device_table_info(const struct kvmem_device_table *table,
                            struct kvmem_device_table_info *out)
{
    (void)table, (void)out;
    return not_supported();
}
