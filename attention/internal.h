/* SPDX-License-Identifier: Apache-2.0
 *
 * How the entry points of <kvmem/attention.h> find the code that does the work.
 *
 *   attention.c   entry points: check.c first, then the first kernel of the device that accepts
 *   check.c       what is wrong whatever the kernel: names field, value, range, remedy
 *   reference.c   the truth, in double
 *   cpu/          kernels for the CPU; tables of functions, best first (cpu/list.c)
 *   cuda/         the same for CUDA (cuda/list.cu), each kernel apart from its launch code
 *
 * A kernel is a table of functions. It may rely on what check.c has verified, and says by accepts()
 * what else it needs. Nothing else is shared between kernels than the helpers of their folder.
 */
#ifndef KVA_INTERNAL_H
#define KVA_INTERNAL_H

#include <kvmem/attention.h>
#include <kvmem/attention_merge.h>
#include <kvmem/attention_write.h>

#ifdef __cplusplus
extern "C" {
#endif

struct kva_kernel {
    const char *name; /* as in struct kva_info */
    /* 0, or NOT_SUPPORTED with the field that it lacks: then the next one is asked. */
    int (*accepts)(const struct kva_attention *what);
    /* Fills task_limit and workspace_bytes. */
    int (*info)(const struct kva_attention *what, struct kva_info *out);
    int (*plan)(const struct kva_attention *what, void *workspace, void *stream);
    int (*run)(const struct kva_attention *what, uint32_t layer, const void *q, void *out,
               float *lse, void *workspace, void *stream);
    /* Bytes that the plan in a workspace of KVA_PLAN_HEAD_BYTES or more takes, where info need not
     * say the same at plan and at run. NULL: what info says. */
    uint64_t (*planned_bytes)(const struct kva_attention *what, const void *workspace);
};

#define KVA_PLAN_HEAD_BYTES 64u

/* Best first, ended by NULL. The CUDA list is empty where nvcc was not there. */
extern const struct kva_kernel *const kva_cpu_kernels[];
const struct kva_kernel *const *kva_cuda_kernels(void);

/* When not NULL, only kernels whose name contains it are asked: for tests and laboratories. */
#ifndef __cplusplus
extern _Thread_local const char *kva_only_kernel;
#endif

/* The first that accepts; else the refusal of the last one. */
int kva_kernel_find(const struct kva_attention *what, const struct kva_kernel **out);

/* Workspace that a run needs: what the plan in it takes, or what info says (`info_bytes`). */
uint64_t kva_run_bytes(const struct kva_kernel *kernel, const struct kva_attention *what,
                       uint64_t info_bytes, const void *workspace, uint64_t bytes);

/* ---- checks (check.c): 0 or a code, see kva_error ---- */

int kva_check_attention(const struct kva_attention *what);
/* The arrays of the batch, on the CPU: done before each plan and run, kernels rely on it. */
int kva_check_contents(const struct kva_attention *what);
int kva_check_write(const struct kva_write *what, uint32_t layer, uint32_t layers);
int kva_check_merge(const struct kva_merge *what);
/* The arrays given to a run, after its description. */
int kva_check_rows(const struct kva_attention *what, const void *q, const void *out,
                   const float *lse);
int kva_check_sources(const struct kva_write *what, const void *k, const void *v);
int kva_check_parts(const struct kva_merge *what, const void *parts, const float *part_lse,
                    const void *out, const float *lse);

/* ---- the other operations, by device; arguments are checked ---- */

int kva_write_cpu(const struct kva_write *what, uint32_t layer, uint32_t layers, const void *k,
                  uint64_t k_layer_stride, const void *v, uint64_t v_layer_stride);
int kva_write_cuda(const struct kva_write *what, uint32_t layer, uint32_t layers, const void *k,
                   uint64_t k_layer_stride, const void *v, uint64_t v_layer_stride, void *stream);

/* A merge whose result may be anywhere, of the rows that are somebody's. */
struct kva_merge_job {
    const struct kva_merge *what;
    const void *parts;
    const float *part_lse;
    void *out;
    float *lse;              /* (R, H) or NULL */
    uint64_t out_row_stride; /* elements */
    uint64_t out_head_stride;
    uint32_t row_limit;        /* rows from here on are nobody's */
    const int32_t *row_bounds; /* the first row and, at [bound_count], the end, too; or NULL */
    uint32_t bound_count;
};
int kva_merge_cpu(const struct kva_merge_job *job);
int kva_merge_cuda(const struct kva_merge_job *job, void *stream);

/* Standard attention of one layer; scores (q_head_count, q_total, score_stride). */
struct kva_standard_job {
    const struct kva_attention *what;
    uint32_t layer;
    const void *q;
    void *out;
    float *scores;
    uint64_t score_stride; /* a multiple of 64, at least kv_max */
};
int kva_standard_cpu(const struct kva_standard_job *job);
int kva_standard_cuda(const struct kva_standard_job *job, void *stream);
/* 0, or NOT_SUPPORTED or INVALID with the field. */
int kva_standard_cuda_accepts(const struct kva_attention *what);

/* ---- errors ---- */

/* Remember the sentence for kva_error(); returns `code`. */
int kva_error_set(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- small things that all kernels need ---- */

static inline float kva_scale_of(const struct kva_attention *what)
{
    return what->softmax_scale != 0 ? what->softmax_scale
                                    : 1.0f / __builtin_sqrtf((float)what->cache.head_dim_k);
}

/* Rows of sequence n on the CPU: [first, end). */
static inline void kva_rows_of(const struct kva_batch *batch, uint32_t n, uint32_t *first,
                               uint32_t *end)
{
    *first = batch->q_offsets ? (uint32_t)batch->q_offsets[n] : n * batch->q_max;
    *end = batch->q_offsets ? (uint32_t)batch->q_offsets[n + 1] : (n + 1) * batch->q_max;
}

#ifdef __cplusplus
}
#endif
#endif
