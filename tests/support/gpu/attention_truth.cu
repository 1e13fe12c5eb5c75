/* SPDX-License-Identifier: Apache-2.0
 *
 * The definition of <kvmem/attention.h>, one score at a time.
 */
#include "support/gpu/attention_truth.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <math.h>
#include <vector>

#include "support/gpu/must.cuh"

#define THREADS 256

static __device__ double element(uint32_t dtype, const void *array, uint64_t i)
{
    switch (dtype) {
    case KVMEM_DTYPE_BF16: return (double)__bfloat162float(((const __nv_bfloat16 *)array)[i]);
    case KVMEM_DTYPE_FP16: return (double)__half2float(((const __half *)array)[i]);
    case KVMEM_DTYPE_FP8_E4M3: return (double)(float)((const __nv_fp8_e4m3 *)array)[i];
    case KVMEM_DTYPE_INT8: return (double)((const int8_t *)array)[i];
    default: return (double)((const float *)array)[i];
    }
}

struct seen {
    uint32_t seq;
    int64_t length;
    int64_t position; /* of the row */
    int64_t old;      /* tokens before the sequence's new ones */
};

static __device__ struct seen seen_by(const struct kva_attention &a, uint32_t row)
{
    const struct kva_batch &b = a.batch;
    uint32_t n = 0, first = 0, rows = b.q_max;

    for (; n < b.seq_count; n++) {
        first = b.q_offsets ? (uint32_t)b.q_offsets[n] : n * b.q_max;
        rows = b.q_offsets ? (uint32_t)b.q_offsets[n + 1] - first : b.q_max;
        if (row >= first && row < first + rows)
            break;
    }
    if (n == b.seq_count)
        return {0, 0, 0, 0};
    return {n, b.kv_lengths[n], (int64_t)b.kv_lengths[n] - rows + (row - first),
            (int64_t)b.kv_lengths[n] - rows};
}

static __device__ bool sees(const struct kva_attention &a, const struct seen &seen, uint32_t row,
                            int64_t t)
{
    if (a.flags & KVA_CAUSAL && t > seen.position)
        return false;
    if (a.window_tokens && t <= seen.position - (int64_t)a.window_tokens)
        return false;
    return !a.tree_mask || t < seen.old || (a.tree_mask[row] >> (t - seen.old) & 1);
}

static __device__ uint64_t block_of(const struct kva_attention &a, const struct seen &seen,
                                    int64_t t)
{
    return (uint64_t)
        a.batch.tables[(uint64_t)seen.seq * a.batch.table_stride + t / a.cache.block_tokens];
}

static __device__ double value_at(const struct kva_attention &a, uint32_t layer, bool is_v,
                                  uint32_t g, uint64_t block, uint64_t token, uint32_t d)
{
    const struct kva_cache &c = a.cache;
    uint64_t at = block * c.block_stride + layer * c.layer_stride + d +
                  g * (is_v ? c.v_head_stride : c.k_head_stride) +
                  token * (is_v ? c.v_token_stride : c.k_token_stride);
    double value = element(c.dtype, is_v ? c.v : c.k, at);

    if (c.dtype != KVMEM_DTYPE_FP8_E4M3 && c.dtype != KVMEM_DTYPE_INT8)
        return value;
    at = block * c.scale_block_stride + layer * c.scale_layer_stride + g * c.scale_head_stride +
         token * c.scale_token_stride;
    return value * element(c.scale_dtype, is_v ? c.v_scale : c.k_scale, at);
}

static __device__ double score(const struct kva_attention &a, uint32_t layer, const void *q,
                               const struct seen &seen, struct kvt_gpu_truth_row at, int64_t t)
{
    uint32_t g = at.head / (a.q_head_count / a.cache.kv_head_count);
    uint64_t block = block_of(a, seen, t), token = t % a.cache.block_tokens;
    double sum = 0;

    for (uint32_t d = 0; d < a.cache.head_dim_k; d++)
        sum += element(a.dtype, q, at.row * a.q_token_stride + at.head * a.q_head_stride + d) *
               value_at(a, layer, false, g, block, token, d);
    sum *= (double)a.softmax_scale;
    if (a.soft_cap != 0)
        sum = a.soft_cap * tanh(sum / a.soft_cap);
    if (a.alibi_slopes)
        sum += (double)a.alibi_slopes[at.head] * (double)(t - seen.position);
    return sum;
}

