/* SPDX-License-Identifier: Apache-2.0
 *
 * Standard attention and cascades on the CPU against the reference, and what they refuse.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "support/attention_others.h"

Test(attention_standard, cases)
{
    for (uint32_t i = 0; i < KVT_STANDARD_CASES; i++) {
        struct kvt_attention_case c = kvt_standard_case(i, KVA_DEVICE_CPU);
        const char *text = kvt_standard_check(&c, &kvt_host_memory);

        cr_assert_null(text, "case %u: %s", i, text);
    }
}

Test(attention_cascade, cases)
{
    uint32_t with_prefix = 0;

    for (uint32_t i = 0; i < KVT_CASCADE_CASES; i++) {
        struct kvt_attention_case c = kvt_cascade_case(i, KVA_DEVICE_CPU);
        uint32_t prefix_tokens = 0;
        const char *text = kvt_cascade_check(&c, &kvt_host_memory, &prefix_tokens);

        cr_assert_null(text, "case %u, prefix of %u: %s", i, prefix_tokens, text);
        with_prefix += prefix_tokens > 0;
    }
    cr_assert(with_prefix >= 32, "only %u", with_prefix);
}

/* ---- what is refused ---- */

static float room[1 << 19] __attribute__((aligned(256)));
static int32_t table[4], lengths[2] = {4, 4};
static uint64_t tree[4];

static struct kva_attention good(void)
{
    struct kva_attention what = {.size = sizeof(what),
                                 .device = KVA_DEVICE_CPU,
                                 .q_head_count = 2,
                                 .dtype = KVMEM_DTYPE_FP32,
                                 .q_token_stride = 16,
                                 .q_head_stride = 8,
                                 .out_token_stride = 16,
                                 .out_head_stride = 8,
                                 .cache = {.dtype = KVMEM_DTYPE_FP32,
                                           .block_tokens = 4,
                                           .block_count = 1,
                                           .layer_count = 1,
                                           .kv_head_count = 1,
                                           .head_dim_k = 8,
                                           .head_dim_v = 8,
                                           .k = room,
                                           .v = room + 64,
                                           .k_token_stride = 8,
                                           .v_token_stride = 8},
                                 .batch = {.seq_count = 1,
                                           .q_max = 2,
                                           .q_total = 2,
                                           .kv_max = 4,
                                           .table_stride = 1,
                                           .tables = table,
                                           .kv_lengths = lengths}};

    return what;
}

static void begins(const char *field)
{
    cr_assert(strncmp(kva_error(), field, strlen(field)) == 0, "%s: %s", field, kva_error());
}

