/* SPDX-License-Identifier: Apache-2.0
 *
 * Geometry: the table of measured paddings (which models pad how much, in which segments), the
 * examples of the design, strides of all layouts against an address computed the slow way, small
 * pools, and every option at and outside its limits.
 *
 * Each test counts its cases and fails when it did fewer than it should.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "util/geometry.h"

#define KIB       UINT64_C(1024)
#define MIB       (UINT64_C(1) << 20)
#define GIB       (UINT64_C(1) << 30)
#define BIG       (138 * GIB)
#define GRANULE   (2 * MIB)
#define WANT(...) cr_assert(__VA_ARGS__)

static struct kvmem_group_options group_of(uint32_t layers, uint32_t heads, uint32_t dim,
                                           uint32_t dtype)
{
    struct kvmem_group_options group = {.layer_count = layers,
                                        .kv_head_count = heads,
                                        .head_dim_k = dim,
                                        .head_dim_v = dim,
                                        .dtype_k = dtype,
                                        .dtype_v = dtype};
    return group;
}

static struct kvmem_group_options latent_of(uint32_t layers, uint32_t dim, uint32_t dtype)
{
    struct kvmem_group_options group = group_of(layers, 1, dim, dtype);

    group.head_dim_v = 0;
    group.dtype_v = KVMEM_DTYPE_NONE;
    return group;
}

static struct kvmem_group_options scaled_of(struct kvmem_group_options group, uint32_t mode,
                                            uint32_t dtype)
{
    group.scale_mode = mode;
    group.scale_dtype = dtype;
    return group;
}

static int plan_of(uint32_t layout, uint32_t block_tokens, const struct kvmem_group_options *group,
                   uint64_t device_bytes, uint64_t granule_bytes, struct kvmem_geometry *out)
{
    struct kvi_geometry_input input = {.layout = layout,
                                       .block_tokens = block_tokens,
                                       .group = group,
                                       .device_bytes = device_bytes,
                                       .granule_bytes = granule_bytes};

    return kvi_geometry_plan(&input, out);
}

static int plan_regions(uint32_t layout, uint32_t block_tokens,
                        const struct kvmem_group_options *group, uint64_t device_bytes,
                        struct kvmem_geometry *out)
{
    struct kvi_geometry_input input = {.layout = layout,
                                       .flags = KVMEM_SPACE_REGIONS,
                                       .block_tokens = block_tokens,
                                       .group = group,
                                       .device_bytes = device_bytes,
                                       .granule_bytes = GRANULE};

    return kvi_geometry_plan(&input, out);
}

/* ---- the table ---- */

static double padding_at(uint64_t block, uint64_t segment)
{
    uint64_t count = kvi_geometry_fit(block, segment, 1);

    return count ? 1.0 - (double)(block * count) / (double)segment : 1.0;
}

static double best_padding(uint64_t block, uint64_t low, uint64_t high)
{
    double best = 1.0;

    for (uint64_t segment = low; segment <= high; segment += GRANULE)
        if (padding_at(block, segment) < best)
            best = padding_at(block, segment);
    return best;
}

static uint64_t smallest_segment(uint64_t block)
{
    uint64_t segment = GRANULE;

    while (padding_at(block, segment) > 0.01)
        segment += GRANULE;
    return segment;
}

static const struct row {
    const char *name;
    struct kvmem_group_options group;
    uint64_t block_bytes;
    double at_64_mib; /* percent */
    double best_48_to_80;
    uint64_t zero_at[2]; /* MiB; segments that pad nothing */
    uint64_t smallest;   /* MiB */
} rows[] = {
    /* layers, heads, dim; bf16 = 1, fp8 = 4, int8 = 5 */
    {"Llama-3.1-8B", {32, 8, 128, 128, 1, 1, 0, 0, 0, 0}, 2 * MIB, 0, 0, {64, 64}, 2},
    {"Qwen3-32B", {64, 8, 128, 128, 1, 1, 0, 0, 0, 0}, 4 * MIB, 0, 0, {64, 64}, 4},
    {"Llama-70B TP1", {80, 8, 128, 128, 1, 1, 0, 0, 0, 0}, 5 * MIB, 37.5, 0, {50, 60}, 10},
    {"Llama-70B TP8", {80, 1, 128, 128, 1, 1, 0, 0, 0, 0}, 640 * KIB, 37.5, 0, {50, 60}, 10},
    {"Qwen3-8B", {36, 8, 128, 128, 1, 1, 0, 0, 0, 0}, 2304 * KIB, 43.8, 0, {54, 54}, 18},
    {"Qwen2.5-0.5B", {24, 2, 64, 64, 1, 1, 0, 0, 0, 0}, 192 * KIB, 25, 0, {48, 48}, 6},
    {"DeepSeek-V3", {61, 1, 576, 0, 1, 0, 0, 0, 0, 0}, 1124352, 46.4, 1.96, {0, 0}, 138},
    {"DeepSeek fp8", {61, 1, 656, 0, 4, 0, 0, 0, 0, 0}, 640256, 38.9, 2.3, {0, 0}, 314},
    {"Gemma-3-27B local", {52, 16, 128, 128, 1, 1, 0, 0, 0, 0}, 6656 * KIB, 18.8, 0, {52, 52}, 26},
    {"Gemma-3-27B global", {10, 16, 128, 128, 1, 1, 0, 0, 0, 0}, 1280 * KIB, 37.5, 0, {50, 60}, 10},
    {"Llama-8B int8", {32, 8, 128, 128, 5, 5, 3, 2, 0, 0}, 1064960, 49.2, 1.5, {0, 0}, 130},
};

