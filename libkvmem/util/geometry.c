/* SPDX-License-Identifier: Apache-2.0
 *
 * Where everything lies in a block, and how large a segment is (DESIGN rule 6).
 *
 *   block   = layer 0 | layer 1 | ...                        layer_count layers, back to back
 *   layer   = K | V | K scales | V scales | 0..              V and the scales where there are any
 *   K       = (head, token, dim) in PAGE_HEAD_TOKEN, (token, head, dim) in PAGE_TOKEN_HEAD
 *   scales  = (head, token), or (head) with KVMEM_SCALE_HEAD
 *
 * TOKEN_MAJOR turns it around, so that a run of blocks is one tensor over tokens:
 *
 *   block   = token 0 | token 1 | ...                        block_tokens tokens, back to back
 *   token   = layer 0 | layer 1 | ...
 *   layer   = K (head, dim) | V | K scales (head) | V scales | 0..
 *
 * V, the K scales and the layer begin at multiples of 16 bytes, so that kernels load vectors; with
 * the shapes of real models nothing has to be rounded for that. block_bytes is therefore a
 * multiple of 16, as every stride is.
 *
 *   segment_bytes = blocks_per_segment × index_stride_bytes
 *   padding_ratio = 1 − block_bytes ÷ index_stride_bytes <= 0.01
 *
 * The segment: candidates are the multiples of the granule from half to five times the target, by
 * their distance from it (of two, the smaller first); the first that an exact stride pads at most
 * 1 % is taken, with as many blocks as it then holds. The target is the smaller of 64 MiB and 1/64
 * of the device, but at least a granule and a block.
 *
 * With KVMEM_SPACE_REGIONS a segment is one block, and a block whole granules: blocks mapped back
 * to back then show no gap. Nothing is padded, or the plan is refused.
 *
 * How long it takes: within 1 % either the counts or the strides to try are fewer than
 * sqrt(segment ÷ 16) ÷ 100, at most 60 or so; a candidate fails only while the granule is above
 * about 1 % of the block, which leaves a few hundred candidates at most.
 *
 * Pure: the directory and all clients compute the same from the same options.
 */
#include "util/geometry.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "util/error.h"

#define ALIGNMENT         UINT64_C(16)
#define TARGET_BYTES      (UINT64_C(64) << 20)
#define TARGETS_A_DEVICE  64
#define COUNT_MAX         (1u << 24)
#define BLOCK_TOKENS_MAX  4096u
#define DEVICE_LIMIT      16u
#define GRANULE_BYTES_MIN UINT64_C(4096)
#define GRANULE_BYTES_MAX (UINT64_C(1) << 40)

