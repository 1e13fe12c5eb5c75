/* SPDX-License-Identifier: Apache-2.0
 *
 * A laboratory for decode on a GPU: random cases against a reference in double on the device, then
 * times beside a kernel that only reads, in the same run.
 *
 *   attention_decode_lab               checks 100 cases
 *   attention_decode_lab CASES [SEED]  checks as many
 *   attention_decode_lab all [NAME]... checks none, times all shapes or those named
 *
 * An element may be off by 2^-8 (bf16; 2^-10 fp16) of itself and of Σ p |v|: the rounding of the
 * result and of P. Unused slots hold NaN, results are poisoned first. Times are of a graph of 32
 * runs, one a layer, so that each reads fresh bytes: median of 7. The pool is 64 GiB, or what is
 * free.
 *
 * Exit status 0, 77 without a device, 1 when a result was wrong.
 */
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <kvmem/attention.h>

#define MUST(call)                                                                           \
    do {                                                                                     \
        cudaError_t must_ = (call);                                                          \
        if (must_) {                                                                         \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(must_)); \
            exit(1);                                                                         \
        }                                                                                    \
    } while (0)

static uint64_t seed = 1;

static uint32_t pick(uint32_t below)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((seed >> 33) % below);
}

template <size_t count> static uint32_t one_of(const uint32_t (&list)[count])
{
    return list[pick(count)];
}

/* ---- the device's own functions ---- */

static __device__ uint32_t hash(uint64_t x)
{
    x = (x ^ x >> 31) * 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 29) * 0xBF58476D1CE4E5B9u;
    return (uint32_t)(x >> 32);
}

static __device__ void put(void *to, uint32_t dtype, uint64_t at, float x)
{
    if (dtype == KVMEM_DTYPE_BF16)
        ((__nv_bfloat16 *)to)[at] = __float2bfloat16(x);
    else if (dtype == KVMEM_DTYPE_FP16)
        ((__half *)to)[at] = __float2half(x);
    else if (dtype == KVMEM_DTYPE_FP8_E4M3)
        ((__nv_fp8_e4m3 *)to)[at] = __nv_fp8_e4m3(x);
    else if (dtype == KVMEM_DTYPE_INT8)
        ((int8_t *)to)[at] = (int8_t)(isnan(x) ? 127 : rintf(x));
    else
        ((float *)to)[at] = x;
}

static __device__ double get(const void *from, uint32_t dtype, uint64_t at)
{
    if (dtype == KVMEM_DTYPE_BF16)
        return __bfloat162float(((const __nv_bfloat16 *)from)[at]);
    if (dtype == KVMEM_DTYPE_FP16)
        return __half2float(((const __half *)from)[at]);
    if (dtype == KVMEM_DTYPE_FP8_E4M3)
        return (float)((const __nv_fp8_e4m3 *)from)[at];
    if (dtype == KVMEM_DTYPE_INT8)
        return ((const int8_t *)from)[at];
    return ((const float *)from)[at];
}

__global__ void fill_nan(void *to, uint32_t dtype, uint64_t count)
{
    for (uint64_t i = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x; i < count;
         i += (uint64_t)gridDim.x * blockDim.x)
        put(to, dtype, i, NAN);
}

__global__ void fill_random(void *to, uint32_t dtype, uint64_t count, uint64_t salt, float low,
                            float high)
{
    for (uint64_t i = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x; i < count;
         i += (uint64_t)gridDim.x * blockDim.x)
        put(to, dtype, i, low + (high - low) * (hash(i + salt * 0x1234567) * 0x1p-32f));
}

/* The pool of the timings: 16 bytes a store, any finite bf16 pairs. */
__global__ void fill_fast(uint4 *to, uint64_t count)
{
    for (uint64_t i = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x; i < count;
         i += (uint64_t)gridDim.x * blockDim.x) {
        uint32_t x = hash(i), y = hash(i + 99);
        to[i] = {(x & 0x83ff83ff) | 0x3c003c00, (y & 0x83ff83ff) | 0x3c003c00,
                 (x << 3 & 0x83ff83ff) | 0x3c003c00, (y << 3 & 0x83ff83ff) | 0x3c003c00};
    }
}