/* The sum or the maximum of the block's values, in all threads. */
static __device__ double gathered(double value, bool is_sum)
{
    __shared__ double values[THREADS];

    __syncthreads();
    values[threadIdx.x] = value;
    for (uint32_t step = THREADS / 2; step; step /= 2) {
        __syncthreads();
        if (threadIdx.x < step) {
            double other = values[threadIdx.x + step], own = values[threadIdx.x];

            values[threadIdx.x] = is_sum ? own + other : own > other || isnan(own) ? own : other;
        }
    }
    __syncthreads();
    return values[0];
}

static __global__ void attend(const struct kva_attention a, uint32_t layer, const void *q,
                              const struct kvt_gpu_truth_row *rows, double *scores,
                              uint64_t score_stride, double *out, double *lse)
{
    struct kvt_gpu_truth_row at = rows[blockIdx.x];
    struct seen seen = seen_by(a, at.row);
    uint32_t g = at.head / (a.q_head_count / a.cache.kv_head_count);
    double *mine = scores + blockIdx.x * score_stride, most = -INFINITY, sum = 0;

    for (int64_t t = threadIdx.x; t < seen.length; t += THREADS) {
        mine[t] = sees(a, seen, at.row, t) ? score(a, layer, q, seen, at, t) : -INFINITY;
        most = mine[t] > most || isnan(mine[t]) ? mine[t] : most;
    }
    most = gathered(most, false);
    if (most == -INFINITY) {
        for (uint32_t d = threadIdx.x; d < a.cache.head_dim_v; d += THREADS)
            out[blockIdx.x * (uint64_t)a.cache.head_dim_v + d] = 0;
        if (threadIdx.x == 0)
            lse[blockIdx.x] = -INFINITY;
        return;
    }
    for (int64_t t = threadIdx.x; t < seen.length; t += THREADS)
        sum += exp(mine[t] - most);
    sum = gathered(sum, true);
    if (a.sinks)
        sum += exp((double)a.sinks[at.head] - most);
    for (uint32_t d = threadIdx.x; d < a.cache.head_dim_v; d += THREADS) {
        double total = 0;

        for (int64_t t = 0; t < seen.length; t++)
            if (mine[t] != -INFINITY)
                total += exp(mine[t] - most) * value_at(a, layer, true, g, block_of(a, seen, t),
                                                        t % a.cache.block_tokens, d);
        out[blockIdx.x * (uint64_t)a.cache.head_dim_v + d] = total / sum;
    }
    if (threadIdx.x == 0)
        lse[blockIdx.x] = most + log(sum);
}

void kvt_gpu_attention_truth(const struct kva_attention *what, uint32_t layer, const void *q,
                             const struct kvt_gpu_truth_row *rows, uint32_t count, double *out,
                             double *lse)
{
    struct kva_attention a = *what;
    struct kvt_gpu_truth_row *device_rows = nullptr;
    uint64_t stride = what->batch.kv_max + 1;
    double *scores = nullptr;

    if (a.softmax_scale == 0)
        a.softmax_scale = 1.0f / sqrtf((float)a.cache.head_dim_k);
    KVT_CUDA(cudaMalloc(&device_rows, count * sizeof(*rows)));
    KVT_CUDA(cudaMalloc(&scores, count * stride * sizeof(*scores)));
    KVT_CUDA(cudaMemcpy(device_rows, rows, count * sizeof(*rows), cudaMemcpyHostToDevice));
    attend<<<count, THREADS>>>(a, layer, q, device_rows, scores, stride, out, lse);
    KVT_CUDA(cudaGetLastError());
    KVT_CUDA(cudaDeviceSynchronize());
    KVT_CUDA(cudaFree(scores));
    KVT_CUDA(cudaFree(device_rows));
}

