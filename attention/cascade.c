/* SPDX-License-Identifier: Apache-2.0
 *
 * A shared prefix attended once (cascade inference, Ye et al. 2024): two attentions, then a merge.
 *
 *   workspace   | of the prefix | of the sequences | parts (2, R, H, D) | lse (2, R, H) |
 *
 * each at a multiple of 256; R = q_total. Part 0 is the prefix. Both parts are contiguous, so the
 * result's strides are the merge's business; so are rows that no sequence has, which only the
 * prefix computes: they are not merged, and the result's memory there is not touched.
 */
#include <stdio.h>

#include "internal.h"

/* Where things lie, and the two attentions with the strides that they get here. */
struct cascade {
    struct kva_attention prefix;
    struct kva_attention own;
    struct kva_merge merge;
    uint64_t prefix_bytes;
    uint64_t own_at;
    uint64_t own_bytes;
    uint64_t parts_at;
    uint64_t part_bytes; /* of one */
    uint64_t lse_at;
    uint64_t bytes;
};

struct same {
    const char *field;
    double prefix;
    double own;
};

static int check_same(const struct kva_attention *prefix, const struct kva_attention *own)
{
    const struct same fields[] = {
        {"device", prefix->device, own->device},
        {"q_head_count", prefix->q_head_count, own->q_head_count},
        {"dtype", prefix->dtype, own->dtype},
        {"cache.kv_head_count", prefix->cache.kv_head_count, own->cache.kv_head_count},
        {"cache.head_dim_k", prefix->cache.head_dim_k, own->cache.head_dim_k},
        {"cache.head_dim_v", prefix->cache.head_dim_v, own->cache.head_dim_v},
        {"cache.layer_count", prefix->cache.layer_count, own->cache.layer_count},
        {"softmax_scale", kva_scale_of(prefix), kva_scale_of(own)},
        {"soft_cap", prefix->soft_cap, own->soft_cap},
        {"batch.q_total", prefix->batch.q_total, own->batch.q_total},
        {"batch.q_max", prefix->batch.q_max, own->batch.q_total},
        {"batch.seq_count", prefix->batch.seq_count, 1},
        {"flags (KVA_CAUSAL)", prefix->flags & KVA_CAUSAL, 0},
        {"window_tokens", prefix->window_tokens, 0},
    };

    for (uint32_t i = 0; i < sizeof(fields) / sizeof(*fields); i++)
        if (!(fields[i].prefix == fields[i].own))
            return kva_error_set(KVMEM_E_INVALID,
                                 "prefix.%s: is %g, it must be %g for these sequences",
                                 fields[i].field, fields[i].prefix, fields[i].own);
    if (prefix->batch.q_offsets || prefix->sinks || prefix->alibi_slopes || prefix->tree_mask)
        return kva_error_set(KVMEM_E_INVALID, "prefix.%s: must be NULL, the prefix is seen whole",
                             prefix->batch.q_offsets ? "batch.q_offsets"
                             : prefix->sinks         ? "sinks"
                             : prefix->alibi_slopes  ? "alibi_slopes"
                                                     : "tree_mask");
    return 0;
}

/* The last error was about one of the two: say which. */
static int named(const char *which, int code)
{
    char text[256];

    if (!code)
        return 0;
    snprintf(text, sizeof(text), "%s", kva_error());
    return kva_error_set(code, "%s.%s", which, text);
}

static int info_of(const char *which, const struct kva_attention *what, struct kva_info *info)
{
    info->size = sizeof(*info);
    return named(which, kva_attention_info(what, info));
}