/* K and V of the tokens that count, everything else stays NaN. */
__global__ void fill_cache(kva_attention a, float width, uint64_t salt)
{
    const kva_cache &c = a.cache;
    uint32_t n = blockIdx.y, layer = blockIdx.z;

    for (uint32_t x = blockIdx.x; x < (uint32_t)a.batch.kv_lengths[n] * c.kv_head_count;
         x += gridDim.x) {
        uint32_t t = x / c.kv_head_count, h = x % c.kv_head_count, d = threadIdx.x;
        uint64_t b = a.batch.tables[(uint64_t)n * a.batch.table_stride + t / c.block_tokens];
        uint64_t base = b * c.block_stride + layer * c.layer_stride;
        uint64_t k = base + h * c.k_head_stride + t % c.block_tokens * c.k_token_stride + d;
        uint64_t v = base + h * c.v_head_stride + t % c.block_tokens * c.v_token_stride + d;

        put((void *)c.k, c.dtype, k, (hash(k + salt) * 0x1p-32f * 2 - 1) * width);
        put((void *)c.v, c.dtype, v, (hash(v + salt + 77) * 0x1p-32f * 2 - 1) * width);
    }
}

/* One thread block a (row, query head): scores to scratch, then the sums. */
__global__ void reference(kva_attention a, uint32_t layer, const void *q, double *scratch,
                          double *out, double *bound, double *lse)
{
    const kva_cache &c = a.cache;
    uint32_t n = blockIdx.z, h = blockIdx.y, i = blockIdx.x;
    uint32_t first = a.batch.q_offsets ? a.batch.q_offsets[n] : n * a.batch.q_max;
    uint32_t rows = a.batch.q_offsets ? a.batch.q_offsets[n + 1] - first : a.batch.q_max;
    uint32_t g = h / (a.q_head_count / c.kv_head_count), row = first + i;
    int length = a.batch.kv_lengths[n], position = length - (int)rows + (int)i;
    double *p = scratch + ((uint64_t)row * a.q_head_count + h) * a.batch.kv_max;
    double scale = a.softmax_scale != 0 ? a.softmax_scale : 1 / sqrt((double)c.head_dim_k);
    const int32_t *table = a.batch.tables + (uint64_t)n * a.batch.table_stride;
    double top = -INFINITY, sum = 0;

    if (i >= rows)
        return;
    for (int t = threadIdx.x; t < length; t += blockDim.x) {
        uint64_t base =
            (uint64_t)table[t / c.block_tokens] * c.block_stride + layer * c.layer_stride;
        uint64_t scales = (uint64_t)table[t / c.block_tokens] * c.scale_block_stride +
                          layer * c.scale_layer_stride + g * c.scale_head_stride +
                          t % c.block_tokens * c.scale_token_stride;
        bool sees = true;
        double s = 0;

        for (uint32_t d = 0; d < c.head_dim_k; d++)
            s += get(q, a.dtype, row * a.q_token_stride + h * a.q_head_stride + d) *
                 get(c.k, c.dtype,
                     base + g * c.k_head_stride + t % c.block_tokens * c.k_token_stride + d);
        if (c.k_scale)
            s *= get(c.k_scale, c.scale_dtype, scales);
        s *= scale;
        if (a.soft_cap != 0)
            s = a.soft_cap * tanh(s / a.soft_cap);
        if (a.alibi_slopes)
            s += (double)a.alibi_slopes[h] * (t - position);
        if (a.flags & KVA_CAUSAL)
            sees = t <= position;
        if (a.tree_mask && t >= length - (int)rows)
            sees = a.tree_mask[row] >> (t - (length - (int)rows)) & 1;
        if (a.window_tokens)
            sees = sees && t > position - (int)a.window_tokens;
        p[t] = sees ? s : -INFINITY;
    }
    __syncthreads();
    for (int t = 0; t < length; t++)
        top = fmax(top, p[t]);
    if (a.sinks && top != -INFINITY) /* who sees nothing has no sink either */
        top = fmax(top, (double)a.sinks[h]);
    for (int t = 0; t < length; t++)
        sum += p[t] == -INFINITY ? 0 : exp(p[t] - top);
    if (a.sinks && top != -INFINITY)
        sum += exp(a.sinks[h] - top);
    for (uint32_t d = threadIdx.x; d < c.head_dim_v; d += blockDim.x) {
        double o = 0, absolute = 0;
        for (int t = 0; t < length; t++) {
            uint64_t block = table[t / c.block_tokens];
            uint64_t scales = block * c.scale_block_stride + layer * c.scale_layer_stride +
                              g * c.scale_head_stride + t % c.block_tokens * c.scale_token_stride;
            double v = get(c.v, c.dtype,
                           block * c.block_stride + layer * c.layer_stride + g * c.v_head_stride +
                               t % c.block_tokens * c.v_token_stride + d);
            if (p[t] == -INFINITY)
                continue;
            if (c.v_scale)
                v *= get(c.v_scale, c.scale_dtype, scales);
            o += exp(p[t] - top) * v;
            absolute += exp(p[t] - top) * fabs(v);
        }
        out[((uint64_t)row * a.q_head_count + h) * c.head_dim_v + d] = sum == 0 ? 0 : o / sum;
        bound[((uint64_t)row * a.q_head_count + h) * c.head_dim_v + d] =
            sum == 0 ? 0 : absolute / sum;
    }
    if (!threadIdx.x)
        lse[(uint64_t)row * a.q_head_count + h] = sum == 0 ? -INFINITY : top + log(sum);
}

