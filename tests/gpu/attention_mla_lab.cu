/* SPDX-License-Identifier: Apache-2.0
 *
 * A laboratory for latent attention on a GPU: random cases against a reference in double on the
 * device, then times beside a kernel that only reads, in the same run.
 *
 *   attention_mla_lab               checks 60 cases
 *   attention_mla_lab CASES [SEED]  checks as many
 *   attention_mla_lab all [WORD]    checks none, times the shapes whose name has the word
 * With LAB_NAMES set, cases are named before they run.
 *
 * An element may be off by 2^-8 of itself and of Σ p |v|: the rounding of the result and of P.
 * Unused slots hold NaN, results are poisoned first. Times are of a graph of 16 runs, one a layer,
 * so that each reads fresh bytes: median of 7.
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
#include <cuda_runtime.h>

#include <kvmem/attention.h>

#define LAYERS 16
#define DIM_K  576
#define DIM_V  512

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

static __device__ float noise(uint64_t x)
{
    x = (x ^ x >> 31) * 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 29) * 0xBF58476D1CE4E5B9u;
    return (float)(uint32_t)(x >> 32) * 0x1p-31f - 1;
}

static __global__ void fill(__nv_bfloat16 *to, uint64_t count, uint64_t salt, float width)
{
    for (uint64_t i = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x; i < count;
         i += (uint64_t)gridDim.x * blockDim.x)
        to[i] = __float2bfloat16(width * noise(i + salt * 0x1234567)); /* NaN × 0 is NaN */
}

/* Tokens that count; all others stay as they are. */
static __global__ void fill_cache(const kva_attention a, uint64_t salt)
{
    const kva_cache &c = a.cache;
    uint32_t n = blockIdx.y, layer = blockIdx.z;

    for (uint32_t t = blockIdx.x; t < (uint32_t)a.batch.kv_lengths[n]; t += gridDim.x) {
        uint64_t b = a.batch.tables[(uint64_t)n * a.batch.table_stride + t / c.block_tokens];
        uint64_t at = b * c.block_stride + layer * c.layer_stride +
                      t % c.block_tokens * c.k_token_stride + threadIdx.x;

        ((__nv_bfloat16 *)c.k)[at] = __float2bfloat16(noise(at + salt));
    }
}

static __device__ double block_sum(double x, double *scratch, bool is_maximum)
{
    scratch[threadIdx.x] = x;
    __syncthreads();
    for (uint32_t half = blockDim.x / 2; half; half /= 2) {
        if (threadIdx.x < half) {
            double y = scratch[threadIdx.x + half];

            scratch[threadIdx.x] =
                is_maximum ? fmax(scratch[threadIdx.x], y) : scratch[threadIdx.x] + y;
        }
        __syncthreads();
    }
    x = scratch[0];
    __syncthreads();
    return x;
}

static __device__ bool sees(const kva_attention &a, int t, int length, int rows, int i,
                            uint32_t row)
{
    int position = length - rows + i;

    if ((a.flags & KVA_CAUSAL) && t > position)
        return false;
    if (a.window_tokens && t <= position - (int)a.window_tokens)
        return false;
    return !a.tree_mask || t < length - rows || (a.tree_mask[row] >> (t - (length - rows)) & 1);
}

