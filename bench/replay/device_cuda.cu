/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of device.h for blocks on a GPU. One non-blocking stream; the device as a whole is
 * never waited for.
 *
 *   staging   a ring of pinned buffers, in which the host writes the places of a call's tokens;
 *             `copied` says when the next call may have the buffer again
 *   places    their copy on the GPU, read by the kernel behind the copy; the stream keeps the next
 *             copy from overtaking it
 *   counts    bytes that differ, a block each, for one launch; and their pinned copy
 */
#include "device.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../attention/reference.h"
#include "attend.h"
#include "kernels.h"

#define RING 4u

struct own {
    cudaStream_t stream;
    struct {
        struct kvb_place *places;
        cudaEvent_t copied;
    } staging[RING];
    uint32_t turn;
    struct kvb_place *places;
    uint32_t *counts;
    uint32_t *counts_seen;
    char name[48];
};

static_assert(KVB_WRITE_TOKENS <= KVB_PLACES_LIMIT, "a launch takes the tokens of a call");

static struct own *own_of(const struct kvb_device *device)
{
    return (struct own *)device->own;
}

/* Keep the first failure. */
static bool works(struct kvb_device *device, const char *what, cudaError_t code)
{
    if (code != cudaSuccess && device->error[0] == '\0')
        snprintf(device->error, sizeof(device->error), "%s: %s: %s: %s", own_of(device)->name, what,
                 cudaGetErrorName(code), cudaGetErrorString(code));
    return device->error[0] == '\0';
}

static void cuda_wait(struct kvb_device *device)
{
    works(device, "cudaStreamSynchronize", cudaStreamSynchronize(own_of(device)->stream));
}

/* The next staging buffer, once the GPU has read it. */
static struct kvb_place *stage(struct kvb_device *device)
{
    struct own *own = own_of(device);

    own->turn = (own->turn + 1) % RING;
    works(device, "cudaEventSynchronize", cudaEventSynchronize(own->staging[own->turn].copied));
    return own->staging[own->turn].places;
}

static uint32_t add_places(const struct kvb_device *device, const struct kvb_span *span,
                           struct kvb_place *places)
{
    uint32_t block_tokens = device->shape->model.block_tokens;
    uint32_t count = 0;

    for (uint32_t i = span->first; i < span->end; i++)
        places[count++] = {span->history[i], span->table[i / block_tokens], i % block_tokens};
    return count;
}

/* Send what was staged. */
static bool send(struct kvb_device *device, uint32_t count)
{
    struct own *own = own_of(device);

    works(device, "cudaMemcpyAsync",
          cudaMemcpyAsync(own->places, own->staging[own->turn].places, sizeof(*own->places) * count,
                          cudaMemcpyHostToDevice, own->stream));
    return works(device, "cudaEventRecord",
                 cudaEventRecord(own->staging[own->turn].copied, own->stream));
}

static void cuda_write(struct kvb_device *device, const struct kvb_span *spans, uint32_t count)
{
    struct own *own = own_of(device);
    struct kvb_place *places = stage(device);
    uint32_t tokens = 0;

    for (uint32_t i = 0; i < count; i++)
        tokens += add_places(device, &spans[i], places + tokens);
    if (tokens > 0 && send(device, tokens))
        works(device, "writing K and V",
              kvb_kernel_write(device->shape, device->write_base, own->places, tokens, own->stream));
}