static int is_near(double value, double percent, double step)
{
    double difference = value * 100 - percent;

    return difference <= step && difference >= -step;
}

Test(geometry, the_table_of_measured_paddings)
{
    unsigned cases = 0;

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const struct row *row = &rows[i];
        struct kvmem_geometry geometry;
        int rc = plan_of(0, 16, &row->group, BIG, GRANULE, &geometry);

        WANT(rc == 0, "%s: %s", row->name, kvmem_error_detail()->text);
        WANT(geometry.block_bytes == row->block_bytes, "%s: %" PRIu64, row->name,
             geometry.block_bytes);
        WANT(geometry.padding_ratio <= 0.01);
        WANT(is_near(padding_at(row->block_bytes, 64 * MIB), row->at_64_mib, 0.051), "%s: %f",
             row->name, padding_at(row->block_bytes, 64 * MIB));
        WANT(is_near(best_padding(row->block_bytes, 48 * MIB, 80 * MIB), row->best_48_to_80, 0.051),
             "%s: %f", row->name, best_padding(row->block_bytes, 48 * MIB, 80 * MIB));
        for (int k = 0; k < 2 && row->zero_at[k]; k++)
            WANT(padding_at(row->block_bytes, row->zero_at[k] * MIB) == 0, "%s", row->name);
        WANT(smallest_segment(row->block_bytes) == row->smallest * MIB, "%s: %" PRIu64, row->name,
             smallest_segment(row->block_bytes) / MIB);
        cases++;
    }
    WANT(cases >= 11);
}

/* "32 and 64 give the same padding" */
Test(geometry, larger_blocks_pad_the_same_at_64_mib)
{
    unsigned cases = 0;

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        for (uint32_t times = 2; times <= 4; times *= 2) {
            uint64_t block = rows[i].block_bytes;

            if (block * times > 8 * MIB || rows[i].group.scale_mode || block % KIB)
                continue;
            WANT(padding_at(block * times, 64 * MIB) == padding_at(block, 64 * MIB), "%s",
                 rows[i].name);
            cases++;
        }
    WANT(cases >= 8, "%u", cases);
}

Test(geometry, the_examples_of_the_design)
{
    static const struct example {
        size_t row;
        uint64_t segment_bytes;
        uint32_t blocks;
        uint64_t stride;
    } examples[] = {{0, 64 * MIB, 32, 2 * MIB},
                    {2, 60 * MIB, 12, 5 * MIB},
                    {6, 138 * MIB, 128, 1130496},
                    {10, 130 * MIB, 128, 1064960}};
    struct kvmem_geometry geometry;
    unsigned cases = 0;

    for (size_t i = 0; i < sizeof(examples) / sizeof(examples[0]); i++) {
        const struct example *e = &examples[i];

        WANT(plan_of(1, 16, &rows[e->row].group, BIG, GRANULE, &geometry) == 0);
        WANT(geometry.segment_bytes == e->segment_bytes, "%s: %" PRIu64, rows[e->row].name,
             geometry.segment_bytes);
        WANT(geometry.blocks_per_segment == e->blocks, "%" PRIu32, geometry.blocks_per_segment);
        WANT(geometry.index_stride_bytes == e->stride);
        WANT(geometry.index_stride_bytes * geometry.blocks_per_segment == geometry.segment_bytes);
        cases++;
    }
    WANT(geometry.padding_ratio == 0);
    WANT(cases == 4);
}

static const struct claim {
    size_t row;
    uint32_t block_tokens;
    bool is_exact; /* pads nothing: a space with regions may have it */
} claims[] = {{0, 16, true},  {1, 16, true},  {2, 32, true},   {4, 128, true},
              {3, 256, true}, {5, 512, true}, {6, 2048, false}};

/* One segment a block: the smallest power of two of tokens, 16 or more, at which a multiple of
 * the granule holds one block at <= 1 %. */
