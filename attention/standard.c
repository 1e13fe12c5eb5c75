/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention with all scores in memory: what is accepted, and how large the scores are.
 *
 *   scores (q_head_count, q_total, score_stride) float
 *
 * score_stride is kv_max, up to a multiple of 64.
 */
#include <inttypes.h>
#include <stdio.h>

#include "internal.h"

#define STRIDE_UNIT 64u

static int unsupported(const char *field)
{
    return kva_error_set(KVMEM_E_NOT_SUPPORTED,
                         "%s: standard attention has full and causal masks only (remedy: "
                         "kva_attention_run)",
                         field);
}

static uint64_t stride_of(const struct kva_attention *what)
{
    return ((uint64_t)what->batch.kv_max + STRIDE_UNIT - 1) / STRIDE_UNIT * STRIDE_UNIT;
}

/* Bytes of all scores: of a row of heads at most 2^46. */
static int count_bytes(const struct kva_attention *what, uint64_t *bytes)
{
    uint64_t row = sizeof(float) * what->q_head_count * stride_of(what);

    if (__builtin_mul_overflow(row, what->batch.q_total, bytes))
        return kva_error_set(KVMEM_E_INVALID,
                             "batch.q_total: %u rows of %" PRIu64 " bytes of scores are more than "
                             "2^64 (remedy: kva_attention_run)",
                             what->batch.q_total, row);
    return 0;
}

/* Everything but the arrays given to run; *bytes is the workspace's size. */
static int check(const struct kva_attention *what, uint64_t *bytes)
{
    int code = kva_check_attention(what);

    if (!code)
        code = count_bytes(what, bytes);
    if (code)
        return code;
    if (what->window_tokens)
        return unsupported("window_tokens");
    if (what->sinks)
        return unsupported("sinks");
    if (what->alibi_slopes)
        return unsupported("alibi_slopes");
    if (what->tree_mask)
        return unsupported("tree_mask");
    return what->device == KVA_DEVICE_CUDA ? kva_standard_cuda_accepts(what) : 0;
}

int kva_standard_info(const struct kva_attention *what, struct kva_info *out)
{
    uint64_t bytes;
    int code;

    if (!out || out->size != sizeof(*out))
        return kva_error_set(KVMEM_E_INVALID, "out.size: must be %zu, the struct's own size",
                             sizeof(*out));
    code = check(what, &bytes);
    if (code)
        return code;
    *out = (struct kva_info){.size = sizeof(*out), .workspace_bytes = bytes};
    snprintf(out->kernel, sizeof(out->kernel), "%s standard",
             what->device == KVA_DEVICE_CUDA ? "cuda" : "cpu");
    return 0;
}

static int check_workspace(uint64_t bytes, const void *workspace, uint64_t workspace_bytes)
{
    if (workspace_bytes < bytes)
        return kva_error_set(KVMEM_E_INVALID,
                             "workspace_bytes: %llu are less than the %llu of all scores "
                             "(kva_standard_info)",
                             (unsigned long long)workspace_bytes, (unsigned long long)bytes);
    if (bytes && (!workspace || (uintptr_t)workspace % 256))
        return kva_error_set(KVMEM_E_INVALID, "workspace: %p is no multiple of 256", workspace);
    return 0;
}

int kva_standard_run(const struct kva_attention *what, uint32_t layer, const void *q, void *out,
                     void *workspace, uint64_t workspace_bytes, void *stream)
{
    struct kva_standard_job job = {
        .what = what, .layer = layer, .q = q, .out = out, .scores = workspace};
    uint64_t bytes;
    int code = check(what, &bytes);

    if (code || !what->batch.seq_count || !what->batch.q_total)
        return code;
    if (layer >= what->cache.layer_count)
        return kva_error_set(KVMEM_E_INVALID, "layer: %u is outside 0..%u", layer,
                             what->cache.layer_count - 1);
    code = kva_check_rows(what, q, out, NULL);
    if (!code)
        code = check_workspace(bytes, workspace, workspace_bytes);
    if (code)
        return code;
    job.score_stride = stride_of(what);
    return what->device == KVA_DEVICE_CUDA ? kva_standard_cuda(&job, stream)
                                           : kva_standard_cpu(&job);
}
