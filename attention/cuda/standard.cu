/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention with all scores in memory on a GPU, as three kernels (Vaswani et al. 2017, section
 * 3.2.1; what FlashAttention calls standard):
 *
 *   scores    S = cap(scale · Q Kᵀ)    tiles of 128 rows and 128 tokens, mma.sync
 *   softmax   S becomes P              a thread block a row; what a row does not see becomes 0
 *   values    out = P V                tiles of 128 rows and 128 elements, mma.sync
 *
 * No tile is skipped, however much of it is masked: that is the algorithm. K and V are read through
 * the tables; tokens behind the length count as zeros without being read.
 *
 * A thread block has eight warps, two along the rows and four along the columns, 64 × 32 each.
 */
#include <math_constants.h>

#include "launch.cuh"
#include "mma.cuh"

#define THREADS      256
#define TILE         128 /* rows, tokens, elements of V */
#define SCORE_CHUNK  64  /* elements of K that a stage holds */
#define VALUE_CHUNK  32  /* tokens that a stage holds */
#define WEIGHT_PITCH (VALUE_CHUNK + 8)
#define GRID_Z_LIMIT 65535u

struct job {
    const char *q;
    const char *k; /* of the layer */
    const char *v;
    char *out;
    float *scores;
    const int32_t *tables;
    const int32_t *kv_lengths;
    const int32_t *q_offsets;
    uint64_t score_stride;
    uint64_t block_stride;
    uint64_t k_head_stride;
    uint64_t k_token_stride;
    uint64_t v_head_stride;
    uint64_t v_token_stride;
    uint64_t q_token_stride;
    uint64_t q_head_stride;
    uint64_t out_token_stride;
    uint64_t out_head_stride;
    uint32_t table_stride;
    uint32_t block_tokens;
    uint32_t block_count;
    uint32_t seq_count;
    uint32_t q_max;
    uint32_t q_total;
    uint32_t kv_max;
    uint32_t group;
    uint32_t dim_k;
    uint32_t dim_v;
    uint32_t is_causal;
    float scale;
    float soft_cap;
};

/* A sequence; what the arrays say is clamped. */
struct bounds {
    uint32_t first; /* row of q */
    uint32_t rows;
    uint32_t length;
};

static __device__ __forceinline__ uint32_t clamp(int32_t value, uint32_t most)
{
    return value < 0 ? 0 : min((uint32_t)value, most);
}

static __device__ __forceinline__ struct bounds bounds_of(const struct job &job, uint32_t n)
{
    struct bounds b;

    b.first = job.q_offsets ? clamp(job.q_offsets[n], job.q_total) : n * job.q_max;
    b.rows = job.q_offsets ? clamp(job.q_offsets[n + 1], job.q_total) : b.first + job.q_max;
    b.rows = b.rows > b.first ? min(b.rows - b.first, job.q_max) : 0;
    b.length = clamp(job.kv_lengths[n], job.kv_max);
    return b;
}

/* Elements from a layer's start to token t, which is below the length. */
static __device__ __forceinline__ uint64_t token_at(const struct job &job, uint32_t n, uint32_t t,
                                                    uint64_t token_stride)
{
    const uint32_t entry = t / job.block_tokens;
    const uint32_t block = (uint32_t)job.tables[(uint64_t)n * job.table_stride + entry];

    return min(block, job.block_count - 1) * job.block_stride +
           (t - entry * job.block_tokens) * token_stride;
}

static __device__ __forceinline__ float *scores_of(const struct job &job, uint32_t head,
                                                   uint32_t row)
{
    return job.scores + ((uint64_t)head * job.q_total + row) * job.score_stride;
}

/* 64 × 32 of a warp: acc[m][n] is rows 16 m.., columns 8 n... */
struct warp_tile {
    float acc[4][4][4];
};

/* ---- scores ---- */