Test(geometry, one_segment_a_block)
{
    unsigned cases = 0;

    for (size_t i = 0; i < sizeof(claims) / sizeof(claims[0]); i++) {
        uint32_t tokens = 16;
        uint64_t block = rows[claims[i].row].block_bytes;
        uint64_t segment = (block + GRANULE - 1) / GRANULE * GRANULE;

        while ((segment - block) * 100 > segment) {
            tokens *= 2;
            block *= 2;
            segment = (block + GRANULE - 1) / GRANULE * GRANULE;
        }
        WANT(tokens == claims[i].block_tokens, "%s: %u", rows[claims[i].row].name, tokens);
        WANT((segment == block) == claims[i].is_exact, "%s", rows[claims[i].row].name);
        cases++;
    }
    WANT(cases == 7);
}

/* ---- regions ---- */

/* The table's rows that pad nothing are accepted as they stand, half of them is refused. */
Test(geometry, regions_take_what_the_table_says)
{
    struct kvmem_geometry g;
    unsigned cases = 0;

    for (size_t i = 0; i < sizeof(claims) / sizeof(claims[0]); i++) {
        const struct row *row = &rows[claims[i].row];
        int rc = plan_regions(1, claims[i].block_tokens, &row->group, BIG, &g);

        if (!claims[i].is_exact) {
            WANT(rc == KVMEM_E_INVALID, "%s", row->name);
            WANT(strstr(kvmem_error_detail()->text, "no block_tokens in 1..4096 works"), "%s",
                 kvmem_error_detail()->text);
            continue;
        }
        WANT(rc == 0, "%s: %s", row->name, kvmem_error_detail()->text);
        WANT(g.blocks_per_segment == 1 && g.segment_bytes == g.block_bytes &&
             g.index_stride_bytes == g.block_bytes && g.padding_ratio == 0);
        if (claims[i].block_tokens > 16)
            WANT(plan_regions(1, claims[i].block_tokens / 2, &row->group, BIG, &g) ==
                 KVMEM_E_INVALID);
        cases++;
    }
    WANT(cases == 6);
}

/* In both layouts, and the refusal's word is true: nothing smaller fits. */
Test(geometry, a_refusal_for_regions_names_the_smallest_block_tokens)
{
    struct kvmem_geometry g;
    unsigned cases = 0;

    for (uint32_t layout = 1; layout <= 3; layout++)
        for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
            const char *text;
            uint32_t smallest;

            if (plan_regions(layout, 1, &rows[i].group, BIG, &g) == 0)
                continue;
            text = strstr(kvmem_error_detail()->text, "smallest that works: block_tokens ");
            if (!text) {
                WANT(strstr(kvmem_error_detail()->text, "no block_tokens in 1..4096 works"));
                WANT(plan_regions(layout, 4096, &rows[i].group, BIG, &g));
                continue;
            }
            smallest = (uint32_t)atoi(text + strlen("smallest that works: block_tokens "));
            for (uint32_t t = 1; t < smallest; t++)
                WANT(plan_regions(layout, t, &rows[i].group, BIG, &g) == KVMEM_E_INVALID);
            WANT(plan_regions(layout, smallest, &rows[i].group, BIG, &g) == 0);
            WANT(g.block_bytes % GRANULE == 0);
            cases++;
        }
    WANT(cases >= 24, "%u", cases);
}

Test(geometry, regions_of_a_large_and_of_a_small_device)
{
    struct kvmem_geometry g;

    WANT(plan_regions(3, 16, &rows[0].group, BIG, &g) == 0);
    WANT(g.segment_limit == KVI_SEGMENT_LIMIT && BIG / g.segment_bytes > KVI_SEGMENT_LIMIT);
    WANT(plan_regions(3, 16, &rows[0].group, 32 * MIB, &g) == 0 && g.segment_limit == 32);
    WANT(plan_regions(3, 16, &rows[0].group, 2 * MIB, &g) == 0 && g.segment_limit == 2);
    WANT(plan_regions(3, 32, &rows[0].group, 2 * MIB, &g) == KVMEM_E_INVALID);
    WANT(strstr(kvmem_error_detail()->text, "smallest that works: block_tokens 16"));
}

/* ---- the search ---- */

/* The naive twin of kvi_geometry_fit. */
static uint32_t naive_fit(uint64_t block, uint64_t segment, uint32_t count_min)
{
    for (uint64_t n = segment / block; n >= count_min; n--)
        if (segment % n == 0 && segment / n % 16 == 0)
            return (uint32_t)n;
    return 0;
}

