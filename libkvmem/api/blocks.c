/* SPDX-License-Identifier: Apache-2.0
 *
 * Public functions of kvmem/blocks.h.
 */
#include <kvmem/blocks.h>

#include "api/check.h"
#include "client/blocks.h"

static int check(const struct kvmem_space *space, uint32_t group, uint32_t n, const void *blocks,
                 const char *name)
{
    int code = space ? kvi_api_check_group(space, group) : kvi_api_is_null("space");

    return code ? code : kvi_api_check_array(blocks, n, name);
}

int kvmem_blocks_copy(struct kvmem_space *space, uint32_t group, uint32_t n, const int32_t *from,
                      const int32_t *to, void *stream)
{
    int code = check(space, group, n, from, "from");

    if (!code)
        code = kvi_api_check_array(to, n, "to");
    return code ? code : kvi_blocks_run(space, n, from, to, "to", stream);
}

int kvmem_blocks_zero(struct kvmem_space *space, uint32_t group, uint32_t n, const int32_t *blocks,
                      void *stream)
{
    int code = check(space, group, n, blocks, "blocks");

    return code ? code : kvi_blocks_run(space, n, NULL, blocks, "blocks", stream);
}
