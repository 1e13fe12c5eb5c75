/* SPDX-License-Identifier: Apache-2.0
 *
 * The device table of kvmem-replay: the host's operations, what a GPU that is not there says, and
 * the byte function as the kernels' compiler takes it.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "replay/device.h"

#define TOKENS 40u

struct world {
    struct kvb_shape shape;
    struct kvb_device device;
    struct kvb_view view;
    uint64_t history[TOKENS];
    int32_t table[3];
};

static struct kvb_shape shape_of(uint32_t dtype, uint32_t head_dim)
{
    struct kvmem_space_options options = {
        .size = sizeof(options),
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

/* A sequence of TOKENS tokens in blocks 2, 0, 1, written as two spans. */
static void make_world(struct world *w)
{
    uint32_t tokens[TOKENS];
    void *memory;

    w->shape = shape_of(KVMEM_DTYPE_BF16, 16);
    for (uint32_t i = 0; i < TOKENS; i++)
        tokens[i] = kvb_token_of_output(7, i);
    kvb_history_fill(tokens, 0, TOKENS, w->history);
    memcpy(w->table, (int32_t[]){2, 0, 1}, sizeof(w->table));
    memory = calloc(3, w->shape.geometry.index_stride_bytes);
    kvb_device_open_host(&w->device, &w->shape, (struct kvb_bases){memory, memory});
    w->view = (struct kvb_view){w->device.base, w->table, 3, TOKENS};
    w->device.ops->write(
        &w->device,
        (struct kvb_span[]){{w->table, w->history, 20, TOKENS}, {w->table, w->history, 0, 20}}, 2);
    w->device.ops->wait(&w->device);
}

static void end_world(struct world *w)
{
    cr_assert_str_eq(w->device.error, "");
    free(w->device.write_base);
    kvb_device_close(&w->device);
    cr_assert_null(w->device.ops);
    kvb_device_close(&w->device); /* once more does nothing */
}

Test(replay_device, what_the_host_writes_it_finds_right)
{
    struct world w;

    make_world(&w);
    cr_assert_eq(kvb_device_fence(&w.device).kind, KVMEM_FENCE_NONE);
    cr_assert_eq(w.device.ops->count_wrong(&w.device, &w.view, w.history, 0, TOKENS), 0);
    w.device.write_base[2 * w.shape.geometry.index_stride_bytes] ^= 1;
    cr_assert_eq(w.device.ops->count_wrong(&w.device, &w.view, w.history, 0, TOKENS), 1);
    cr_assert_eq(w.device.ops->count_wrong(&w.device, &w.view, w.history, 1, TOKENS), 0);
    end_world(&w);
}

Test(replay_device, a_copy_is_checked_like_a_block)
{
    struct world w;
    static const int32_t zero = 0;
    uint64_t bytes;
    struct kvb_view view;
    char *copy;

    make_world(&w);
    bytes = w.shape.geometry.block_bytes;
    copy = w.device.ops->allocate(&w.device, bytes);
    view = (struct kvb_view){copy, &zero, 1, 16};
    w.device.ops->copy(&w.device, copy, w.device.base + 2 * w.shape.geometry.index_stride_bytes,
                       bytes);
    cr_assert_eq(w.device.ops->count_wrong(&w.device, &view, w.history, 0, 16), 0);
    copy[bytes - 1] ^= 0x40;
    cr_assert_eq(w.device.ops->count_wrong(&w.device, &view, w.history, 0, 16), 1);
    w.device.ops->release(&w.device, copy);
    end_world(&w);
}

Test(replay_device, attention_refuses_a_missing_block)
{
    struct world w;
    float values[4 * 16] = {0.5f};
    double out[4 * 16];
    struct kvb_query query = {values, 4, 1};

    make_world(&w);
    cr_assert_eq(w.device.ops->attend(&w.device, &w.view, &query, out), 0);
    w.table[1] = KVMEM_BLOCK_NONE;
    cr_assert_eq(w.device.ops->attend(&w.device, &w.view, &query, out), KVB_UNREADABLE);
    end_world(&w);
}

/* No GPU has a UUID of zeros: without a driver, a GPU or nvcc, and with them, it is refused. */
Test(replay_device, a_gpu_that_is_not_there_is_named)
{
    struct kvmem_device_info info = {.kind = 2, .name = "cuda:9 none"};
    struct kvb_shape shape = shape_of(KVMEM_DTYPE_BF16, 16);
    struct kvb_device device;

    cr_assert_eq(kvb_device_open_cuda(&device, &shape, (struct kvb_bases){NULL, NULL}, &info), -1);
    cr_assert(strstr(device.error, "cuda:9 none: ") == device.error, "%s", device.error);
    cr_assert_null(device.ops);
    kvb_device_close(&device);
}

Test(replay_device, both_compilers_make_the_same_bytes)
{
    static const uint32_t dims[] = {1, 3, 16, 128};
    uint64_t mine[64], theirs[64];

    for (uint32_t dtype = KVMEM_DTYPE_BF16; dtype <= KVMEM_DTYPE_FP32; dtype++) {
        for (int i = 0; i < 4; i++) {
            struct kvb_shape shape = shape_of(dtype, dims[i]);

            for (uint32_t lane = 0; lane < 8; lane++) {
                if (kvb_cuda_vector(&shape, 77, lane / 4, lane & 1, lane / 2 % 2, theirs) != 0)
                    return; /* built without nvcc: there are no kernels */
                kvb_vector(&shape, 77, lane / 4, lane & 1, lane / 2 % 2, mine);
                cr_assert_arr_eq(mine, theirs, shape.vector_bytes);
            }
        }
    }
}