static uint64_t whole(uint64_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

/* Both results go into the workspace, without gaps. */
static void redirect(struct kva_attention *what, const struct kva_attention *own)
{
    what->q_token_stride = own->q_token_stride;
    what->q_head_stride = own->q_head_stride;
    what->out_head_stride = own->cache.head_dim_v;
    what->out_token_stride = (uint64_t)own->q_head_count * own->cache.head_dim_v;
}

static void lay_out(struct cascade *c)
{
    const struct kva_attention *own = &c->own;
    uint64_t vectors = (uint64_t)own->batch.q_total * own->q_head_count;

    c->part_bytes = vectors * own->cache.head_dim_v * (own->dtype == KVMEM_DTYPE_FP32 ? 4 : 2);
    c->own_at = whole(c->prefix_bytes);
    c->parts_at = c->own_at + whole(c->own_bytes);
    c->lse_at = c->parts_at + whole(2 * c->part_bytes);
    c->bytes = c->lse_at + whole(2 * sizeof(float) * vectors);
}

/* Checks everything but pointers given to run. `info`: NULL, or what is answered. */
static int make(const struct kva_cascade *what, struct cascade *c, struct kva_info *out)
{
    struct kva_info prefix, own;
    int code;

    if (!what || what->size != sizeof(*what))
        return kva_error_set(KVMEM_E_INVALID, "size: must be %zu, the struct's own size",
                             sizeof(*what));
    if (what->reserved)
        return kva_error_set(KVMEM_E_INVALID, "reserved: %u is outside 0..0", what->reserved);
    code = named("own", kva_check_attention(&what->own));
    if (!code)
        code = check_same(&what->prefix, &what->own);
    if (code)
        return code;
    *c = (struct cascade){.prefix = what->prefix, .own = what->own};
    redirect(&c->prefix, &what->own);
    redirect(&c->own, &what->own);
    c->merge = (struct kva_merge){.size = sizeof(c->merge),
                                  .device = what->own.device,
                                  .part_count = 2,
                                  .row_count = what->own.batch.q_total,
                                  .head_count = what->own.q_head_count,
                                  .head_dim = what->own.cache.head_dim_v,
                                  .part_dtype = what->own.dtype,
                                  .dtype = what->own.dtype};
    code = kva_check_merge(&c->merge);
    if (!code)
        code = info_of("prefix", &c->prefix, &prefix);
    if (!code)
        code = info_of("own", &c->own, &own);
    if (code)
        return code;
    c->prefix_bytes = prefix.workspace_bytes;
    c->own_bytes = own.workspace_bytes;
    lay_out(c);
    if (out) {
        out->task_limit = prefix.task_limit > own.task_limit ? prefix.task_limit : own.task_limit;
        out->workspace_bytes = c->bytes;
        snprintf(out->kernel, sizeof(out->kernel), "%.30s + %.30s", prefix.kernel, own.kernel);
    }
    return 0;
}

int kva_cascade_info(const struct kva_cascade *what, struct kva_info *out)
{
    struct cascade c;

    if (!out || out->size != sizeof(*out))
        return kva_error_set(KVMEM_E_INVALID, "out.size: must be %zu, the struct's own size",
                             sizeof(*out));
    return make(what, &c, out);
}

static uint64_t run_bytes(const struct kva_attention *what, uint64_t info_bytes, const char *at,
                          uint64_t bytes)
{
    const struct kva_kernel *kernel;

    return kva_kernel_find(what, &kernel) ? info_bytes
                                          : kva_run_bytes(kernel, what, info_bytes, at, bytes);
}

/* Again, by the plans in the workspace: those of the CPU may have been made where there are more or
 * fewer threads than info counts here. */
static void lay_out_planned(struct cascade *c, const char *workspace, uint64_t bytes)
{
    c->prefix_bytes = run_bytes(&c->prefix, c->prefix_bytes, workspace, bytes);
    lay_out(c);
    if (c->own_at < bytes)
        c->own_bytes = run_bytes(&c->own, c->own_bytes, workspace + c->own_at, bytes - c->own_at);
    lay_out(c);
}

static int begin(const struct kva_cascade *what, struct cascade *c, const void *workspace,
                 uint64_t workspace_bytes, uint32_t is_planned)
{
    int code = make(what, c, NULL);

    if (code)
        return code;
    if (is_planned && c->own.batch.seq_count && c->own.batch.q_total)
        lay_out_planned(c, workspace, workspace_bytes);
    if (c->bytes > workspace_bytes)
        return kva_error_set(KVMEM_E_INVALID,
                             "workspace_bytes: %llu are less than the %llu needed "
                             "(kva_cascade_info)",
                             (unsigned long long)workspace_bytes, (unsigned long long)c->bytes);
    if (c->bytes && (!workspace || (uintptr_t)workspace % 256))
        return kva_error_set(KVMEM_E_INVALID, "workspace: %p is no multiple of 256", workspace);
    return 0;
}

int kva_cascade_plan(const struct kva_cascade *what, void *workspace, uint64_t workspace_bytes,
                     void *stream)
{
    char *at = workspace;
    struct cascade c;
    int code = begin(what, &c, workspace, workspace_bytes, 0);

    if (code || !c.own.batch.seq_count || !c.own.batch.q_total)
        return code;
    code = named("prefix", kva_attention_plan(&c.prefix, at, c.prefix_bytes, stream));
    if (code)
        return code;
    return named("own", kva_attention_plan(&c.own, at + c.own_at, c.own_bytes, stream));
}

/* Rows that sequences have, of both parts, to where the caller wants them. */
static int merge(const struct kva_cascade *what, const struct cascade *c, char *at, void *out,
                 float *lse, void *stream)
{
    const struct kva_batch *batch = &what->own.batch;
    const struct kva_merge_job job = {
        .what = &c->merge,
        .parts = at + c->parts_at,
        .part_lse = (const float *)(const void *)(at + c->lse_at),
        .out = out,
        .lse = lse,
        .out_row_stride = what->own.out_token_stride,
        .out_head_stride = what->own.out_head_stride,
        .row_limit = batch->q_offsets ? batch->q_total : batch->seq_count * batch->q_max,
        .row_bounds = batch->q_offsets,
        .bound_count = batch->seq_count};

    return what->own.device == KVA_DEVICE_CUDA ? kva_merge_cuda(&job, stream) : kva_merge_cpu(&job);
}

int kva_cascade_run(const struct kva_cascade *what, uint32_t layer, const void *q, void *out,
                    float *lse, void *workspace, uint64_t workspace_bytes, void *stream)
{
    char *at = workspace;
    struct cascade c;
    float *part_lse;
    int code = begin(what, &c, workspace, workspace_bytes, 1);

    if (code || !c.own.batch.seq_count || !c.own.batch.q_total)
        return code;
    code = kva_check_rows(&what->own, q, out, lse);
    if (code)
        return code;
    part_lse = (float *)(void *)(at + c.lse_at);
    code = named("prefix", kva_attention_run(&c.prefix, layer, q, at + c.parts_at, part_lse, at,
                                             c.prefix_bytes, stream));
    if (code)
        return code;
    part_lse += (uint64_t)c.own.batch.q_total * c.own.q_head_count;
    code = named("own", kva_attention_run(&c.own, layer, q, at + c.parts_at + c.part_bytes,
                                          part_lse, at + c.own_at, c.own_bytes, stream));
    return code ? code : merge(what, &c, at, out, lse, stream);
}