Test(geometry, fit_is_what_the_naive_search_finds)
{
    unsigned cases = 0;

    for (uint64_t segment = 64 * KIB; segment <= 2 * MIB; segment += 64 * KIB)
        for (uint64_t block = 16; block <= segment; block = block * 5 / 3 / 16 * 16 + 16)
            for (uint32_t divisor = 1; divisor <= 100; divisor *= 10) {
                uint64_t n = segment / block - segment / block / divisor;
                uint32_t count_min = n ? (uint32_t)n : 1;

                WANT(kvi_geometry_fit(block, segment, count_min) ==
                         naive_fit(block, segment, count_min),
                     "%" PRIu64 " in %" PRIu64 ", at least %" PRIu32, block, segment, count_min);
                cases++;
            }
    WANT(cases >= 1000, "%u", cases);
}

/* The plan's segment: no candidate that works is nearer, nor as near and smaller. */
static void want_nearest(const struct kvmem_geometry *g, uint64_t target, uint64_t device,
                         uint64_t granule)
{
    uint64_t distance =
        g->segment_bytes > target ? g->segment_bytes - target : target - g->segment_bytes;

    WANT(g->segment_bytes * 2 >= target && g->segment_bytes <= 5 * target);
    WANT(g->segment_bytes % granule == 0 && g->segment_bytes <= device);
    WANT((g->index_stride_bytes - g->block_bytes) * 100 <= g->index_stride_bytes);
    WANT(g->index_stride_bytes % 16 == 0);
    WANT((uint64_t)g->segment_limit * g->blocks_per_segment <= INT32_MAX);
    WANT(g->segment_limit >= 1 && g->segment_limit <= 65535);
    for (uint64_t s = granule; s <= target + distance; s += granule) {
        uint64_t d = s > target ? s - target : target - s;
        uint64_t count = s / g->block_bytes;
        int is_better = d < distance || (d == distance && s < g->segment_bytes);

        if (s * 2 < target || s > device || !is_better)
            continue;
        for (; count && count * g->block_bytes * 100 >= 99 * s; count--)
            WANT(s % count || s / count % 16, "%" PRIu64 " is nearer", s);
    }
}

Test(geometry, small_pools_behave_like_large_ones)
{
    unsigned cases = 0;

    for (uint64_t device = MIB; device <= 4 * GIB; device *= 2)
        for (uint64_t granule = 4 * KIB; granule <= 64 * KIB; granule *= 4)
            for (uint32_t layers = 1; layers <= 16; layers += 3) {
                struct kvmem_group_options group = group_of(layers, 2, 16, KVMEM_DTYPE_BF16);
                struct kvmem_geometry g;
                uint64_t target = device / 64 < 64 * MIB ? device / 64 : 64 * MIB;
                int rc = plan_of(2, 16, &group, device, granule, &g);

                cases++;
                if (rc) {
                    WANT(strstr(kvmem_error_detail()->text, "block_tokens"));
                    continue;
                }
                target = target < granule ? granule : target;
                target = target < g.block_bytes ? g.block_bytes : target;
                want_nearest(&g, target, device, granule);
            }
    WANT(cases >= 13 * 3 * 6, "%u", cases);
}

Test(geometry, a_device_of_one_mebibyte)
{
    struct kvmem_group_options group = group_of(2, 2, 16, KVMEM_DTYPE_BF16);
    struct kvmem_geometry g;

    WANT(plan_of(0, 16, &group, MIB, 64 * KIB, &g) == 0);
    WANT(g.block_bytes == 4 * KIB && g.segment_bytes == 64 * KIB && g.blocks_per_segment == 16);
    WANT(g.padding_ratio == 0);
    WANT(g.segment_limit >= 16);
}

Test(geometry, a_refusal_names_the_nearest_block_tokens)
{
    struct kvmem_geometry g;
    const char *text;
    uint32_t nearest;
    unsigned cases = 0;

    memset(&g, 7, sizeof(g));
    for (uint32_t tokens = 1; tokens <= 64; tokens++) {
        struct kvmem_group_options group = latent_of(61, 576, KVMEM_DTYPE_BF16);
        int rc = plan_of(0, tokens, &group, 256 * MIB, GRANULE, &g);

        if (rc == 0)
            continue;
        WANT(rc == KVMEM_E_INVALID);
        text = strstr(kvmem_error_detail()->text, "nearest that works: block_tokens ");
        WANT(text, "%s", kvmem_error_detail()->text);
        nearest = (uint32_t)atoi(text + strlen("nearest that works: block_tokens "));
        for (uint32_t t = 1; t <= 4096; t++) {
            uint32_t distance = t > tokens ? t - tokens : tokens - t;
            uint32_t best = nearest > tokens ? nearest - tokens : tokens - nearest;

            if (distance < best)
                WANT(plan_of(0, t, &group, 256 * MIB, GRANULE, &g) == KVMEM_E_INVALID);
        }
        WANT(plan_of(0, nearest, &group, 256 * MIB, GRANULE, &g) == 0);
        if (++cases == 3)
            break;
    }
    WANT(cases >= 3);
}

