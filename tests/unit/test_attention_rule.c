/* SPDX-License-Identifier: Apache-2.0
 *
 * The harness of support/attention.h is itself held to account: what is wrong must be found. The
 * kernel gets a description that differs from the reference's by one detail, or its result is
 * spoilt by hand.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "support/attention.h"
#include "support/attention_scene.h"

#define SEEDS 5u

static struct kvt_attention_case small(uint64_t seed)
{
    return (struct kvt_attention_case){.seed = seed,
                                       .seq_count = 2,
                                       .row_count = 3,
                                       .length = 200,
                                       .heads = 4,
                                       .kv_heads = 2,
                                       .dim_k = 64,
                                       .has_padded_rows = true,
                                       .has_offsets = true,
                                       .has_sinks = true,
                                       .has_slopes = true,
                                       .window_tokens = 150,
                                       .soft_cap = 5,
                                       .flags = KVA_CAUSAL};
}

Test(attention_rule, a_right_result_passes)
{
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct kvt_attention_case c = small(seed);
        const char *text = kvt_attention_check(&c, &kvt_host_memory, "portable", NULL);

        cr_assert_null(text, "%s", text);
    }
}

/* ---- a kernel that computes something else ---- */

static void no_causal(struct kva_attention *what)
{
    what->flags = 0;
    what->window_tokens = 0;
}

static void window_more(struct kva_attention *what)
{
    what->window_tokens++;
}

static void window_less(struct kva_attention *what)
{
    what->window_tokens--;
}

static void no_cap(struct kva_attention *what)
{
    what->soft_cap = 0;
}

static void no_sinks(struct kva_attention *what)
{
    what->sinks = NULL;
}

static void no_slopes(struct kva_attention *what)
{
    what->alibi_slopes = NULL;
}

static void other_scale(struct kva_attention *what)
{
    what->softmax_scale = 1.02f / 8;
}

static void other_head(struct kva_attention *what)
{
    what->cache.k_head_stride = 0;
}

static void other_value_head(struct kva_attention *what)
{
    what->cache.v_head_stride = 0;
}

static void other_layer(struct kva_attention *what)
{
    what->cache.layer_stride = 0;
}

static void other_rows(struct kva_attention *what)
{
    what->q_token_stride = 0;
}

static void other_dtype(struct kva_attention *what)
{
    what->cache.dtype = KVMEM_DTYPE_FP16;
}

Test(attention_rule, another_computation_fails)
{
    static void (*const changes[])(struct kva_attention *) = {
        no_causal,   window_more, window_less,      no_cap,      no_sinks,   no_slopes,
        other_scale, other_head,  other_value_head, other_layer, other_rows, other_dtype};

    for (uint32_t i = 0; i < sizeof(changes) / sizeof(*changes); i++)
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            struct kvt_attention_case c = small(seed);
            struct kvt_attention_scene s;

            if (changes[i] == window_more || changes[i] == window_less)
                c.has_slopes = false; /* they leave nothing of what lies that far back */
            cr_assert(kvt_attention_begin(&s, &c, &kvt_host_memory));
            changes[i](&s.device);
            cr_assert_eq(kvt_attention_try(&s, "portable"), KVT_WRONG, "change %u, seed %llu", i,
                         (unsigned long long)seed);
            kvt_attention_end(&s);
        }
}

/* One token too few or too many, of thousands: only exact cases can tell, and they must. */
Test(attention_rule, one_token_of_4000_shows_where_sums_are_exact)
{
    for (uint32_t change = 0; change < 2; change++) {
        struct kvt_attention_case c = {.seed = 3,
                                       .seq_count = 1,
                                       .row_count = 1,
                                       .length = 5000,
                                       .window_tokens = 4000,
                                       .flags = KVA_CAUSAL,
                                       .heads = 1,
                                       .kv_heads = 1,
                                       .dim_k = 128,
                                       .fill = KVT_FILL_EVEN};
        struct kvt_attention_scene s;

        cr_assert(kvt_attention_begin(&s, &c, &kvt_host_memory));
        cr_assert_eq(kvt_attention_try(&s, "portable"), KVT_RIGHT, "%s", s.text);
        s.device.window_tokens = change ? 4001 : 3999;
        cr_assert_eq(kvt_attention_try(&s, "portable"), KVT_WRONG);
        kvt_attention_end(&s);
    }
}

/* ---- results that are spoilt ---- */

static struct kvt_attention_scene scene;

static void begin(const struct kvt_attention_case *c)
{
    cr_assert(kvt_attention_begin(&scene, c, &kvt_host_memory));
    cr_assert_eq(kvt_attention_try(&scene, "portable"), KVT_RIGHT, "%s", scene.text);
}

static uint64_t place_of(uint64_t row, uint32_t head, uint32_t d)
{
    return row * scene.host.out_token_stride + head * scene.host.out_head_stride + d;
}

static void put(uint64_t place, double value)
{
    kva_reference_store(scene.c.dtype, (char *)scene.out.host + KVT_ATTENTION_GUARD, place, value);
}

/* With that one element another value is the result wrong? */
static enum kvt_verdict with(uint64_t row, uint32_t head, uint32_t d, double value)
{
    double before = kvt_attention_out(&scene, row, head, d);
    enum kvt_verdict verdict;

