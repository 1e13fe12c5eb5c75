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

/* The kernel, if the workspace is large enough for it. */
static int begin(const struct kva_attention *what, const void *workspace, uint64_t bytes,
                 const struct kva_kernel **kernel)
{
    struct kva_info info = {.size = sizeof(info)};
    int code = find_checked(what, kernel);

    if (!code)
        code = info_of(*kernel, what, &info);
    if (code)
        return code;
    if (info.workspace_bytes > bytes)
        return kva_error_set(KVMEM_E_INVALID,
                             "workspace_bytes: %llu are less than the %llu that %s needs "
                             "(kva_attention_info)",
                             (unsigned long long)bytes, (unsigned long long)info.workspace_bytes,
                             info.kernel);
    if (info.workspace_bytes && (!workspace || (uintptr_t)workspace % 256))
        return kva_error_set(KVMEM_E_INVALID, "workspace: %p is no multiple of 256", workspace);
    return what->device == KVA_DEVICE_CPU ? kva_check_contents(what) : 0;
}

int kva_attention_plan(const struct kva_attention *what, void *workspace, uint64_t workspace_bytes,
                       void *stream)
{
    const struct kva_kernel *kernel;
    int code = begin(what, workspace, workspace_bytes, &kernel);

    if (code || !what->batch.seq_count || !what->batch.q_total)
        return code;
    return kernel->plan(what, workspace, stream);
}

int kva_attention_run(const struct kva_attention *what, uint32_t layer, const void *q, void *out,
                      float *lse, void *workspace, uint64_t workspace_bytes, void *stream)
{
    const struct kva_kernel *kernel;
    int code = begin(what, workspace, workspace_bytes, &kernel);

    if (code)
        return code;
    if (layer >= what->cache.layer_count)
        return kva_error_set(KVMEM_E_INVALID, "layer: %u is outside 0..%u", layer,
                             what->cache.layer_count - 1);
    if (!what->batch.seq_count || !what->batch.q_total)
        return 0;
    if (!q || !out)
        return kva_error_set(KVMEM_E_INVALID, "%s: is NULL", q ? "out" : "q");
    if (((uintptr_t)q | (uintptr_t)out) % (what->dtype == KVMEM_DTYPE_FP32 ? 4 : 2) ||
        (uintptr_t)lse % 4)
        return kva_error_set(KVMEM_E_INVALID,
                             "q, out, lse: one of %p, %p, %p is no multiple of its element's size",
                             q, out, (void *)lse);
    return kernel->run(what, layer, q, out, lse, workspace, stream);
}

int kva_write_run(const struct kva_write *what, uint32_t layer, uint32_t layers, const void *k,
                  uint64_t k_layer_stride, const void *v, uint64_t v_layer_stride, void *stream)
{
    int code = kva_check_write(what, layer, layers);

    if (code || !what->token_count || !layers)
        return code;
    if (!k)
        return kva_error_set(KVMEM_E_INVALID, "k: is NULL");
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
    if (!parts || !part_lse || !out)
        return kva_error_set(KVMEM_E_INVALID, "%s: is NULL",
                             !parts      ? "parts"
                             : !part_lse ? "part_lse"
                                         : "out");
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