/* Compare a span of at most KVB_WRITE_TOKENS tokens. */
static uint64_t count_span(struct kvb_device *device, const struct kvb_span *span, const char *base)
{
    struct own *own = own_of(device);
    uint32_t tokens = add_places(device, span, stage(device));
    uint32_t first_slot = span->first % device->shape->model.block_tokens;
    uint32_t blocks = (first_slot + tokens - 1) / device->shape->model.block_tokens + 1;
    uint64_t wrong = 0;

    if (!send(device, tokens))
        return 0;
    works(device, "cudaMemsetAsync",
          cudaMemsetAsync(own->counts, 0, sizeof(*own->counts) * blocks, own->stream));
    works(device, "comparing K and V",
          kvb_kernel_count_wrong(device->shape, base, own->places, tokens, first_slot, own->counts,
                                 own->stream));
    works(device, "cudaMemcpyAsync",
          cudaMemcpyAsync(own->counts_seen, own->counts, sizeof(*own->counts) * blocks,
                          cudaMemcpyDeviceToHost, own->stream));
    cuda_wait(device);
    if (device->error[0] != '\0')
        return 0;
    for (uint32_t i = 0; i < blocks; i++)
        wrong += own->counts_seen[i];
    return wrong;
}

static uint64_t cuda_count_wrong(struct kvb_device *device, const struct kvb_view *view,
                                 const uint64_t *history, uint32_t first, uint32_t end)
{
    const struct kvb_shape *shape = device->shape;
    uint64_t token_bytes = shape->geometry.block_bytes / shape->model.block_tokens;
    uint64_t covered = (uint64_t)view->block_count * shape->model.block_tokens;
    uint64_t wrong = 0;

    for (; first < end && (end > covered || end > view->length); end--)
        wrong += token_bytes; /* not there at all */
    while (first < end) {
        uint32_t last = end - first > KVB_WRITE_TOKENS ? first + KVB_WRITE_TOKENS : end;
        struct kvb_span span = {view->table, history, first, last};

        wrong += count_span(device, &span, view->base);
        first = last;
    }
    return wrong;
}

static void *cuda_allocate(struct kvb_device *device, uint64_t bytes)
{
    void *memory = NULL;

    if (cudaMallocAsync(&memory, bytes, own_of(device)->stream) != cudaSuccess) {
        cudaGetLastError(); /* none left: the caller's to handle, not the next call's */
        return NULL;
    }
    return memory;
}

static void cuda_release(struct kvb_device *device, void *memory)
{
    if (memory != NULL)
        works(device, "cudaFreeAsync", cudaFreeAsync(memory, own_of(device)->stream));
}

static void cuda_copy(struct kvb_device *device, void *to, const void *from, uint64_t bytes)
{
    works(device, "cudaMemcpyAsync",
          cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, own_of(device)->stream));
    cuda_wait(device);
}

/* What one attention needs on the GPU, in one allocation; every part at a multiple of 256. */
struct scratch {
    char *memory;
    double *weights;
    double *out; /* through the table, then over the copy */
    float *query;
    int32_t *table;
    int32_t *identity;
    char *copy;
};

static bool make_scratch(struct kvb_device *device, uint32_t length, const struct kvb_query *query,
                         struct scratch *scratch)
{
    const struct kvb_shape *shape = device->shape;
    uint64_t blocks = (length - 1) / shape->model.block_tokens + 1;
    uint64_t elements = (uint64_t)query->heads * shape->model.head_dim;
    const uint64_t bytes[] = {sizeof(double) * query->heads * length,
                              sizeof(double) * 2 * elements,
                              sizeof(float) * elements,
                              sizeof(int32_t) * blocks,
                              sizeof(int32_t) * blocks,
                              shape->geometry.layer_stride_bytes * blocks};
    uint64_t at[6], total = 0;

    for (int i = 0; i < 6; i++) {
        at[i] = total;
        total += (bytes[i] + 255) / 256 * 256;
    }
    scratch->memory = (char *)cuda_allocate(device, total);
    scratch->weights = (double *)(scratch->memory + at[0]);
    scratch->out = (double *)(scratch->memory + at[1]);
    scratch->query = (float *)(scratch->memory + at[2]);
    scratch->table = (int32_t *)(scratch->memory + at[3]);
    scratch->identity = (int32_t *)(scratch->memory + at[4]);
    scratch->copy = scratch->memory + at[5];
    return scratch->memory != NULL;
}

