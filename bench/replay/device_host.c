/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of device.h for blocks in host memory: everything is done on return.
 */
#include "device.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../../attention/reference.h"
#include "attend.h"

static void host_write(struct kvb_device *device, const struct kvb_span *spans, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        kvb_write(device->shape, device->write_base, spans[i].table, spans[i].history,
                  spans[i].first, spans[i].end);
}

static uint64_t host_count_wrong(struct kvb_device *device, const struct kvb_view *view,
                                 const uint64_t *history, uint32_t first, uint32_t end)
{
    return kvb_count_wrong_bytes(device->shape, view, history, first, end);
}

static int host_attend(struct kvb_device *device, const struct kvb_view *view,
                       const struct kvb_query *query, double *out)
{
    const struct kvb_shape *shape = device->shape;
    const struct kvmem_geometry *g = &shape->geometry;
    const char *k = view->base + query->layer * g->layer_stride_bytes;
    struct kva_layer layer = {
        .k = k,
        .v = k + g->v_offset_bytes,
        .block_stride_bytes = g->index_stride_bytes,
        .k_head_stride_bytes = g->k_head_stride_bytes,
        .k_token_stride_bytes = g->k_token_stride_bytes,
        .v_head_stride_bytes = g->v_head_stride_bytes,
        .v_token_stride_bytes = g->v_token_stride_bytes,
        .dtype = shape->model.dtype,
        .block_tokens = shape->model.block_tokens,
        .kv_head_count = shape->model.kv_heads,
        .head_dim = shape->model.head_dim,
    };
    int rc = kva_reference_decode(&layer, view->table, view->length, query->query, query->heads,
                                  1 / sqrt(shape->model.head_dim), out);

    return rc == 0 ? 0 : KVB_UNREADABLE;
}

static int attend_in(void *workspace, const struct kva_attention *what, const struct kva_info *info,
                     const struct kvb_query *query, float *out)
{
    int code = kva_attention_plan(what, workspace, info->workspace_bytes, NULL);

    if (code == 0)
        code = kva_attention_run(what, query->layer, query->query, out, NULL, workspace,
                                 info->workspace_bytes, NULL);
    return code == 0 ? 0 : KVB_UNREADABLE;
}

static int host_attend_fast(struct kvb_device *device, const struct kvb_view *view,
                            const struct kvb_query *query, float *out, uint32_t *dtype)
{
    const int32_t length = (int32_t)view->length;
    const struct kvb_attend_arrays arrays = {view->base, view->table, &length};
    struct kva_attention what = kvb_describe_attention(
        device->shape, &arrays, view->length, query->heads, KVMEM_DTYPE_FP32, KVA_DEVICE_CPU);
    struct kva_info info = {.size = sizeof(info)};
    void *workspace;
    int rc;

    *dtype = KVMEM_DTYPE_FP32;
    rc = kva_attention_info(&what, &info);
    if (rc != 0)
        return rc == KVMEM_E_NOT_SUPPORTED ? KVB_NO_KERNEL : KVB_UNREADABLE;
    if (posix_memalign(&workspace, 256, info.workspace_bytes) != 0)
        return KVB_NO_MEMORY;
    rc = attend_in(workspace, &what, &info, query, out);
    free(workspace);
    return rc;
}

static void *host_allocate(struct kvb_device *device, uint64_t bytes)
{
    (void)device;
    return malloc(bytes);
}

static void host_release(struct kvb_device *device, void *memory)
{
    (void)device;
    free(memory);
}

static void host_copy(struct kvb_device *device, void *to, const void *from, uint64_t bytes)
{
    (void)device;
    memcpy(to, from, bytes);
}

static void host_nothing(struct kvb_device *device)
{
    (void)device;
}

static const struct kvb_device_ops HOST_OPS = {
    .write = host_write,
    .count_wrong = host_count_wrong,
    .attend = host_attend,
    .attend_fast = host_attend_fast,
    .allocate = host_allocate,
    .release = host_release,
    .copy = host_copy,
    .wait = host_nothing,
    .close = host_nothing,
};

void kvb_device_open_host(struct kvb_device *device, const struct kvb_shape *shape,
                          struct kvb_bases bases)
{
    *device = (struct kvb_device){
        .ops = &HOST_OPS, .shape = shape, .base = bases.read, .write_base = bases.write};
}

void kvb_device_close(struct kvb_device *device)
{
    if (device->ops != NULL)
        device->ops->close(device);
    device->ops = NULL;
}
