/* SPDX-License-Identifier: Apache-2.0
 *
 * The reference of attention against closed forms, and the number formats against their
 * definitions, every bit pattern; then the conversions of the CPU's kernels against those.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "../../attention/cpu/element.h"
#include "../../attention/internal.h"
#include "../../attention/reference.h"
#include "support/random.h"

/* ---- formats ---- */

Test(attention_reference, every_number_survives)
{
    static const uint32_t dtypes[] = {KVMEM_DTYPE_BF16, KVMEM_DTYPE_FP16, KVMEM_DTYPE_FP8_E4M3,
                                      KVMEM_DTYPE_INT8};

    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t bits = 0; bits < (i < 2 ? 65536u : 256u); bits++) {
            double value = kva_reference_element(dtypes[i], &bits, 0);
            uint32_t stored = 0;

            kva_reference_store(dtypes[i], &stored, 0, value);
            cr_assert(isnan(value) ? isnan(kva_reference_element(dtypes[i], &stored, 0))
                                   : stored == bits,
                      "type %u, %#x became %#x", dtypes[i], bits, stored);
        }
}

Test(attention_reference, e4m3_by_its_definition)
{
    const uint8_t bits[] = {0x00, 0x01, 0x07, 0x08, 0x38, 0x39, 0x7e, 0x80, 0xb8, 0xfe};
    const double values[] = {0, 0x1p-9, 0x7p-9, 0x1p-6, 1, 1.125, 448, -0.0, -1, -448};
    uint8_t stored[4];

    for (uint32_t i = 0; i < 10; i++)
        cr_assert_eq(kva_reference_element(KVMEM_DTYPE_FP8_E4M3, bits, i), values[i], "%u", i);
    cr_assert_eq(kva_reference_round(KVMEM_DTYPE_FP8_E4M3, 1e9), 448);
    cr_assert_eq(kva_reference_round(KVMEM_DTYPE_FP8_E4M3, -INFINITY), -448);
    cr_assert_eq(kva_reference_round(KVMEM_DTYPE_FP8_E4M3, 1.0625), 1, "a tie, to even");
    cr_assert_eq(kva_reference_round(KVMEM_DTYPE_FP8_E4M3, 1.1875), 1.25, "a tie, to even");
    cr_assert_eq(kva_reference_round(KVMEM_DTYPE_FP8_E4M3, 0x1p-10), 0, "a tie, to even");
    kva_reference_store(KVMEM_DTYPE_FP8_E4M3, stored, 0, NAN);
    cr_assert_eq(stored[0] & 0x7f, 0x7f);
    kva_reference_store(KVMEM_DTYPE_INT8, stored, 1, NAN);
    kva_reference_store(KVMEM_DTYPE_INT8, stored, 2, 2.5);
    kva_reference_store(KVMEM_DTYPE_INT8, stored, 3, -1000);
    cr_assert(stored[1] == 0 && stored[2] == 2 && (int8_t)stored[3] == -128);
}

Test(attention_reference, halves_round_to_even_and_overflow_to_infinity)
{
    cr_assert_eq(kva_reference_round(KVMEM_DTYPE_FP16, 65519.9), 65504);
    cr_assert_eq(kva_reference_round(KVMEM_DTYPE_FP16, 65520), INFINITY);
    cr_assert_eq(kva_reference_round(KVMEM_DTYPE_FP16, 1 + 0x1p-11), 1);
    cr_assert_eq(kva_reference_round(KVMEM_DTYPE_FP16, 1 + 0x3p-11), 1 + 0x1p-9);
    cr_assert_eq(kva_reference_round(KVMEM_DTYPE_FP16, 0x3p-26), 0x1p-24);
    cr_assert_eq(kva_reference_round(KVMEM_DTYPE_BF16, 1 + 0x1p-8), 1);
    cr_assert_eq(kva_reference_round(KVMEM_DTYPE_BF16, 1 + 0x3p-8), 1 + 0x1p-6);
    cr_assert_eq(kva_reference_round(KVMEM_DTYPE_BF16, 3.4e38), INFINITY);
    cr_assert_eq(kva_reference_unit(KVMEM_DTYPE_BF16), 0x1p-8);
    cr_assert_eq(kva_reference_unit(KVMEM_DTYPE_FP16), 0x1p-11);
    cr_assert_eq(kva_reference_unit(KVMEM_DTYPE_FP32), 0x1p-24);
}