/* Enqueue attention through the table and over a contiguous copy of the same blocks. */
static void enqueue_attention(struct kvb_device *device, const struct kvb_view *view,
                              const struct kvb_query *query, const struct scratch *scratch)
{
    const struct kvb_shape *shape = device->shape;
    const struct kvmem_geometry *g = &shape->geometry;
    cudaStream_t stream = own_of(device)->stream;
    struct kvb_layer_view paged = {view->base + query->layer * g->layer_stride_bytes,
                                   g->index_stride_bytes, scratch->table, view->length};
    struct kvb_layer_view whole = {scratch->copy, g->layer_stride_bytes, scratch->identity,
                                   view->length};
    uint64_t elements = (uint64_t)query->heads * shape->model.head_dim;

    works(device, "gathering K and V",
          kvb_kernel_gather(shape, &paged, scratch->copy, scratch->identity, stream));
    works(device, "attention through the block table",
          kvb_kernel_attend(shape, &paged, scratch->query, query->heads, scratch->weights,
                            scratch->out, stream));
    works(device, "attention over a copy",
          kvb_kernel_attend(shape, &whole, scratch->query, query->heads, scratch->weights,
                            scratch->out + elements, stream));
}

static bool is_complete(const struct kvb_device *device, const struct kvb_view *view)
{
    uint32_t block_tokens = device->shape->model.block_tokens;

    for (uint32_t i = 0; (uint64_t)i * block_tokens < view->length; i++)
        if (view->table[i] < 0)
            return false;
    return view->length > 0;
}

static int cuda_attend(struct kvb_device *device, const struct kvb_view *view,
                       const struct kvb_query *query, double *out)
{
    uint64_t elements = (uint64_t)query->heads * device->shape->model.head_dim;
    uint64_t bytes = sizeof(double) * elements;
    struct scratch scratch = {};
    double *seen;
    bool is_same;

    if (!is_complete(device, view))
        return KVB_UNREADABLE;
    seen = (double *)malloc(2 * bytes);
    if (seen == NULL || !make_scratch(device, view->length, query, &scratch)) {
        free(seen);
        return KVB_NO_MEMORY;
    }
    cuda_copy(device, scratch.query, query->query, sizeof(float) * elements);
    cuda_copy(device, scratch.table, view->table,
              sizeof(int32_t) * ((view->length - 1) / device->shape->model.block_tokens + 1));
    enqueue_attention(device, view, query, &scratch);
    cuda_copy(device, seen, scratch.out, 2 * bytes);
    cuda_release(device, scratch.memory);
    is_same = device->error[0] == '\0' && memcmp(seen, (char *)seen + bytes, bytes) == 0;
    memcpy(out, seen, bytes);
    free(seen);
    return is_same ? 0 : KVB_UNREADABLE;
}

/* ---- attention by the library's kernels ---- */

/* One allocation: q and out in the cache's type, length, table, workspace. */
struct fast {
    char *memory;
    uint64_t q_bytes;
    int32_t *table;
    int32_t *length;
    void *workspace;
    struct kva_attention what;
    struct kva_info info;
};

