/* SPDX-License-Identifier: Apache-2.0
 *
 * The attention reference against cases worked out by hand, and kvmem-replay's comparison of it
 * with a second loop.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../../attention/reference.h"
#include "replay/bytes.c"
#include "replay/check.c"
#include "replay/device_host.c"

/* fp32, 2 tokens a block, 1 K/V head, 2 elements: K and V of block i at 8 floats × i. */
static struct kva_layer small_layer(const float *blocks)
{
    return (struct kva_layer){.k = blocks,
                              .v = blocks + 4,
                              .block_stride_bytes = 32,
                              .k_head_stride_bytes = 16,
                              .k_token_stride_bytes = 8,
                              .v_head_stride_bytes = 16,
                              .v_token_stride_bytes = 8,
                              .dtype = KVMEM_DTYPE_FP32,
                              .block_tokens = 2,
                              .kv_head_count = 1,
                              .head_dim = 2};
}

Test(attention_reference, by_hand)
{
    /* block 0 holds tokens 2 and 3, block 1 tokens 0 and 1 */
    const float blocks[16] = {0, 0, 9, 9, 5, 6, 9, 9, /**/ 1, 0, 0, 1, 1, 2, 3, 4};
    struct kva_layer layer = small_layer(blocks);
    const int32_t table[] = {1, 0};
    const float query[4] = {0, 0, 1, 0};
    double out[4];

    cr_assert_eq(kva_reference_decode(&layer, table, 1, query, 2, 1, out), 0);
    cr_assert(out[0] == 1 && out[1] == 2 && out[2] == 1 && out[3] == 2); /* one token: its V */
    cr_assert_eq(kva_reference_decode(&layer, table, 3, query, 2, 1, out), 0);
    cr_assert_float_eq(out[0], 3, 1e-15); /* equal scores: the mean */
    cr_assert_float_eq(out[1], 4, 1e-15);
    /* scores 1, 0, 0 */
    cr_assert_float_eq(out[2], (exp(1) * 1 + 3 + 5) / (exp(1) + 2), 1e-14);
    cr_assert_float_eq(out[3], (exp(1) * 2 + 4 + 6) / (exp(1) + 2), 1e-14);
}

Test(attention_reference, large_scores_do_not_overflow)
{
    const float blocks[8] = {1000, 0, 2000, 0, 1, 1, 7, 8};
    struct kva_layer layer = small_layer(blocks);
    const int32_t table[] = {0};
    const float query[2] = {50, 0};
    double out[2];

    cr_assert_eq(kva_reference_decode(&layer, table, 2, query, 1, 1, out), 0);
    cr_assert_float_eq(out[0], 7, 1e-12);
    cr_assert_float_eq(out[1], 8, 1e-12);
}

Test(attention_reference, what_it_refuses)
{
    const float blocks[16] = {0};
    struct kva_layer layer = small_layer(blocks);
    int32_t table[] = {0, KVMEM_BLOCK_NONE};
    const float query[6] = {0};
    double out[6];

    cr_assert_eq(kva_reference_decode(&layer, table, 0, query, 1, 1, out), KVMEM_E_INVALID);
    cr_assert_eq(kva_reference_decode(&layer, table, 3, query, 1, 1, out), KVMEM_E_INVALID);
    cr_assert_eq(kva_reference_decode(&layer, table, 2, query, 1, 1, out), 0);
    layer.kv_head_count = 2;
    cr_assert_eq(kva_reference_decode(&layer, table, 2, query, 3, 1, out), KVMEM_E_INVALID);
    layer.dtype = KVMEM_DTYPE_INT8;
    cr_assert_eq(kva_reference_decode(&layer, table, 2, query, 2, 1, out), KVMEM_E_INVALID);
}