/* One thread block a (row, query head); p is scratch. */
static __global__ void reference(const kva_attention a, uint32_t layer, const __nv_bfloat16 *q,
                                 double *scratch, double *out, double *bound, double *lse)
{
    __shared__ double shared[128];
    const kva_cache &c = a.cache;
    uint32_t n = blockIdx.z, h = blockIdx.y, i = blockIdx.x;
    uint32_t first = a.batch.q_offsets ? a.batch.q_offsets[n] : n * a.batch.q_max;
    uint32_t rows = a.batch.q_offsets ? a.batch.q_offsets[n + 1] - first : a.batch.q_max;
    uint64_t row = first + i, to = row * a.q_head_count + h;
    int length = a.batch.kv_lengths[n];
    double *p = scratch + to * a.batch.kv_max, top = a.sinks ? a.sinks[h] : -INFINITY, sum = 0;
    const int32_t *table = a.batch.tables + (uint64_t)n * a.batch.table_stride;
    const __nv_bfloat16 *k = (const __nv_bfloat16 *)c.k + layer * c.layer_stride;

    if (i >= rows)
        return;
    q += row * a.q_token_stride + h * a.q_head_stride;
    for (int t = (int)threadIdx.x / 32; t < length; t += (int)blockDim.x / 32) {
        const __nv_bfloat16 *token =
            k + table[t / c.block_tokens] * c.block_stride + t % c.block_tokens * c.k_token_stride;
        double s = 0;

        for (uint32_t d = threadIdx.x % 32; d < DIM_K; d += 32)
            s += (double)(__bfloat162float(q[d]) * __bfloat162float(token[d])); /* exact */
        for (uint32_t step = 1; step < 32; step *= 2)
            s += __shfl_xor_sync(~0u, s, step);
        s *= a.softmax_scale != 0 ? a.softmax_scale : 1 / sqrt((double)DIM_K);
        if (a.soft_cap != 0)
            s = a.soft_cap * tanh(s / a.soft_cap);
        s = sees(a, t, length, (int)rows, (int)i, row) ? s : -INFINITY;
        if (threadIdx.x % 32 == 0)
            p[t] = s;
        top = fmax(top, s);
    }
    top = block_sum(top, shared, true);
    for (int t = threadIdx.x; t < length; t += blockDim.x) {
        p[t] = p[t] == -INFINITY ? 0 : exp(p[t] - top);
        sum += p[t];
    }
    sum = block_sum(sum, shared, false);
    if (a.sinks && sum != 0) /* who sees nothing has no sink either */
        sum += exp(a.sinks[h] - top);
    for (uint32_t d = threadIdx.x; d < DIM_V; d += blockDim.x) {
        double o = 0, absolute = 0;

        for (int t = 0; t < length; t++) {
            double v = __bfloat162float(k[table[t / c.block_tokens] * c.block_stride +
                                          t % c.block_tokens * c.k_token_stride + d]);

            o += p[t] * v;
            absolute += p[t] * fabs(v);
        }
        out[to * DIM_V + d] = sum == 0 ? 0 : o / sum;
        bound[to * DIM_V + d] = sum == 0 ? 0 : absolute / sum;
    }
    if (!threadIdx.x)
        lse[to] = sum == 0 ? -INFINITY : top + log(sum);
}

static __global__ void read_roof(const uint4 *from, uint64_t count, uint32_t *sink)
{
    uint32_t sum = 0;
    uint64_t step = (uint64_t)gridDim.x * blockDim.x;

    for (uint64_t i = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x; i + 7 * step < count;
         i += 8 * step) {
        uint4 v[8];
#pragma unroll
        for (int x = 0; x < 8; x++)
            v[x] = __ldcs(from + i + x * step);
#pragma unroll
        for (int x = 0; x < 8; x++)
            sum ^= v[x].x ^ v[x].y ^ v[x].z ^ v[x].w;
    }
    if (sum == 0x12345678)
        *sink = sum;
}

/* ---- memory of a case ---- */

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
        T *m = (T *)take(from.size() * sizeof(T));

        MUST(cudaMemcpy(m, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
        return m;
    }
};

static std::vector<int32_t> shuffled(uint32_t count)
{
    std::vector<int32_t> ids(count);

    for (uint32_t i = 0; i < count; i++)
        ids[i] = (int32_t)i;
    for (uint32_t i = count - 1; i; i--)
        std::swap(ids[i], ids[pick(i + 1)]);
    return ids;
}

/* Heads, strides, the pool: (block, layer, token, 576), or (layer, block, token, 576). Elements of
 * the pool. */
static uint64_t describe(kva_attention *a, uint32_t heads, uint32_t layers, bool is_by_layer)
{
    kva_cache &c = a->cache;
    uint64_t part = (uint64_t)c.block_tokens * DIM_K;

    a->size = sizeof(*a);
    a->device = KVA_DEVICE_CUDA;
    a->dtype = c.dtype = KVMEM_DTYPE_BF16;
    a->q_head_count = heads;
    a->q_head_stride = DIM_K;
    a->q_token_stride = (uint64_t)heads * DIM_K;
    a->out_head_stride = DIM_V;
    a->out_token_stride = (uint64_t)heads * DIM_V;
    c.layer_count = layers;
    c.kv_head_count = 1;
    c.head_dim_k = DIM_K;
    c.head_dim_v = DIM_V;
    c.k_token_stride = c.v_token_stride = DIM_K;
    c.k_head_stride = c.v_head_stride = DIM_K;
    c.block_stride = is_by_layer ? part : part * layers;
    c.layer_stride = is_by_layer ? part * c.block_count : part;
    return part * layers * c.block_count;
}

