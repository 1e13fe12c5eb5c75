/* SPDX-License-Identifier: Apache-2.0
 *
 * Entry points: check, choose a kernel, hand over. No state but the calling thread's last error.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"

static _Thread_local char last_error[320];
_Thread_local const char *kva_only_kernel;

int kva_error_set(int code, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(last_error, sizeof(last_error), format, arguments);
    va_end(arguments);
    return code;
}

const char *kva_error(void)
{
    return last_error;
}

int kva_kernel_find(const struct kva_attention *what, const struct kva_kernel **out)
{
    const struct kva_kernel *const *list =
        what->device == KVA_DEVICE_CUDA ? kva_cuda_kernels() : kva_cpu_kernels;
    int code = kva_error_set(KVMEM_E_NOT_SUPPORTED, "device: %u has no kernels in this build%s%s",
                             what->device, kva_only_kernel ? " named " : "",
                             kva_only_kernel ? kva_only_kernel : "");

    for (; *list; list++) {
        if (kva_only_kernel && !strstr((*list)->name, kva_only_kernel))
            continue;
        code = (*list)->accepts(what);
        if (code)
            continue;
        *out = *list;
        return 0;
    }
    return code;
}

static int find_checked(const struct kva_attention *what, const struct kva_kernel **out)
{
    int code = kva_check_attention(what);

    return code ? code : kva_kernel_find(what, out);
}

static int info_of(const struct kva_kernel *kernel, const struct kva_attention *what,
                   struct kva_info *out)
{
    struct kva_info info = {.size = sizeof(info)};
    int code;

    snprintf(info.kernel, sizeof(info.kernel), "%s", kernel->name);
    code = kernel->info(what, &info);
    if (!code)
        *out = info;
    return code;
}

int kva_attention_info(const struct kva_attention *what, struct kva_info *out)
{
    const struct kva_kernel *kernel;
    int code;

    if (!out || out->size != sizeof(*out))
        return kva_error_set(KVMEM_E_INVALID, "out.size: must be %zu, the struct's own size",
                             sizeof(*out));
    code = find_checked(what, &kernel);
    return code ? code : info_of(kernel, what, out);
}

static int is_empty(const struct kva_batch *batch)
{
    return !batch->seq_count || !batch->q_total;
}

/* The workspace must be aligned, and have `needed` bytes. */
static int check_workspace(const char *kernel, uint64_t needed, const void *workspace,
                           uint64_t bytes)
{
    if (needed > bytes)
        return kva_error_set(KVMEM_E_INVALID,
                             "workspace_bytes: %llu are less than the %llu that %s needs "
                             "(kva_attention_info)",
                             (unsigned long long)bytes, (unsigned long long)needed, kernel);
    if (needed && (!workspace || (uintptr_t)workspace % 256))
        return kva_error_set(KVMEM_E_INVALID, "workspace: %p is no multiple of 256", workspace);
    return 0;
}

uint64_t kva_run_bytes(const struct kva_kernel *kernel, const struct kva_attention *what,
                       uint64_t info_bytes, const void *workspace, uint64_t bytes)
{
    if (!kernel->planned_bytes)
        return info_bytes;
    if (is_empty(&what->batch))
        return 0;
    if (bytes < KVA_PLAN_HEAD_BYTES || !workspace || (uintptr_t)workspace % 256)
        return KVA_PLAN_HEAD_BYTES;
    return kernel->planned_bytes(what, workspace);
}

/* The kernel, after all checks that plan and run share. */
static int begin(const struct kva_attention *what, const void *workspace, uint64_t bytes,
                 uint32_t is_planned, const struct kva_kernel **kernel)
{
    struct kva_info info = {.size = sizeof(info)};
    int code = find_checked(what, kernel);

    if (!code)
        code = info_of(*kernel, what, &info);
    if (!code)
        code = check_workspace(
            info.kernel,
            is_planned ? kva_run_bytes(*kernel, what, info.workspace_bytes, workspace, bytes)
                       : info.workspace_bytes,
            workspace, bytes);
    if (code)
        return code;
    return what->device == KVA_DEVICE_CPU ? kva_check_contents(what) : 0;
}

int kva_attention_plan(const struct kva_attention *what, void *workspace, uint64_t workspace_bytes,
                       void *stream)
{
    const struct kva_kernel *kernel;
    int code = begin(what, workspace, workspace_bytes, 0, &kernel);

    if (code || is_empty(&what->batch))
        return code;
    return kernel->plan(what, workspace, stream);
}

int kva_attention_run(const struct kva_attention *what, uint32_t layer, const void *q, void *out,
                      float *lse, void *workspace, uint64_t workspace_bytes, void *stream)
{
    const struct kva_kernel *kernel;
    int code = begin(what, workspace, workspace_bytes, 1, &kernel);

    if (code)
        return code;
    if (layer >= what->cache.layer_count)
        return kva_error_set(KVMEM_E_INVALID, "layer: %u is outside 0..%u", layer,
                             what->cache.layer_count - 1);
    if (is_empty(&what->batch))
        return 0;
    code = kva_check_rows(what, q, out, lse);
    return code ? code : kernel->run(what, layer, q, out, lse, workspace, stream);
}

int kva_write_run(const struct kva_write *what, uint32_t layer, uint32_t layers, const void *k,
                  uint64_t k_layer_stride, const void *v, uint64_t v_layer_stride, void *stream)
{
    int code = kva_check_write(what, layer, layers);

    if (code || !what->token_count || !layers)
        return code;
    code = kva_check_sources(what, k, v);
    if (code)
        return code;
    if (what->device == KVA_DEVICE_CUDA)
        return kva_write_cuda(what, layer, layers, k, k_layer_stride, v, v_layer_stride, stream);
    return kva_write_cpu(what, layer, layers, k, k_layer_stride, v, v_layer_stride);
}

int kva_merge_run(const struct kva_merge *what, const void *parts, const float *part_lse, void *out,
                  float *lse, void *stream)
{
    int code = kva_check_merge(what);

    if (code || !what->row_count || !what->head_count)
        return code;
    code = kva_check_parts(what, parts, part_lse, out, lse);
    if (code)
        return code;
    {
        const struct kva_merge_job job = {.what = what,
                                          .parts = parts,
                                          .part_lse = part_lse,
                                          .out = out,
                                          .lse = lse,
                                          .out_row_stride =
                                              (uint64_t)what->head_count * what->head_dim,
                                          .out_head_stride = what->head_dim,
                                          .row_limit = what->row_count};

        return what->device == KVA_DEVICE_CUDA ? kva_merge_cuda(&job, stream) : kva_merge_cpu(&job);
    }
}
