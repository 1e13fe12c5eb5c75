/* SPDX-License-Identifier: Apache-2.0
 *
 * Public functions of kvmem/fence.h.
 */
#include "client/fence.h"

#include "api/check.h"

int kvmem_fence_record(struct kvmem_space *space, void *stream, struct kvmem_fence *fence)
{
    struct kvmem_fence wanted = kvmem_fence_stream(stream);
    struct kvi_point point;
    int code;

    if (!space || !fence)
        return kvi_api_is_null(space ? "fence" : "space");
    code = kvi_api_check_fence(space, &wanted);
    if (!code)
        code = kvi_fence_take(space->client, kvi_space_backend(space), &wanted, &point);
    if (!code)
        *fence = kvi_fence_of(&point);
    return code;
}

int kvmem_fence_order(struct kvmem_space *space, void *stream, const struct kvmem_fence *fence)
{
    struct kvi_backend *backend;
    struct kvi_point point;
    int code;

    if (!space || !fence)
        return kvi_api_is_null(space ? "fence" : "space");
    backend = kvi_space_backend(space);
    code = kvi_api_check_fence(space, fence);
    if (!code)
        code = kvi_fence_take(space->client, backend, fence, &point);
    return code ? code
                : kvi_fence_order(space->client, backend, (uint64_t)(uintptr_t)stream, &point);
}

int kvmem_fence_promise(struct kvmem_client *client, struct kvmem_fence *fence)
{
    if (!client || !fence)
        return kvi_api_is_null(client ? "fence" : "client");
    return kvi_fence_promise(client, fence);
}

int kvmem_fence_fulfil(struct kvmem_client *client, const struct kvmem_fence *fence)
{
    if (!client || !fence)
        return kvi_api_is_null(client ? "fence" : "client");
    return kvi_fence_fulfil(client, fence);
}

int kvmem_fence_poll(struct kvmem_client *client, const struct kvmem_fence *fence)
{
    if (!client || !fence)
        return kvi_api_is_null(client ? "fence" : "client");
    return kvi_fence_poll(client, fence);
}

int kvmem_fence_wait(struct kvmem_client *client, const struct kvmem_fence *fence,
                     int64_t timeout_ns)
{
    if (!client || !fence)
        return kvi_api_is_null(client ? "fence" : "client");
    return kvi_fence_wait(client, fence, timeout_ns);
}