/* ---- checks ---- */

static int wrong;
static double worst;

static void compare(const kva_attention &a, const void *out, const float *lse, const double *want,
                    const double *bound, const double *want_lse, const char *name)
{
    uint64_t heads = (uint64_t)a.batch.q_total * a.q_head_count, count = heads * DIM_V, where = 0;
    std::vector<__nv_bfloat16> o(count);
    std::vector<double> w(count), b(count), wl(heads);
    std::vector<float> l(heads);
    double bad = 0;

    MUST(cudaMemcpy(o.data(), out, count * 2, cudaMemcpyDeviceToHost));
    MUST(cudaMemcpy(w.data(), want, count * 8, cudaMemcpyDeviceToHost));
    MUST(cudaMemcpy(b.data(), bound, count * 8, cudaMemcpyDeviceToHost));
    MUST(cudaMemcpy(wl.data(), want_lse, heads * 8, cudaMemcpyDeviceToHost));
    MUST(cudaMemcpy(l.data(), lse, heads * 4, cudaMemcpyDeviceToHost));
    for (uint64_t i = 0; i < count && bad == bad; i++) {
        double e = fabs(__bfloat162float(o[i]) - w[i]) / (0x1p-8 * (fabs(w[i]) + b[i]) + 1e-6);

        if (!(e <= bad))
            bad = e, where = i;
    }
    for (uint64_t i = 0; i < heads && bad == bad; i++) {
        double e = fabs(l[i] - wl[i]) / (1e-5 * (1 + fabs(wl[i])) + 2e-5);

        if (wl[i] == -INFINITY)
            e = l[i] == -INFINITY ? 0 : 99;
        if (!(e <= bad))
            bad = e, where = i * 1000000;
    }
    worst = std::max(worst, bad);
    if (bad <= 1)
        return;
    if (wrong++ < 12)
        printf("WRONG %s: %g of the bound at %llu of %llu\n", name, bad, (unsigned long long)where,
               (unsigned long long)count);
}

/* Lengths, rows, tables of a random batch. */
static void random_batch(kva_attention *a, uint32_t rows_max, device_memory &memory)
{
    static const uint32_t lengths[] = {0,  1,   2,   15,  16,  17,  63,   64,  65,
                                       96, 127, 128, 129, 192, 500, 1000, 3001};
    static const uint32_t counts[] = {1, 2, 5, 13};
    kva_batch &b = a->batch;
    kva_cache &c = a->cache;
    std::vector<int32_t> tables, offsets = {0}, lens, ids;
    bool is_ragged = pick(2);

    b.seq_count = one_of(counts);
    b.q_max = rows_max;
    for (uint32_t n = 0; n < b.seq_count; n++) {
        uint32_t blocks;

        lens.push_back((int32_t)one_of(lengths));
        offsets.push_back(offsets[n] + (int32_t)(is_ragged ? pick(b.q_max + 1) : b.q_max));
        b.kv_max = std::max(b.kv_max, (uint32_t)lens[n]);
        blocks = ((uint32_t)lens[n] + c.block_tokens - 1) / c.block_tokens;
        c.block_count += blocks;
    }
    b.kv_max += pick(100) + 1;
    b.table_stride = (b.kv_max + c.block_tokens - 1) / c.block_tokens + 1;
    b.q_total = (uint32_t)offsets.back();
    c.block_count += 5;
    ids = shuffled(c.block_count);
    for (uint32_t n = 0; n < b.seq_count; n++)
        for (uint32_t e = 0; e < b.table_stride; e++) {
            bool is_used = e * c.block_tokens < (uint32_t)lens[n];

            tables.push_back(is_used ? ids.back() : pick(2) ? -1 : 2147480000);
            if (is_used)
                ids.pop_back();
        }
    b.tables = memory.copy(tables);
    b.kv_lengths = memory.copy(lens);
    b.q_offsets = is_ragged ? memory.copy(offsets) : nullptr;
}