/* A row of a stage has eight pieces of 16 bytes, swizzled so that ldmatrix meets no conflict. */
static __device__ __forceinline__ uint32_t piece_at(uint32_t row, uint32_t piece)
{
    return row * SCORE_CHUNK * 2 + ((piece ^ (row & 7)) << 4);
}

template <typename Element>
static __device__ __forceinline__ void multiply_scores(uint32_t q, uint32_t k,
                                                       struct warp_tile &tile)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t row = warp / 4 * 64 + (lane & 15);
    const uint32_t column = warp % 4 * 32 + (lane & 7) + (lane >> 4) * 8;

#pragma unroll
    for (uint32_t step = 0; step < SCORE_CHUNK / 16; step++) {
        uint32_t b[2][4];

#pragma unroll
        for (uint32_t pair = 0; pair < 2; pair++)
            kva_load_matrix(b[pair], k + piece_at(column + 16 * pair, 2 * step + (lane >> 3 & 1)));
#pragma unroll
        for (uint32_t m = 0; m < 4; m++) {
            uint32_t a[4];

            kva_load_matrix(a, q + piece_at(row + 16 * m, 2 * step + (lane >> 4)));
#pragma unroll
            for (uint32_t n = 0; n < 4; n++)
                kva_mma<Element>(tile.acc[m][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
        }
    }
}

static __device__ __forceinline__ void store_scores(const struct job &job, const struct bounds &b,
                                                    uint32_t head, uint32_t first_row,
                                                    uint32_t first_token,
                                                    const struct warp_tile &tile)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;

#pragma unroll
    for (uint32_t m = 0; m < 4; m++)
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            const uint32_t row = first_row + warp / 4 * 64 + 16 * m + 8 * half + lane / 4;
            float *to = scores_of(job, head, b.first + row);

            if (row >= b.rows)
                continue;
#pragma unroll
            for (uint32_t n = 0; n < 4; n++) {
                const uint32_t t = first_token + warp % 4 * 32 + 8 * n + 2 * (lane % 4);
                float2 two = {tile.acc[m][n][2 * half] * job.scale,
                              tile.acc[m][n][2 * half + 1] * job.scale};

                if (job.soft_cap != 0) {
                    two.x = job.soft_cap * tanhf(two.x / job.soft_cap);
                    two.y = job.soft_cap * tanhf(two.y / job.soft_cap);
                }
                if (t < job.score_stride)
                    *(float2 *)(to + t) = two;
            }
        }
}

/* Where this thread's pieces of a tile come from: rows or tokens thread ÷ 8 + 32 i. */
struct sources {
    const char *from[4]; /* NULL: zeros */
};

static __device__ __forceinline__ void load_stage(const struct sources &s, const char *any,
                                                  uint32_t chunk, uint32_t dim, uint32_t to)
{
    const uint32_t piece = threadIdx.x % 8, d = chunk * SCORE_CHUNK + piece * 8;

#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const bool is_there = s.from[i] && d < dim;

        kva_copy16(to + piece_at(threadIdx.x / 8 + 32 * i, piece),
                   is_there ? s.from[i] + d * 2 : any, is_there);
    }
}

