/* SPDX-License-Identifier: Apache-2.0
 *
 * What is wrong with a description whatever the kernel. Each check names field, value and range.
 * Contents of arrays are not looked at: on a GPU the host cannot see them.
 */
#include <float.h>
#include <inttypes.h>

#include "internal.h"

#define STRIDE_LIMIT (UINT64_C(1) << 40)

static int invalid_u64(const char *field, uint64_t value, uint64_t low, uint64_t high)
{
    return kva_error_set(KVMEM_E_INVALID, "%s: %" PRIu64 " is outside %" PRIu64 "..%" PRIu64, field,
                         value, low, high);
}

struct range {
    const char *field;
    uint64_t value;
    uint64_t low;
    uint64_t high;
};

static int check_ranges(const struct range *ranges, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (ranges[i].value < ranges[i].low || ranges[i].value > ranges[i].high)
            return invalid_u64(ranges[i].field, ranges[i].value, ranges[i].low, ranges[i].high);
    return 0;
}

static uint32_t bytes_of(uint32_t dtype)
{
    static const uint8_t bytes[] = {0, 2, 2, 4, 1, 1};

    return dtype < sizeof(bytes) ? bytes[dtype] : 0;
}

static int check_strides(const struct kva_cache *c, uint32_t device)
{
    const struct range strides[] = {
        {"cache.block_stride", c->block_stride, 0, STRIDE_LIMIT},
        {"cache.layer_stride", c->layer_stride, 0, STRIDE_LIMIT},
        {"cache.k_head_stride", c->k_head_stride, 0, STRIDE_LIMIT},
        {"cache.k_token_stride", c->k_token_stride, 0, STRIDE_LIMIT},
        {"cache.v_head_stride", c->v_head_stride, 0, STRIDE_LIMIT},
        {"cache.v_token_stride", c->v_token_stride, 0, STRIDE_LIMIT},
    };
    uint32_t element = bytes_of(c->dtype);
    int code = check_ranges(strides, sizeof(strides) / sizeof(*strides));

    if (code || device != KVA_DEVICE_CUDA)
        return code;
    for (uint32_t i = 0; i < sizeof(strides) / sizeof(*strides); i++)
        if (strides[i].value * element % 16)
            return kva_error_set(KVMEM_E_INVALID,
                                 "%s: %" PRIu64 " elements are no multiple of 16 bytes",
                                 strides[i].field, strides[i].value);
    if ((uintptr_t)c->k % 16 || (uintptr_t)c->v % 16)
        return kva_error_set(KVMEM_E_INVALID, "cache.%s: %p is no multiple of 16 bytes",
                             (uintptr_t)c->k % 16 ? "k" : "v", (uintptr_t)c->k % 16 ? c->k : c->v);
    return 0;
}

static int check_scales(const struct kva_cache *c)
{
    uint32_t is_quantised = bytes_of(c->dtype) == 1;
    const struct range strides[] = {
        {"cache.scale_block_stride", c->scale_block_stride, 0, STRIDE_LIMIT},
        {"cache.scale_layer_stride", c->scale_layer_stride, 0, STRIDE_LIMIT},
        {"cache.scale_head_stride", c->scale_head_stride, 0, STRIDE_LIMIT},
        {"cache.scale_token_stride", c->scale_token_stride, 0, STRIDE_LIMIT},
    };

    if (!is_quantised)
        return 0;
    if (c->scale_dtype < KVMEM_DTYPE_BF16 || c->scale_dtype > KVMEM_DTYPE_FP32)
        return invalid_u64("cache.scale_dtype", c->scale_dtype, KVMEM_DTYPE_BF16, KVMEM_DTYPE_FP32);
    if (!c->k_scale || !c->v_scale)
        return kva_error_set(KVMEM_E_INVALID, "cache.%s: is NULL, a quantised cache has scales",
                             c->k_scale ? "v_scale" : "k_scale");
    return check_ranges(strides, sizeof(strides) / sizeof(*strides));
}

