/* SPDX-License-Identifier: Apache-2.0
 *
 * CUDA's runtime behind gpu.h.
 */
#include "support/gpu/gpu.h"

#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "support/gpu/must.cuh"

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static cudaStream_t stream_of(void *stream)
{
    return (cudaStream_t)stream;
}

/* ---- devices ---- */

const char *kvt_gpu_missing(void)
{
    static char reason[160];
    int count = 0;
    cudaError_t result = cudaGetDeviceCount(&count);

    if (result == cudaSuccess && count > kvt_gpu_ordinal())
        return NULL;
    snprintf(reason, sizeof(reason), "no GPU %d here: %s, %d found", kvt_gpu_ordinal(),
             cudaGetErrorString(result), count);
    return reason;
}

int kvt_gpu_count(void)
{
    int count = 0;

    KVT_CUDA(cudaGetDeviceCount(&count));
    return count;
}

int kvt_gpu_ordinal(void)
{
    const char *text = getenv("KVMEM_CUDA_DEVICE");

    return text ? atoi(text) : 0;
}

void kvt_gpu_use(int device)
{
    KVT_CUDA(cudaSetDevice(device));
    KVT_CUDA(cudaFree(NULL));
}

int kvt_gpu_current(void)
{
    int device = 0;

    KVT_CUDA(cudaGetDevice(&device));
    return device;
}

bool kvt_gpu_is_fake(void)
{
    return false;
}

uint64_t kvt_gpu_free_bytes(void)
{
    size_t free_bytes = 0, total_bytes = 0;

    KVT_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
    return free_bytes;
}

uint64_t kvt_gpu_total_bytes(void)
{
    size_t free_bytes = 0, total_bytes = 0;

    KVT_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
    return total_bytes;
}

const char *kvt_gpu_result_name(int result)
{
    return cudaGetErrorName((cudaError_t)result);
}

/* ---- memory ---- */

int kvt_gpu_try_alloc(uint64_t bytes, void **out)
{
    cudaError_t result = cudaMalloc(out, bytes);

    if (result != cudaSuccess)
        (void)cudaGetLastError(); /* not sticky: forget it */
    return (int)result;
}

void *kvt_gpu_alloc(uint64_t bytes)
{
    void *memory = NULL;

    KVT_CUDA(cudaMalloc(&memory, bytes));
    return memory;
}

void kvt_gpu_free(void *memory)
{
    KVT_CUDA(cudaFree(memory));
}

void *kvt_gpu_host_alloc(uint64_t bytes)
{
    void *memory = NULL;

    KVT_CUDA(cudaHostAlloc(&memory, bytes, cudaHostAllocMapped | cudaHostAllocPortable));
    for (uint64_t i = 0; i < bytes; i++)
        ((volatile char *)memory)[i] = 0;
    return memory;
}

void kvt_gpu_host_free(void *memory)
{
    KVT_CUDA(cudaFreeHost(memory));
}

void kvt_gpu_host_pin(void *memory, uint64_t bytes)
{
    KVT_CUDA(cudaHostRegister(memory, bytes, cudaHostRegisterMapped | cudaHostRegisterPortable));
}

/* ---- streams ---- */

void *kvt_gpu_stream_new(void)
{
    cudaStream_t stream = NULL;

    KVT_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}

void kvt_gpu_stream_drop(void *stream)
{
    KVT_CUDA(cudaStreamDestroy(stream_of(stream)));
}

int kvt_gpu_try_sync(void *stream)
{
    return (int)cudaStreamSynchronize(stream_of(stream));
}

void kvt_gpu_sync(void *stream)
{
    KVT_CUDA(cudaStreamSynchronize(stream_of(stream)));
}

bool kvt_gpu_is_done(void *stream)
{
    cudaError_t result = cudaStreamQuery(stream_of(stream));

    if (result == cudaErrorNotReady)
        return false;
    KVT_CUDA(result);
    return true;
}

bool kvt_gpu_done_within(void *stream, int64_t limit_ns)
{
    uint64_t end_ns = now_ns() + (uint64_t)limit_ns;

    while (!kvt_gpu_is_done(stream))
        if (now_ns() > end_ns)
            return false;
    return true;
}

/* ---- events ---- */

void *kvt_gpu_event_new(void)
{
    cudaEvent_t event = NULL;

    KVT_CUDA(cudaEventCreate(&event));
    return event;
}

void kvt_gpu_event_drop(void *event)
{
    KVT_CUDA(cudaEventDestroy((cudaEvent_t)event));
}

void kvt_gpu_event_record(void *event, void *stream)
{
    KVT_CUDA(cudaEventRecord((cudaEvent_t)event, stream_of(stream)));
}

void kvt_gpu_event_sync(void *event)
{
    KVT_CUDA(cudaEventSynchronize((cudaEvent_t)event));
}

double kvt_gpu_event_us(void *from, void *to)
{
    float ms = 0;

    KVT_CUDA(cudaEventElapsedTime(&ms, (cudaEvent_t)from, (cudaEvent_t)to));
    return ms * 1e3;
}

/* ---- copies ---- */

void kvt_gpu_copy(void *to, const void *from, uint64_t bytes, void *stream)
{
    KVT_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_of(stream)));
}

void kvt_gpu_set(void *to, int byte, uint64_t bytes, void *stream)
{
    KVT_CUDA(cudaMemsetAsync(to, byte, bytes, stream_of(stream)));
}

/* ---- graphs ---- */

void kvt_gpu_capture_begin(void *stream)
{
    KVT_CUDA(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeGlobal));
}

static void nodes_count(cudaGraph_t graph, struct kvt_gpu_nodes *out)
{
    cudaGraphNode_t nodes[16];
    cudaGraphNodeType type;
    size_t count = 16;

    KVT_CUDA(cudaGraphGetNodes(graph, NULL, &out->all));
    if (out->all > count)
        kvt_die("%zu nodes in a graph: at most %zu are counted", out->all, count);
    KVT_CUDA(cudaGraphGetNodes(graph, nodes, &count)); /* as many as there are, afterwards */
    out->kernels = 0;
    for (size_t i = 0; i < count; i++) /* the runtime has no name for a memory operation */
        out->kernels += cudaGraphNodeGetType(nodes[i], &type) == cudaSuccess &&
                        type == cudaGraphNodeTypeKernel;
    (void)cudaGetLastError();
}

void *kvt_gpu_capture_end(void *stream, struct kvt_gpu_nodes *nodes)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t executable = NULL;

    KVT_CUDA(cudaStreamEndCapture(stream_of(stream), &graph));
    if (nodes)
        nodes_count(graph, nodes);
    KVT_CUDA(cudaGraphInstantiate(&executable, graph, 0));
    KVT_CUDA(cudaGraphDestroy(graph));
    return executable;
}

void kvt_gpu_graph_launch(void *graph, void *stream)
{
    KVT_CUDA(cudaGraphLaunch((cudaGraphExec_t)graph, stream_of(stream)));
}

void kvt_gpu_graph_drop(void *graph)
{
    KVT_CUDA(cudaGraphExecDestroy((cudaGraphExec_t)graph));
}
