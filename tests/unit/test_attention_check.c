/* SPDX-License-Identifier: Apache-2.0
 *
 * Bad input of attention: each field out of its range is refused by its name, on both devices where
 * the rule is the same, before anything is read or written.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "../../attention/internal.h"

/* A description with nothing wrong: two sequences, of 5 and 20 tokens. */
struct good {
    _Alignas(256) char workspace[1 << 20];           /* more than any kernel wants for this */
    _Alignas(16) uint16_t pool[4 * 2 * 2 * 16 * 64]; /* 4 blocks, layers 1, K and V, 2 heads */
    _Alignas(16) uint16_t q[3 * 4 * 64];
    _Alignas(16) uint16_t out[3 * 4 * 64];
    float lse[3 * 4];
    float scales[8];
    uint64_t tree[3];
    int32_t tables[4];
    int32_t lengths[2];
    int32_t offsets[3];
    struct kva_attention what;
};

static struct good *good_new(void)
{
    static struct good g;

    memset(&g, 0, sizeof(g));
    memcpy(g.tables, (const int32_t[]){3, -1, 0, 2}, sizeof(g.tables));
    memcpy(g.lengths, (const int32_t[]){5, 20}, sizeof(g.lengths));
    memcpy(g.offsets, (const int32_t[]){0, 1, 3}, sizeof(g.offsets));
    g.what = (struct kva_attention){
        .size = sizeof(g.what),
        .device = KVA_DEVICE_CPU,
        .flags = KVA_CAUSAL,
        .q_head_count = 4,
        .dtype = KVMEM_DTYPE_BF16,
        .q_token_stride = 256,
        .q_head_stride = 64,
        .out_token_stride = 256,
        .out_head_stride = 64,
        .cache = {.dtype = KVMEM_DTYPE_BF16,
                  .block_tokens = 16,
                  .block_count = 4,
                  .layer_count = 1,
                  .kv_head_count = 2,
                  .head_dim_k = 64,
                  .head_dim_v = 64,
                  .k = g.pool,
                  .v = g.pool + 2048,
                  .block_stride = 4096,
                  .k_head_stride = 1024,
                  .k_token_stride = 64,
                  .v_head_stride = 1024,
                  .v_token_stride = 64},
        .batch = {.seq_count = 2,
                  .q_max = 2,
                  .q_total = 3,
                  .kv_max = 32,
                  .table_stride = 2,
                  .tables = g.tables,
                  .kv_lengths = g.lengths,
                  .q_offsets = g.offsets},
    };
    return &g;
}

static int plan(struct good *g)
{
    return kva_attention_plan(&g->what, g->workspace, sizeof(g->workspace), NULL);
}

static int run(struct good *g)
{
    return kva_attention_run(&g->what, 0, g->q, g->out, g->lse, g->workspace, sizeof(g->workspace),
                             NULL);
}

/* All three refuse with a sentence that begins with the field. */
static void expect_refused(struct good *g, const char *field)
{
    struct kva_info info = {.size = sizeof(info)};

    cr_assert_eq(kva_attention_info(&g->what, &info), KVMEM_E_INVALID, "%s", field);
    cr_assert_eq(strncmp(kva_error(), field, strlen(field)), 0, "%s: %s", field, kva_error());
    cr_assert_eq(plan(g), KVMEM_E_INVALID, "%s", field);
    cr_assert_eq(run(g), KVMEM_E_INVALID, "%s", field);
    for (uint32_t i = 0; i < sizeof(g->out) / 2; i++)
        cr_assert_eq(g->out[i], 0, "something was written");
}

/* One field of a fresh description set to a bad value, then refused by that name. */
#define REFUSED_AS(name, field, value) \
    do {                               \
        struct good *g = good_new();   \
        g->what.field = value;         \
        expect_refused(g, name);       \
    } while (0)
#define REFUSED(field, value) REFUSED_AS(#field, field, value)

Test(attention_check, what_is_good_is_accepted)
{
    struct good *g = good_new();

    cr_assert_eq(plan(g), 0, "%s", kva_error());
    cr_assert_eq(run(g), 0, "%s", kva_error());
    g->what.batch.seq_count = 0;
    g->what.batch.tables = NULL;
    g->what.batch.kv_lengths = NULL;
    cr_assert_eq(plan(g), 0, "%s", kva_error());
    cr_assert_eq(run(g), 0, "%s", kva_error());
}

