/* SPDX-License-Identifier: Apache-2.0
 *
 * Writing K and V on a GPU, all layers in one launch. A warp takes a row: the heads of a token's K
 * or V in one layer; neighbouring warps take neighbouring tokens, so that what lies side by side in
 * a block is written at the same time. Two kernels:
 *
 *   copy_rows      same type, nothing to compute: pieces of 16 bytes, four in flight a lane
 *   convert_rows   the lanes of a head (a power of two, 8 elements each, up to four times) keep it
 *                  in registers: turn, find the scale, convert
 *
 * Every product and sum is rounded on its own, so that the CPU's bytes are the same.
 */
#include <float.h>

#include "element.cuh"
#include "launch.cuh"

#define WARPS 8

/* K or V of all layers. */
struct side {
    const void *from;
    uint64_t from_layer;
    uint64_t from_token;
    uint64_t from_head;
    char *to;
    void *scale;
    uint64_t head_stride;
    uint64_t token_stride;
    uint32_t dim;
    uint32_t rotary_dim; /* 0 for V */
    uint32_t lanes;      /* of a head */
};

struct job {
    struct side sides[2];
    const int64_t *slots;
    const int32_t *positions;
    const float *rotary_cos_sin;
    uint64_t slot_limit;
    uint64_t block_stride;
    uint64_t layer_stride;
    uint64_t scale_block_stride;
    uint64_t scale_layer_stride;
    uint64_t scale_head_stride;
    uint64_t scale_token_stride;
    uint32_t block_tokens;
    uint32_t token_count;
    uint32_t head_count;
    uint32_t first_layer;
    uint32_t layers;
    uint32_t from_dtype;
    uint32_t dtype;
    uint32_t scale_dtype;
    uint32_t rotary_first;
    uint32_t rotary_interleaved;
    uint32_t rotary_limit;
};

/* A warp's row: elements from the starts of source, target and scales. */
struct row {
    const struct side *side;
    uint32_t token;
    uint64_t from;
    uint64_t to;
    uint64_t scale;
};

/* The row of this warp; false when it has none. The grid is (tokens ÷ WARPS, layers, K | V). */
static __device__ __forceinline__ bool find_row(const struct job &job, struct row *row)
{
    const uint32_t token = blockIdx.x * WARPS + threadIdx.x / 32;
    const struct side *side = &job.sides[blockIdx.z];
    const uint64_t layer = job.first_layer + blockIdx.y;
    uint64_t slot, block;
    uint32_t place;

    if (token >= job.token_count)
        return false;
    slot = (uint64_t)job.slots[token];
    if (slot >= job.slot_limit) /* negative ones are greater still */
        return false;
    block = slot >> 32 ? slot / job.block_tokens : (uint32_t)slot / job.block_tokens;
    place = (uint32_t)(slot - block * job.block_tokens);
    row->side = side;
    row->token = token;
    row->from = blockIdx.y * side->from_layer + token * side->from_token;
    row->to = block * job.block_stride + layer * job.layer_stride + place * side->token_stride;
    row->scale = block * job.scale_block_stride + layer * job.scale_layer_stride +
                 place * job.scale_token_stride;
    return true;
}

static __global__ void __launch_bounds__(WARPS * 32)
    copy_rows(const __grid_constant__ struct job job)
{
    const uint32_t bytes = kva_bytes_of(job.dtype), lane = threadIdx.x % 32;
    struct row row;

    if (!find_row(job, &row))
        return;
    const struct side *side = row.side;
    const uint32_t pieces = side->dim * bytes / 16, all = pieces * job.head_count;
    const char *from = (const char *)side->from + row.from * bytes;
    char *to = side->to + row.to * bytes;

    for (uint32_t first = lane; first < all; first += 128) {
        uint4 piece[4];
        uint32_t head[4];

#pragma unroll
        for (uint32_t u = 0; u < 4; u++) {
            const uint32_t i = first + 32 * u;

            head[u] = i / pieces;
            if (i < all)
                piece[u] = __ldcs((const uint4 *)(from + head[u] * side->from_head * bytes +
                                                  (i - head[u] * pieces) * 16));
        }
#pragma unroll
        for (uint32_t u = 0; u < 4; u++) {
            const uint32_t i = first + 32 * u;

            if (i < all)
                *(uint4 *)(to + head[u] * side->head_stride * bytes +
                           (i - head[u] * pieces) * 16) = piece[u];
        }
    }
}

/* ---- vectors in registers: lane x of a head's lanes has pieces x, x + lanes, ... ---- */