    put(place_of(row, head, d), value);
    verdict = kvt_attention_judge(&scene);
    put(place_of(row, head, d), before);
    return verdict;
}

Test(attention_rule, every_element_counts)
{
    struct kvt_attention_case c = small(11);
    uint32_t heads[] = {0, 3};
    uint32_t dims[] = {0, 63};

    begin(&c);
    for (uint64_t row = 0; row < 6; row++)
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t head = heads[i % 2], d = dims[i / 2];
            double bound = kvt_attention_bound(&scene, row, head);
            double exact = scene.exact[(row * 4 + head) * 64 + d];

            cr_assert_lt(bound, 0.05);
            cr_assert_eq(with(row, head, d, exact), KVT_RIGHT);
            cr_assert_eq(with(row, head, d, exact + 1.2 * bound), KVT_WRONG);
            cr_assert_eq(with(row, head, d, exact - 1.2 * bound), KVT_WRONG);
            cr_assert_eq(with(row, head, d, NAN), KVT_WRONG);
            cr_assert_eq(with(row, head, d, INFINITY), KVT_WRONG);
        }
    kvt_attention_end(&scene);
}

Test(attention_rule, lse_counts)
{
    struct kvt_attention_case c = small(12);
    float *lse;
    float before;

    begin(&c);
    lse = kvt_attention_lse(&scene, 5, 3);
    before = *lse;
    for (uint32_t i = 0; i < 4; i++) {
        const float values[] = {NAN, -INFINITY, before + 1e-4f, before - 1e-4f};

        *lse = values[i];
        cr_assert_eq(kvt_attention_judge(&scene), KVT_WRONG, "%u", i);
    }
    *lse = before;
    cr_assert_eq(kvt_attention_judge(&scene), KVT_RIGHT);
    kvt_attention_end(&scene);
}

Test(attention_rule, a_row_that_sees_nothing_is_zero)
{
    struct kvt_attention_case c = small(13);
    static const uint32_t lengths[] = {0, 2}, rows[] = {3, 3};

    c.lengths = lengths;
    c.rows = rows;
    begin(&c);
    for (uint64_t row = 0; row < 4; row++) {
        cr_assert_eq(kvt_attention_out(&scene, row, 2, 5), 0);
        cr_assert_eq(*kvt_attention_lse(&scene, row, 2), -INFINITY);
        cr_assert_eq(with(row, 2, 5, 1e-6), KVT_WRONG);
    }
    *kvt_attention_lse(&scene, 0, 2) = -1e30f;
    cr_assert_eq(kvt_attention_judge(&scene), KVT_WRONG);
    kvt_attention_end(&scene);
}

/* Guards, paddings between heads and rows, rows of no sequence. */
Test(attention_rule, writes_elsewhere_are_found)
{
    struct kvt_attention_case c = small(14);
    int64_t places[5];

    begin(&c);
    places[0] = -1;
    places[1] = -(int64_t)KVT_ATTENTION_GUARD / 2;
    places[2] = (int64_t)place_of(1, 1, 64);
    places[3] = (int64_t)place_of(6, 0, 0);
    places[4] = (int64_t)(scene.host.batch.q_total * scene.host.out_token_stride);
    for (uint32_t i = 0; i < 5; i++) {
        uint16_t *at =
            (uint16_t *)(void *)((char *)scene.out.host + KVT_ATTENTION_GUARD) + places[i];

        *at = 0;
        cr_assert_eq(kvt_attention_judge(&scene), KVT_WRONG, "%u", i);
        *at = 0xffff;
    }
    *kvt_attention_lse(&scene, 6, 0) = 0;
    cr_assert_eq(kvt_attention_judge(&scene), KVT_WRONG);
    kvt_attention_end(&scene);
}

/* Memory that the kernel may not use is NaN, so a length too long by one shows as NaN. */
Test(attention_rule, reads_behind_the_length_are_found)
{
    struct kvt_attention_case c = small(15);
    int32_t *lengths;

    c.length = 201;
    c.row_count = 1;
    begin(&c);
    lengths = scene.lengths.device;
    lengths[1]++;
    scene.device.batch.kv_max++;
    cr_assert_eq(kvt_attention_try(&scene, "portable"), KVT_WRONG);
    cr_assert(strstr(scene.text, "nan"), "%s", scene.text);
    kvt_attention_end(&scene);
}

/* A taint is contained by the portable kernel to rows that see it. */
Test(attention_rule, taints_stay_in_rows_that_see_them)
{
    for (uint32_t taint = 1; taint < KVT_TAINT_END; taint++)
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            struct kvt_attention_case c = {.seed = seed,
                                           .seq_count = 2,
                                           .row_count = 60,
                                           .length = 80,
                                           .heads = 4,
                                           .kv_heads = 2,
                                           .dim_k = 64,
                                           .flags = KVA_CAUSAL,
                                           .window_tokens = 20,
                                           .taint = taint,
                                           .is_strict = true};
            const char *text = kvt_attention_check(&c, &kvt_host_memory, "portable", NULL);

            cr_assert_null(text, "%s", text);
        }
}