Test(attention_check, descriptions)
{
    struct kva_info info = {.size = sizeof(info)};

    REFUSED(size, 0);
    REFUSED(size, sizeof(struct kva_attention) + 8);
    REFUSED(device, 0);
    REFUSED(device, 3);
    REFUSED(flags, 1u << 7);
    REFUSED(dtype, KVMEM_DTYPE_NONE);
    REFUSED(dtype, KVMEM_DTYPE_FP8_E4M3);
    REFUSED(q_head_count, 0);
    REFUSED(q_head_count, 3);
    REFUSED(q_head_count, 4098);
    REFUSED(softmax_scale, -1);
    REFUSED(softmax_scale, NAN);
    REFUSED(softmax_scale, INFINITY);
    REFUSED(soft_cap, -1);
    REFUSED(soft_cap, NAN);
    REFUSED(soft_cap, INFINITY);
    REFUSED(reserved, 1);
    REFUSED(q_token_stride, UINT64_MAX);
    REFUSED(q_head_stride, UINT64_MAX - 255);
    REFUSED(out_token_stride, UINT64_C(1) << 41);
    REFUSED(out_head_stride, UINT64_MAX);
    cr_assert_eq(kva_attention_info(NULL, &info), KVMEM_E_INVALID);
    cr_assert_eq(strncmp(kva_error(), "size", 4), 0, "%s", kva_error());
}

/* 4,096 query heads of one K/V head, over 2^20 rows, are 2^32. */
Test(attention_check, rows_and_heads_are_counted_in_32_bits)
{
    struct good *g = good_new();

    g->what.q_head_count = 4096;
    g->what.cache.kv_head_count = 1;
    g->what.batch.q_total = g->what.batch.q_max = 1u << 20;
    expect_refused(g, "batch.q_max");
    g->what.batch.q_max = 1u << 19;
    expect_refused(g, "batch.q_max");
}

Test(attention_check, caches)
{
    REFUSED(cache.dtype, KVMEM_DTYPE_NONE);
    REFUSED(cache.dtype, 6);
    REFUSED(cache.block_tokens, 0);
    REFUSED(cache.block_tokens, 4097);
    REFUSED(cache.block_count, 0);
    REFUSED(cache.block_count, 1u << 31);
    REFUSED(cache.layer_count, 0);
    REFUSED(cache.layer_count, 1025);
    REFUSED(cache.kv_head_count, 0);
    REFUSED(cache.kv_head_count, 1025);
    REFUSED(cache.head_dim_k, 0);
    REFUSED(cache.head_dim_k, 4097);
    REFUSED(cache.head_dim_v, 0);
    REFUSED(cache.head_dim_v, 4097);
    REFUSED(cache.k, NULL);
    REFUSED(cache.v, NULL);
    REFUSED(cache.block_stride, UINT64_C(1) << 41);
    REFUSED(cache.layer_stride, UINT64_MAX);
    REFUSED(cache.k_head_stride, UINT64_MAX - 63);
    REFUSED(cache.k_token_stride, (uint64_t)-64);
    REFUSED(cache.v_head_stride, UINT64_MAX);
    REFUSED(cache.v_token_stride, UINT64_MAX);
    REFUSED_AS("cache.scale_dtype", cache.dtype, KVMEM_DTYPE_INT8);
}

Test(attention_check, latent_values_lie_within_the_keys)
{
    struct good *g = good_new();

    g->what.cache.v = g->what.cache.k;
    g->what.cache.head_dim_v = 65;
    expect_refused(g, "cache.head_dim_v");
}

Test(attention_check, scales)
{
    struct good *g = good_new();

    g->what.cache.dtype = KVMEM_DTYPE_FP8_E4M3;
    g->what.cache.scale_dtype = KVMEM_DTYPE_FP8_E4M3;
    expect_refused(g, "cache.scale_dtype");
    g->what.cache.scale_dtype = KVMEM_DTYPE_FP32;
    expect_refused(g, "cache.k_scale");
    g->what.cache.k_scale = g->scales;
    expect_refused(g, "cache.v_scale");
    g->what.cache.v_scale = (char *)g->scales + 2;
    expect_refused(g, "cache.v_scale");
    g->what.cache.v_scale = g->scales;
    g->what.cache.scale_block_stride = UINT64_MAX;
    expect_refused(g, "cache.scale_block_stride");
    g->what.cache.scale_block_stride = 0;
    cr_assert_eq(plan(g), 0, "%s", kva_error());
}