static uint64_t whole(uint64_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

/* 0, KVB_NO_KERNEL or KVB_NO_MEMORY. */
static int prepare_fast(struct kvb_device *device, const struct kvb_view *view,
                        const struct kvb_query *query, struct fast *fast)
{
    const struct kvb_shape *shape = device->shape;
    uint64_t blocks = (view->length - 1) / shape->model.block_tokens + 1;
    uint64_t table_bytes = whole(sizeof(int32_t) * blocks);
    /* Any address will do for the question. */
    struct kvb_attend_arrays arrays = {view->base, view->table, view->table};

    fast->q_bytes = 2ull * query->heads * shape->model.head_dim;
    fast->what = kvb_describe_attention(shape, &arrays, view->length, query->heads,
                                        shape->model.dtype, KVA_DEVICE_CUDA);
    fast->info.size = sizeof(fast->info);
    if (shape->model.dtype == KVMEM_DTYPE_FP32 || kva_attention_info(&fast->what, &fast->info))
        return KVB_NO_KERNEL;
    fast->memory = (char *)cuda_allocate(device, 2 * whole(fast->q_bytes) + 256 + table_bytes +
                                                     fast->info.workspace_bytes);
    if (fast->memory == NULL)
        return KVB_NO_MEMORY;
    fast->length = (int32_t *)(fast->memory + 2 * whole(fast->q_bytes));
    fast->table = fast->length + 64;
    fast->workspace = (char *)fast->table + table_bytes;
    fast->what.batch.tables = fast->table;
    fast->what.batch.kv_lengths = fast->length;
    return 0;
}

/* Send, run, fetch; `halves` (heads, head_dim) holds the query, then the answer. */
static int run_fast(struct kvb_device *device, const struct kvb_view *view,
                    const struct kvb_query *query, const struct fast *fast, uint16_t *halves)
{
    const int32_t length = (int32_t)view->length;
    uint64_t bytes = fast->info.workspace_bytes;
    void *out = fast->memory + whole(fast->q_bytes);
    int code;

    cuda_copy(device, fast->memory, halves, fast->q_bytes);
    cuda_copy(device, fast->length, &length, sizeof(length));
    cuda_copy(device, fast->table, view->table,
              sizeof(int32_t) * fast->what.batch.table_stride);
    code = kva_attention_plan(&fast->what, fast->workspace, bytes, device->stream);
    if (code == 0)
        code = kva_attention_run(&fast->what, query->layer, fast->memory, out, NULL,
                                 fast->workspace, bytes, device->stream);
    if (code != 0 && device->error[0] == '\0')
        snprintf(device->error, sizeof(device->error), "%s: kva_attention_run: %s",
                 own_of(device)->name, kva_error());
    cuda_copy(device, halves, out, fast->q_bytes);
    return device->error[0] == '\0' ? 0 : KVB_UNREADABLE;
}

static int cuda_attend_fast(struct kvb_device *device, const struct kvb_view *view,
                            const struct kvb_query *query, float *out, uint32_t *dtype)
{
    uint64_t elements = (uint64_t)query->heads * device->shape->model.head_dim;
    struct fast fast = {};
    uint16_t *halves;
    int rc;

    *dtype = device->shape->model.dtype;
    if (!is_complete(device, view))
        return KVB_UNREADABLE;
    halves = (uint16_t *)malloc(2 * elements);
    rc = halves == NULL ? KVB_NO_MEMORY : prepare_fast(device, view, query, &fast);
    if (rc == 0) {
        for (uint64_t i = 0; i < elements; i++)
            kva_reference_store(*dtype, halves, i, query->query[i]);
        rc = run_fast(device, view, query, &fast, halves);
        for (uint64_t i = 0; i < elements; i++)
            out[i] = (float)kva_reference_element(*dtype, halves, i);
        cuda_release(device, fast.memory);
    }
    free(halves);
    return rc;
}

static void cuda_close(struct kvb_device *device)
{
    struct own *own = own_of(device);

    cudaStreamSynchronize(own->stream);
    for (uint32_t i = 0; i < RING; i++) {
        if (own->staging[i].copied != NULL)
            cudaEventDestroy(own->staging[i].copied);
        cudaFreeHost(own->staging[i].places);
    }
    cudaFreeHost(own->counts_seen);
    cudaFree(own->places);
    cudaFree(own->counts);
    cudaStreamDestroy(own->stream);
    free(own);
    device->own = NULL;
}

static const struct kvb_device_ops CUDA_OPS = {
    cuda_write,   cuda_count_wrong, cuda_attend, cuda_attend_fast, cuda_allocate,
    cuda_release, cuda_copy,        cuda_wait,   cuda_close,
};

/* This process may count its GPUs in another way than the daemon does: make the one with the same
 * UUID current. */
static bool select_gpu(struct kvb_device *device, const uint8_t *uuid)
{
    int count = 0;

    if (!works(device, "cudaGetDeviceCount", cudaGetDeviceCount(&count)))
        return false;
    for (int i = 0; i < count; i++) {
        cudaDeviceProp properties;

        if (!works(device, "cudaGetDeviceProperties", cudaGetDeviceProperties(&properties, i)))
            return false;
        if (memcmp(properties.uuid.bytes, uuid, sizeof(properties.uuid.bytes)) == 0)
            return works(device, "cudaSetDevice", cudaSetDevice(i));
    }
    snprintf(device->error, sizeof(device->error),
             "%s: none of the %d GPUs that this process may use has its UUID; see "
             "CUDA_VISIBLE_DEVICES",
             own_of(device)->name, count);
    return false;
}

static bool make_buffers(struct kvb_device *device)
{
    struct own *own = own_of(device);
    const size_t places = sizeof(*own->places) * KVB_WRITE_TOKENS;
    const size_t counts = sizeof(*own->counts) * (KVB_WRITE_TOKENS + 1);

    for (uint32_t i = 0; i < RING; i++) {
        works(device, "cudaMallocHost", cudaMallocHost((void **)&own->staging[i].places, places));
        works(device, "cudaEventCreate",
              cudaEventCreateWithFlags(&own->staging[i].copied, cudaEventDisableTiming));
    }
    works(device, "cudaMallocHost", cudaMallocHost((void **)&own->counts_seen, counts));
    works(device, "cudaMalloc", cudaMalloc((void **)&own->counts, counts));
    return works(device, "cudaMalloc", cudaMalloc((void **)&own->places, places));
}

/* What attention and planted faults give back stays with the process, or each use would map it
 * anew. */
static bool keep_scratch(struct kvb_device *device)
{
    uint64_t all = UINT64_MAX;
    cudaMemPool_t pool;
    int gpu = 0;

    return works(device, "cudaGetDevice", cudaGetDevice(&gpu)) &&
           works(device, "cudaDeviceGetDefaultMemPool", cudaDeviceGetDefaultMemPool(&pool, gpu)) &&
           works(device, "cudaMemPoolSetAttribute",
                 cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all));
}