__global__ void read_roof(const uint4 *from, uint64_t count, uint32_t *sink)
{
    uint32_t sum = 0;
    uint64_t step = (uint64_t)gridDim.x * blockDim.x;
    uint64_t i = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x;

    for (; i + 7 * step < count; i += 8 * step) {
        uint4 v[8];
#pragma unroll
        for (int x = 0; x < 8; x++)
            v[x] = __ldcs(from + i + x * step);
#pragma unroll
        for (int x = 0; x < 8; x++)
            sum ^= v[x].x ^ v[x].y ^ v[x].z ^ v[x].w;
    }
    for (; i < count; i += step)
        sum ^= from[i].x;
    if (sum == 0x12345678)
        *sink = sum;
}

/* ---- cases ---- */

struct batch_arrays {
    int32_t *tables;
    int32_t *lengths;
    int32_t *offsets;
};

template <class T> static T *device_copy(const std::vector<T> &from)
{
    T *to;

    MUST(cudaMalloc(&to, std::max<size_t>(from.size(), 1) * sizeof(T)));
    MUST(cudaMemcpy(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
    return to;
}

/* layout 0: page-major (block, layer, K|V, head, token, dim); 1: (layer, K|V, block, head, token,
 * dim); 2: (block, layer, K|V, token, head, dim). Returns the pool's elements. */
static uint64_t lay_out(kva_cache *c, uint32_t layout, uint64_t *v_offset)
{
    uint64_t d = c->head_dim_k, part = (uint64_t)c->kv_head_count * c->block_tokens * d;

    c->k_head_stride = c->v_head_stride = layout == 2 ? d : c->block_tokens * d;
    c->k_token_stride = c->v_token_stride = layout == 2 ? c->kv_head_count * d : d;
    c->block_stride = layout == 1 ? part : part * 2 * c->layer_count;
    c->layer_stride = layout == 1 ? 2 * part * c->block_count : 2 * part;
    *v_offset = layout == 1 ? part * c->block_count : part;
    return part * 2 * c->layer_count * c->block_count;
}

static int wrong;
static double worst;

static void compare(const kva_attention &a, const void *out, const float *lse, const double *want,
                    const double *bound, const double *want_lse, uint32_t rows, const char *name)
{
    uint64_t heads = (uint64_t)rows * a.q_head_count, count = heads * a.cache.head_dim_v;
    std::vector<uint16_t> o(count);
    std::vector<double> w(count), b(count), wl(heads);
    std::vector<float> l(heads);
    double eps = a.dtype == KVMEM_DTYPE_BF16 ? 0x1p-8 : 0x1p-10, bad = 0;
    uint64_t where = 0;

    MUST(cudaMemcpy(o.data(), out, count * 2, cudaMemcpyDeviceToHost));
    MUST(cudaMemcpy(w.data(), want, count * 8, cudaMemcpyDeviceToHost));
    MUST(cudaMemcpy(b.data(), bound, count * 8, cudaMemcpyDeviceToHost));
    MUST(cudaMemcpy(wl.data(), want_lse, heads * 8, cudaMemcpyDeviceToHost));
    MUST(cudaMemcpy(l.data(), lse, heads * 4, cudaMemcpyDeviceToHost));
    for (uint64_t i = 0; i < count; i++) {
        __half h;
        uint32_t bits = (uint32_t)o[i] << 16;
        float x;

        memcpy(&h, &o[i], 2);
        memcpy(&x, &bits, 4);
        if (a.dtype == KVMEM_DTYPE_FP16)
            x = __half2float(h);
        double e = fabs(x - w[i]) / (eps * (fabs(w[i]) + b[i]) + 1e-6);
        if (!(e <= bad))
            bad = e, where = i;
        if (e != e)
            break;
    }
    for (uint64_t i = 0; i < heads; i++) {
        double e =
            wl[i] == -INFINITY
                ? (l[i] == -INFINITY ? 0 : 99)
                : fabs(l[i] - wl[i]) / (1e-5 * (1 + fabs(wl[i])) + (a.cache.k_scale ? 1e-3 : 2e-5));
        if (!(e <= bad))
            bad = e, where = i * 1000000;
    }
    worst = std::max(worst, bad);
    if (bad <= 1)
        return;
    wrong++;
    if (wrong < 12)
        printf("WRONG %s: %g of the bound at %llu of %llu\n", name, bad, (unsigned long long)where,
               (unsigned long long)count);
}

struct device_memory {
    std::vector<void *> all;
    ~device_memory()
    {
        for (void *m : all)
            cudaFree(m);
    }
    void *take(uint64_t bytes)
    {
        void *m;
        MUST(cudaMalloc(&m, bytes + 16));
        all.push_back(m);
        return m;
    }
    template <class T> T *copy(const std::vector<T> &from)
    {
        T *m = device_copy(from);
        all.push_back(m);
        return m;
    }
};

static void scales_for(kva_attention *a, device_memory &memory, char *name)
{
    kva_cache &c = a->cache;
    uint32_t kind = pick(3); /* a tensor, a head, a token and head */
    uint64_t count = (uint64_t)c.block_count * c.layer_count * c.kv_head_count * c.block_tokens;
    float unit = c.dtype == KVMEM_DTYPE_INT8 ? 1 / 127.0f : 1 / 4.0f;
    static const uint32_t types[] = {KVMEM_DTYPE_FP32, KVMEM_DTYPE_FP16, KVMEM_DTYPE_BF16};

    c.scale_dtype = one_of(types);
    c.scale_layer_stride = (uint64_t)c.kv_head_count * c.block_tokens;
    c.scale_head_stride = kind ? c.block_tokens : 0;
    c.scale_token_stride = kind == 2;
    c.scale_block_stride = kind == 2 ? c.scale_layer_stride * c.layer_count : 0;
    c.k_scale = memory.take(count * 4);
    c.v_scale = memory.take(count * 4);
    fill_random<<<256, 256>>>((void *)c.k_scale, c.scale_dtype, count, seed, unit * 0.5f, unit * 2);
    fill_random<<<256, 256>>>((void *)c.v_scale, c.scale_dtype, count, seed + 5, unit * 0.1f,
                              unit * 3);
    sprintf(name + strlen(name), " scales %u/%u", kind, c.scale_dtype);
}

static void check_case(uint32_t index)
{
    static const uint32_t kv_heads[] = {1, 2, 8}, groups[] = {1, 2, 3, 4, 5, 7, 8, 12, 16};
    static const uint32_t tokens[] = {8, 16, 16, 16, 32, 64, 128, 192, 1024};
    static const uint32_t lengths[] = {0,  1,   2,   15,  16,  17,   63,  64,
                                       65, 127, 128, 129, 500, 1000, 3001};
    static const uint32_t seqs[] = {1, 2, 5, 33}, q[] = {1, 1, 2, 3, 4, 8};
    static const uint32_t pairs[][2] = {
        {KVMEM_DTYPE_BF16, KVMEM_DTYPE_BF16},     {KVMEM_DTYPE_FP16, KVMEM_DTYPE_FP16},
        {KVMEM_DTYPE_BF16, KVMEM_DTYPE_FP8_E4M3}, {KVMEM_DTYPE_BF16, KVMEM_DTYPE_INT8},
        {KVMEM_DTYPE_FP16, KVMEM_DTYPE_FP8_E4M3}, {KVMEM_DTYPE_FP16, KVMEM_DTYPE_INT8}};
    const uint32_t *types = pairs[pick(6)];
    device_memory memory;
    kva_attention a = {};
    kva_cache &c = a.cache;
    kva_batch &b = a.batch;
    kva_info info = {sizeof(info), 0, 0, ""};
    uint64_t v_offset, pool, salt = seed;
    uint32_t group = one_of(groups), mask = pick(4), layout = pick(3), layer;
    std::vector<int32_t> tables, offsets = {0}, lens;
    char name[256];

    c.dtype = types[1];
    c.block_tokens = one_of(tokens);
    c.layer_count = 2;
    c.kv_head_count = one_of(kv_heads);
    c.head_dim_k = c.head_dim_v = c.dtype < KVMEM_DTYPE_FP32 && pick(3) == 0 ? 64 : 128;
    a.size = sizeof(a);
    a.device = KVA_DEVICE_CUDA;
    a.dtype = types[0];
    a.q_head_count = group * c.kv_head_count;
    b.seq_count = one_of(seqs);
    b.q_max = one_of(q);
    while (b.q_max * group > 64)
        b.q_max /= 2;
    a.flags = (mask == 1 || mask == 3 ? KVA_CAUSAL : 0) | (pick(4) ? 0 : KVA_BATCH_INVARIANT);
    a.window_tokens = mask && pick(2) ? 1 + pick(300) : 0;
    a.soft_cap = pick(3) ? 0 : 5;
    sprintf(name,
            "%u: dtype %u/%u dim %u kv %u group %u q %u seqs %u block %u layout %u mask %u window "
            "%u cap %g flags %u",
            index, a.dtype, c.dtype, c.head_dim_k, c.kv_head_count, group, b.q_max, b.seq_count,
            c.block_tokens, layout, mask, a.window_tokens, a.soft_cap, a.flags);
    uint32_t used = 0, is_ragged = pick(2);
    for (uint32_t n = 0; n < b.seq_count; n++) {
        uint32_t rows = is_ragged ? pick(b.q_max + 1) : b.q_max;
        lens.push_back(one_of(lengths));
        b.kv_max = std::max(b.kv_max, (uint32_t)lens[n]);
        offsets.push_back(offsets[n] + rows);
        used += (lens[n] + c.block_tokens - 1) / c.block_tokens;
    }
    b.kv_max += pick(100);
    b.table_stride = (b.kv_max + c.block_tokens - 1) / c.block_tokens + 1;
    b.q_total = offsets.back();
    c.block_count = used + 5;
    std::vector<int32_t> ids(c.block_count);
    for (uint32_t i = 0; i < c.block_count; i++)
        ids[i] = i;
    for (uint32_t i = c.block_count - 1; i; i--)
        std::swap(ids[i], ids[pick(i + 1)]);
    for (uint32_t n = 0; n < b.seq_count; n++)
        for (uint32_t e = 0; e < b.table_stride; e++)
            if (e < (lens[n] + c.block_tokens - 1) / c.block_tokens) {
                tables.push_back(ids.back());
                ids.pop_back();
            } else {
                tables.push_back(pick(2) ? -1 : 2147480000);
            }
    b.tables = memory.copy(tables);
    b.kv_lengths = memory.copy(lens);
    b.q_offsets = is_ragged ? memory.copy(offsets) : nullptr;
    pool = lay_out(&c, layout, &v_offset);
    uint32_t element = c.dtype < KVMEM_DTYPE_FP32 ? 2 : 1;
    c.k = memory.take(pool * element);
    c.v = (const char *)c.k + v_offset * element;
    fill_nan<<<512, 256>>>((void *)c.k, c.dtype, pool);
    if (element == 1)
        scales_for(&a, memory, name);
    fill_cache<<<dim3(64, b.seq_count, 2), c.head_dim_k>>>(a,
                                                           element == 2                  ? 1.0f
                                                           : c.dtype == KVMEM_DTYPE_INT8 ? 127.0f
                                                                                         : 8.0f,
                                                           salt);
    a.q_token_stride = (uint64_t)a.q_head_count * c.head_dim_k + pick(2) * 4;
    a.q_head_stride = c.head_dim_k;
    a.out_head_stride = c.head_dim_v;
    a.out_token_stride = (uint64_t)a.q_head_count * c.head_dim_v;
    uint32_t rows = std::max(b.q_total, 1u);
    void *queries = memory.take(rows * a.q_token_stride * 2);
    void *out = memory.take(rows * a.out_token_stride * 2);
    float *lse = (float *)memory.take(rows * a.q_head_count * 4);
    fill_random<<<256, 256>>>(queries, a.dtype, rows * a.q_token_stride, salt + 3, -2, 2);
    fill_nan<<<256, 256>>>(out, a.dtype, rows * a.out_token_stride);
    fill_nan<<<256, 256>>>(lse, KVMEM_DTYPE_FP32, rows * a.q_head_count);
    float *vector = (float *)memory.take(a.q_head_count * 8);
    fill_random<<<1, 256>>>(vector, KVMEM_DTYPE_FP32, a.q_head_count * 2, salt + 4, -0.1f, 2);
    a.sinks = pick(3) ? nullptr : vector;
    a.alibi_slopes = pick(4) ? nullptr : vector + a.q_head_count;
    std::vector<uint64_t> tree(rows);
    for (uint64_t &bits : tree)
        bits = (uint64_t)pick(1u << 30) | (uint64_t)pick(1u << 30) << 30;
    a.tree_mask = mask == 2 ? memory.copy(tree) : nullptr;
    sprintf(name + strlen(name), " sinks %d alibi %d ragged %u total %u", !!a.sinks,
            !!a.alibi_slopes, is_ragged, b.q_total);

    if (kva_attention_info(&a, &info)) {
        printf("WRONG %s: %s\n", name, kva_error());
        wrong++;
        return;
    }
    void *work = memory.take(info.workspace_bytes + 1);
    MUST(cudaMemset(work, 0xff, info.workspace_bytes));
    double *scratch = (double *)memory.take((uint64_t)rows * a.q_head_count * (b.kv_max + 1) * 8);
    double *want = (double *)memory.take(rows * a.out_token_stride * 8);
    double *bound = (double *)memory.take(rows * a.out_token_stride * 8);
    double *want_lse = (double *)memory.take((uint64_t)rows * a.q_head_count * 8);
    int code = kva_attention_plan(&a, work, info.workspace_bytes, nullptr);
    for (layer = 0; layer < 2; layer++) {
        code = code ? code
                    : kva_attention_run(&a, layer, queries, out, lse, work, info.workspace_bytes,
                                        nullptr);
        if (code) {
            printf("WRONG %s: %s\n", name, kva_error());
            exit(1);
        }
        cudaError_t e = cudaDeviceSynchronize();
        if (e) {
            printf("WRONG %s: %s\n", name, cudaGetErrorString(e));
            exit(1);
        }
        if (!b.q_total)
            return;
        reference<<<dim3(b.q_max, a.q_head_count, b.seq_count), 128>>>(a, layer, queries, scratch,
                                                                       want, bound, want_lse);
        compare(a, out, lse, want, bound, want_lse, b.q_total, name);
    }
}

/* ---- times ---- */

#define LAYERS 32

static cudaStream_t stream;
static uint32_t sm_count;
static char *pool;
static uint64_t pool_bytes;

template <class F> static double time_us(uint32_t launches, F enqueue)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t begin, end;
    std::vector<double> times;

    MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (uint32_t i = 0; i < launches; i++)
        enqueue(i);
    MUST(cudaStreamEndCapture(stream, &graph));
    MUST(cudaGraphInstantiate(&exec, graph, 0));
    MUST(cudaEventCreate(&begin));
    MUST(cudaEventCreate(&end));
    for (int i = 0; i < 9; i++) {
        float ms;

        MUST(cudaEventRecord(begin, stream));
        MUST(cudaGraphLaunch(exec, stream));
        MUST(cudaEventRecord(end, stream));
        MUST(cudaEventSynchronize(end));
        MUST(cudaEventElapsedTime(&ms, begin, end));
        if (i >= 2)
            times.push_back(ms * 1e3 / launches);
    }
    std::sort(times.begin(), times.end());
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    return times[times.size() / 2];
}

struct shape {
    const char *name;
    std::vector<int32_t> lengths;
    uint32_t dtype;
    uint32_t layout;
    uint32_t rows;
    uint32_t q_heads;
    uint32_t kv_heads;
    uint32_t block_tokens;
    uint32_t flags;
};

static void time_shape(const shape &s)
{
    device_memory memory;
    kva_attention a = {};
    kva_cache &c = a.cache;
    kva_batch &b = a.batch;
    kva_info info = {sizeof(info), 0, 0, ""};
    uint32_t element = s.dtype < KVMEM_DTYPE_FP32 ? 2 : 1;
    uint64_t v_offset, tokens = 0, bytes;

    c.dtype = s.dtype;
    c.block_tokens = s.block_tokens;
    c.layer_count = LAYERS;
    c.kv_head_count = s.kv_heads;
    c.head_dim_k = c.head_dim_v = 128;
    a.size = sizeof(a);
    a.device = KVA_DEVICE_CUDA;
    a.flags = s.flags;
    a.dtype = KVMEM_DTYPE_BF16;
    a.q_head_count = s.q_heads;
    b.seq_count = s.lengths.size();
    b.q_max = s.rows;
    b.q_total = s.rows * b.seq_count;
    for (int32_t length : s.lengths) {
        b.kv_max = std::max(b.kv_max, (uint32_t)length);
        tokens += length;
    }
    b.table_stride = b.kv_max / c.block_tokens + 1;
    bytes = tokens * 2 * c.kv_head_count * 128 * element;
    uint64_t block_bytes = (uint64_t)c.block_tokens * 2 * c.kv_head_count * 128 * element * LAYERS;
    c.block_count = std::min<uint64_t>(pool_bytes / block_bytes, INT32_MAX);
    std::vector<int32_t> ids(c.block_count), tables(b.seq_count * b.table_stride);
    for (uint32_t i = 0; i < c.block_count; i++)
        ids[i] = i;
    for (uint32_t i = c.block_count - 1; i; i--)
        std::swap(ids[i], ids[pick(i + 1)]);
    uint64_t next = 0;
    for (uint32_t n = 0; n < b.seq_count; n++)
        for (uint32_t e = 0; e * c.block_tokens < (uint32_t)s.lengths[n]; e++)
            tables[n * b.table_stride + e] = ids[next++ % ids.size()];
    b.tables = memory.copy(tables);
    b.kv_lengths = memory.copy(s.lengths);
    lay_out(&c, s.layout, &v_offset);
    c.k = pool;
    c.v = pool + v_offset * element;
    if (element == 1) {
        float one = 1;
        c.scale_dtype = KVMEM_DTYPE_FP32;
        c.k_scale = c.v_scale = memory.copy(std::vector<float>{one, one});
    }
    a.q_head_stride = a.out_head_stride = 128;
    a.q_token_stride = a.out_token_stride = a.q_head_count * 128;
    void *q = memory.take(b.q_total * a.q_token_stride * 2);
    void *out = memory.take(b.q_total * a.q_token_stride * 2);
    fill_random<<<256, 256>>>(q, a.dtype, b.q_total * a.q_token_stride, 3, -1, 1);
    if (kva_attention_info(&a, &info)) {
        printf("%s: %s\n", s.name, kva_error());
        return;
    }
    void *work = memory.take(info.workspace_bytes);
    MUST(cudaDeviceSynchronize());
    double plan = time_us(8, [&](uint32_t) {
        if (kva_attention_plan(&a, work, info.workspace_bytes, stream))
            printf("%s\n", kva_error());
    });
    double run = time_us(LAYERS, [&](uint32_t layer) {
        if (kva_attention_run(&a, layer, q, out, nullptr, work, info.workspace_bytes, stream))
            printf("%s\n", kva_error());
    });
    double read = time_us(LAYERS, [&](uint32_t layer) {
        read_roof<<<sm_count * 8, 256, 0, stream>>>(
            (const uint4 *)(pool + layer * (pool_bytes / LAYERS / 16 * 16)), bytes / 16,
            (uint32_t *)work);
    });
    MUST(cudaDeviceSynchronize());
    printf("%-34s %-28s run %8.2f us %6.0f GB/s  read %8.2f us %6.0f GB/s  ratio %.3f  plan %.2f "
           "us  %.1f MB\n",
           s.name, info.kernel, run, bytes / run * 1e-3, read, bytes / read * 1e-3, read / run,
           plan, info.workspace_bytes * 1e-6);
    fflush(stdout);
}

static std::vector<int32_t> uniform(uint32_t count, int32_t length)
{
    return std::vector<int32_t>(count, length);
}

static std::vector<int32_t> ragged()
{
    std::vector<int32_t> lengths;

    for (uint32_t i = 0; i < 64; i++)
        lengths.push_back((int32_t)(128 * pow(256, (i + 0.5) / 64)));
    for (uint32_t i = 63; i; i--)
        std::swap(lengths[i], lengths[pick(i + 1)]);
    return lengths;
}

static bool is_wanted(const shape &s, int count, char **names)
{
    for (int i = 0; i < count; i++)
        if (!strcmp(s.name, names[i]))
            return true;
    return count == 0;
}

static void time_all(int count, char **names)
{
    const uint32_t bf16 = KVMEM_DTYPE_BF16;
    size_t free_bytes, all_bytes;

    MUST(cudaMemGetInfo(&free_bytes, &all_bytes));
    pool_bytes =
        std::min<uint64_t>(free_bytes - (UINT64_C(3) << 30), UINT64_C(64) << 30) >> 21 << 21;
    MUST(cudaMalloc(&pool, pool_bytes));
    fill_fast<<<sm_count * 8, 256>>>((uint4 *)pool, pool_bytes / 16);
    MUST(cudaDeviceSynchronize());
    printf("pool %.1f GB\n", pool_bytes * 1e-9);
    const shape shapes[] = {
        {"64x8192", uniform(64, 8192), bf16, 0, 1, 32, 8, 16, 0},
        {"64x8192 per-layer", uniform(64, 8192), bf16, 1, 1, 32, 8, 16, 0},
        {"64x8192 token-major", uniform(64, 8192), bf16, 2, 1, 32, 8, 16, 0},
        {"64x8192 blocks of 64", uniform(64, 8192), bf16, 0, 1, 32, 8, 64, 0},
        {"128x2048", uniform(128, 2048), bf16, 0, 1, 32, 8, 16, 0},
        {"128x2048 per-layer", uniform(128, 2048), bf16, 1, 1, 32, 8, 16, 0},
        {"16x32768", uniform(16, 32768), bf16, 0, 1, 32, 8, 16, 0},
        {"1x131072", uniform(1, 131072), bf16, 0, 1, 32, 8, 16, 0},
        {"1x1024", uniform(1, 1024), bf16, 0, 1, 32, 8, 16, 0},
        {"1x8192", uniform(1, 8192), bf16, 0, 1, 32, 8, 16, 0},
        {"8x4096", uniform(8, 4096), bf16, 0, 1, 32, 8, 16, 0},
        {"256x1024", uniform(256, 1024), bf16, 0, 1, 32, 8, 16, 0},
        {"ragged64", ragged(), bf16, 0, 1, 32, 8, 16, 0},
        {"64x8192 4 rows causal", uniform(64, 8192), bf16, 0, 4, 32, 8, 16, KVA_CAUSAL},
        {"64x8192 8 rows causal", uniform(64, 8192), bf16, 0, 8, 32, 8, 16, KVA_CAUSAL},
        {"64x8192 16 rows causal", uniform(64, 8192), bf16, 0, 16, 32, 8, 16, KVA_CAUSAL},
        {"64x8192 MHA 8", uniform(64, 8192), bf16, 0, 1, 8, 8, 16, 0},
        {"64x8192 invariant", uniform(64, 8192), bf16, 0, 1, 32, 8, 16, KVA_BATCH_INVARIANT},
        {"ragged64 invariant", ragged(), bf16, 0, 1, 32, 8, 16, KVA_BATCH_INVARIANT},
        {"64x8192 fp8", uniform(64, 8192), KVMEM_DTYPE_FP8_E4M3, 0, 1, 32, 8, 16, 0},
        {"64x8192 int8", uniform(64, 8192), KVMEM_DTYPE_INT8, 0, 1, 32, 8, 16, 0},
    };
    for (const shape &s : shapes)
        if (is_wanted(s, count, names))
            time_shape(s);
}

int main(int argc, char **argv)
{
    uint32_t cases = argc > 1 ? (uint32_t)atoi(argv[1]) : 100;
    cudaDeviceProp device;

    if (cudaGetDeviceProperties(&device, 0)) {
        puts("no CUDA device");
        return 77;
    }
    sm_count = (uint32_t)device.multiProcessorCount;
    printf("%s, %u SMs\n", device.name, sm_count);
    MUST(cudaStreamCreate(&stream));
    if (argc > 1 && !strcmp(argv[1], "all")) {
        time_all(argc - 2, argv + 2);
        return 0;
    }
    if (argc > 2)
        seed = strtoull(argv[2], nullptr, 0);
    for (uint32_t i = 0; i < cases; i++)
        check_case(i);
    printf("%u cases, %d wrong, worst %.3f of the bound\n", cases, wrong, worst);
    return wrong != 0;
}