Test(attention_check, batches)
{
    REFUSED(batch.seq_count, (1u << 20) + 1);
    REFUSED(batch.q_max, 0);
    REFUSED(batch.q_max, (1u << 24) + 1);
    REFUSED(batch.q_total, (1u << 24) + 1);
    REFUSED(batch.kv_max, 33);
    REFUSED(batch.reserved, 1);
    REFUSED(batch.tables, NULL);
    REFUSED(batch.kv_lengths, NULL);
    REFUSED_AS("batch.q_total", batch.q_offsets, NULL);
}

Test(attention_check, masks)
{
    struct good *g = good_new();

    g->what.tree_mask = g->tree;
    expect_refused(g, "tree_mask");
    g->what.flags = 0;
    cr_assert_eq(plan(g), 0, "%s", kva_error());
    g->what.batch.q_max = 65;
    expect_refused(g, "tree_mask");
    g = good_new();
    g->what.flags = 0;
    g->what.window_tokens = 4;
    expect_refused(g, "window_tokens");
}

/* The same address, so many bytes on. */
#define MOVED(pointer, bytes) (void *)((uintptr_t)(pointer) + (bytes))

Test(attention_check, misaligned_pointers)
{
    REFUSED(cache.k, MOVED(g->pool, 1));
    REFUSED(cache.v, MOVED(g->pool, 1));
    REFUSED(batch.tables, MOVED(g->tables, 2));
    REFUSED(batch.kv_lengths, MOVED(g->lengths, 1));
    REFUSED(batch.q_offsets, MOVED(g->offsets, 3));
    REFUSED(sinks, MOVED(g->lse, 2));
    REFUSED(alibi_slopes, MOVED(g->lse, 1));
    REFUSED(tree_mask, MOVED(g->tree, 4));
}

Test(attention_check, misaligned_arrays_of_a_run)
{
    struct good *g = good_new();
    const struct {
        const char *field;
        uint32_t q, out, lse;
    } moves[] = {{"q", 1, 0, 0}, {"out", 0, 1, 0}, {"lse", 0, 0, 2}};

    cr_assert_eq(plan(g), 0, "%s", kva_error());
    for (uint32_t i = 0; i < 3; i++) {
        cr_assert_eq(kva_attention_run(&g->what, 0, MOVED(g->q, moves[i].q),
                                       MOVED(g->out, moves[i].out), MOVED(g->lse, moves[i].lse),
                                       g->workspace, sizeof(g->workspace), NULL),
                     KVMEM_E_INVALID);
        cr_assert(strncmp(kva_error(), moves[i].field, strlen(moves[i].field)) == 0, "%s",
                  kva_error());
    }
}

/* What only the CPU can see. */
static void expect_bad_contents(struct good *g, const char *text)
{
    cr_assert_eq(plan(g), KVMEM_E_INVALID, "%s", text);
    cr_assert_eq(run(g), KVMEM_E_INVALID, "%s", text);
    cr_assert(strstr(kva_error(), text), "%s: %s", text, kva_error());
}

Test(attention_check, contents_of_arrays)
{
    static const int32_t bad_entries[] = {-1, 4, INT32_MAX, INT32_MIN};
    struct good *g;

    for (uint32_t i = 0; i < 4; i++) {
        g = good_new();
        g->tables[3] = bad_entries[i];
        expect_bad_contents(g, "batch.tables: entry 1 of sequence 1");
    }
    g = good_new();
    g->lengths[1] = 33;
    expect_bad_contents(g, "batch.kv_lengths: [1] 33");
    g->lengths[1] = -1;
    expect_bad_contents(g, "batch.kv_lengths: [1] -1");
    g = good_new();
    g->offsets[0] = -1;
    expect_bad_contents(g, "batch.q_offsets: [0]");
    g = good_new();
    g->offsets[1] = 4;
    expect_bad_contents(g, "batch.q_offsets: [0]");
    g = good_new();
    g->offsets[2] = 4;
    expect_bad_contents(g, "batch.q_offsets: [1]");
    g = good_new();
    g->offsets[2] = 0;
    expect_bad_contents(g, "batch.q_offsets: [1]");
}