Test(geometry, a_block_larger_than_the_device_is_refused)
{
    struct kvmem_group_options group = group_of(1024, 1024, 4096, KVMEM_DTYPE_FP32);
    struct kvmem_geometry g;

    WANT(plan_of(0, 4096, &group, MIB, 64 * KIB, &g) == KVMEM_E_INVALID);
    WANT(strstr(kvmem_error_detail()->text, "no block_tokens in 1..4096 works"));
    group = group_of(32, 8, 128, KVMEM_DTYPE_BF16);
    WANT(plan_of(0, 4096, &group, 64 * MIB, 64 * KIB, &g) == KVMEM_E_INVALID);
    WANT(strstr(kvmem_error_detail()->text, "nearest that works: block_tokens 512"), "%s",
         kvmem_error_detail()->text);
}

/* ---- strides ---- */

static uint64_t rounded(uint64_t bytes)
{
    return (bytes + 15) / 16 * 16;
}

/* What all layers of a token take in TOKEN_MAJOR. */
static uint64_t slow_token_bytes(const struct kvmem_group_options *g)
{
    static const uint64_t bytes[] = {0, 2, 2, 4, 1, 1};
    uint64_t heads = g->kv_head_count;
    uint64_t scales = g->scale_mode == KVMEM_SCALE_TOKEN_HEAD ? heads * bytes[g->scale_dtype] : 0;
    uint64_t k = heads * g->head_dim_k * bytes[g->dtype_k];
    uint64_t v = heads * g->head_dim_v * bytes[g->dtype_v];

    return g->layer_count * rounded(rounded(k) + rounded(v) + (v ? 2 : 1) * scales);
}

/* Where an element lies, counted the slow way: elements before it in the order of the layout. */
static uint64_t slow_offset(const struct kvmem_group_options *g, uint32_t layout, uint32_t tokens,
                            int is_v, uint32_t head, uint32_t token)
{
    static const uint64_t bytes[] = {0, 2, 2, 4, 1, 1};
    uint64_t element = bytes[is_v ? g->dtype_v : g->dtype_k];
    uint64_t row = (is_v ? g->head_dim_v : g->head_dim_k) * element;
    uint64_t k = (uint64_t)tokens * g->kv_head_count * g->head_dim_k * bytes[g->dtype_k];
    uint64_t before =
        layout == 1 ? (uint64_t)head * tokens + token : (uint64_t)token * g->kv_head_count + head;

    if (layout == KVMEM_LAYOUT_TOKEN_MAJOR)
        return slow_token_bytes(g) * token + head * row +
               (is_v ? rounded((uint64_t)g->kv_head_count * g->head_dim_k * bytes[g->dtype_k]) : 0);
    return (is_v ? (k + 15) / 16 * 16 : 0) + before * row;
}

static unsigned check_strides(const struct kvmem_group_options *g, uint32_t layout, uint32_t tokens)
{
    struct kvmem_geometry m;
    unsigned cases = 0;
    uint64_t end;

    if (plan_of(layout, tokens, g, BIG, 64 * KIB, &m))
        return 0;
    for (int is_v = 0; is_v <= (g->head_dim_v > 0); is_v++)
        for (uint32_t head = 0; head < g->kv_head_count; head++)
            for (uint32_t token = 0; token < tokens; token += 3) {
                uint64_t at = is_v ? m.v_offset_bytes + head * m.v_head_stride_bytes +
                                         token * m.v_token_stride_bytes
                                   : head * m.k_head_stride_bytes + token * m.k_token_stride_bytes;

                WANT(at == slow_offset(g, layout, tokens, is_v, head, token));
                cases++;
            }
    end = m.v_scale_offset_bytes   ? m.v_scale_offset_bytes
          : m.k_scale_offset_bytes ? m.k_scale_offset_bytes
                                   : 0;
    WANT(m.layer_stride_bytes % 16 == 0 && m.layer_stride_bytes > end);
    WANT(m.block_bytes ==
         m.layer_stride_bytes * g->layer_count * (layout == KVMEM_LAYOUT_TOKEN_MAJOR ? tokens : 1));
    WANT((m.v_offset_bytes != 0) == (g->head_dim_v != 0));
    WANT((m.k_scale_offset_bytes != 0) == (g->scale_mode >= KVMEM_SCALE_HEAD));
    WANT((m.v_scale_offset_bytes != 0) == (g->scale_mode >= KVMEM_SCALE_HEAD && g->head_dim_v));
    return cases;
}

