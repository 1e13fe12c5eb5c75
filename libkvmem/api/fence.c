/* SPDX-License-Identifier: Apache-2.0
 *
 * Public functions of kvmem/fence.h. On the host device a fence that can be made has passed.
 */
#include "api/check.h"

int kvmem_fence_poll(struct kvmem_client *client, const struct kvmem_fence *fence)
{
    int code;

    if (!client || !fence)
        return kvi_api_is_null(client ? "fence" : "client");
    code = kvi_fence_check(fence);
    return code ? code : 1;
}

int kvmem_fence_wait(struct kvmem_client *client, const struct kvmem_fence *fence,
                     int64_t timeout_ns)
{
    int code = kvmem_fence_poll(client, fence);

    (void)timeout_ns;
    return code < 0 ? code : 0;
}
