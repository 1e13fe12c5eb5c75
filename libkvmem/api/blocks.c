/* SPDX-License-Identifier: Apache-2.0
 *
 * Public functions of kvmem/blocks.h.
 */
#include <kvmem/blocks.h>

#include "api/check.h"

static int not_supported(const struct kvmem_space *space)
{
    if (!space)
        return kvi_api_is_null("space");
    return kvi_error_set(KVMEM_E_NOT_SUPPORTED, "copies of blocks are not supported yet");
}

int kvmem_blocks_copy(struct kvmem_space *space, uint32_t group, uint32_t n, const int32_t *from,
                      const int32_t *to, void *stream)
{
    (void)group, (void)n, (void)from, (void)to, (void)stream;
    return not_supported(space);
}

int kvmem_blocks_zero(struct kvmem_space *space, uint32_t group, uint32_t n, const int32_t *blocks,
                      void *stream)
{
    (void)group, (void)n, (void)blocks, (void)stream;
    return not_supported(space);
}