Test(geometry, strides_lead_to_every_element)
{
    static const uint32_t dims[][2] = {{128, 128}, {192, 128}, {576, 0}, {7, 3}, {1, 1}};
    static const uint32_t scales[][2] = {{0, 0}, {1, 0}, {2, 2}, {3, 2}, {3, 3}};
    unsigned cases = 0;

    for (uint32_t layout = 1; layout <= 3; layout++)
        for (uint32_t tokens = 1; tokens <= 64; tokens = tokens * 3 + 1)
            for (size_t d = 0; d < 5; d++)
                for (size_t s = 0; s < 5; s++)
                    for (uint32_t dtype = 1; dtype <= 5; dtype++) {
                        struct kvmem_group_options g = {3,
                                                        5,
                                                        dims[d][0],
                                                        dims[d][1],
                                                        dtype,
                                                        dims[d][1] ? 6 - dtype : 0,
                                                        scales[s][0],
                                                        scales[s][1],
                                                        0,
                                                        0};

                        cases += check_strides(&g, layout, tokens);
                    }
    WANT(cases >= 30000, "%u", cases);
}

Test(geometry, scales_lie_behind_k_and_v)
{
    struct kvmem_group_options int8 = group_of(32, 8, 128, KVMEM_DTYPE_INT8);
    struct kvmem_group_options latent = latent_of(61, 576, KVMEM_DTYPE_FP8_E4M3);
    struct kvmem_geometry g;

    int8 = scaled_of(int8, KVMEM_SCALE_TOKEN_HEAD, KVMEM_DTYPE_FP16);
    WANT(plan_of(0, 16, &int8, BIG, GRANULE, &g) == 0);
    WANT(g.v_offset_bytes == 16384 && g.k_scale_offset_bytes == 32768);
    WANT(g.v_scale_offset_bytes == 32768 + 256 && g.layer_stride_bytes == 33280);
    int8.scale_mode = KVMEM_SCALE_HEAD;
    WANT(plan_of(0, 16, &int8, BIG, 64 * KIB, &g) == 0);
    WANT(g.v_scale_offset_bytes == 32768 + 16 && g.layer_stride_bytes == 32768 + 32);
    latent = scaled_of(latent, KVMEM_SCALE_TOKEN_HEAD, KVMEM_DTYPE_FP32);
    WANT(plan_of(0, 16, &latent, BIG, 64 * KIB, &g) == 0);
    WANT(g.v_offset_bytes == 0 && g.v_head_stride_bytes == 0 && g.v_token_stride_bytes == 0);
    WANT(g.k_scale_offset_bytes == 9216 && g.v_scale_offset_bytes == 0);
    WANT(g.layer_stride_bytes == 9216 + 64);
}

/* A token's scales behind its V, layer by layer. */
Test(geometry, token_major)
{
    struct kvmem_group_options group = group_of(2, 8, 128, KVMEM_DTYPE_BF16);
    struct kvmem_group_options int8 = group_of(32, 8, 128, KVMEM_DTYPE_INT8);
    struct kvmem_geometry g;

    WANT(plan_of(3, 256, &group, BIG, GRANULE, &g) == 0);
    WANT(g.v_offset_bytes == 2048 && g.layer_stride_bytes == 4096);
    WANT(g.k_head_stride_bytes == 256 && g.v_head_stride_bytes == 256);
    WANT(g.k_token_stride_bytes == 8192 && g.v_token_stride_bytes == 8192);
    WANT(g.block_bytes == 2 * MIB && g.k_scale_offset_bytes == 0);
    int8 = scaled_of(int8, KVMEM_SCALE_TOKEN_HEAD, KVMEM_DTYPE_FP16);
    WANT(plan_of(3, 16, &int8, BIG, GRANULE, &g) == 0);
    WANT(g.v_offset_bytes == 1024 && g.k_scale_offset_bytes == 2048);
    WANT(g.v_scale_offset_bytes == 2064 && g.layer_stride_bytes == 2080);
    WANT(g.k_token_stride_bytes == 32 * 2080);
    int8.scale_mode = KVMEM_SCALE_HEAD;
    WANT(plan_of(3, 16, &int8, BIG, GRANULE, &g) == KVMEM_E_INVALID);
    WANT(strstr(kvmem_error_detail()->text, "scale_mode: HEAD (2)"), "%s",
         kvmem_error_detail()->text);
    int8.scale_mode = KVMEM_SCALE_TENSOR;
    int8.scale_dtype = KVMEM_DTYPE_NONE;
    WANT(plan_of(3, 16, &int8, BIG, GRANULE, &g) == 0);
    WANT(g.layer_stride_bytes == 2048 && g.block_bytes == MIB);
}

/* ---- options ---- */

