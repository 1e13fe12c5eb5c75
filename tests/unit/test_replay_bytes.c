/* SPDX-License-Identifier: Apache-2.0
 *
 * The byte function of kvmem-replay, and the check that compares blocks with it.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "../../attention/reference.h"
#include "replay/bytes.c"

#define TOKENS 40u

static struct kvb_shape shape_of(uint32_t dtype, uint32_t head_dim, uint32_t layout)
{
    struct kvmem_space_options options = {
        .size = sizeof(options),
        .layout = layout,
        .name = "test",
        .block_tokens = 16,
        .group_count = 1,
        .shard_count = 1,
        .groups = {{.layer_count = 2,
                    .kv_head_count = 2,
                    .head_dim_k = head_dim,
                    .head_dim_v = head_dim,
                    .dtype_k = dtype,
                    .dtype_v = dtype}},
    };
    struct kvb_model model = {2, 2, head_dim, dtype, 16};
    struct kvmem_geometry geometry = {.size = sizeof(geometry)};
    struct kvb_shape shape;

    cr_assert_eq(kvmem_geometry_plan(&options, 0, 64 << 20, 65536, &geometry), 0, "%s",
                 kvmem_error_detail()->text);
    kvb_shape_init(&shape, &model, &geometry);
    return shape;
}

Test(replay_bytes, equal_ids_give_equal_tokens)
{
    uint64_t ids[] = {3, 4, 3, 5};
    struct kvb_trace trace = {.ids = ids, .tokens_per_id = 64};
    struct kvb_request whole = {.first_id = 0, .id_count = 3, .prompt_tokens = 192};
    struct kvb_request other = {.first_id = 2, .id_count = 2, .prompt_tokens = 77};
    uint32_t a[192], b[77];

    kvb_tokens_of_prompt(&trace, &whole, a);
    kvb_tokens_of_prompt(&trace, &other, b);
    cr_assert_arr_eq(a, a + 128, 64 * 4);
    cr_assert_arr_eq(a, b, 64 * 4);
    cr_assert_neq(memcmp(a, a + 64, 64 * 4), 0);
    cr_assert_neq(memcmp(a + 64, b + 64, 13 * 4), 0);
    for (uint32_t i = 0; i < 64; i++)
        cr_assert_eq(a[i], token_at(kvb_mix64(3 + KVB_GOLDEN), i)); /* vectors and the rest agree */
    cr_assert_neq(kvb_token_of_output(1, 0), kvb_token_of_output(2, 0));
    cr_assert_neq(kvb_token_of_output(1, 0), kvb_token_of_output(1, 1));
}

Test(replay_bytes, history_tells_prefixes_apart)
{
    uint32_t a[] = {1, 2, 3, 4}, b[] = {1, 9, 3, 4};
    uint64_t ha[4], hb[4], pieces[4];

    kvb_history_fill(a, 0, 4, ha);
    kvb_history_fill(b, 0, 4, hb);
    kvb_history_fill(a, 0, 1, pieces);
    kvb_history_fill(a, 1, 4, pieces);
    cr_assert_arr_eq(ha, pieces, sizeof(ha));
    cr_assert_eq(ha[0], hb[0]);
    for (int i = 1; i < 4; i++)
        cr_assert_neq(ha[i], hb[i]);
}

Test(replay_bytes, values_are_moderate_and_lanes_differ)
{
    static const uint32_t dtypes[] = {KVMEM_DTYPE_BF16, KVMEM_DTYPE_FP16, KVMEM_DTYPE_FP32};

    for (int t = 0; t < 3; t++) {
        struct kvb_shape shape = shape_of(dtypes[t], 16, KVMEM_LAYOUT_PAGE_HEAD_TOKEN);
        uint64_t vectors[8][8];
        int lane = 0;

        for (uint32_t layer = 0; layer < 2; layer++)
            for (int is_v = 0; is_v < 2; is_v++)
                for (uint32_t head = 0; head < 2; head++)
                    kvb_vector(&shape, 12345, layer, is_v, head, vectors[lane++]);
        for (int a = 0; a < 8; a++) {
            for (uint32_t d = 0; d < 16; d++) {
                double value = fabs(kva_reference_element(dtypes[t], vectors[a], d));

                cr_assert(value >= 0.125 && value < 2, "%g", value);
            }
            for (int b = 0; b < a; b++)
                cr_assert_neq(memcmp(vectors[a], vectors[b], shape.vector_bytes), 0);
        }
    }
}