static void random_masks(kva_attention *a, uint32_t rows, device_memory &memory, uint32_t mask)
{
    std::vector<uint64_t> tree(rows);
    std::vector<float> sinks(a->q_head_count);

    a->flags = (mask == 1 || mask == 3 ? KVA_CAUSAL : 0) | (pick(4) ? 0 : KVA_BATCH_INVARIANT);
    a->window_tokens = mask && pick(2) ? 1 + pick(300) : 0;
    a->soft_cap = pick(3) ? 0 : 5;
    for (uint64_t &bits : tree)
        bits = (uint64_t)pick(1u << 30) | (uint64_t)pick(1u << 30) << 30;
    for (float &sink : sinks)
        sink = (float)pick(200) * 0.01f - 0.1f;
    a->tree_mask = mask == 2 ? memory.copy(tree) : nullptr;
    a->sinks = pick(3) ? nullptr : memory.copy(sinks);
}

static void check_layers(const kva_attention &a, const __nv_bfloat16 *q, void *out, float *lse,
                         device_memory &memory, const char *name)
{
    kva_info info = {sizeof(info), 0, 0, ""};
    uint64_t heads = (uint64_t)std::max(a.batch.q_total, 1u) * a.q_head_count;
    double *scratch = (double *)memory.take(heads * a.batch.kv_max * 8);
    double *want = (double *)memory.take(heads * DIM_V * 8);
    double *bound = (double *)memory.take(heads * DIM_V * 8);
    double *want_lse = (double *)memory.take(heads * 8);
    int code = kva_attention_info(&a, &info);
    void *work = memory.take(info.workspace_bytes);

    MUST(cudaMemset(work, 0xff, info.workspace_bytes));
    code = code ? code : kva_attention_plan(&a, work, info.workspace_bytes, nullptr);
    for (uint32_t layer = 0; layer < 2; layer++) {
        cudaError_t e;

        code = code
                   ? code
                   : kva_attention_run(&a, layer, q, out, lse, work, info.workspace_bytes, nullptr);
        e = cudaDeviceSynchronize();
        if (code || e) {
            printf("WRONG %s: %s; %s\n", name, code ? kva_error() : "", cudaGetErrorString(e));
            exit(1);
        }
        if (!a.batch.q_total)
            return;
        reference<<<dim3(a.batch.q_max, a.q_head_count, a.batch.seq_count), 128>>>(
            a, layer, q, scratch, want, bound, want_lse);
        compare(a, out, lse, want, bound, want_lse, name);
    }
}

static void check_case(uint32_t index)
{
    static const uint32_t heads[] = {1, 4, 8, 16, 16, 32, 48, 64, 128, 128};
    static const uint32_t tokens[] = {16, 16, 32, 64, 128, 192, 1024}, q_max[] = {1, 1, 2, 3, 8};
    device_memory memory;
    kva_attention a = {};
    uint32_t mask = pick(4), head_count = one_of(heads), rows;
    uint64_t pool;
    char name[256];

    a.cache.block_tokens = one_of(tokens);
    random_batch(&a, head_count > 64 ? 1 + pick(3) : one_of(q_max), memory);
    pool = describe(&a, head_count, 2, pick(2));
    a.q_token_stride += pick(2) * 4;
    rows = std::max(a.batch.q_total, 1u);
    random_masks(&a, rows, memory, mask);
    a.cache.k = a.cache.v = memory.take(pool * 2);
    fill<<<512, 256>>>((__nv_bfloat16 *)a.cache.k, pool, 0, NAN);
    fill_cache<<<dim3(64, a.batch.seq_count, 2), DIM_K>>>(a, seed);
    __nv_bfloat16 *q = (__nv_bfloat16 *)memory.take(rows * a.q_token_stride * 2);
    void *out = memory.take(rows * a.out_token_stride * 2);
    float *lse = (float *)memory.take(rows * a.q_head_count * 4);
    fill<<<256, 256>>>(q, rows * a.q_token_stride, seed + 3, 2);
    fill<<<256, 256>>>((__nv_bfloat16 *)out, rows * a.out_token_stride, 0, NAN);
    MUST(cudaMemset(lse, 0xff, rows * a.q_head_count * 4));
    snprintf(name, sizeof(name),
             "%u: heads %u q %u seqs %u block %u mask %u window %u cap %g flags %u ragged %d "
             "total %u",
             index, head_count, a.batch.q_max, a.batch.seq_count, a.cache.block_tokens, mask,
             a.window_tokens, a.soft_cap, a.flags, a.batch.q_offsets != nullptr, a.batch.q_total);
    if (getenv("LAB_NAMES"))
        puts(name);
    check_layers(a, q, out, lse, memory, name);
}