/* The kernels' conversions: every pattern one way, random and awkward floats the other. */
Test(attention_reference, conversions_of_the_cpu)
{
    static const uint32_t dtypes[] = {KVMEM_DTYPE_BF16, KVMEM_DTYPE_FP16, KVMEM_DTYPE_FP8_E4M3,
                                      KVMEM_DTYPE_INT8};
    uint64_t seed = 5;

    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t bits = 0; bits < (i < 2 ? 65536u : 256u); bits++) {
            double expected = kva_reference_element(dtypes[i], &bits, 0);
            float got;

            kva_load(dtypes[i], &bits, 0, 1, &got, 1);
            cr_assert(isnan(expected) ? isnan(got) : (double)got == expected, "type %u, %#x",
                      dtypes[i], bits);
        }
    for (uint32_t i = 0; i < 2000000; i++) {
        uint32_t bits = (uint32_t)kvt_random(&seed) & (i & 1 ? ~0u : 0xfffff000);
        float value = kva_float_of_bits(i % 4 < 2 ? bits : (bits & 0x8fffffff) | 0x30000000);
        uint32_t dtype = 1 + i / 4 % 2;
        uint16_t got, expected;

        kva_store(dtype, &got, 0, 1, &value);
        kva_reference_store(dtype, &expected, 0, value);
        cr_assert(isnan(value) ? isnan(kva_reference_element(dtype, &got, 0)) : got == expected,
                  "%a as type %u: %#x, expected %#x", (double)value, dtype, got, expected);
    }
}

/* ---- attention by hand ---- */

/* fp32, two tokens a block, one K/V head of one element: score of token t is q × k[t]. */
struct line {
    float k[6];
    float v[6];
    float pool[12];
    float q[6];
    double out[6];
    struct kva_reference_row rows[6];
    int32_t table[3];
    int32_t length;
    struct kva_attention what;
};

static struct line line_of(uint32_t length, uint32_t rows)
{
    struct line l = {.k = {0.5, -1, 2, 0.25, 1, -0.5},
                     .v = {1, 2, 4, 8, 16, 32},
                     .q = {1, 1, 1, 1, 1, 1},
                     .table = {2, 0, 1},
                     .length = (int32_t)length};

    l.what = (struct kva_attention){
        .q_head_count = 1,
        .dtype = KVMEM_DTYPE_FP32,
        .softmax_scale = 1,
        .q_token_stride = 1,
        .cache = {.dtype = KVMEM_DTYPE_FP32,
                  .block_tokens = 2,
                  .block_count = 3,
                  .layer_count = 1,
                  .kv_head_count = 1,
                  .head_dim_k = 1,
                  .head_dim_v = 1,
                  .block_stride = 4,
                  .k_token_stride = 1,
                  .v_token_stride = 1},
        .batch = {.seq_count = 1, .q_max = rows, .q_total = rows, .kv_max = 6, .table_stride = 3}};
    return l;
}

static int attend(struct line *l, enum kva_precision precision)
{
    struct kva_reference job = {
        .what = &l->what, .q = l->q, .precision = precision, .out = l->out, .rows = l->rows};

    for (uint32_t t = 0; t < 6; t++) {
        float *block = l->pool + (l->table[t / 2] >= 0 ? l->table[t / 2] * 4 : 0);

        block[t % 2] = l->k[t];
        block[2 + t % 2] = l->v[t];
    }
    l->what.cache.k = l->pool;
    l->what.cache.v = l->pool + 2;
    l->what.batch.tables = l->table;
    l->what.batch.kv_lengths = &l->length;
    return kva_reference_attention(&job);
}

/* Σ exp(score) v and Σ exp(score) of the tokens whose bit is set, and a sink. */
static void expect(const struct line *l, uint32_t row, uint32_t seen, const double scores[6],
                   double sink)
{
    double sum = sink;
    double out = 0;

    for (uint32_t t = 0; t < 6; t++)
        if (seen >> t & 1) {
            sum += exp(scores[t]);
            out += exp(scores[t]) * l->v[t];
        }
    cr_assert_float_eq(l->out[row], out / sum, 1e-12, "row %u: %g, %g", row, l->out[row],
                       out / sum);
    cr_assert_float_eq(l->rows[row].lse, log(sum), 1e-12);
}