static double element_of(uint32_t dtype, uint16_t bits)
{
    if (dtype == KVMEM_DTYPE_BF16)
        return (double)__bfloat162float(__nv_bfloat16(__nv_bfloat16_raw{bits}));
    return (double)__half2float(__half(__half_raw{bits}));
}

/* Of one row; values are the truth's. */
static double row_error(uint32_t dtype, const uint16_t *got, const double *values, uint32_t dim)
{
    double most = 0, worst = 0;

    for (uint32_t d = 0; d < dim; d++)
        most = fmax(most, fabs(values[d]));
    for (uint32_t d = 0; d < dim; d++) {
        double own = element_of(dtype, got[d]), error = fabs(own - values[d]);

        if (isnan(own) != isnan(values[d]))
            return NAN;
        if (error > 0)
            worst = fmax(worst, 256 * error / (fabs(values[d]) + most));
    }
    return worst;
}

double kvt_gpu_attention_error(const struct kva_attention *what, uint32_t layer, const void *q,
                               const void *out, uint32_t sampled)
{
    uint32_t dim = what->cache.head_dim_v;
    std::vector<struct kvt_gpu_truth_row> rows(sampled);
    std::vector<double> values((size_t)sampled * dim);
    std::vector<uint16_t> got(dim);
    double *device = nullptr, worst = 0;

    for (uint32_t i = 0; i < sampled; i++) /* the last row among them, heads in turn */
        rows[i] = {(uint32_t)((what->batch.q_total - 1) * (uint64_t)(i + 1) / sampled),
                   i * 7 % what->q_head_count};
    KVT_CUDA(cudaMalloc(&device, (values.size() + sampled) * sizeof(double)));
    kvt_gpu_attention_truth(what, layer, q, rows.data(), sampled, device, device + values.size());
    KVT_CUDA(
        cudaMemcpy(values.data(), device, values.size() * sizeof(double), cudaMemcpyDeviceToHost));
    KVT_CUDA(cudaFree(device));
    for (uint32_t i = 0; i < sampled; i++) {
        uint64_t at = rows[i].row * what->out_token_stride + rows[i].head * what->out_head_stride;
        double error;

        KVT_CUDA(
            cudaMemcpy(got.data(), (const uint16_t *)out + at, dim * 2, cudaMemcpyDeviceToHost));
        error = row_error(what->dtype, got.data(), &values[(size_t)i * dim], dim);
        worst = isnan(error) ? error : fmax(worst, error);
        if (isnan(worst))
            return worst;
    }
    return worst;
}

static __device__ uint64_t mixed(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static __device__ void store(uint32_t dtype, void *array, uint64_t i, float value)
{
    switch (dtype) {
    case KVMEM_DTYPE_BF16: ((__nv_bfloat16 *)array)[i] = __float2bfloat16(value); break;
    case KVMEM_DTYPE_FP16: ((__half *)array)[i] = __float2half(value); break;
    case KVMEM_DTYPE_FP8_E4M3: ((__nv_fp8_e4m3 *)array)[i] = __nv_fp8_e4m3(value * 32); break;
    default: ((int8_t *)array)[i] = (int8_t)fminf(fmaxf(rintf(value * 32), -128), 127);
    }
}

/* Two uniform numbers make a normal one (Box and Muller 1958). */
static __global__ void fill_normal(uint32_t dtype, void *array, uint64_t count, uint64_t seed)
{
    uint64_t step = (uint64_t)gridDim.x * blockDim.x;

    for (uint64_t i = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x; i < count; i += step) {
        uint64_t bits = mixed(seed + i * 0x9e3779b97f4a7c15u);
        float a = (float)((bits >> 40) + 1) / 16777216.0f;
        float b = (float)(bits & 0xffffff) / 16777216.0f;

        store(dtype, array, i, sqrtf(-2 * logf(a)) * cospif(2 * b));
    }
}

void kvt_gpu_fill_normal(uint32_t dtype, void *array, uint64_t count, uint64_t seed, void *stream)
{
    fill_normal<<<1024, THREADS, 0, (cudaStream_t)stream>>>(dtype, array, count, seed);
    KVT_CUDA(cudaGetLastError());
}
