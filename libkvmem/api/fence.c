/* SPDX-License-Identifier: Apache-2.0
 *
 * Public functions of kvmem/fence.h. On the host device a fence that can be made has passed.
 */
#include "api/check.h"

static int not_supported(void)
{
    return kvi_error_set(KVMEM_E_NOT_SUPPORTED, "fences of streams and timelines are not supported"
                                                " yet");
}

int kvmem_fence_record(struct kvmem_space *space, void *stream, struct kvmem_fence *fence)
{
    (void)stream;
    return space && fence ? not_supported() : kvi_api_is_null(space ? "fence" : "space");
}

int kvmem_fence_order(struct kvmem_space *space, void *stream, const struct kvmem_fence *fence)
{
    (void)stream;
    return space && fence ? not_supported() : kvi_api_is_null(space ? "fence" : "space");
}

int kvmem_fence_promise(struct kvmem_client *client, struct kvmem_fence *fence)
{
    return client && fence ? not_supported() : kvi_api_is_null(client ? "fence" : "client");
}

int kvmem_fence_fulfil(struct kvmem_client *client, const struct kvmem_fence *fence)
{
    return client && fence ? not_supported() : kvi_api_is_null(client ? "fence" : "client");
}

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