static int check_cache(const struct kva_cache *c, uint32_t device)
{
    const struct range ranges[] = {
        {"cache.dtype", c->dtype, KVMEM_DTYPE_BF16, KVMEM_DTYPE_INT8},
        {"cache.block_tokens", c->block_tokens, 1, 4096},
        {"cache.block_count", c->block_count, 1, INT32_MAX},
        {"cache.layer_count", c->layer_count, 1, 1024},
        {"cache.kv_head_count", c->kv_head_count, 1, 1024},
        {"cache.head_dim_k", c->head_dim_k, 1, 4096},
        {"cache.head_dim_v", c->head_dim_v, 1, 4096},
    };
    int code = check_ranges(ranges, sizeof(ranges) / sizeof(*ranges));

    if (!code && (!c->k || !c->v))
        return kva_error_set(KVMEM_E_INVALID, "cache.%s: is NULL", c->k ? "v" : "k");
    if (!code && c->k == c->v && c->head_dim_v > c->head_dim_k)
        return invalid_u64("cache.head_dim_v", c->head_dim_v, 1, c->head_dim_k);
    if (!code)
        code = check_strides(c, device);
    return code ? code : check_scales(c);
}

static int check_batch(const struct kva_batch *b, uint32_t block_tokens)
{
    const struct range ranges[] = {
        {"batch.seq_count", b->seq_count, 0, 1u << 20},
        {"batch.q_max", b->q_max, b->q_total ? 1 : 0, 1u << 24},
        {"batch.q_total", b->q_total, 0, 1u << 24},
        {"batch.kv_max", b->kv_max, 0, (uint64_t)b->table_stride * block_tokens},
        {"batch.reserved", b->reserved, 0, 0},
    };
    int code = check_ranges(ranges, sizeof(ranges) / sizeof(*ranges));

    if (code || !b->seq_count)
        return code;
    if (!b->tables || !b->kv_lengths)
        return kva_error_set(KVMEM_E_INVALID, "batch.%s: is NULL",
                             b->tables ? "kv_lengths" : "tables");
    if (!b->q_offsets && (uint64_t)b->seq_count * b->q_max > b->q_total)
        return kva_error_set(KVMEM_E_INVALID,
                             "batch.q_total: %u are less than %u sequences of q_max %u rows",
                             b->q_total, b->seq_count, b->q_max);
    return 0;
}

struct array {
    const char *field;
    const void *array;
    uint32_t multiple;
};

/* Arrays of a type lie at multiples of its size; NULL is none. */
static int check_arrays(const struct array *arrays, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if ((uintptr_t)arrays[i].array % arrays[i].multiple)
            return kva_error_set(KVMEM_E_INVALID, "%s: %p is no multiple of %u bytes",
                                 arrays[i].field, arrays[i].array, arrays[i].multiple);
    return 0;
}

#define CHECK_ARRAYS(arrays) check_arrays(arrays, sizeof(arrays) / sizeof(*(arrays)))

static int check_cache_arrays(const struct kva_cache *c)
{
    uint32_t element = bytes_of(c->dtype);
    uint32_t scale = element == 1 ? bytes_of(c->scale_dtype) : 1;
    const struct array arrays[] = {
        {"cache.k", c->k, element},
        {"cache.v", c->v, element},
        {"cache.k_scale", c->k_scale, scale},
        {"cache.v_scale", c->v_scale, scale},
    };

    return CHECK_ARRAYS(arrays);
}

static int check_aligned(const struct kva_attention *a)
{
    const struct array arrays[] = {
        {"batch.tables", a->batch.tables, 4},       {"batch.kv_lengths", a->batch.kv_lengths, 4},
        {"batch.q_offsets", a->batch.q_offsets, 4}, {"sinks", a->sinks, 4},
        {"alibi_slopes", a->alibi_slopes, 4},       {"tree_mask", a->tree_mask, 8},
    };
    int code = check_cache_arrays(&a->cache);

    return code ? code : CHECK_ARRAYS(arrays);
}

static int check_device(uint32_t device)
{
    if (device == KVA_DEVICE_CPU || device == KVA_DEVICE_CUDA)
        return 0;
    return invalid_u64("device", device, KVA_DEVICE_CPU, KVA_DEVICE_CUDA);
}

static int check_heads(const struct kva_attention *a)
{
    if (!a->q_head_count || a->q_head_count % a->cache.kv_head_count || a->q_head_count > 4096)
        return kva_error_set(
            KVMEM_E_INVALID,
            "q_head_count: %u is no multiple of cache.kv_head_count %u, or outside "
            "1..4096",
            a->q_head_count, a->cache.kv_head_count);
    if (a->dtype < KVMEM_DTYPE_BF16 || a->dtype > KVMEM_DTYPE_FP32)
        return invalid_u64("dtype", a->dtype, KVMEM_DTYPE_BF16, KVMEM_DTYPE_FP32);
    return 0;
}