static struct kvmem_space_options good_options(void)
{
    struct kvmem_space_options options = {.size = sizeof(options),
                                          .name = "llama",
                                          .block_tokens = 16,
                                          .group_count = 1,
                                          .shard_count = 1};

    options.groups[0] = group_of(2, 2, 16, KVMEM_DTYPE_BF16);
    return options;
}

static const struct option_case {
    const char *name;
    size_t offset;
    uint32_t good[2];     /* both limits of what is accepted */
    uint32_t invalid[2];  /* refused as INVALID; 0 in both = none */
    uint32_t unsupported; /* refused as NOT_SUPPORTED; 0 = none */
} option_cases[] = {
#define AT(field) offsetof(struct kvmem_space_options, field)
    {"size",
     AT(size),
     {sizeof(struct kvmem_space_options), sizeof(struct kvmem_space_options)},
     {0, UINT32_MAX},
     0},
    {"layout", AT(layout), {0, 3}, {5, UINT32_MAX}, 4},
    {"block_tokens", AT(block_tokens), {1, 4096}, {4097, UINT32_MAX}, 0},
    {"group_count", AT(group_count), {1, 1}, {9, UINT32_MAX}, 2},
    {"shard_count", AT(shard_count), {1, 1}, {17, UINT32_MAX}, 16},
    {"shard_index", AT(shard_index), {0, 0}, {1, UINT32_MAX}, 0},
    {"flags", AT(flags), {0, 0}, {2, UINT32_MAX}, 0},
    {"low_water_blocks", AT(low_water_blocks), {0, 1u << 30}, {(1u << 30) + 1, UINT32_MAX}, 0},
    {"refill_blocks", AT(refill_blocks), {0, 1u << 30}, {(1u << 30) + 1, UINT32_MAX}, 0},
    {"seq_limit", AT(seq_limit), {0, 1u << 20}, {(1u << 20) + 1, UINT32_MAX}, 0},
    {"groups[0].layer_count", AT(groups[0].layer_count), {1, 1024}, {1025, UINT32_MAX}, 0},
    {"groups[0].kv_head_count", AT(groups[0].kv_head_count), {1, 1024}, {1025, UINT32_MAX}, 0},
    {"groups[0].head_dim_k", AT(groups[0].head_dim_k), {1, 4096}, {4097, UINT32_MAX}, 0},
    {"groups[0].head_dim_v", AT(groups[0].head_dim_v), {1, 4096}, {4097, UINT32_MAX}, 0},
    {"groups[0].dtype_k", AT(groups[0].dtype_k), {1, 5}, {6, UINT32_MAX}, 0},
    {"groups[0].dtype_v", AT(groups[0].dtype_v), {1, 5}, {6, UINT32_MAX}, 0},
    {"groups[0].scale_mode", AT(groups[0].scale_mode), {0, 1}, {4, UINT32_MAX}, 0},
    {"groups[0].scale_dtype", AT(groups[0].scale_dtype), {0, 0}, {1, 4}, 0},
    {"groups[0].window_tokens", AT(groups[0].window_tokens), {0, 0}, {0, 0}, 4096},
    {"groups[0].reserved", AT(groups[0].reserved), {0, 0}, {1, UINT32_MAX}, 0},
};

static int try_option(const struct option_case *c, uint32_t value)
{
    struct kvmem_space_options options = good_options();
    struct kvmem_geometry before;
    struct kvmem_geometry g;
    int rc;

    memset(&before, 0x5a, sizeof(before));
    before.size = sizeof(before);
    g = before;
    memcpy((char *)&options + c->offset, &value, sizeof(value));
    rc = kvmem_geometry_plan(&options, 0, 64 * GIB, 64 * KIB, &g);
    if (rc)
        WANT(memcmp(&g, &before, sizeof(g)) == 0, "%s: changed", c->name);
    return rc;
}

Test(geometry, options_at_their_limits)
{
    unsigned cases = 0;

    for (size_t i = 0; i < sizeof(option_cases) / sizeof(option_cases[0]); i++) {
        const struct option_case *c = &option_cases[i];

        for (int k = 0; k < 2; k++, cases += 2) {
            WANT(try_option(c, c->good[k]) == 0, "%s = %u: %s", c->name, c->good[k],
                 kvmem_error_detail()->text);
            if (c->invalid[1] == 0)
                continue;
            WANT(try_option(c, c->invalid[k]) == KVMEM_E_INVALID, "%s = %u", c->name,
                 c->invalid[k]);
            WANT(strstr(kvmem_error_detail()->text, c->name), "%s", kvmem_error_detail()->text);
        }
        if (c->good[0] == 1) {
            WANT(try_option(c, 0) == KVMEM_E_INVALID, "%s = 0", c->name);
            WANT(strstr(kvmem_error_detail()->text, strchr(c->name, '.') ? "groups[0]." : c->name));
        }
        if (c->unsupported) {
            WANT(try_option(c, c->unsupported) == KVMEM_E_NOT_SUPPORTED, "%s", c->name);
            WANT(strstr(kvmem_error_detail()->text, c->name), "%s", kvmem_error_detail()->text);
        }
    }
    WANT(cases >= 80);
}

