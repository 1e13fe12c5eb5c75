/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels of kernels.h. Writing and comparing share one division of work: a row of the grid is
 * a token, and a thread takes pieces of 16 bytes of its vectors, neighbours side by side, so that
 * stores and loads are whole. Attention is written to be read: a block of threads for a head.
 */
#include "kernels.h"

#include <cuda_fp16.h>
#include <math.h>

#define PIECE_BYTES    16u
#define THREADS        256u
#define TOKEN_BLOCKS   64u /* blocks of threads that share a token, at most */
#define ATTEND_THREADS 256u

/* What a launch of `write_tokens` or `count_wrong` has in common. */
struct work {
    struct kvb_shape shape;
    uint32_t pieces;  /* of a token */
    uint32_t is_wide; /* every piece is whole, and aligned to its size */
};

struct piece {
    uint32_t layer, is_v, head;
    uint32_t at;    /* of the vector's bytes */
    uint32_t bytes; /* 16, or what is left of the vector */
    uint64_t words[2];
};

static __device__ struct piece make_piece(const struct work *work, uint64_t history, uint32_t i)
{
    const struct kvb_shape *shape = &work->shape;
    uint32_t per_vector = (shape->vector_bytes + PIECE_BYTES - 1) / PIECE_BYTES;
    uint32_t lane = i / per_vector;
    struct piece piece;
    uint64_t seed;

    piece.at = i % per_vector * PIECE_BYTES;
    piece.bytes = min(PIECE_BYTES, shape->vector_bytes - piece.at);
    piece.head = lane % shape->model.kv_heads;
    piece.is_v = lane / shape->model.kv_heads & 1;
    piece.layer = lane / shape->model.kv_heads / 2;
    seed = kvb_vector_seed(shape, history, piece.layer, piece.is_v, piece.head);
    piece.words[0] = kvb_vector_word(shape, seed, piece.at / 8);
    piece.words[1] = kvb_vector_word(shape, seed, piece.at / 8 + 1);
    return piece;
}

static __device__ uint8_t piece_byte(const struct piece *piece, uint32_t i)
{
    return (uint8_t)((i < 8 ? piece->words[0] : piece->words[1]) >> (8 * (i & 7)));
}

/* Where the piece lies, from the start of the blocks. */
static __device__ uint64_t piece_offset(const struct work *work, const struct piece *piece,
                                        struct kvb_place place)
{
    return (uint64_t)place.block * work->shape.geometry.index_stride_bytes + piece->at +
           kvb_vector_offset(&work->shape, place.slot, piece->layer, piece->is_v, piece->head);
}

static __global__ void write_tokens(const struct work work, char *base,
                                    const struct kvb_place *places)
{
    const struct kvb_place place = places[blockIdx.y];

    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < work.pieces;
         i += gridDim.x * blockDim.x) {
        const struct piece piece = make_piece(&work, place.history, i);
        char *to = base + piece_offset(&work, &piece, place);

        if (work.is_wide)
            *(ulonglong2 *)to = make_ulonglong2(piece.words[0], piece.words[1]);
        else
            for (uint32_t b = 0; b < piece.bytes; b++)
                to[b] = (char)piece_byte(&piece, b);
    }
}

static __device__ uint32_t differing_bytes(uint64_t seen, uint64_t right)
{
    uint64_t both = seen ^ right;
    uint32_t count = 0;

    for (; both != 0; both >>= 8)
        count += (both & 255) != 0;
    return count;
}

static __global__ void count_tokens(const struct work work, const char *base,
                                    const struct kvb_place *places, uint32_t first_slot,
                                    uint32_t *counts)
{
    const struct kvb_place place = places[blockIdx.y];
    uint32_t *count = &counts[(first_slot + blockIdx.y) / work.shape.model.block_tokens];
    uint32_t wrong = 0;

    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < work.pieces;
         i += gridDim.x * blockDim.x) {
        const struct piece piece = make_piece(&work, place.history, i);
        const char *from = base + piece_offset(&work, &piece, place);

        if (place.block < 0) {
            wrong += piece.bytes;
        } else if (work.is_wide) {
            ulonglong2 seen = *(const ulonglong2 *)from;

            wrong += differing_bytes(seen.x, piece.words[0]);
            wrong += differing_bytes(seen.y, piece.words[1]);
        } else {
            for (uint32_t b = 0; b < piece.bytes; b++)
                wrong += (uint8_t)from[b] != piece_byte(&piece, b);
        }
    }
    if (wrong != 0)
        atomicAdd(count, wrong);
}

static struct work plan(const struct kvb_shape *shape, const char *base)
{
    const struct kvmem_geometry *g = &shape->geometry;
    uint64_t all = (uint64_t)(uintptr_t)base | shape->vector_bytes | g->index_stride_bytes |
                   g->layer_stride_bytes | g->v_offset_bytes | g->k_head_stride_bytes |
                   g->k_token_stride_bytes | g->v_head_stride_bytes | g->v_token_stride_bytes;
    struct work work;

    work.shape = *shape;
    work.pieces = (shape->vector_bytes + PIECE_BYTES - 1) / PIECE_BYTES * shape->model.layers * 2 *
                  shape->model.kv_heads;
    work.is_wide = all % PIECE_BYTES == 0;
    return work;
}

/* Threads for a token in x, tokens in y. */
static dim3 threads_of(const struct work *work)
{
    return dim3(min(THREADS, (work->pieces + 31) / 32 * 32));
}