#define STANDARD_REFUSES(member, value, code)                                                    \
    do {                                                                                         \
        struct kva_attention bad = good();                                                       \
                                                                                                 \
        bad.member = value;                                                                      \
        cr_assert_eq(kva_standard_run(&bad, 0, room, room + 512, room + 1024, 8192, NULL), code, \
                     #member);                                                                   \
        begins(#member);                                                                         \
        cr_assert_eq(kva_standard_info(&bad, &info), code);                                      \
    } while (0)

Test(attention_standard, what_it_refuses)
{
    struct kva_attention what = good();
    struct kva_info info = {.size = sizeof(info)};

    cr_assert_eq(kva_standard_info(&what, &info), 0);
    cr_assert_eq(info.workspace_bytes, 2 * 2 * 64 * 4);
    cr_assert_str_eq(info.kernel, "cpu standard");
    cr_assert_eq(
        kva_standard_run(&what, 0, room, room + 512, room + 1024, info.workspace_bytes, NULL), 0);
    cr_assert_eq(
        kva_standard_run(&what, 0, room, room + 512, room + 1024, info.workspace_bytes - 1, NULL),
        KVMEM_E_INVALID);
    begins("workspace_bytes");
    cr_assert_eq(kva_standard_run(&what, 0, room, room + 512, room + 1025, 8192, NULL),
                 KVMEM_E_INVALID);
    begins("workspace: ");
    cr_assert_eq(kva_standard_run(&what, 0, NULL, room, room + 1024, 8192, NULL), KVMEM_E_INVALID);
    begins("q: ");
    cr_assert_eq(kva_standard_run(&what, 0, room, NULL, room + 1024, 8192, NULL), KVMEM_E_INVALID);
    begins("out: ");
    cr_assert_eq(kva_standard_run(&what, 1, room, room, room + 1024, 8192, NULL), KVMEM_E_INVALID);
    begins("layer: ");
    cr_assert_eq(kva_standard_info(&what, NULL), KVMEM_E_INVALID);
    cr_assert_eq(kva_standard_run(&what, 0, (char *)room + 2, room + 512, room + 1024, 8192, NULL),
                 KVMEM_E_INVALID);
    begins("q: ");
    cr_assert_eq(kva_standard_run(&what, 0, room, (char *)room + 2, room + 1024, 8192, NULL),
                 KVMEM_E_INVALID);
    begins("out: ");
    STANDARD_REFUSES(size, 1, KVMEM_E_INVALID);
    STANDARD_REFUSES(q_head_count, 0, KVMEM_E_INVALID);
    STANDARD_REFUSES(sinks, room, KVMEM_E_NOT_SUPPORTED);
    STANDARD_REFUSES(alibi_slopes, room, KVMEM_E_NOT_SUPPORTED);
    STANDARD_REFUSES(tree_mask, tree, KVMEM_E_NOT_SUPPORTED);
    what.flags = KVA_CAUSAL;
    what.window_tokens = 2;
    cr_assert_eq(kva_standard_info(&what, &info), KVMEM_E_NOT_SUPPORTED);
    begins("window_tokens");
    what = good(); /* 2^2 · 2^12 · 2^24 · 2^32 bytes of scores */
    what.q_head_count = 4096;
    what.cache.kv_head_count = 1024;
    what.batch.q_max = what.batch.q_total = 1u << 24;
    what.batch.kv_max = UINT32_MAX;
    what.batch.table_stride = 1u << 31;
    cr_assert_eq(kva_standard_info(&what, &info), KVMEM_E_INVALID);
    begins("batch.q_total");
    what = good();
    table[0] = 1;
    cr_assert_eq(kva_standard_run(&what, 0, room, room + 512, room + 1024, 8192, NULL),
                 KVMEM_E_INVALID);
    begins("batch.tables");
    table[0] = 0;
}

static struct kva_cascade good_cascade(void)
{
    struct kva_cascade what = {.size = sizeof(what), .prefix = good(), .own = good()};

    what.own.flags = KVA_CAUSAL;
    return what;
}

#define CASCADE_REFUSES(member, value)                                                     \
    do {                                                                                   \
        struct kva_cascade bad = good_cascade();                                           \
                                                                                           \
        bad.member = value;                                                                \
        cr_assert_eq(kva_cascade_info(&bad, &info), KVMEM_E_INVALID);                      \
        begins(#member);                                                                   \
        cr_assert_eq(kva_cascade_plan(&bad, room, sizeof(room), NULL), KVMEM_E_INVALID);   \
        cr_assert_eq(kva_cascade_run(&bad, 0, room, room, NULL, room, sizeof(room), NULL), \
                     KVMEM_E_INVALID);                                                     \
    } while (0)

Test(attention_cascade, what_it_refuses)
{
    struct kva_cascade what = good_cascade();
    struct kva_info info = {.size = sizeof(info)};

    cr_assert_eq(kva_cascade_info(&what, &info), 0, "%s", kva_error());
    cr_assert(info.workspace_bytes <= sizeof(room) - 4096);
    CASCADE_REFUSES(size, 1);
    CASCADE_REFUSES(reserved, 1);
    CASCADE_REFUSES(prefix.device, KVA_DEVICE_CUDA);
    CASCADE_REFUSES(prefix.q_head_count, 1);
    CASCADE_REFUSES(prefix.dtype, KVMEM_DTYPE_BF16);
    CASCADE_REFUSES(prefix.softmax_scale, 1);
    CASCADE_REFUSES(prefix.soft_cap, 1);
    CASCADE_REFUSES(prefix.cache.head_dim_k, 16);
    CASCADE_REFUSES(prefix.cache.head_dim_v, 16);
    CASCADE_REFUSES(prefix.cache.kv_head_count, 2);
    CASCADE_REFUSES(prefix.cache.layer_count, 2);
    CASCADE_REFUSES(prefix.batch.q_total, 1);
    CASCADE_REFUSES(prefix.batch.q_max, 1);
    CASCADE_REFUSES(prefix.batch.seq_count, 2);
    CASCADE_REFUSES(prefix.batch.q_offsets, table);
    CASCADE_REFUSES(prefix.window_tokens, 1);
    CASCADE_REFUSES(prefix.sinks, room);
    CASCADE_REFUSES(prefix.alibi_slopes, room);
    CASCADE_REFUSES(prefix.tree_mask, tree);
    CASCADE_REFUSES(prefix.cache.dtype, 9);
    CASCADE_REFUSES(own.q_head_count, 0);
    CASCADE_REFUSES(own.cache.dtype, 9);
    what.prefix.flags = KVA_CAUSAL;
    cr_assert_eq(kva_cascade_info(&what, &info), KVMEM_E_INVALID);
    begins("prefix.flags");
    what = good_cascade();
    cr_assert_eq(kva_cascade_plan(&what, room, info.workspace_bytes - 1, NULL), KVMEM_E_INVALID);
    begins("workspace_bytes");
    cr_assert_eq(kva_cascade_plan(&what, room + 1, info.workspace_bytes, NULL), KVMEM_E_INVALID);
    begins("workspace: ");
    cr_assert_eq(kva_cascade_plan(&what, room, info.workspace_bytes, NULL), 0, "%s", kva_error());
    cr_assert_eq(kva_cascade_run(&what, 0, NULL, room, NULL, room, info.workspace_bytes, NULL),
                 KVMEM_E_INVALID);
    begins("q: ");
    cr_assert_eq(kva_cascade_run(&what, 0, room, room, (float *)(void *)((char *)room + 2), room,
                                 info.workspace_bytes, NULL),
                 KVMEM_E_INVALID);
    begins("lse: ");
    cr_assert_eq(kva_cascade_run(&what, 1, room, room, NULL, room, info.workspace_bytes, NULL),
                 KVMEM_E_INVALID);
    begins("prefix.layer");
}