Test(attention_reference, elements)
{
    const uint16_t half[] = {0x3c00, 0xc000, 0x0001, 0x03ff, 0x7bff, 0x7c00, 0x8000};
    const uint16_t brain[] = {0x3f80, 0xc000, 0x3e80};
    const float single[] = {1.5f, -0.1f};

    cr_assert_eq(kva_reference_element(KVMEM_DTYPE_FP16, half, 0), 1);
    cr_assert_eq(kva_reference_element(KVMEM_DTYPE_FP16, half, 1), -2);
    cr_assert_eq(kva_reference_element(KVMEM_DTYPE_FP16, half, 2), ldexp(1, -24));
    cr_assert_eq(kva_reference_element(KVMEM_DTYPE_FP16, half, 3), ldexp(1023, -24));
    cr_assert_eq(kva_reference_element(KVMEM_DTYPE_FP16, half, 4), 65504);
    cr_assert(isinf(kva_reference_element(KVMEM_DTYPE_FP16, half, 5)));
    cr_assert(signbit(kva_reference_element(KVMEM_DTYPE_FP16, half, 6)));
    cr_assert_eq(kva_reference_element(KVMEM_DTYPE_BF16, brain, 0), 1);
    cr_assert_eq(kva_reference_element(KVMEM_DTYPE_BF16, brain, 1), -2);
    cr_assert_eq(kva_reference_element(KVMEM_DTYPE_BF16, brain, 2), 0.25);
    cr_assert_eq(kva_reference_element(KVMEM_DTYPE_FP32, single, 1), (double)-0.1f);
}

/* A view over memory of our own, with the shape of a small space. */
static void make_view(struct kvb_shape *shape, uint32_t dtype, uint64_t *history, uint32_t length,
                      int32_t *table, struct kvb_view *view)
{
    struct kvmem_space_options options = {
        .size = sizeof(options),
        .layout = KVMEM_LAYOUT_PAGE_TOKEN_HEAD,
        .name = "test",
        .block_tokens = 16,
        .group_count = 1,
        .shard_count = 1,
        .groups = {{.layer_count = 3,
                    .kv_head_count = 2,
                    .head_dim_k = 32,
                    .head_dim_v = 32,
                    .dtype_k = dtype,
                    .dtype_v = dtype}},
    };
    struct kvb_model model = {3, 2, 32, dtype, 16};
    struct kvmem_geometry geometry = {.size = sizeof(geometry)};
    uint32_t blocks = (length + 15) / 16;
    char *base;

    cr_assert_eq(kvmem_geometry_plan(&options, 0, 64 << 20, 65536, &geometry), 0, "%s",
                 kvmem_error_detail()->text);
    kvb_shape_init(shape, &model, &geometry);
    base = calloc(blocks, geometry.index_stride_bytes);
    for (uint32_t i = 0; i < length; i++)
        history[i] = kvb_history_next(i == 0 ? KVB_HISTORY_ROOT : history[i - 1], i);
    for (uint32_t i = 0; i < blocks; i++)
        table[i] = (int32_t)(blocks - 1 - i);
    kvb_write(shape, base, table, history, 0, length);
    *view = (struct kvb_view){base, table, blocks, length};
}

/* Both in double, and by the library's kernel. */
static void expect_right(struct kvb_device *device, const struct kvb_view *view,
                         const uint64_t *history, uint32_t length, uint32_t layer)
{
    double kernel;

    cr_assert(kvb_attention_errors(device, view, history, length, layer, &kernel) < 1e-12);
    cr_assert(kernel > 0 && kernel <= 1, "%g", kernel);
}

Test(replay_attention, both_loops_agree_and_faults_show)
{
    enum {
        LENGTH = 1000
    };
    static uint64_t history[LENGTH];
    int32_t table[(LENGTH + 15) / 16];

    for (uint32_t dtype = KVMEM_DTYPE_BF16; dtype <= KVMEM_DTYPE_FP32; dtype++) {
        struct kvb_shape shape;
        struct kvb_view view, wrong;
        struct kvb_device device;
        double kernel;

        make_view(&shape, dtype, history, LENGTH, table, &view);
        kvb_device_open_host(&device, &shape, (struct kvb_bases){view.base, NULL});
        for (uint32_t layer = 0; layer < 3; layer++)
            expect_right(&device, &view, history, LENGTH, layer);
        wrong = view;
        wrong.length = LENGTH - 1;
        cr_assert(kvb_attention_error(&device, &wrong, history, LENGTH, 0) > 1e-6);
        wrong.length = LENGTH + 1;
        cr_assert(kvb_attention_error(&device, &wrong, history, LENGTH, 0) > 1e-6);
        wrong.length = LENGTH + 16;
        cr_assert(isinf(kvb_attention_error(&device, &wrong, history, LENGTH, 0)));
        table[3] = table[4];
        cr_assert(kvb_attention_errors(&device, &view, history, LENGTH, 1, &kernel) > 1e-6);
        cr_assert(kernel > 1, "%g", kernel);
        free((void *)view.base);
    }
}
