/* SPDX-License-Identifier: Apache-2.0
 *
 * Merging partial results on a GPU: a thread takes eight elements of one row and head, finds the
 * weights of all parts for itself, and sums in the order of the parts.
 */
#include "element.cuh"
#include "launch.cuh"

#define THREADS 256

struct merge {
    const void *parts;
    const float *part_lse;
    void *out;
    float *lse;
    const int32_t *row_bounds;
    uint64_t out_row_stride;
    uint64_t out_head_stride;
    uint32_t bound_count;
    uint32_t row_limit;
    uint32_t part_count;
    uint32_t row_count;
    uint32_t head_count;
    uint32_t head_dim;
    uint32_t part_dtype;
    uint32_t dtype;
};

/* The row is somebody's. */
static __device__ __forceinline__ bool is_wanted(const struct merge &m, uint64_t row)
{
    return row < m.row_limit && (!m.row_bounds || ((int64_t)row >= m.row_bounds[0] &&
                                                   (int64_t)row < m.row_bounds[m.bound_count]));
}

static __global__ void __launch_bounds__(THREADS)
    merge_parts(const __grid_constant__ struct merge m)
{
    const uint32_t pieces = m.head_dim / KVA_EIGHT;
    const uint64_t vectors = (uint64_t)m.row_count * m.head_count;
    const uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x;
    const uint64_t at = i / pieces, row = at / m.head_count;
    const uint32_t d = (uint32_t)(i - at * pieces) * KVA_EIGHT;
    float sums[KVA_EIGHT] = {};
    float most = -INFINITY, sum = 0;

    if (!is_wanted(m, row))
        return;
    for (uint32_t p = 0; p < m.part_count; p++)
        most = fmaxf(most, m.part_lse[p * vectors + at]);
#pragma unroll 4
    for (uint32_t p = 0; p < m.part_count; p++) {
        const float lse = m.part_lse[p * vectors + at];
        const float weight = lse == -INFINITY ? 0 : expf(lse - most);
        float part[KVA_EIGHT];

        if (weight == 0)
            continue; /* what it holds may be NaN */
        kva_load8(m.part_dtype, m.parts, (p * vectors + at) * m.head_dim + d, part);
        sum += weight;
#pragma unroll
        for (int e = 0; e < KVA_EIGHT; e++)
            sums[e] = fmaf(weight, part[e], sums[e]);
    }
#pragma unroll
    for (int e = 0; e < KVA_EIGHT; e++)
        sums[e] = sum == 0 ? 0 : sums[e] / sum;
    kva_store8(m.dtype, m.out,
               row * m.out_row_stride + (at - row * m.head_count) * m.out_head_stride + d, sums);
    if (m.lse && d == 0)
        m.lse[at] = most + logf(sum);
}

static int misaligned(const char *field, const void *pointer)
{
    return kva_error_set(KVMEM_E_INVALID, "%s: %p is no multiple of 16 bytes", field, pointer);
}

extern "C" int kva_merge_cuda(const struct kva_merge_job *job, void *stream)
{
    const struct kva_merge *what = job->what;
    const struct merge m = {job->parts,
                            job->part_lse,
                            job->out,
                            job->lse,
                            job->row_bounds,
                            job->out_row_stride,
                            job->out_head_stride,
                            job->bound_count,
                            job->row_limit,
                            what->part_count,
                            what->row_count,
                            what->head_count,
                            what->head_dim,
                            what->part_dtype,
                            what->dtype};
    void *parameters[] = {(void *)&m};
    const uint64_t threads = (uint64_t)what->row_count * what->head_count * (what->head_dim / 8);
    struct kva_cuda_device device;
    int code = kva_cuda_device(&device);

    if (!code)
        code = kva_cuda_check_stream(&device, (cudaStream_t)stream);
    if (!code)
        code = kva_cuda_prepare((const void *)merge_parts, 0);
    if (code)
        return code;
    if ((uintptr_t)job->parts % 16 || (uintptr_t)job->out % 16)
        return (uintptr_t)job->parts % 16 ? misaligned("parts", job->parts)
                                          : misaligned("out", job->out);
    if (job->out_row_stride % 8 || job->out_head_stride % 8)
        return kva_error_set(KVMEM_E_NOT_SUPPORTED,
                             "out_token_stride: %llu and out_head_stride %llu are no multiples of "
                             "8, as a merge on a GPU needs them",
                             (unsigned long long)job->out_row_stride,
                             (unsigned long long)job->out_head_stride);
    if ((threads + THREADS - 1) / THREADS > INT32_MAX)
        return kva_error_set(KVMEM_E_NOT_SUPPORTED,
                             "row_count: %u rows of %u heads of %u elements are more than a launch "
                             "takes",
                             what->row_count, what->head_count, what->head_dim);
    return kva_cuda_result(cudaLaunchKernel((const void *)merge_parts,
                                            dim3((uint32_t)((threads + THREADS - 1) / THREADS)),
                                            dim3(THREADS), parameters, 0, (cudaStream_t)stream),
                           "merging partial results");
}