/* ---- times ---- */

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
    uint32_t rows;
    uint32_t heads;
    uint32_t block_tokens;
    uint32_t flags;
};

/* Tables over the whole pool, shuffled; the sum of the lengths. */
static uint64_t fill_tables(kva_attention *a, const shape &s, device_memory &memory)
{
    kva_batch &b = a->batch;
    uint64_t tokens = 0, next = 0;
    std::vector<int32_t> ids, tables;

    a->cache.block_tokens = s.block_tokens;
    a->cache.block_count = (uint32_t)(pool_bytes / ((uint64_t)s.block_tokens * DIM_K * 2 * LAYERS));
    b.seq_count = (uint32_t)s.lengths.size();
    b.q_max = s.rows;
    b.q_total = s.rows * b.seq_count;
    for (int32_t length : s.lengths) {
        b.kv_max = std::max(b.kv_max, (uint32_t)length);
        tokens += (uint64_t)length;
    }
    b.table_stride = b.kv_max / s.block_tokens + 1;
    tables.resize(b.seq_count * b.table_stride);
    ids = shuffled(a->cache.block_count);
    for (uint32_t n = 0; n < b.seq_count; n++)
        for (uint32_t e = 0; e * s.block_tokens < (uint32_t)s.lengths[n]; e++)
            tables[n * b.table_stride + e] = ids[next++ % ids.size()];
    b.tables = memory.copy(tables);
    b.kv_lengths = memory.copy(s.lengths);
    return tokens;
}