/* Grid (tiles of tokens × tiles of rows, query heads, sequences). */
template <typename Element>
static __global__ void __launch_bounds__(THREADS)
    compute_scores(const __grid_constant__ struct job job, uint32_t token_tiles)
{
    extern __shared__ __align__(1024) char stages[]; /* 2 of Q and K each */
    const uint32_t bytes = TILE * SCORE_CHUNK * 2, base = kva_shared_address(stages);
    const uint32_t first_token = blockIdx.x % token_tiles * TILE;
    const uint32_t first_row = blockIdx.x / token_tiles * TILE, head = blockIdx.y;
    const uint32_t chunks = (job.dim_k + SCORE_CHUNK - 1) / SCORE_CHUNK;

    for (uint32_t n = blockIdx.z; n < job.seq_count; n += gridDim.z) {
        const struct bounds b = bounds_of(job, n);
        struct sources q, k;
        struct warp_tile tile = {};

        if (first_row >= b.rows || first_token >= b.length)
            continue;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t row = first_row + threadIdx.x / 8 + 32 * i;
            const uint32_t t = first_token + threadIdx.x / 8 + 32 * i;

            q.from[i] = row < b.rows ? job.q + ((b.first + row) * job.q_token_stride +
                                                head * job.q_head_stride) * 2
                                     : nullptr;
            k.from[i] = t < b.length ? job.k + (token_at(job, n, t, job.k_token_stride) +
                                                head / job.group * job.k_head_stride) * 2
                                     : nullptr;
        }
        load_stage(q, job.q, 0, job.dim_k, base);
        load_stage(k, job.q, 0, job.dim_k, base + bytes);
        kva_copy_commit();
        for (uint32_t c = 0; c < chunks; c++) {
            const uint32_t at = base + c % 2 * 2 * bytes, next = base + (c + 1) % 2 * 2 * bytes;

            if (c + 1 < chunks) {
                load_stage(q, job.q, c + 1, job.dim_k, next);
                load_stage(k, job.q, c + 1, job.dim_k, next + bytes);
            }
            kva_copy_commit();
            kva_copy_wait<1>();
            __syncthreads();
            multiply_scores<Element>(at, at + bytes, tile);
            __syncthreads();
        }
        store_scores(job, b, head, first_row, first_token, tile);
    }
}

/* ---- softmax ---- */

/* A running maximum and Σ exp(score − maximum). */
struct running {
    float most;
    float sum;
};

static __device__ __forceinline__ struct running both(struct running a, struct running b)
{
    const float most = fmaxf(a.most, b.most);

    if (most == -CUDART_INF_F)
        return {most, 0};
    return {most, a.sum * __expf(a.most - most) + b.sum * __expf(b.most - most)};
}

/* Of all threads of the block, the same in each. */
static __device__ __forceinline__ struct running over_block(struct running r)
{
    __shared__ struct running warps[THREADS / 32];

    for (int step = 16; step > 0; step /= 2)
        r = both(r, {__shfl_xor_sync(0xffffffff, r.most, step),
                     __shfl_xor_sync(0xffffffff, r.sum, step)});
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        warps[threadIdx.x / 32] = r;
    __syncthreads();
    r = warps[0];
    for (int i = 1; i < THREADS / 32; i++)
        r = both(r, warps[i]);
    return r;
}

/* Grid (rows of a sequence, query heads, sequences). */
static __global__ void __launch_bounds__(THREADS)
    softmax_rows(const __grid_constant__ struct job job)
{
    const uint32_t row = blockIdx.x;

    for (uint32_t n = blockIdx.z; n < job.seq_count; n += gridDim.z) {
        const struct bounds b = bounds_of(job, n);
        float *scores = scores_of(job, blockIdx.y, b.first + row);
        const int64_t seen = job.is_causal ? (int64_t)b.length - b.rows + row + 1 : b.length;
        const uint32_t end = seen < 0 ? 0 : (uint32_t)seen;
        struct running r = {-CUDART_INF_F, 0};

        if (row >= b.rows)
            continue;
        for (uint32_t t = threadIdx.x; t < end; t += THREADS) {
            const float score = scores[t];

            if (score > r.most)
                r = {score, r.sum * __expf(r.most - score) + 1};
            else
                r.sum += score == -CUDART_INF_F ? 0 : __expf(score - r.most);
        }
        r = over_block(r);
        const float share = 1 / r.sum;

        /* Zeros up to the end of the last tile of `values`. */
        for (uint32_t t = threadIdx.x; t < (b.length + 63) / 64 * 64; t += THREADS)
            scores[t] = t < end ? __expf(scores[t] - r.most) * share : 0;
    }
}

/* ---- values ---- */

struct value_stage {
    uint16_t weights[TILE * WEIGHT_PITCH];
    uint16_t v[VALUE_CHUNK * TILE];
};

/* Sixteen weights a thread: four neighbours of rows thread ÷ 8 + 32 i. */
struct weights {
    float4 four[4];
};