static int is_usable(float value)
{
    return value >= 0 && value <= FLT_MAX;
}

static int check_masks(const struct kva_attention *a)
{
    if (a->flags & ~(uint32_t)(KVA_CAUSAL | KVA_BATCH_INVARIANT))
        return kva_error_set(KVMEM_E_INVALID, "flags: %#x has bits that mean nothing", a->flags);
    if (!is_usable(a->softmax_scale) || !is_usable(a->soft_cap))
        return kva_error_set(
            KVMEM_E_INVALID, "%s: %g is negative, infinite or no number",
            is_usable(a->softmax_scale) ? "soft_cap" : "softmax_scale",
            (double)(is_usable(a->softmax_scale) ? a->soft_cap : a->softmax_scale));
    if (a->tree_mask && (a->flags & KVA_CAUSAL || a->batch.q_max > 64))
        return kva_error_set(KVMEM_E_INVALID,
                             "tree_mask: goes without KVA_CAUSAL, with q_max %u at most 64",
                             a->batch.q_max);
    if (a->window_tokens && !(a->flags & KVA_CAUSAL) && !a->tree_mask)
        return kva_error_set(KVMEM_E_INVALID,
                             "window_tokens: %u needs KVA_CAUSAL or a tree_mask (remedy: set it)",
                             a->window_tokens);
    return 0;
}

static int check_rows(const struct kva_attention *a)
{
    const struct range ranges[] = {
        {"batch.q_max × query heads a K/V head",
         (uint64_t)a->batch.q_max * (a->q_head_count / a->cache.kv_head_count), 0, INT32_MAX},
        {"q_token_stride", a->q_token_stride, 0, STRIDE_LIMIT},
        {"q_head_stride", a->q_head_stride, 0, STRIDE_LIMIT},
        {"out_token_stride", a->out_token_stride, 0, STRIDE_LIMIT},
        {"out_head_stride", a->out_head_stride, 0, STRIDE_LIMIT},
        {"reserved", a->reserved, 0, 0},
    };

    return check_ranges(ranges, sizeof(ranges) / sizeof(*ranges));
}

int kva_check_attention(const struct kva_attention *a)
{
    int code;

    if (!a || a->size != sizeof(*a))
        return kva_error_set(KVMEM_E_INVALID, "size: must be %zu, the struct's own size",
                             sizeof(*a));
    code = check_device(a->device);
    if (!code)
        code = check_cache(&a->cache, a->device);
    if (!code)
        code = check_batch(&a->batch, a->cache.block_tokens);
    if (!code)
        code = check_heads(a);
    if (!code)
        code = check_rows(a);
    if (!code)
        code = check_aligned(a);
    return code ? code : check_masks(a);
}

static int check_write_ranges(const struct kva_write *w)
{
    const struct range ranges[] = {
        {"device", w->device, KVA_DEVICE_CPU, KVA_DEVICE_CUDA},
        {"token_count", w->token_count, 0, 1u << 24},
        {"dtype", w->dtype, KVMEM_DTYPE_BF16, KVMEM_DTYPE_FP32},
        {"rotary_interleaved", w->rotary_interleaved, 0, 1},
        {"rotary_limit", w->rotary_limit, 0, INT32_MAX},
        {"reserved", w->reserved, 0, 0},
    };

    return check_ranges(ranges, sizeof(ranges) / sizeof(*ranges));
}

/* Computed scales need a place each; none of their strides may share one. */
static int check_computed_scales(const struct kva_cache *c)
{
    const struct {
        const char *field;
        uint64_t stride;
        uint32_t count;
    } strides[] = {
        {"cache.scale_block_stride", c->scale_block_stride, c->block_count},
        {"cache.scale_layer_stride", c->scale_layer_stride, c->layer_count},
        {"cache.scale_head_stride", c->scale_head_stride, c->kv_head_count},
    };

    if (bytes_of(c->dtype) != 1 || !c->scale_token_stride)
        return 0;
    for (uint32_t i = 0; i < sizeof(strides) / sizeof(*strides); i++)
        if (!strides[i].stride && strides[i].count > 1)
            return kva_error_set(KVMEM_E_INVALID,
                                 "%s: is 0, though scales are one a token (cache."
                                 "scale_token_stride %" PRIu64 ") and %u would share them",
                                 strides[i].field, c->scale_token_stride, strides[i].count);
    return 0;
}