template <int PIECES> struct vector {
    float values[PIECES][KVA_EIGHT];
};

/* Cosines and sines for the elements that a lane has; 1 and 0 where nothing turns. */
template <int PIECES> struct turn {
    float cosines[PIECES][KVA_EIGHT];
    float sines[PIECES][KVA_EIGHT]; /* with the sign of the other element's share */
    int32_t partner[PIECES];        /* elements to the piece it turns with; 0: in the same one */
};

template <int PIECES>
static __device__ __forceinline__ void load_turn(const struct job &job, const struct row &row,
                                                 uint32_t x, struct turn<PIECES> *turn)
{
    const uint32_t rotary_dim = row.side->rotary_dim, half = rotary_dim / 2;
    const int32_t last = (int32_t)job.rotary_limit - 1;
    const int32_t position = min(max(job.positions[row.token], 0), last);
    const float *cosines = job.rotary_cos_sin + (uint64_t)position * rotary_dim;

#pragma unroll
    for (int j = 0; j < PIECES; j++) {
        const uint32_t first = (x + j * row.side->lanes) * KVA_EIGHT - job.rotary_first;
        const bool turns = first < rotary_dim; /* what is before wraps around */
        const bool is_second = first >= half;

        turn->partner[j] = !turns || job.rotary_interleaved ? 0 : is_second ? -(int32_t)half : half;
#pragma unroll
        for (int e = 0; e < KVA_EIGHT; e++) {
            const uint32_t i = job.rotary_interleaved ? (first + e) / 2
                               : is_second            ? first + e - half
                                                      : first + e;
            const bool is_negative = job.rotary_interleaved ? e % 2 == 0 : !is_second;

            turn->cosines[j][e] = turns ? cosines[i] : 1;
            turn->sines[j][e] = !turns        ? 0
                                : is_negative ? -cosines[half + i]
                                              : cosines[half + i];
        }
    }
}

/* a·cos − b·sin of a pair's first element, b·cos + a·sin of its second. */
template <int PIECES>
static __device__ __forceinline__ void apply_turn(const struct job &job, const struct row &row,
                                                  uint64_t head_from, uint32_t x,
                                                  const struct turn<PIECES> &turn,
                                                  struct vector<PIECES> *vector)
{
#pragma unroll
    for (int j = 0; j < PIECES; j++) {
        const uint32_t first = (x + j * row.side->lanes) * KVA_EIGHT;
        float other[KVA_EIGHT];

        if (first >= row.side->dim || first - job.rotary_first >= row.side->rotary_dim)
            continue;
        if (turn.partner[j]) {
            kva_load8(job.from_dtype, row.side->from, head_from + first + turn.partner[j], other);
        } else {
#pragma unroll
            for (int e = 0; e < KVA_EIGHT; e++)
                other[e] = vector->values[j][e ^ 1];
        }
#pragma unroll
        for (int e = 0; e < KVA_EIGHT; e++)
            vector->values[j][e] = __fadd_rn(__fmul_rn(vector->values[j][e], turn.cosines[j][e]),
                                             __fmul_rn(other[e], turn.sines[j][e]));
    }
}

/* As scale_for() of cpu/write.c; the lanes of a head all get it. */
template <int PIECES>
static __device__ __forceinline__ float scale_for(const struct job &job, uint32_t lanes,
                                                  const struct vector<PIECES> &vector)
{
    const float limit = job.scale_dtype == KVMEM_DTYPE_FP16 ? 65504.f : 0x1.fep127f;
    float largest = 0;

#pragma unroll
    for (int j = 0; j < PIECES; j++)
#pragma unroll
        for (int e = 0; e < KVA_EIGHT; e++)
            largest = fmaxf(largest, fabsf(vector.values[j][e]));
    for (uint32_t step = lanes / 2; step > 0; step /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, step));
    return fminf(__fdiv_rn(largest, job.dtype == KVMEM_DTYPE_INT8 ? 127.f : 448.f), limit);
}

/* Rounded to the type in which scales are kept. */
static __device__ __forceinline__ float round_scale(uint32_t dtype, float scale)
{
    return dtype == KVMEM_DTYPE_FP32   ? scale
           : dtype == KVMEM_DTYPE_FP16 ? __half2float(__float2half_rn(scale))
                                       : __bfloat162float(__float2bfloat16_rn(scale));
}

/* All lanes of the warp come here, those without a head with zeros. */
template <int PIECES>
static __device__ __forceinline__ void quantise(const struct job &job, const struct row &row,
                                                uint32_t head, uint32_t x,
                                                struct vector<PIECES> *vector)
{
    const uint64_t at = row.scale + head * job.scale_head_stride;
    const bool is_there = head < job.head_count;
    float scale = 0, inverse;