static __device__ __forceinline__ void load_weights(const float *const rows[4], uint32_t chunk,
                                                    struct weights *w)
{
#pragma unroll
    for (uint32_t i = 0; i < 4; i++)
        w->four[i] = rows[i] ? *(const float4 *)(rows[i] + chunk * VALUE_CHUNK)
                             : make_float4(0, 0, 0, 0);
}

template <typename Element>
static __device__ __forceinline__ void store_weights(const struct weights &w, uint16_t *to)
{
#pragma unroll
    for (uint32_t i = 0; i < 4; i++)
        *(uint2 *)(to + (threadIdx.x / 8 + 32 * i) * WEIGHT_PITCH + threadIdx.x % 8 * 4) =
            make_uint2(kva_pack<Element>(w.four[i].x, w.four[i].y),
                       kva_pack<Element>(w.four[i].z, w.four[i].w));
}

/* Tokens thread ÷ 16 + 16 i of a chunk, a piece of each; a row of V has 16 pieces, swizzled. */
static __device__ __forceinline__ void load_values(const struct job &job, uint32_t n,
                                                   uint32_t length, uint32_t kv_head, uint32_t d,
                                                   uint32_t chunk, uint16_t *to)
{
    const uint32_t piece = threadIdx.x % 16;

#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t row = threadIdx.x / 16 + 16 * i, t = chunk * VALUE_CHUNK + row;
        const bool is_there = t < length && d + piece * 8 < job.dim_v;
        const char *from = job.v;

        if (is_there)
            from += (token_at(job, n, t, job.v_token_stride) + kv_head * job.v_head_stride + d +
                     piece * 8) * 2;
        kva_copy16(kva_shared_address(to) + row * TILE * 2 + ((piece ^ (row & 7)) << 4), from,
                   is_there);
    }
}

template <typename Element>
static __device__ __forceinline__ void multiply_values(const struct value_stage &stage,
                                                       struct warp_tile &tile)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t weights = kva_shared_address(stage.weights);
    const uint32_t v = kva_shared_address(stage.v);

#pragma unroll
    for (uint32_t step = 0; step < VALUE_CHUNK / 16; step++) {
        const uint32_t token = 16 * step + (lane & 15);
        uint32_t b[2][4];

#pragma unroll
        for (uint32_t pair = 0; pair < 2; pair++)
            kva_load_matrix_transposed(b[pair], v + token * TILE * 2 +
                                                    (((warp % 4 * 4 + 2 * pair + (lane >> 4)) ^
                                                      (token & 7)) << 4));
#pragma unroll
        for (uint32_t m = 0; m < 4; m++) {
            const uint32_t row = warp / 4 * 64 + 16 * m + (lane & 15);
            uint32_t a[4];

            kva_load_matrix(a, weights + (row * WEIGHT_PITCH + 16 * step + (lane >> 4) * 8) * 2);
#pragma unroll
            for (uint32_t i = 0; i < 4; i++)
                kva_mma<Element>(tile.acc[m][i], a, b[i / 2][i % 2 * 2], b[i / 2][i % 2 * 2 + 1]);
        }
    }
}

template <typename Element>
static __device__ __forceinline__ void store_values(const struct job &job, const struct bounds &b,
                                                    uint32_t head, uint32_t first_row, uint32_t d,
                                                    const struct warp_tile &tile)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;

#pragma unroll
    for (uint32_t m = 0; m < 4; m++)
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            const uint32_t row = first_row + warp / 4 * 64 + 16 * m + 8 * half + lane / 4;
            char *to = job.out + ((uint64_t)(b.first + row) * job.out_token_stride +
                                  head * job.out_head_stride) * 2;

            if (row >= b.rows)
                continue;
#pragma unroll
            for (uint32_t n = 0; n < 4; n++) {
                const uint32_t at = d + warp % 4 * 32 + 8 * n + 2 * (lane % 4);

                if (at < job.dim_v)
                    *(uint32_t *)(to + at * 2) = kva_pack<Element>(tile.acc[m][n][2 * half],
                                                                   tile.acc[m][n][2 * half + 1]);
            }
        }
}