/* Three blocks out of order, filled with a sequence of TOKENS tokens. */
struct filled {
    struct kvb_shape shape;
    uint64_t history[TOKENS + 1];
    int32_t table[3];
    char *base;
    struct kvb_view view;
};

static void fill(struct filled *f, uint32_t dtype, uint32_t head_dim, uint32_t layout)
{
    uint32_t tokens[TOKENS + 1];

    f->shape = shape_of(dtype, head_dim, layout);
    for (uint32_t i = 0; i <= TOKENS; i++)
        tokens[i] = kvb_token_of_output(7, i);
    kvb_history_fill(tokens, 0, TOKENS + 1, f->history);
    memcpy(f->table, (int32_t[]){2, 0, 1}, sizeof(f->table));
    f->base = calloc(3, f->shape.geometry.index_stride_bytes);
    f->view = (struct kvb_view){f->base, f->table, 3, TOKENS};
    kvb_write(&f->shape, f->base, f->table, f->history, 0, 20);
    kvb_write(&f->shape, f->base, f->table, f->history, 20, TOKENS);
}

Test(replay_bytes, what_is_written_is_found_right)
{
    static const uint32_t dims[] = {16, 1, 3, 64};

    for (int i = 0; i < 4; i++) {
        for (uint32_t dtype = KVMEM_DTYPE_BF16; dtype <= KVMEM_DTYPE_FP32; dtype++) {
            struct filled f;

            fill(&f, dtype, dims[i],
                 dtype == KVMEM_DTYPE_FP16 ? KVMEM_LAYOUT_PAGE_TOKEN_HEAD
                                           : KVMEM_LAYOUT_PAGE_HEAD_TOKEN);
            cr_assert_eq(kvb_count_wrong_bytes(&f.shape, &f.view, f.history, 0, TOKENS), 0);
            free(f.base);
        }
    }
}

Test(replay_bytes, every_flipped_bit_shows)
{
    struct filled f;
    uint64_t bytes, full;

    fill(&f, KVMEM_DTYPE_BF16, 16, KVMEM_LAYOUT_PAGE_HEAD_TOKEN);
    bytes = f.shape.geometry.block_bytes;
    full = (uint64_t)f.table[1] * f.shape.geometry.index_stride_bytes;
    for (uint64_t bit = 0; bit < bytes * 8; bit++) { /* the second block is full */
        char *byte = f.base + full + bit / 8;

        *byte = (char)(*byte ^ (1 << bit % 8));
        cr_assert_eq(kvb_count_wrong_bytes(&f.shape, &f.view, f.history, 0, TOKENS), 1);
        *byte = (char)(*byte ^ (1 << bit % 8));
    }
    free(f.base);
}

Test(replay_bytes, wrong_tables_and_lengths_show)
{
    struct filled f;
    struct kvb_view view;
    int32_t table[3] = {2, KVMEM_BLOCK_NONE, 1};

    fill(&f, KVMEM_DTYPE_BF16, 16, KVMEM_LAYOUT_PAGE_HEAD_TOKEN);
    view = f.view;
    view.table = table;
    cr_assert_eq(kvb_count_wrong_bytes(&f.shape, &view, f.history, 0, TOKENS),
                 f.shape.geometry.block_bytes);
    table[1] = 1;
    cr_assert(kvb_count_wrong_bytes(&f.shape, &view, f.history, 0, TOKENS) > 0);
    view = f.view;
    view.length = TOKENS - 1;
    cr_assert_eq(kvb_count_wrong_bytes(&f.shape, &view, f.history, 0, TOKENS),
                 f.shape.geometry.block_bytes / 16);
    view = f.view;
    view.block_count = 2;
    cr_assert(kvb_count_wrong_bytes(&f.shape, &view, f.history, 0, TOKENS) > 0);
    cr_assert(kvb_count_wrong_bytes(&f.shape, &f.view, f.history + 1, 0, TOKENS) > 0);
    free(f.base);
}