static void want_refused(const struct kvmem_space_options *options, const char *name)
{
    WANT(kvi_space_options_check(options) == KVMEM_E_INVALID, "%s", name);
    WANT(strncmp(kvmem_error_detail()->text, name, strlen(name)) == 0, "%s",
         kvmem_error_detail()->text);
}

Test(geometry, strings_and_combinations)
{
    char longest[65] = {0};
    struct kvmem_space_options options = good_options();

    memset(longest, 'a', 64);
    WANT(kvi_space_options_check(NULL) == KVMEM_E_INVALID);
    options.name = NULL;
    want_refused(&options, "name");
    options.name = "";
    want_refused(&options, "name");
    options.name = longest;
    want_refused(&options, "name");
    options.name = longest + 1;
    WANT(kvi_space_options_check(&options) == 0);
    options.domain = "";
    want_refused(&options, "domain");
    options.domain = longest + 32;
    want_refused(&options, "domain");
    options.domain = longest + 33;
    WANT(kvi_space_options_check(&options) == 0);
    options.groups[0].head_dim_v = 0;
    want_refused(&options, "groups[0].dtype_v");
    options.groups[0].dtype_v = 0;
    WANT(kvi_space_options_check(&options) == 0);
    options.groups[0].scale_mode = KVMEM_SCALE_HEAD;
    want_refused(&options, "groups[0].scale_dtype");
    options.groups[0].scale_dtype = KVMEM_DTYPE_FP32;
    WANT(kvi_space_options_check(&options) == 0);
    options.layout = KVMEM_LAYOUT_TOKEN_MAJOR;
    want_refused(&options, "groups[0].scale_mode");
    options.layout = 0;
    options.groups[0].scale_mode = KVMEM_SCALE_TENSOR;
    want_refused(&options, "groups[0].scale_dtype");
}

Test(geometry, device_and_granule)
{
    static const uint64_t bad_granules[] = {0,         1, 2048, 4097, 96 * KIB, (UINT64_C(1) << 41),
                                            UINT64_MAX};
    struct kvmem_group_options group = group_of(2, 2, 16, KVMEM_DTYPE_BF16);
    struct kvmem_space_options options = good_options();
    struct kvmem_geometry g = {.size = sizeof(g)};
    unsigned cases = 0;

    for (size_t i = 0; i < sizeof(bad_granules) / sizeof(bad_granules[0]); i++, cases++) {
        WANT(plan_of(0, 16, &group, BIG, bad_granules[i], &g) == KVMEM_E_INVALID);
        WANT(strstr(kvmem_error_detail()->text, "granule_bytes"));
    }
    WANT(plan_of(0, 16, &group, 64 * KIB - 1, 64 * KIB, &g) == KVMEM_E_INVALID);
    WANT(strstr(kvmem_error_detail()->text, "device_bytes"));
    WANT(plan_of(0, 16, &group, UINT64_MAX, 64 * KIB, &g) == 0);
    WANT(g.segment_limit == KVI_SEGMENT_LIMIT && g.segment_bytes == 64 * MIB);
    WANT(plan_of(0, 1, &group, UINT64_MAX, UINT64_C(1) << 40, &g) == KVMEM_E_INVALID ||
         g.segment_bytes % (UINT64_C(1) << 40) == 0);
    WANT(kvmem_geometry_plan(&options, 1, BIG, GRANULE, &g) == KVMEM_E_INVALID);
    WANT(strstr(kvmem_error_detail()->text, "group"));
    WANT(kvmem_geometry_plan(&options, 0, BIG, GRANULE, NULL) == KVMEM_E_INVALID);
    g.size = 1;
    WANT(kvmem_geometry_plan(&options, 0, BIG, GRANULE, &g) == KVMEM_E_INVALID);
    WANT(cases == 7);
}

Test(geometry, element_sizes_and_version)
{
    static const uint32_t bytes[] = {0, 2, 2, 4, 1, 1, 0};

    for (int i = 0; i < 7; i++)
        WANT(kvmem_dtype_bytes((enum kvmem_dtype)i) == bytes[i]);
    WANT(kvmem_dtype_bytes((enum kvmem_dtype) - 1) == 0);
    WANT(strcmp(kvmem_version(), "0.1.0") == 0);
}