/* Grid (tiles of V's elements × tiles of rows, query heads, sequences). */
template <typename Element>
static __global__ void __launch_bounds__(THREADS)
    multiply_weights(const __grid_constant__ struct job job, uint32_t element_tiles)
{
    __shared__ __align__(128) struct value_stage stages[2];
    const uint32_t d = blockIdx.x % element_tiles * TILE;
    const uint32_t first_row = blockIdx.x / element_tiles * TILE, head = blockIdx.y;
    const uint32_t kv_head = head / job.group;

    for (uint32_t n = blockIdx.z; n < job.seq_count; n += gridDim.z) {
        const struct bounds b = bounds_of(job, n);
        const uint32_t chunks = (b.length + VALUE_CHUNK - 1) / VALUE_CHUNK;
        const float *rows[4];
        struct weights weights;
        struct warp_tile tile = {};

        if (first_row >= b.rows)
            continue;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t row = first_row + threadIdx.x / 8 + 32 * i;

            rows[i] = row < b.rows ? scores_of(job, head, b.first + row) + threadIdx.x % 8 * 4
                                   : nullptr;
        }
        if (chunks) {
            load_values(job, n, b.length, kv_head, d, 0, stages[0].v);
            load_weights(rows, 0, &weights);
            store_weights<Element>(weights, stages[0].weights);
        }
        kva_copy_commit();
        for (uint32_t c = 0; c < chunks; c++) {
            if (c + 1 < chunks) {
                load_values(job, n, b.length, kv_head, d, c + 1, stages[(c + 1) % 2].v);
                load_weights(rows, c + 1, &weights);
            }
            kva_copy_commit();
            kva_copy_wait<1>();
            __syncthreads();
            multiply_values<Element>(stages[c % 2], tile);
            if (c + 1 < chunks)
                store_weights<Element>(weights, stages[(c + 1) % 2].weights);
            __syncthreads();
        }
        store_values<Element>(job, b, head, first_row, d, tile);
    }
}

/* ---- launching ---- */

#define SCORE_SHARED (2 * 2 * TILE * SCORE_CHUNK * 2)

static struct job make_job(const struct kva_standard_job *from)
{
    const struct kva_attention *what = from->what;
    const struct kva_cache *c = &what->cache;
    const struct kva_batch *batch = &what->batch;
    struct job job = {};

    job.q = (const char *)from->q;
    job.k = (const char *)c->k + from->layer * c->layer_stride * 2;
    job.v = (const char *)c->v + from->layer * c->layer_stride * 2;
    job.out = (char *)from->out;
    job.scores = from->scores;
    job.score_stride = from->score_stride;
    job.tables = batch->tables;
    job.kv_lengths = batch->kv_lengths;
    job.q_offsets = batch->q_offsets;
    job.table_stride = batch->table_stride;
    job.seq_count = batch->seq_count;
    job.q_max = batch->q_max;
    job.q_total = batch->q_total;
    job.kv_max = batch->kv_max;
    job.block_stride = c->block_stride;
    job.k_head_stride = c->k_head_stride;
    job.k_token_stride = c->k_token_stride;
    job.v_head_stride = c->v_head_stride;
    job.v_token_stride = c->v_token_stride;
    job.block_tokens = c->block_tokens;
    job.block_count = c->block_count;
    job.dim_k = c->head_dim_k;
    job.dim_v = c->head_dim_v;
    job.q_token_stride = what->q_token_stride;
    job.q_head_stride = what->q_head_stride;
    job.out_token_stride = what->out_token_stride;
    job.out_head_stride = what->out_head_stride;
    job.group = what->q_head_count / c->kv_head_count;
    job.is_causal = (what->flags & KVA_CAUSAL) != 0;
    job.scale = kva_scale_of(what);
    job.soft_cap = what->soft_cap;
    return job;
}

