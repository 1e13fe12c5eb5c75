/* SPDX-License-Identifier: Apache-2.0
 *
 * Plain kernels: nothing here is measured but where a benchmark says so.
 */
#include "support/gpu/kernels.h"

#include <cuda_runtime.h>
#include <string.h>

#include "support/gpu/gpu.h"
#include "support/gpu/must.cuh"

#define THREADS       256
#define LIST_LIMIT    512u /* blocks a launch: 2 KiB of a kernel's 4 KiB of parameters */
#define CHUNK_WORDS   (THREADS * 64u)
#define CHUNK_LIMIT   16u
#define GATE_LIMIT_NS 20000000000ull
#define BUSY_BYTES    (UINT64_C(1) << 30)

struct block_list {
    uint64_t base;
    uint64_t stride;
    uint64_t words; /* of a block */
    uint32_t run_bytes;
    uint32_t token_bytes;
    uint32_t first_token;
    uint32_t end_token;
    uint32_t is_whole;
    uint32_t step;
    uint64_t seed;
    uint64_t position;
    int32_t blocks[LIST_LIMIT];
};

/* ---- bytes ---- */

__device__ static inline uint64_t pattern(uint64_t seed, uint64_t position, uint64_t word)
{
    uint64_t z = seed + position * 0xd1342543de82ef95ull + word * 0x9e3779b97f4a7c15ull;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

__device__ static inline uint32_t token_of(uint64_t word, uint32_t run_bytes, uint32_t token_bytes)
{
    return (uint32_t)(word * 8 % run_bytes) / token_bytes;
}

__device__ static inline bool is_meant(const block_list &list, uint64_t word)
{
    uint32_t token;

    if (list.is_whole)
        return true;
    token = token_of(word, list.run_bytes, list.token_bytes);
    return token >= list.first_token && token < list.end_token;
}

__device__ static void verdict_add(kvt_gpu_verdict *verdict, uint64_t checked, uint64_t wrong)
{
    for (int lane = 16; lane > 0; lane /= 2) {
        checked += __shfl_down_sync(0xffffffffu, checked, lane);
        wrong += __shfl_down_sync(0xffffffffu, wrong, lane);
    }
    if (threadIdx.x % 32 == 0) {
        atomicAdd(&verdict->checked, (unsigned long long)checked);
        if (wrong)
            atomicAdd(&verdict->wrong, (unsigned long long)wrong);
    }
}

/* One wrong word is kept, the first that comes. */
__device__ static uint64_t differs(kvt_gpu_verdict *verdict, const uint64_t *at, uint64_t expected)
{
    uint64_t found = *(const volatile uint64_t *)at;

    if (found == expected)
        return 0;
    if (atomicCAS(&verdict->where, 0ull, (unsigned long long)(uintptr_t)at) == 0) {
        verdict->found = found;
        verdict->expected = expected;
    }
    return 1;
}

__global__ static void fill_kernel(block_list list)
{
    uint64_t *at = (uint64_t *)(list.base + (uint64_t)list.blocks[blockIdx.y] * list.stride);
    uint64_t position = list.position + blockIdx.y;

    for (uint64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < list.words;
         i += gridDim.x * blockDim.x)
        if (is_meant(list, i))
            at[i] = pattern(list.seed, position, i);
}

__global__ static void check_kernel(block_list list, kvt_gpu_verdict *verdict)
{
    const uint64_t *at =
        (const uint64_t *)(list.base + (uint64_t)list.blocks[blockIdx.y] * list.stride);
    uint64_t position = list.position + blockIdx.y, checked = 0, wrong = 0;

    for (uint64_t i = (uint64_t)(blockIdx.x * blockDim.x + threadIdx.x) * list.step; i < list.words;
         i += (uint64_t)gridDim.x * blockDim.x * list.step)
        if (is_meant(list, i)) {
            checked++;
            wrong += differs(verdict, at + i, pattern(list.seed, position, i));
        }
    verdict_add(verdict, checked, wrong);
}

/* At the base where blocks are read, or written. */
static block_list list_of(const struct kvt_gpu_part *part, const void *base, uint32_t from,
                          uint32_t count)
{
    const struct kvt_gpu_shape *shape = part->shape;
    block_list list;

    memset(&list, 0, sizeof(list));
    list.base = (uint64_t)(uintptr_t)base;
    list.stride = shape->stride_bytes;
    list.words = shape->block_bytes / 8;
    list.run_bytes = shape->run_bytes;
    list.token_bytes = shape->token_bytes;
    list.first_token = part->first_token;
    list.end_token = part->end_token;
    list.is_whole = part->end_token == 0 ||
                    (part->first_token == 0 && part->end_token == shape->block_tokens);
    list.step = part->step_words ? part->step_words : 1;
    list.seed = part->seed;
    list.position = part->position + from;
    memcpy(list.blocks, part->blocks + from, count * sizeof(int32_t));
    return list;
}

static dim3 grid_of(const struct kvt_gpu_part *part, uint32_t count)
{
    uint64_t chunks = (part->shape->block_bytes / 8 + CHUNK_WORDS - 1) / CHUNK_WORDS;

    return dim3((unsigned)(chunks < CHUNK_LIMIT ? chunks : CHUNK_LIMIT), count);
}

void kvt_gpu_fill(const struct kvt_gpu_part *part, void *stream)
{
    for (uint32_t from = 0; from < part->count; from += LIST_LIMIT) {
        uint32_t count = part->count - from < LIST_LIMIT ? part->count - from : LIST_LIMIT;

        fill_kernel<<<grid_of(part, count), THREADS, 0, (cudaStream_t)stream>>>(
            list_of(part, part->shape->write_base, from, count));
        KVT_CUDA(cudaGetLastError());
    }
}

void kvt_gpu_check(const struct kvt_gpu_part *part, struct kvt_gpu_verdict *verdict, void *stream)
{
    for (uint32_t from = 0; from < part->count; from += LIST_LIMIT) {
        uint32_t count = part->count - from < LIST_LIMIT ? part->count - from : LIST_LIMIT;

        check_kernel<<<grid_of(part, count), THREADS, 0, (cudaStream_t)stream>>>(
            list_of(part, part->shape->base, from, count), verdict);
        KVT_CUDA(cudaGetLastError());
    }
}

/* ---- rows of a device table ---- */

/* Word i of block b of row r belongs to token b × block_tokens + its token in the block. */
__global__ static void rows_write_kernel(kvt_gpu_rows rows)
{
    const struct kvt_gpu_shape &shape = rows.shape;
    uint32_t row = blockIdx.y, length = (uint32_t)rows.lengths[row];
    uint64_t words = shape.block_bytes / 8;

    for (uint32_t b = rows.shared_tokens / shape.block_tokens; b * shape.block_tokens < length;
         b++) {
        int32_t block = rows.tables[(uint64_t)row * rows.block_limit + b];
        uint64_t *at = (uint64_t *)((char *)shape.write_base + (uint64_t)block * shape.stride_bytes);

        for (uint64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < words;
             i += gridDim.x * blockDim.x) {
            uint32_t token =
                b * shape.block_tokens + token_of(i, shape.run_bytes, shape.token_bytes);

            if (token >= rows.shared_tokens && token < length)
                at[i] = pattern(rows.row_seed + row, b, i);
        }
    }
}

__device__ static void row_block_check(const kvt_gpu_rows &rows, uint32_t row, uint32_t b,
                                       uint32_t length, kvt_gpu_verdict *verdict,
                                       uint64_t *checked, uint64_t *wrong)
{
    const struct kvt_gpu_shape &shape = rows.shape;
    int32_t block = rows.tables[(uint64_t)row * rows.block_limit + b];
    const uint64_t *at =
        (const uint64_t *)((const char *)shape.base + (uint64_t)block * shape.stride_bytes);
    uint64_t words = shape.block_bytes / 8;

    for (uint64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < words;
         i += gridDim.x * blockDim.x) {
        uint32_t token = b * shape.block_tokens + token_of(i, shape.run_bytes, shape.token_bytes);

        if (token >= length)
            continue;
        ++*checked;
        *wrong += differs(verdict, at + i,
                          pattern(token < rows.shared_tokens ? rows.seed : rows.row_seed + row, b,
                                  i));
    }
}

__global__ static void rows_check_kernel(kvt_gpu_rows rows, kvt_gpu_verdict *verdict)
{
    uint32_t row = blockIdx.y, length = (uint32_t)rows.lengths[row];
    uint64_t checked = 0, wrong = 0;

    for (uint32_t b = 0; b * rows.shape.block_tokens < length; b++)
        row_block_check(rows, row, b, length, verdict, &checked, &wrong);
    verdict_add(verdict, checked, wrong);
}

void kvt_gpu_rows_write(const struct kvt_gpu_rows *rows, void *stream)
{
    rows_write_kernel<<<dim3(4, rows->row_count), THREADS, 0, (cudaStream_t)stream>>>(*rows);
    KVT_CUDA(cudaGetLastError());
}

void kvt_gpu_rows_check(const struct kvt_gpu_rows *rows, struct kvt_gpu_verdict *verdict,
                        void *stream)
{
    rows_check_kernel<<<dim3(4, rows->row_count), THREADS, 0, (cudaStream_t)stream>>>(*rows,
                                                                                      verdict);
    KVT_CUDA(cudaGetLastError());
}

/* ---- time ---- */

__device__ static inline uint64_t device_ns(void)
{
    uint64_t ns;

    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

__global__ static void gate_kernel(const volatile uint64_t *flag, uint64_t value)
{
    uint64_t start = device_ns();

    while (*flag < value && device_ns() - start < GATE_LIMIT_NS)
        __nanosleep(1000);
    __threadfence_system();
}

__global__ static void spin_kernel(uint64_t ns)
{
    uint64_t start = device_ns();

    while (device_ns() - start < ns)
        __nanosleep(200);
}

void kvt_gpu_gate(const uint64_t *flag, uint64_t value, void *stream)
{
    gate_kernel<<<1, 1, 0, (cudaStream_t)stream>>>(flag, value);
    KVT_CUDA(cudaGetLastError());
}

void kvt_gpu_spin(uint64_t ns, void *stream)
{
    spin_kernel<<<1, 1, 0, (cudaStream_t)stream>>>(ns);
    KVT_CUDA(cudaGetLastError());
}

/* ---- a reader that goes on ---- */

__global__ static void watch_kernel(block_list list, uint32_t count, kvt_gpu_verdict *verdict,
                                    const volatile uint64_t *flag, uint64_t value)
{
    uint64_t start = device_ns(), checked = 0, wrong = 0;

    do {
        for (uint32_t b = 0; b < count; b++) {
            const uint64_t *at = (const uint64_t *)(list.base + (uint64_t)list.blocks[b] * list.stride);

            for (uint64_t i = (uint64_t)(blockIdx.x * blockDim.x + threadIdx.x) * list.step;
                 i < list.words; i += (uint64_t)gridDim.x * blockDim.x * list.step) {
                checked++;
                wrong += differs(verdict, at + i, pattern(list.seed, list.position + b, i));
            }
        }
    } while (*flag < value && device_ns() - start < GATE_LIMIT_NS);
    __syncwarp();
    verdict_add(verdict, checked, wrong);
}

void kvt_gpu_watch(const struct kvt_gpu_part *part, struct kvt_gpu_verdict *verdict,
                   const uint64_t *flag, uint64_t value, void *stream)
{
    if (part->count > LIST_LIMIT)
        kvt_die("watching %u blocks: at most %u", part->count, LIST_LIMIT);
    watch_kernel<<<16, THREADS, 0, (cudaStream_t)stream>>>(
        list_of(part, part->shape->base, 0, part->count), part->count, verdict, flag, value);
    KVT_CUDA(cudaGetLastError());
}

/* ---- harm ---- */

__global__ static void scribble_kernel(block_list list, uint32_t count, uint64_t ns,
                                       volatile uint64_t *rounds)
{
    uint64_t start = device_ns();

    for (uint64_t round = 1; device_ns() - start < ns; round++) {
        for (uint32_t b = 0; b < count; b++) {
            volatile uint64_t *at =
                (volatile uint64_t *)(list.base + (uint64_t)list.blocks[b] * list.stride);

            for (uint64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < list.words;
                 i += gridDim.x * blockDim.x)
                at[i] = round;
        }
        if (blockIdx.x == 0 && threadIdx.x == 0) {
            *rounds = round;
            __threadfence_system();
        }
    }
}

__global__ static void poke_kernel(volatile uint64_t *address, uint64_t value)
{
    *address = value;
}

void kvt_gpu_scribble(const struct kvt_gpu_part *part, uint64_t ns, uint64_t *rounds, void *stream)
{
    if (part->count > LIST_LIMIT)
        kvt_die("scribble over %u blocks: at most %u", part->count, LIST_LIMIT);
    scribble_kernel<<<64, THREADS, 0, (cudaStream_t)stream>>>(
        list_of(part, part->shape->write_base, 0, part->count), part->count, ns, rounds);
    KVT_CUDA(cudaGetLastError());
}

void kvt_gpu_poke(void *address, uint64_t value, void *stream)
{
    poke_kernel<<<1, 1, 0, (cudaStream_t)stream>>>((volatile uint64_t *)address, value);
    KVT_CUDA(cudaGetLastError());
}

/* ---- a model's step ---- */

__global__ static void compute_kernel(uint64_t amount, float *out)
{
    float a = (float)threadIdx.x, b = 1.0001f, c = 0.5f;

    for (uint64_t i = 0; i < amount; i++) {
        a = a * b + c;
        c = c * b + 0.25f;
    }
    if (a == c) /* never: so that the loop stays */
        *out = a;
}

__global__ static void memory_kernel(uint64_t amount, uint4 *buffer)
{
    const uint64_t limit = BUSY_BYTES / sizeof(uint4);

    for (uint64_t i = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x; i < amount;
         i += (uint64_t)gridDim.x * blockDim.x) {
        uint4 value = buffer[i % limit];

        value.x += 1;
        buffer[i % limit] = value;
    }
}

void kvt_gpu_busy_step(const struct kvt_gpu_busy *busy, void *stream)
{
    if (busy->kind == KVT_GPU_COMPUTE)
        compute_kernel<<<132 * 8, THREADS, 0, (cudaStream_t)stream>>>(busy->amount,
                                                                     (float *)busy->buffer);
    else
        memory_kernel<<<132 * 8, THREADS, 0, (cudaStream_t)stream>>>(busy->amount,
                                                                    (uint4 *)busy->buffer);
    KVT_CUDA(cudaGetLastError());
}

static double busy_us(const struct kvt_gpu_busy *busy)
{
    void *from = kvt_gpu_event_new(), *to = kvt_gpu_event_new();
    double us;

    kvt_gpu_busy_step(busy, NULL);
    kvt_gpu_event_record(from, NULL);
    for (int i = 0; i < 8; i++)
        kvt_gpu_busy_step(busy, NULL);
    kvt_gpu_event_record(to, NULL);
    kvt_gpu_event_sync(to);
    us = kvt_gpu_event_us(from, to) / 8;
    kvt_gpu_event_drop(from);
    kvt_gpu_event_drop(to);
    return us;
}

void kvt_gpu_busy_init(struct kvt_gpu_busy *busy, enum kvt_gpu_busy_kind kind, double us)
{
    busy->kind = kind;
    busy->buffer = kvt_gpu_alloc(BUSY_BYTES);
    busy->amount = kind == KVT_GPU_COMPUTE ? 10000 : BUSY_BYTES / sizeof(uint4);
    kvt_gpu_set(busy->buffer, 1, BUSY_BYTES, NULL);
    for (int i = 0; i < 3; i++)
        busy->amount = (uint64_t)((double)busy->amount * us / busy_us(busy)) + 1;
}

void kvt_gpu_busy_fini(struct kvt_gpu_busy *busy)
{
    kvt_gpu_sync(NULL);
    kvt_gpu_free(busy->buffer);
    busy->buffer = NULL;
}