Test(attention_check, calls)
{
    struct good *g = good_new();
    struct kva_info info = {.size = 8};
    uint64_t bytes;

    cr_assert_eq(kva_attention_info(&g->what, &info), KVMEM_E_INVALID);
    cr_assert_eq(kva_attention_info(&g->what, NULL), KVMEM_E_INVALID);
    info.size = sizeof(info);
    cr_assert_eq(kva_attention_info(&g->what, &info), 0);
    bytes = info.workspace_bytes;
    cr_assert_eq(kva_attention_plan(&g->what, g->workspace, bytes, NULL), 0);
    cr_assert_eq(kva_attention_plan(&g->what, g->workspace, bytes - 1, NULL), KVMEM_E_INVALID);
    cr_assert(strstr(kva_error(), "workspace_bytes"), "%s", kva_error());
    cr_assert_eq(kva_attention_plan(&g->what, g->workspace + 16, bytes, NULL), KVMEM_E_INVALID);
    cr_assert_eq(kva_attention_plan(&g->what, NULL, bytes, NULL), KVMEM_E_INVALID);
    cr_assert_eq(kva_attention_run(&g->what, 1, g->q, g->out, NULL, g->workspace, bytes, NULL),
                 KVMEM_E_INVALID);
    cr_assert(strstr(kva_error(), "layer"), "%s", kva_error());
    cr_assert_eq(kva_attention_run(&g->what, 0, NULL, g->out, NULL, g->workspace, bytes, NULL),
                 KVMEM_E_INVALID);
    cr_assert_eq(kva_attention_run(&g->what, 0, g->q, NULL, NULL, g->workspace, bytes, NULL),
                 KVMEM_E_INVALID);
    cr_assert_eq(
        kva_attention_run(&g->what, 0, (char *)g->q + 1, g->out, NULL, g->workspace, bytes, NULL),
        KVMEM_E_INVALID);
    memset(g->workspace, 0xab, sizeof(g->workspace));
    kva_only_kernel = "portable";
    cr_assert_eq(run(g), KVMEM_E_INVALID, "a run without a plan");
    cr_assert(strstr(kva_error(), "plan"), "%s", kva_error());
    kva_only_kernel = NULL;
}

Test(attention_check, a_gpu_needs_multiples_of_16_bytes)
{
    struct good *g = good_new();
    struct kva_info info = {.size = sizeof(info)};

    g->what.device = KVA_DEVICE_CUDA;
    g->what.cache.k_token_stride = 65;
    cr_assert_eq(kva_attention_info(&g->what, &info), KVMEM_E_INVALID);
    cr_assert(strstr(kva_error(), "cache.k_token_stride: 65"), "%s", kva_error());
    g->what.cache.k_token_stride = 64;
    g->what.cache.v = g->pool + 2049;
    cr_assert_eq(kva_attention_info(&g->what, &info), KVMEM_E_INVALID);
    cr_assert(strstr(kva_error(), "cache.v"), "%s", kva_error());
}

Test(attention_check, rows_that_32_bits_cannot_count_are_refused)
{
    static const char *const kernels[] = {"avx512_bf16", "avx512_fp32", "avx2", "portable"};
    struct good *g = good_new();
    struct kva_info info = {.size = sizeof(info)};

    g->what.q_head_count = 512;
    g->what.batch.q_max = g->what.batch.q_total = 1u << 24;
    for (uint32_t i = 0; i < 4; i++) {
        kva_only_kernel = kernels[i];
        cr_assert_eq(kva_attention_info(&g->what, &info), KVMEM_E_INVALID, "%s", kernels[i]);
    }
    kva_only_kernel = NULL;
}

Test(attention_check, a_kernel_that_is_not_there)
{
    struct good *g = good_new();
    struct kva_info info = {.size = sizeof(info)};

    kva_only_kernel = "abacus";
    cr_assert_eq(kva_attention_info(&g->what, &info), KVMEM_E_NOT_SUPPORTED);
    cr_assert(strstr(kva_error(), "abacus"), "%s", kva_error());
    kva_only_kernel = NULL;
}