static void time_shape(const shape &s)
{
    device_memory memory;
    kva_attention a = {};
    kva_info info = {sizeof(info), 0, 0, ""};
    uint64_t tokens = fill_tables(&a, s, memory), bytes = tokens * DIM_K * 2;
    double run, plan, read, flops = 2.0 * (DIM_K + DIM_V) * s.heads * s.rows * (double)tokens;
    __nv_bfloat16 *q;
    void *out, *work;

    describe(&a, s.heads, LAYERS, false);
    a.flags = s.flags;
    a.cache.k = a.cache.v = pool;
    q = (__nv_bfloat16 *)memory.take(a.batch.q_total * a.q_token_stride * 2);
    out = memory.take(a.batch.q_total * a.out_token_stride * 2);
    fill<<<256, 256>>>(q, a.batch.q_total * a.q_token_stride, 3, 1);
    if (kva_attention_info(&a, &info)) {
        printf("%s: %s\n", s.name, kva_error());
        return;
    }
    work = memory.take(info.workspace_bytes);
    MUST(cudaDeviceSynchronize());
    plan = time_us(8, [&](uint32_t) {
        if (kva_attention_plan(&a, work, info.workspace_bytes, stream))
            printf("%s\n", kva_error());
    });
    run = time_us(LAYERS, [&](uint32_t layer) {
        if (kva_attention_run(&a, layer, q, out, nullptr, work, info.workspace_bytes, stream))
            printf("%s\n", kva_error());
    });
    read = time_us(LAYERS, [&](uint32_t layer) {
        const char *from = pool + layer * (pool_bytes / LAYERS / 16 * 16);

        read_roof<<<sm_count * 8, 256, 0, stream>>>((const uint4 *)from, bytes / 16,
                                                    (uint32_t *)work);
    });
    MUST(cudaDeviceSynchronize());
    printf("%-26s %-16s run %8.2f us %6.0f GB/s %5.0f TFLOP/s  read %8.2f us %6.0f GB/s  ratio "
           "%.3f  plan %.2f us  %.1f MB\n",
           s.name, info.kernel, run, (double)bytes / run * 1e-3, flops / run * 1e-6, read,
           (double)bytes / read * 1e-3, read / run, plan, (double)info.workspace_bytes * 1e-6);
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

static void time_all(const char *word)
{
    const shape shapes[] = {
        {"64x8192 h16", uniform(64, 8192), 1, 16, 64, 0},
        {"64x8192 h128", uniform(64, 8192), 1, 128, 64, 0},
        {"64x8192 h64", uniform(64, 8192), 1, 64, 64, 0},
        {"64x8192 h32", uniform(64, 8192), 1, 32, 64, 0},
        {"64x8192 h8", uniform(64, 8192), 1, 8, 64, 0},
        {"64x8192 h16 block16", uniform(64, 8192), 1, 16, 16, 0},
        {"64x8192 h128 block16", uniform(64, 8192), 1, 128, 16, 0},
        {"128x4096 h16", uniform(128, 4096), 1, 16, 64, 0},
        {"128x8192 h128", uniform(128, 8192), 1, 128, 64, 0},
        {"66x8192 h128", uniform(66, 8192), 1, 128, 64, 0},
        {"64x8192 h128 2 rows", uniform(64, 8192), 2, 128, 64, KVA_CAUSAL},
        {"64x8192 h16 2 rows", uniform(64, 8192), 2, 16, 64, KVA_CAUSAL},
        {"64x8192 h16 4 rows", uniform(64, 8192), 4, 16, 64, KVA_CAUSAL},
        {"1x4096 h128", uniform(1, 4096), 1, 128, 64, 0},
        {"8x8192 h128", uniform(8, 8192), 1, 128, 64, 0},
        {"32x4096 h128", uniform(32, 4096), 1, 128, 64, 0},
        {"1x4096 h16", uniform(1, 4096), 1, 16, 64, 0},
        {"8x8192 h16", uniform(8, 8192), 1, 16, 64, 0},
        {"1x65536 h16", uniform(1, 65536), 1, 16, 64, 0},
        {"ragged64 h16", ragged(), 1, 16, 64, 0},
        {"ragged64 h128", ragged(), 1, 128, 64, 0},
        {"64x8192 h16 invariant", uniform(64, 8192), 1, 16, 64, KVA_BATCH_INVARIANT},
        {"64x8192 h128 invariant", uniform(64, 8192), 1, 128, 64, KVA_BATCH_INVARIANT},
    };
    size_t free_bytes, all_bytes;

    MUST(cudaMemGetInfo(&free_bytes, &all_bytes));
    pool_bytes =
        std::min<uint64_t>(free_bytes - (UINT64_C(3) << 30), UINT64_C(24) << 30) >> 21 << 21;
    MUST(cudaMalloc(&pool, pool_bytes));
    fill<<<sm_count * 8, 256>>>((__nv_bfloat16 *)pool, pool_bytes / 2, 1, 1);
    MUST(cudaDeviceSynchronize());
    for (const shape &s : shapes)
        if (strstr(s.name, word))
            time_shape(s);
}

int main(int argc, char **argv)
{
    bool is_timed = argc > 1 && !strcmp(argv[1], "all");
    uint32_t cases = argc > 1 ? (uint32_t)atoi(argv[1]) : 60;
    cudaDeviceProp device;

    if (cudaGetDeviceProperties(&device, 0)) {
        puts("no CUDA device");
        return 77;
    }
    sm_count = (uint32_t)device.multiProcessorCount;
    setvbuf(stdout, nullptr, _IOLBF, 0);
    printf("%s, %u SMs\n", device.name, sm_count);
    MUST(cudaStreamCreate(&stream));
    if (argc > 2 && !is_timed)
        seed = strtoull(argv[2], nullptr, 0);
    for (uint32_t i = 0; i < cases && !is_timed; i++)
        check_case(i);
    if (!is_timed)
        printf("%u cases, %d wrong, worst %.3f of the bound\n", cases, wrong, worst);
    fflush(stdout);
    if (is_timed)
        time_all(argc > 2 ? argv[2] : "");
    return wrong != 0;
}