static int check_write_arrays(const struct kva_write *w)
{
    const struct array arrays[] = {
        {"slots", w->slots, 8},
        {"rotary_cos_sin", w->rotary_cos_sin, 4},
        {"positions", w->positions, 4},
    };
    int code = check_cache_arrays(&w->cache);

    return code ? code : CHECK_ARRAYS(arrays);
}

int kva_check_write(const struct kva_write *w, uint32_t layer, uint32_t layers)
{
    int code;

    if (!w || w->size != sizeof(*w))
        return kva_error_set(KVMEM_E_INVALID, "size: must be %zu, the struct's own size",
                             sizeof(*w));
    code = check_write_ranges(w);
    if (!code)
        code = check_cache(&w->cache, w->device);
    if (!code)
        code = check_computed_scales(&w->cache);
    if (!code)
        code = check_write_arrays(w);
    if (code)
        return code;
    if ((uint64_t)layer + layers > w->cache.layer_count)
        return kva_error_set(KVMEM_E_INVALID, "layer: %u and %u more are outside 0..%u", layer,
                             layers, w->cache.layer_count - 1);
    if (w->token_count && !w->slots)
        return kva_error_set(KVMEM_E_INVALID, "slots: is NULL");
    if (w->rotary_dim % 2 || (uint64_t)w->rotary_first + w->rotary_dim > w->cache.head_dim_k)
        return kva_error_set(KVMEM_E_INVALID,
                             "rotary_dim: %u from element %u is odd, or more than head_dim_k %u",
                             w->rotary_dim, w->rotary_first, w->cache.head_dim_k);
    if (w->rotary_dim && (!w->rotary_cos_sin || !w->positions || !w->rotary_limit))
        return kva_error_set(KVMEM_E_INVALID,
                             "rotary_cos_sin, positions, rotary_limit: needed with rotary_dim");
    return 0;
}

int kva_check_merge(const struct kva_merge *m)
{
    if (!m || m->size != sizeof(*m))
        return kva_error_set(KVMEM_E_INVALID, "size: must be %zu, the struct's own size",
                             sizeof(*m));
    {
        const struct range ranges[] = {
            {"device", m->device, KVA_DEVICE_CPU, KVA_DEVICE_CUDA},
            {"part_count", m->part_count, 1, 256},
            {"row_count", m->row_count, 0, 1u << 24},
            {"head_count", m->head_count, 0, 4096},
            {"head_dim", m->head_dim, 1, 1024},
            {"part_dtype", m->part_dtype, KVMEM_DTYPE_BF16, KVMEM_DTYPE_FP32},
            {"dtype", m->dtype, KVMEM_DTYPE_BF16, KVMEM_DTYPE_FP32},
        };
        int code = check_ranges(ranges, sizeof(ranges) / sizeof(*ranges));

        if (code)
            return code;
    }
    if (m->device == KVA_DEVICE_CUDA && m->head_dim % 8)
        return kva_error_set(KVMEM_E_NOT_SUPPORTED, "head_dim: %u is no multiple of 8 on a GPU",
                             m->head_dim);
    return 0;
}

int kva_check_rows(const struct kva_attention *a, const void *q, const void *out, const float *lse)
{
    const struct array arrays[] = {
        {"q", q, bytes_of(a->dtype)},
        {"out", out, bytes_of(a->dtype)},
        {"lse", lse, 4},
    };

    if (!q || !out)
        return kva_error_set(KVMEM_E_INVALID, "%s: is NULL", q ? "out" : "q");
    return CHECK_ARRAYS(arrays);
}

int kva_check_sources(const struct kva_write *w, const void *k, const void *v)
{
    const struct array arrays[] = {{"k", k, bytes_of(w->dtype)}, {"v", v, bytes_of(w->dtype)}};

    return k ? CHECK_ARRAYS(arrays) : kva_error_set(KVMEM_E_INVALID, "k: is NULL");
}

int kva_check_parts(const struct kva_merge *m, const void *parts, const float *part_lse,
                    const void *out, const float *lse)
{
    const struct array arrays[] = {
        {"parts", parts, bytes_of(m->part_dtype)},
        {"part_lse", part_lse, 4},
        {"out", out, bytes_of(m->dtype)},
        {"lse", lse, 4},
    };

    if (!parts || !part_lse || !out)
        return kva_error_set(KVMEM_E_INVALID, "%s: is NULL",
                             !parts      ? "parts"
                             : !part_lse ? "part_lse"
                                         : "out");
    return CHECK_ARRAYS(arrays);
}