static uint64_t aligned(uint64_t bytes)
{
    return (bytes + ALIGNMENT - 1) & ~(ALIGNMENT - 1);
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t most(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

uint32_t kvi_geometry_dtype_bytes(uint32_t dtype)
{
    switch (dtype) {
    case KVMEM_DTYPE_FP8_E4M3:
    case KVMEM_DTYPE_INT8: return 1;
    case KVMEM_DTYPE_BF16:
    case KVMEM_DTYPE_FP16: return 2;
    case KVMEM_DTYPE_FP32: return 4;
    default: return 0;
    }
}

/* ---- inside a block ---- */

/* Strides of K or V, whose heads have `row` bytes a token. */
static void set_strides(const struct kvi_geometry_input *input, uint64_t row, uint64_t *head_stride,
                        uint64_t *token_stride)
{
    if (input->layout == KVMEM_LAYOUT_PAGE_TOKEN_HEAD ||
        input->layout == KVMEM_LAYOUT_TOKEN_MAJOR) {
        *head_stride = row;
        *token_stride = input->group->kv_head_count * row;
    } else {
        *token_stride = row;
        *head_stride = input->block_tokens * row;
    }
}

/* Elements of K, V or their scales that lie together: of a block, or of a token. */
static uint64_t slots_of(const struct kvi_geometry_input *input)
{
    bool is_token_major = input->layout == KVMEM_LAYOUT_TOKEN_MAJOR;

    return (is_token_major ? 1 : (uint64_t)input->block_tokens) * input->group->kv_head_count;
}

static uint64_t scale_bytes_of(const struct kvi_geometry_input *input)
{
    const struct kvmem_group_options *group = input->group;
    uint64_t scales = group->scale_mode == KVMEM_SCALE_HEAD         ? group->kv_head_count
                      : group->scale_mode == KVMEM_SCALE_TOKEN_HEAD ? slots_of(input)
                                                                    : 0;

    return scales * kvi_geometry_dtype_bytes(group->scale_dtype);
}

/* All strides, once the layer's is known. */
static void set_all_strides(const struct kvi_geometry_input *input, struct kvmem_geometry *out)
{
    const struct kvmem_group_options *group = input->group;
    uint64_t token_bytes = group->layer_count * out->layer_stride_bytes;

    set_strides(input, group->head_dim_k * kvi_geometry_dtype_bytes(group->dtype_k),
                &out->k_head_stride_bytes, &out->k_token_stride_bytes);
    if (out->v_offset_bytes)
        set_strides(input, group->head_dim_v * kvi_geometry_dtype_bytes(group->dtype_v),
                    &out->v_head_stride_bytes, &out->v_token_stride_bytes);
    out->block_bytes = token_bytes;
    if (input->layout != KVMEM_LAYOUT_TOKEN_MAJOR)
        return;
    out->block_bytes = input->block_tokens * token_bytes;
    out->k_token_stride_bytes = token_bytes;
    if (out->v_offset_bytes)
        out->v_token_stride_bytes = token_bytes;
}

/* Fills what does not depend on the segment. */
static void lay_out_block(const struct kvi_geometry_input *input, struct kvmem_geometry *out)
{
    const struct kvmem_group_options *group = input->group;
    uint64_t slots = slots_of(input);
    uint64_t k_bytes = slots * group->head_dim_k * kvi_geometry_dtype_bytes(group->dtype_k);
    uint64_t v_bytes = slots * group->head_dim_v * kvi_geometry_dtype_bytes(group->dtype_v);
    uint64_t scale_bytes = scale_bytes_of(input);
    uint64_t end = k_bytes;

    memset(out, 0, sizeof(*out));
    out->size = sizeof(*out);
    out->block_tokens = input->block_tokens;
    if (v_bytes) {
        out->v_offset_bytes = aligned(end);
        end = out->v_offset_bytes + v_bytes;
    }
    if (scale_bytes) {
        out->k_scale_offset_bytes = aligned(end);
        end = out->k_scale_offset_bytes + scale_bytes;
    }
    if (scale_bytes && v_bytes) {
        out->v_scale_offset_bytes = end;
        end += scale_bytes;
    }
    out->layer_stride_bytes = aligned(end);
    set_all_strides(input, out);
}

/* ---- the segment ---- */

uint32_t kvi_geometry_fit(uint64_t block_bytes, uint64_t segment_bytes, uint32_t count_min)
{
    uint64_t block = block_bytes / ALIGNMENT;
    uint64_t segment = segment_bytes / ALIGNMENT;
    uint64_t count = least(segment / block, COUNT_MAX);
    uint64_t stride;

    if (count_min == 0)
        count_min = 1;
    if (count < count_min)
        return 0;
    stride = most(block, (segment + COUNT_MAX - 1) / COUNT_MAX);
    if (count - count_min < segment / count_min - stride) {
        for (; count >= count_min; count--)
            if (segment % count == 0)
                return (uint32_t)count;
        return 0;
    }
    for (; stride <= segment / count_min; stride++)
        if (segment % stride == 0)
            return (uint32_t)(segment / stride);
    return 0;
}

/* Blocks of a segment of that size at which it pads at most 1 %, or 0. */
static uint32_t count_within_padding(uint64_t block_bytes, uint64_t segment_bytes)
{
    /* n × block >= 0.99 × segment  <=>  n >= 99 × segment ÷ (100 × block), rounded up. */
    uint64_t count_min = (segment_bytes * 99 + block_bytes * 100 - 1) / (block_bytes * 100);

    if (count_min > COUNT_MAX)
        return 0;
    return kvi_geometry_fit(block_bytes, segment_bytes, (uint32_t)count_min);
}

static uint64_t target_of(uint64_t block_bytes, uint64_t device_bytes, uint64_t granule_bytes)
{
    return most(most(least(TARGET_BYTES, device_bytes / TARGETS_A_DEVICE), granule_bytes),
                block_bytes);
}

/* A segment for one block. False when that is not whole granules. */
static bool choose_block(const struct kvi_geometry_input *input, struct kvmem_geometry *out)
{
    if (out->block_bytes % input->granule_bytes)
        return false;
    out->segment_bytes = out->block_bytes;
    out->index_stride_bytes = out->block_bytes;
    out->blocks_per_segment = 1;
    return true;
}

/* Choose the segment for out->block_bytes. False when none pads at most 1 %. */
static bool choose_segment(const struct kvi_geometry_input *input, struct kvmem_geometry *out)
{
    uint64_t device_bytes = input->device_bytes;
    uint64_t granule_bytes = input->granule_bytes;
    uint64_t target = target_of(out->block_bytes, device_bytes, granule_bytes);
    uint64_t low = (target + 1) / 2;
    uint64_t high = least(5 * target, device_bytes);
    uint64_t below = target / granule_bytes * granule_bytes;
    uint64_t above = below + granule_bytes;
    uint64_t segment = 0;
    uint32_t count = 0;

    while (count == 0) {
        bool has_below = below >= low && below > 0;
        bool has_above = above <= high;

        if (has_below && (!has_above || target - below <= above - target)) {
            segment = below;
            below -= granule_bytes;
        } else if (has_above) {
            segment = above;
            above += granule_bytes;
        } else {
            return false;
        }
        if (segment >= out->block_bytes && segment <= high)
            count = count_within_padding(out->block_bytes, segment);
    }
    out->segment_bytes = segment;
    out->blocks_per_segment = count;
    out->index_stride_bytes = segment / count;
    out->padding_ratio = 1.0 - (double)out->block_bytes / (double)out->index_stride_bytes;
    return true;
}

/* Index range: twice what the device holds at once, so that a segment that is gone but not yet
 * unmapped by everybody does not keep a new one from its place. Indices are int32. */
static uint32_t segment_limit_of(const struct kvmem_geometry *geometry, uint64_t device_bytes)
{
    uint64_t segments = device_bytes / geometry->segment_bytes;

    segments = least(segments, KVI_SEGMENT_LIMIT) * 2;
    segments = least(segments, (uint64_t)INT32_MAX / geometry->blocks_per_segment);
    return (uint32_t)least(segments, KVI_SEGMENT_LIMIT);
}

/* Lay out and choose: the whole plan, but for the segment limit. */
static bool does_fit(const struct kvi_geometry_input *input, struct kvmem_geometry *out)
{
    lay_out_block(input, out);
    if (out->block_bytes > input->device_bytes)
        return false;
    return input->flags & KVMEM_SPACE_REGIONS ? choose_block(input, out)
                                              : choose_segment(input, out);
}

static bool does_fit_with(const struct kvi_geometry_input *input, uint32_t block_tokens)
{
    struct kvi_geometry_input other = *input;
    struct kvmem_geometry trial;

    other.block_tokens = block_tokens;
    return does_fit(&other, &trial);
}

/* The block_tokens nearest to the one given that works (of two, the smaller); 0 = none. */
static uint32_t nearest_block_tokens(const struct kvi_geometry_input *input)
{
    uint32_t block_tokens = input->block_tokens;

    for (uint32_t distance = 1; distance < BLOCK_TOKENS_MAX; distance++) {
        if (distance < block_tokens && does_fit_with(input, block_tokens - distance))
            return block_tokens - distance;
        if (block_tokens + distance <= BLOCK_TOKENS_MAX &&
            does_fit_with(input, block_tokens + distance))
            return block_tokens + distance;
    }
    return 0;
}

static uint32_t smallest_block_tokens(const struct kvi_geometry_input *input)
{
    for (uint32_t tokens = 1; tokens <= BLOCK_TOKENS_MAX; tokens++)
        if (does_fit_with(input, tokens))
            return tokens;
    return 0;
}

/* What to do about it, into `text` of `bytes` bytes. */
static void write_remedy(const struct kvi_geometry_input *input, char *text, size_t bytes)
{
    bool has_regions = input->flags & KVMEM_SPACE_REGIONS;
    uint32_t tokens = has_regions ? smallest_block_tokens(input) : nearest_block_tokens(input);

    if (tokens)
        snprintf(text, bytes, "%s that works: block_tokens %" PRIu32,
                 has_regions ? "smallest" : "nearest", tokens);
    else
        snprintf(text, bytes, "no block_tokens in 1..%u works", BLOCK_TOKENS_MAX);
}

static int refuse(const struct kvi_geometry_input *input, uint64_t block_bytes)
{
    uint64_t target = target_of(block_bytes, input->device_bytes, input->granule_bytes);
    char remedy[64];

    write_remedy(input, remedy, sizeof(remedy));
    if (block_bytes > input->device_bytes)
        return kvi_error_set(KVMEM_E_INVALID,
                             "block_tokens: %" PRIu32 " makes a block of %" PRIu64
                             " bytes on a device of %" PRIu64 "; %s",
                             input->block_tokens, block_bytes, input->device_bytes, remedy);
    if (input->flags & KVMEM_SPACE_REGIONS)
        return kvi_error_set(KVMEM_E_INVALID,
                             "block_tokens: %" PRIu32 " makes blocks of %" PRIu64
                             " bytes, for regions a multiple of the granule %" PRIu64
                             " is needed; %s",
                             input->block_tokens, block_bytes, input->granule_bytes, remedy);
    return kvi_error_set(KVMEM_E_INVALID,
                         "block_tokens: %" PRIu32 " makes blocks of %" PRIu64 " bytes, which no "
                         "segment of %" PRIu64 "..%" PRIu64 " bytes in steps of %" PRIu64
                         " pads at most 1 %%; %s",
                         input->block_tokens, block_bytes, (target + 1) / 2,
                         least(5 * target, input->device_bytes), input->granule_bytes, remedy);
}

/* ---- the options ---- */

static int check_range(const char *where, const char *name, uint64_t value, uint64_t min,
                       uint64_t max)
{
    if (value >= min && value <= max)
        return 0;
    return kvi_error_set(KVMEM_E_INVALID, "%s%s: %" PRIu64 " is outside %" PRIu64 "..%" PRIu64,
                         where, name, value, min, max);
}

static int check_group_scales(const char *where, const struct kvmem_group_options *group)
{
    bool has_scales =
        group->scale_mode == KVMEM_SCALE_HEAD || group->scale_mode == KVMEM_SCALE_TOKEN_HEAD;
    int rc;

    rc = check_range(where, "scale_mode", group->scale_mode, KVMEM_SCALE_NONE,
                     KVMEM_SCALE_TOKEN_HEAD);
    if (rc)
        return rc;
    rc = check_range(where, "scale_dtype", group->scale_dtype, KVMEM_DTYPE_NONE, KVMEM_DTYPE_FP32);
    if (rc)
        return rc;
    if (has_scales != (group->scale_dtype != KVMEM_DTYPE_NONE))
        return kvi_error_set(
            KVMEM_E_INVALID, "%sscale_dtype: %" PRIu32 ", expected %s with scale_mode %" PRIu32,
            where, group->scale_dtype, has_scales ? "BF16, FP16 or FP32 (1..3)" : "NONE (0)",
            group->scale_mode);
    return 0;
}

static int check_group(const char *where, const struct kvmem_group_options *group)
{
    int rc;

    if ((rc = check_range(where, "layer_count", group->layer_count, 1, 1024)) ||
        (rc = check_range(where, "kv_head_count", group->kv_head_count, 1, 1024)) ||
        (rc = check_range(where, "head_dim_k", group->head_dim_k, 1, 4096)) ||
        (rc = check_range(where, "head_dim_v", group->head_dim_v, 0, 4096)) ||
        (rc = check_range(where, "dtype_k", group->dtype_k, KVMEM_DTYPE_BF16, KVMEM_DTYPE_INT8)) ||
        (rc = check_range(where, "dtype_v", group->dtype_v, KVMEM_DTYPE_NONE, KVMEM_DTYPE_INT8)) ||
        (rc = check_group_scales(where, group)))
        return rc;
    if ((group->head_dim_v == 0) != (group->dtype_v == KVMEM_DTYPE_NONE))
        return kvi_error_set(KVMEM_E_INVALID,
                             "%sdtype_v: %" PRIu32 " with head_dim_v %" PRIu32
                             "; a group without V has NONE (0) and 0, one with V neither",
                             where, group->dtype_v, group->head_dim_v);
    if (group->window_tokens)
        return kvi_error_set(KVMEM_E_NOT_SUPPORTED,
                             "%swindow_tokens: %" PRIu32 "; only 0 (full attention) is supported",
                             where, group->window_tokens);
    return check_range(where, "reserved", group->reserved, 0, 0);
}

/* 0 = PAGE_HEAD_TOKEN, as in struct kvmem_space_options. */
static int check_layout(uint32_t layout)
{
    int rc = check_range("", "layout", layout, 0, KVMEM_LAYOUT_PER_LAYER);

    if (rc == 0 && layout == KVMEM_LAYOUT_PER_LAYER)
        return kvi_error_set(KVMEM_E_NOT_SUPPORTED,
                             "layout: %" PRIu32 "; only PAGE_HEAD_TOKEN (1), PAGE_TOKEN_HEAD (2) "
                             "and TOKEN_MAJOR (3) are supported",
                             layout);
    return rc;
}

/* One scale a block has no place among tokens. */
static int check_layout_scales(const char *where, uint32_t layout,
                               const struct kvmem_group_options *group)
{
    if (layout != KVMEM_LAYOUT_TOKEN_MAJOR || group->scale_mode != KVMEM_SCALE_HEAD)
        return 0;
    return kvi_error_set(KVMEM_E_INVALID,
                         "%sscale_mode: HEAD (2) is not possible with layout TOKEN_MAJOR (3); "
                         "TENSOR (1) or TOKEN_HEAD (3) is",
                         where);
}

static int check_one(const char *name, uint32_t value, uint32_t max)
{
    int rc = check_range("", name, value, 1, max);

    if (rc == 0 && value > 1)
        return kvi_error_set(KVMEM_E_NOT_SUPPORTED, "%s: %" PRIu32 "; only 1 is supported", name,
                             value);
    return rc;
}

static int check_string(const char *name, const char *value, size_t bytes_max)
{
    size_t bytes = value ? strnlen(value, bytes_max + 1) : 0;

    if (bytes >= 1 && bytes <= bytes_max)
        return 0;
    return kvi_error_set(KVMEM_E_INVALID, "%s: %s%zu bytes long, expected 1..%zu", name,
                         bytes > bytes_max ? "at least " : "", bytes, bytes_max);
}

static int check_tuning(const struct kvmem_space_options *options)
{
    int rc;

    if ((rc = check_range("", "low_water_blocks", options->low_water_blocks, 0, 1u << 30)) ||
        (rc = check_range("", "refill_blocks", options->refill_blocks, 0, 1u << 30)) ||
        (rc = check_range("", "seq_limit", options->seq_limit, 0, 1u << 20)) ||
        (rc = check_range("", "device", options->device, 0, DEVICE_LIMIT)) ||
        (rc = check_range("", "reserved", options->reserved, 0, 0)) ||
        (rc = check_range("", "flags", options->flags, 0, KVMEM_SPACE_REGIONS)))
        return rc;
    return 0;
}

int kvi_space_options_check(const struct kvmem_space_options *options)
{
    char where[24];
    int rc;

    if (!options)
        return kvi_error_set(KVMEM_E_INVALID, "options: NULL");
    if (options->size != sizeof(*options))
        return kvi_error_set(KVMEM_E_INVALID, "size: %" PRIu32 ", expected %zu", options->size,
                             sizeof(*options));
    if ((rc = check_layout(options->layout)) || (rc = check_string("name", options->name, 63)) ||
        (options->domain && (rc = check_string("domain", options->domain, 31))) ||
        (rc = check_range("", "block_tokens", options->block_tokens, 1, BLOCK_TOKENS_MAX)) ||
        (rc = check_one("group_count", options->group_count, KVMEM_GROUP_LIMIT)) ||
        (rc = check_one("shard_count", options->shard_count, KVMEM_SHARD_LIMIT)) ||
        (rc = check_range("", "shard_index", options->shard_index, 0, options->shard_count - 1)) ||
        (rc = check_tuning(options)))
        return rc;
    for (uint32_t i = 0; i < options->group_count; i++) {
        snprintf(where, sizeof(where), "groups[%" PRIu32 "].", i);
        rc = check_group(where, &options->groups[i]);
        if (!rc)
            rc = check_layout_scales(where, options->layout, &options->groups[i]);
        if (rc)
            return rc;
    }
    return 0;
}

static int check_device(uint64_t device_bytes, uint64_t granule_bytes)
{
    int rc = check_range("", "granule_bytes", granule_bytes, GRANULE_BYTES_MIN, GRANULE_BYTES_MAX);

    if (rc)
        return rc;
    if (granule_bytes & (granule_bytes - 1))
        return kvi_error_set(KVMEM_E_INVALID, "granule_bytes: %" PRIu64 " is no power of two",
                             granule_bytes);
    return check_range("", "device_bytes", device_bytes, granule_bytes, UINT64_MAX);
}

int kvi_geometry_plan(const struct kvi_geometry_input *input, struct kvmem_geometry *out)
{
    struct kvmem_geometry plan;
    int rc;

    if ((rc = check_layout(input->layout)) ||
        (rc = check_range("", "flags", input->flags, 0, KVMEM_SPACE_REGIONS)) ||
        (rc = check_range("", "block_tokens", input->block_tokens, 1, BLOCK_TOKENS_MAX)) ||
        (rc = check_group("", input->group)) ||
        (rc = check_layout_scales("", input->layout, input->group)) ||
        (rc = check_device(input->device_bytes, input->granule_bytes)))
        return rc;
    if (!does_fit(input, &plan))
        return refuse(input, plan.block_bytes);
    plan.segment_limit = segment_limit_of(&plan, input->device_bytes);
    *out = plan;
    return 0;
}