int kvb_device_open_cuda(struct kvb_device *device, const struct kvb_shape *shape,
                         struct kvb_bases bases, const struct kvmem_device_info *info)
{
    struct own *own = (struct own *)calloc(1, sizeof(*own));

    memset(device, 0, sizeof(*device));
    if (own == NULL) {
        snprintf(device->error, sizeof(device->error), "this process has no memory left");
        return -1;
    }
    snprintf(own->name, sizeof(own->name), "%s", info->name);
    device->shape = shape;
    device->base = (const char *)bases.read;
    device->write_base = (char *)bases.write;
    device->own = own;
    if (!select_gpu(device, info->uuid) ||
        !works(device, "cudaStreamCreate",
               cudaStreamCreateWithFlags(&own->stream, cudaStreamNonBlocking))) {
        free(own);
        device->own = NULL;
        return -1;
    }
    device->stream = own->stream;
    if (!make_buffers(device) || !keep_scratch(device)) {
        cuda_close(device);
        return -1;
    }
    device->ops = &CUDA_OPS;
    return 0;
}

int kvb_cuda_vector(const struct kvb_shape *shape, uint64_t history, uint32_t layer, uint32_t is_v,
                    uint32_t head, uint64_t *out)
{
    uint64_t seed = kvb_vector_seed(shape, history, layer, is_v, head);

    for (uint32_t i = 0; i < (shape->vector_bytes + 7) / 8; i++)
        out[i] = kvb_vector_word(shape, seed, i);
    return 0;
}