Test(attention_reference, masks_by_hand)
{
    const double scores[6] = {0.5, -1, 2, 0.25, 1, -0.5};
    struct line l = line_of(6, 3);

    cr_assert_eq(attend(&l, KVA_EXACT), 0);
    for (uint32_t i = 0; i < 3; i++)
        expect(&l, i, 0x3f, scores, 0);
    l.what.flags = KVA_CAUSAL;
    cr_assert_eq(attend(&l, KVA_EXACT), 0);
    expect(&l, 0, 0x0f, scores, 0);
    expect(&l, 1, 0x1f, scores, 0);
    expect(&l, 2, 0x3f, scores, 0);
    l.what.window_tokens = 2;
    cr_assert_eq(attend(&l, KVA_EXACT), 0);
    expect(&l, 0, 0x0c, scores, 0);
    expect(&l, 1, 0x18, scores, 0);
    expect(&l, 2, 0x30, scores, 0);
    l.what.flags = 0;
    l.what.tree_mask = (const uint64_t[]){1, 2, 5};
    l.what.window_tokens = 3;
    cr_assert_eq(attend(&l, KVA_EXACT), 0);
    expect(&l, 0, 0x0e, scores, 0); /* position 3 sees from 1 on: 1, 2, itself */
    expect(&l, 1, 0x14, scores, 0); /* 2, itself */
    expect(&l, 2, 0x28, scores, 0); /* new tokens 0 and 2 */
}

Test(attention_reference, scores_by_hand)
{
    const double k[6] = {0.5, -1, 2, 0.25, 1, -0.5};
    double scores[6];
    struct line l = line_of(5, 1);

    l.what.softmax_scale = 3;
    l.what.soft_cap = 2;
    l.what.alibi_slopes = (const float[]){0.25};
    l.what.sinks = (const float[]){1.5};
    for (uint32_t t = 0; t < 6; t++)
        scores[t] = 2 * tanh(3 * k[t] / 2) + 0.25 * ((double)t - 4);
    cr_assert_eq(attend(&l, KVA_EXACT), 0);
    expect(&l, 0, 0x1f, scores, exp(1.5));
}

Test(attention_reference, rows_before_the_first_token_see_nothing)
{
    struct line l = line_of(2, 4);

    l.what.flags = KVA_CAUSAL;
    l.what.sinks = (const float[]){0.5};
    cr_assert_eq(attend(&l, KVA_EXACT), 0);
    for (uint32_t i = 0; i < 2; i++)
        cr_assert(l.out[i] == 0 && l.rows[i].lse == -INFINITY);
    cr_assert_neq(l.out[2], 0);
    l = line_of(0, 1);
    l.table[0] = -5; /* never looked at */
    cr_assert_eq(attend(&l, KVA_EXACT), 0);
    cr_assert(l.out[0] == 0 && l.rows[0].lse == -INFINITY);
    l.length = 1;
    cr_assert_eq(attend(&l, KVA_EXACT), KVMEM_E_INVALID);
    l.table[0] = 3;
    cr_assert_eq(kva_reference_attention(&(struct kva_reference){
                     .what = &l.what, .q = l.q, .out = l.out, .rows = l.rows}),
                 KVMEM_E_INVALID);
}

/* A plain kernel of fp16: P and the result are fp16 numbers. */
Test(attention_reference, plain_rounds_as_said)
{
    struct line l = line_of(2, 1);
    uint16_t one = 0x3c00;
    double p = kva_reference_round(KVMEM_DTYPE_FP16, expf(-1.5f));
    double sum = 1.0f + expf(-1.5f);
    double value = kva_reference_round(KVMEM_DTYPE_FP16, (float)((float)(1 + p * 2) / sum));
    struct kva_reference job = {
        .what = &l.what, .q = &one, .precision = KVA_PLAIN, .out = l.out, .rows = l.rows};

    cr_assert_eq(attend(&l, KVA_EXACT), 0);
    l.what.dtype = KVMEM_DTYPE_FP16;
    cr_assert_eq(kva_reference_attention(&job), 0);
    cr_assert_eq(l.out[0], value, "%.17g, %.17g", l.out[0], value);
}
