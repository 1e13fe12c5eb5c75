/* SPDX-License-Identifier: Apache-2.0
 *
 * Public face of util/geometry.c: planning without a client. Pure; any thread.
 */
#include <inttypes.h>

#include "util/error.h"
#include "util/geometry.h"

uint32_t kvmem_dtype_bytes(enum kvmem_dtype dtype)
{
    return kvi_geometry_dtype_bytes((uint32_t)dtype);
}

int kvmem_geometry_plan(const struct kvmem_space_options *options, uint32_t group,
                        uint64_t device_bytes, uint64_t granule_bytes, struct kvmem_geometry *out)
{
    struct kvi_geometry_input input;
    int rc;

    if (!out)
        return kvi_error_set(KVMEM_E_INVALID, "out: NULL");
    if (out->size != sizeof(*out))
        return kvi_error_set(KVMEM_E_INVALID, "out.size: %" PRIu32 ", expected %zu", out->size,
                             sizeof(*out));
    rc = kvi_space_options_check(options);
    if (rc)
        return rc;
    if (group >= options->group_count)
        return kvi_error_set(KVMEM_E_INVALID, "group: %" PRIu32 " is outside 0..%" PRIu32, group,
                             options->group_count - 1);
    input = (struct kvi_geometry_input){.layout = options->layout,
                                        .flags = options->flags,
                                        .block_tokens = options->block_tokens,
                                        .group = &options->groups[group],
                                        .device_bytes = device_bytes,
                                        .granule_bytes = granule_bytes};
    return kvi_geometry_plan(&input, out);
}