    if (job.scale_token_stride) {
        scale = round_scale(job.scale_dtype, scale_for(job, row.side->lanes, *vector));
        if (is_there && x == 0)
            kva_store1(job.scale_dtype, row.side->scale, at, scale);
    } else if (is_there) {
        scale = kva_load1(job.scale_dtype, row.side->scale, at);
    }
    inverse = fabsf(scale) >= FLT_MIN ? __fdiv_rn(1.f, scale) : 0.f;
#pragma unroll
    for (int j = 0; j < PIECES; j++)
#pragma unroll
        for (int e = 0; e < KVA_EIGHT; e++)
            vector->values[j][e] = __fmul_rn(vector->values[j][e], inverse);
}

/* A head's elements of this lane; zeros where there are none. */
template <int PIECES>
static __device__ __forceinline__ struct vector<PIECES>
load_head(const struct job &job, const struct row &row, uint32_t head, uint32_t x)
{
    struct vector<PIECES> vector = {};

#pragma unroll
    for (int j = 0; j < PIECES; j++) {
        const uint32_t d = (x + j * row.side->lanes) * KVA_EIGHT;

        if (head < job.head_count && d < row.side->dim)
            kva_load8(job.from_dtype, row.side->from, row.from + head * row.side->from_head + d,
                      vector.values[j]);
    }
    return vector;
}

template <int PIECES>
static __device__ __forceinline__ void store_head(const struct job &job, const struct row &row,
                                                  uint32_t head, uint32_t x,
                                                  const struct vector<PIECES> &vector)
{
#pragma unroll
    for (int j = 0; j < PIECES; j++) {
        const uint32_t d = (x + j * row.side->lanes) * KVA_EIGHT;

        if (head < job.head_count && d < row.side->dim)
            kva_store8(job.dtype, row.side->to, row.to + head * row.side->head_stride + d,
                       vector.values[j]);
    }
}

template <int PIECES>
static __global__ void __launch_bounds__(WARPS * 32)
    convert_rows(const __grid_constant__ struct job job)
{
    struct row row;
    struct turn<PIECES> turn;

    if (!find_row(job, &row))
        return;
    const struct side *side = row.side;
    const uint32_t lane = threadIdx.x % 32, x = lane % side->lanes, together = 32 / side->lanes;
    uint32_t head = lane / side->lanes;

    if (side->rotary_dim)
        load_turn<PIECES>(job, row, x, &turn);
    for (uint32_t first = 0; first < job.head_count; first += together, head += together) {
        struct vector<PIECES> vector = load_head<PIECES>(job, row, head, x);

        if (side->rotary_dim && head < job.head_count)
            apply_turn<PIECES>(job, row, row.from + head * side->from_head, x, turn, &vector);
        if (job.dtype >= KVMEM_DTYPE_FP8_E4M3)
            quantise<PIECES>(job, row, head, x, &vector);
        store_head<PIECES>(job, row, head, x, vector);
    }
}

/* ---- launching ---- */

#define PIECES_LIMIT 4
#define DIM_LIMIT    (PIECES_LIMIT * 32 * KVA_EIGHT)

static int refuse(const char *field, uint64_t value, const char *need)
{
    return kva_error_set(KVMEM_E_NOT_SUPPORTED, "%s: %llu is not %s, as on a GPU it must be", field,
                         (unsigned long long)value, need);
}

static int check_dim(const char *field, uint32_t dim, uint32_t dtype)
{
    if (dim % (dtype >= KVMEM_DTYPE_FP8_E4M3 ? 16 : KVA_EIGHT) || dim > DIM_LIMIT)
        return refuse(field, dim, "a multiple of 8 (of 16 in one byte) up to 1,024");
    return 0;
}

/* A source is read in pieces of 16 bytes. */
static int check_source(const char *field, const void *from, const uint64_t strides[3],
                        uint32_t dtype)
{
    const uint64_t bytes = dtype == KVMEM_DTYPE_FP32 ? 4 : 2;

    for (int i = 0; i < 3; i++)
        if (strides[i] * bytes % 16)
            return kva_error_set(KVMEM_E_INVALID,
                                 "%s: a stride of %llu elements is no multiple of 16 bytes", field,
                                 (unsigned long long)strides[i]);
    if ((uintptr_t)from % 16)
        return kva_error_set(KVMEM_E_INVALID, "%s: %p is no multiple of 16 bytes", field, from);
    return 0;
}