template <typename Element> static int launch(const struct job &job, dim3 grid, cudaStream_t stream)
{
    const uint32_t rows = (job.q_max + TILE - 1) / TILE;
    const uint32_t tokens = (job.kv_max + TILE - 1) / TILE;
    const uint32_t elements = (job.dim_v + TILE - 1) / TILE;
    const void *kernels[] = {(const void *)compute_scores<Element>, (const void *)softmax_rows,
                             (const void *)multiply_weights<Element>};
    void *of_scores[] = {(void *)&job, (void *)&tokens},
         *of_values[] = {(void *)&job, (void *)&elements};
    cudaError_t result = cudaSuccess;
    int code = kva_cuda_prepare(kernels[0], SCORE_SHARED);

    if (!code)
        code = kva_cuda_prepare(kernels[1], 0);
    if (!code)
        code = kva_cuda_prepare(kernels[2], 0);
    if (code)
        return code;
    if (tokens) {
        grid.x = tokens * rows;
        result = cudaLaunchKernel(kernels[0], grid, dim3(THREADS), of_scores, SCORE_SHARED, stream);
        grid.x = job.q_max;
        if (result == cudaSuccess)
            result = cudaLaunchKernel(kernels[1], grid, dim3(THREADS), of_scores, 0, stream);
    }
    grid.x = elements * rows;
    if (result == cudaSuccess)
        result = cudaLaunchKernel(kernels[2], grid, dim3(THREADS), of_values, 0, stream);
    return kva_cuda_result(result, "standard attention");
}

static int refuse(const char *field, uint64_t value, const char *need)
{
    return kva_error_set(KVMEM_E_NOT_SUPPORTED,
                         "%s: %llu is not %s, as standard attention on a GPU needs it", field,
                         (unsigned long long)value, need);
}

extern "C" int kva_standard_cuda_accepts(const struct kva_attention *what)
{
    const struct {
        const char *field;
        uint64_t value;
    } eights[] = {{"cache.head_dim_k", what->cache.head_dim_k},
                  {"cache.head_dim_v", what->cache.head_dim_v},
                  {"q_token_stride", what->q_token_stride},
                  {"q_head_stride", what->q_head_stride},
                  {"out_token_stride", what->out_token_stride},
                  {"out_head_stride", what->out_head_stride}};
    const uint64_t rows = (what->batch.q_max + TILE - 1) / TILE;
    struct kva_cuda_device device;

    if (what->dtype == KVMEM_DTYPE_FP32)
        return refuse("dtype", what->dtype, "BF16 or FP16");
    if (what->cache.dtype != what->dtype)
        return refuse("cache.dtype", what->cache.dtype, "dtype");
    for (const auto &one : eights)
        if (one.value % 8)
            return refuse(one.field, one.value, "a multiple of 8");
    if (rows * ((what->batch.kv_max + TILE - 1) / TILE) > INT32_MAX)
        return refuse("batch.kv_max", what->batch.kv_max, "small enough for a launch");
    return kva_cuda_device(&device);
}

extern "C" int kva_standard_cuda(const struct kva_standard_job *from, void *stream)
{
    const struct job job = make_job(from);
    const dim3 grid(1, from->what->q_head_count, min(job.seq_count, GRID_Z_LIMIT));
    struct kva_cuda_device device;
    int code = kva_cuda_device(&device);

    if (!code)
        code = kva_cuda_check_stream(&device, (cudaStream_t)stream);
    if (code)
        return code;
    if ((uintptr_t)from->q % 16 || (uintptr_t)from->out % 16)
        return kva_error_set(KVMEM_E_INVALID, "%s: is no multiple of 16 bytes",
                             (uintptr_t)from->q % 16 ? "q" : "out");
    if (from->what->dtype == KVMEM_DTYPE_BF16)
        return launch<__nv_bfloat16>(job, grid, (cudaStream_t)stream);
    return launch<__half>(job, grid, (cudaStream_t)stream);
}
