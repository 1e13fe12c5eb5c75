/* SPDX-License-Identifier: Apache-2.0
 *
 * Public functions of kvmem/region.h.
 */
#include <kvmem/region.h>

#include "api/check.h"

static int not_supported(void)
{
    return kvi_error_set(KVMEM_E_NOT_SUPPORTED, "regions are not supported yet");
}

int kvmem_region_open(struct kvmem_space *space, struct kvmem_seq seq,
                      const struct kvmem_region_options *options, struct kvmem_region **out)
{
    (void)space, (void)seq, (void)options, (void)out;
    return not_supported();
}

int kvmem_region_close(struct kvmem_region *region, struct kvmem_fence fence)
{
    (void)region, (void)fence;
    return not_supported();
}

int kvmem_region_info(const struct kvmem_region *region, struct kvmem_region_info *out)
{
    (void)region, (void)out;
    return not_supported();
}