static int check_rotary(const struct kva_write *what)
{
    if (what->rotary_dim % 16)
        return refuse("rotary_dim", what->rotary_dim, "a multiple of 16");
    if (what->rotary_dim && what->rotary_first % KVA_EIGHT)
        return refuse("rotary_first", what->rotary_first, "a multiple of 8");
    return 0;
}

/* Lanes that share a head, 8 elements each or more. */
static uint32_t lanes_for(uint32_t dim)
{
    uint32_t lanes = 1;

    while (lanes < 32 && lanes * KVA_EIGHT < dim)
        lanes *= 2;
    return lanes;
}

static struct job make_job(const struct kva_write *what)
{
    const struct kva_cache *c = &what->cache;
    struct job job = {};

    job.slots = what->slots;
    job.positions = what->positions;
    job.rotary_cos_sin = what->rotary_cos_sin;
    job.slot_limit = (uint64_t)c->block_count * c->block_tokens;
    job.block_stride = c->block_stride;
    job.layer_stride = c->layer_stride;
    job.scale_block_stride = c->scale_block_stride;
    job.scale_layer_stride = c->scale_layer_stride;
    job.scale_head_stride = c->scale_head_stride;
    job.scale_token_stride = c->scale_token_stride;
    job.block_tokens = c->block_tokens;
    job.token_count = what->token_count;
    job.head_count = c->kv_head_count;
    job.from_dtype = what->dtype;
    job.dtype = c->dtype;
    job.scale_dtype = c->scale_dtype;
    job.rotary_first = what->rotary_first;
    job.rotary_interleaved = what->rotary_interleaved;
    job.rotary_limit = what->rotary_limit;
    return job;
}

static int launch(const struct job &job, uint32_t sides, cudaStream_t stream)
{
    const dim3 grid((job.token_count + WARPS - 1) / WARPS, job.layers, sides);
    void (*kernel)(const struct job) = convert_rows<PIECES_LIMIT>;
    void *parameters[] = {(void *)&job};
    uint32_t dim = job.sides[0].dim;
    int code;

    if (sides > 1 && job.sides[1].dim > dim)
        dim = job.sides[1].dim;
    if (job.from_dtype == job.dtype && !job.sides[0].rotary_dim)
        kernel = copy_rows;
    else if (dim <= 32 * KVA_EIGHT)
        kernel = convert_rows<1>;
    code = kva_cuda_prepare((const void *)kernel, 0);
    if (code)
        return code;
    return kva_cuda_result(
        cudaLaunchKernel((const void *)kernel, grid, dim3(WARPS * 32), parameters, 0, stream),
        "writing K and V");
}

extern "C" int kva_write_cuda(const struct kva_write *what, uint32_t layer, uint32_t layers,
                              const void *k, uint64_t k_layer_stride, const void *v,
                              uint64_t v_layer_stride, void *stream)
{
    const struct kva_cache *c = &what->cache;
    const uint64_t k_strides[3] = {k_layer_stride, what->k_token_stride, what->k_head_stride};
    const uint64_t v_strides[3] = {v_layer_stride, what->v_token_stride, what->v_head_stride};
    const uint32_t sides = v && c->v != c->k ? 2 : 1;
    struct job job = make_job(what);
    struct kva_cuda_device device;
    int code = kva_cuda_device(&device);

    if (!code)
        code = kva_cuda_check_stream(&device, (cudaStream_t)stream);
    if (!code)
        code = check_dim("cache.head_dim_k", c->head_dim_k, c->dtype);
    if (!code)
        code = check_source("k", k, k_strides, what->dtype);
    if (!code && sides > 1)
        code = check_dim("cache.head_dim_v", c->head_dim_v, c->dtype);
    if (!code && sides > 1)
        code = check_source("v", v, v_strides, what->dtype);
    if (!code)
        code = check_rotary(what);
    if (code)
        return code;
    job.first_layer = layer;
    job.layers = layers;
    job.sides[0] = {k, k_layer_stride, what->k_token_stride, what->k_head_stride, (char *)c->k,
                    (void *)c->k_scale, c->k_head_stride, c->k_token_stride, c->head_dim_k,
                    what->rotary_dim, lanes_for(c->head_dim_k)};
    job.sides[1] = {v, v_layer_stride, what->v_token_stride, what->v_head_stride, (char *)c->v,
                    (void *)c->v_scale, c->v_head_stride, c->v_token_stride, c->head_dim_v, 0,
                    lanes_for(c->head_dim_v)};
    return launch(job, sides, (cudaStream_t)stream);
}