static dim3 grid_of(const struct work *work, uint32_t count)
{
    return dim3(min(TOKEN_BLOCKS, (work->pieces + THREADS - 1) / THREADS), count);
}

cudaError_t kvb_kernel_write(const struct kvb_shape *shape, char *base,
                             const struct kvb_place *places, uint32_t count, cudaStream_t stream)
{
    struct work work = plan(shape, base);

    write_tokens<<<grid_of(&work, count), threads_of(&work), 0, stream>>>(work, base, places);
    return cudaGetLastError();
}

cudaError_t kvb_kernel_count_wrong(const struct kvb_shape *shape, const char *base,
                                   const struct kvb_place *places, uint32_t count,
                                   uint32_t first_slot, uint32_t *counts, cudaStream_t stream)
{
    struct work work = plan(shape, base);

    count_tokens<<<grid_of(&work, count), threads_of(&work), 0, stream>>>(work, base, places,
                                                                          first_slot, counts);
    return cudaGetLastError();
}

/* A block of threads for a block of the sequence; elements have 2 bytes or 4. */
static __global__ void gather_blocks(const struct kvb_layer_view view, uint64_t bytes, char *out,
                                     int32_t *identity)
{
    uint64_t block = (uint64_t)view.table[blockIdx.x];
    const uint16_t *from = (const uint16_t *)(view.base + block * view.block_stride_bytes);
    uint16_t *to = (uint16_t *)(out + blockIdx.x * bytes);

    for (uint64_t i = threadIdx.x; i < bytes / 2; i += blockDim.x)
        to[i] = from[i];
    if (threadIdx.x == 0)
        identity[blockIdx.x] = (int32_t)blockIdx.x;
}

cudaError_t kvb_kernel_gather(const struct kvb_shape *shape, const struct kvb_layer_view *view,
                              char *out, int32_t *identity, cudaStream_t stream)
{
    uint32_t block_tokens = shape->model.block_tokens;
    uint32_t blocks = (view->length - 1) / block_tokens + 1;

    gather_blocks<<<blocks, THREADS, 0, stream>>>(*view, shape->geometry.layer_stride_bytes, out,
                                                  identity);
    return cudaGetLastError();
}

/* Element i of a vector; every value is exact in double. */
static __device__ double element(uint32_t dtype, const char *vector, uint32_t i)
{
    switch (dtype) {
    case KVMEM_DTYPE_FP32: return ((const float *)vector)[i];
    case KVMEM_DTYPE_FP16: return __half2float(((const __half *)vector)[i]);
    default: return __uint_as_float((uint32_t)((const uint16_t *)vector)[i] << 16);
    }
}

static __device__ const char *vector_at(const struct kvb_shape *shape,
                                        const struct kvb_layer_view *view, uint32_t token,
                                        uint32_t is_v, uint32_t head)
{
    uint64_t block = (uint64_t)view->table[token / shape->model.block_tokens];

    return view->base + block * view->block_stride_bytes +
           kvb_vector_offset(shape, token % shape->model.block_tokens, 0, is_v, head);
}

/* Over the values of all threads of a block, the same in each; in a fixed order. */
template <typename Combine> static __device__ double combine_block(double value, Combine combine)
{
    __shared__ double values[ATTEND_THREADS];

    __syncthreads();
    values[threadIdx.x] = value;
    for (uint32_t half = ATTEND_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            values[threadIdx.x] = combine(values[threadIdx.x], values[threadIdx.x + half]);
    }
    __syncthreads();
    return values[0];
}

/* One query head: scores, their maximum, weights, sum. weights (length) of this head. */
static __global__ void attend_head(const struct kvb_shape shape, const struct kvb_layer_view view,
                                   const float *queries, double *all_weights, double *out)
{
    uint32_t dim = shape.model.head_dim;
    uint32_t kv_head = blockIdx.x / (gridDim.x / shape.model.kv_heads);
    const float *query = queries + (uint64_t)blockIdx.x * dim;
    double *weights = all_weights + (uint64_t)blockIdx.x * view.length;
    double scale = 1 / sqrt((double)dim);
    double seen = -INFINITY;
    double sum = 0;

    for (uint32_t t = threadIdx.x; t < view.length; t += ATTEND_THREADS) {
        const char *k = vector_at(&shape, &view, t, 0, kv_head);
        double dot = 0;

        for (uint32_t d = 0; d < dim; d++)
            dot += element(shape.model.dtype, k, d) * query[d];
        weights[t] = dot * scale;
        seen = fmax(seen, weights[t]);
    }
    seen = combine_block(seen, [](double a, double b) { return fmax(a, b); });
    for (uint32_t t = threadIdx.x; t < view.length; t += ATTEND_THREADS)
        sum += weights[t] = exp(weights[t] - seen);
    sum = combine_block(sum, [](double a, double b) { return a + b; });
    for (uint32_t d = threadIdx.x; d < dim; d += ATTEND_THREADS) {
        double total = 0;

        for (uint32_t t = 0; t < view.length; t++)
            total +=
                weights[t] * element(shape.model.dtype, vector_at(&shape, &view, t, 1, kv_head), d);
        out[(uint64_t)blockIdx.x * dim + d] = total / sum;
    }
}

cudaError_t kvb_kernel_attend(const struct kvb_shape *shape, const struct kvb_layer_view *view,
                              const float *query, uint32_t heads, double *weights, double *out,
                              cudaStream_t stream)
{
    attend_head<<<heads, ATTEND_THREADS, 0, stream>>>(*shape, *view, query, weights, out);
    return cudaGetLastError();
}
