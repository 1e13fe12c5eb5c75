/* SPDX-License-Identifier: Apache-2.0
 *
 * kva_merge_run on the CPU: random cases, a merge of merges, and what it refuses.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "support/attention_merge.h"

Test(attention_merge, random_cases)
{
    for (uint64_t seed = 1; seed <= 300; seed++) {
        struct kvt_merge_world world;
        char text[200];
        uint8_t *out;
        float *lse;

        kvt_merge_make(&world, seed);
        world.what.device = KVA_DEVICE_CPU;
        out = malloc(world.out_bytes);
        lse = malloc(world.lse_bytes);
        memset(out, 0xff, world.out_bytes);
        memset(lse, 0xff, world.lse_bytes);
        cr_assert_eq(kva_merge_run(&world.what, world.parts, world.part_lse, out,
                                   seed % 4 ? lse : NULL, NULL),
                     0, "%s", kva_error());
        kvt_merge_compare(&world, out, seed % 4 ? lse : NULL, text);
        cr_assert(text[0] == '\0', "%s", text);
        free(out);
        free(lse);
        kvt_merge_drop(&world);
    }
}

Test(attention_merge, nothing_seen_is_zero)
{
    const float parts[16] = {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, 1, 2, 3, 4, 5, 6, 7, 8};
    const float part_lse[2] = {-INFINITY, -INFINITY};
    struct kva_merge what = {sizeof(what),     KVA_DEVICE_CPU,  2, 1, 1, 8,
                             KVMEM_DTYPE_FP32, KVMEM_DTYPE_FP32};
    float out[8], lse;

    cr_assert_eq(kva_merge_run(&what, parts, part_lse, out, &lse, NULL), 0);
    for (uint32_t d = 0; d < 8; d++)
        cr_assert(out[d] == 0 && !signbit(out[d]));
    cr_assert(lse == -INFINITY);
}

/* A NaN of one row and head stays there. */
Test(attention_merge, nan_stays_in_its_row)
{
    float parts[2 * 3 * 4] = {0}, part_lse[6] = {0}, out[12];
    struct kva_merge what = {sizeof(what),     KVA_DEVICE_CPU,  2, 3, 1, 4,
                             KVMEM_DTYPE_FP32, KVMEM_DTYPE_FP32};

    parts[4] = NAN;
    cr_assert_eq(kva_merge_run(&what, parts, part_lse, out, NULL, NULL), 0);
    for (uint32_t i = 0; i < 12; i++)
        cr_assert_eq(isnan(out[i]) != 0, i == 4);
}

#define REFUSED(field, value, code_of)                                                   \
    do {                                                                                 \
        struct kva_merge bad = good;                                                     \
                                                                                         \
        bad.field = value;                                                               \
        cr_assert_eq(kva_merge_run(&bad, floats, floats, floats, NULL, NULL), code_of);  \
        cr_assert(strncmp(kva_error(), #field, strlen(#field)) == 0, "%s", kva_error()); \
    } while (0)

Test(attention_merge, bad_input_is_named)
{
    float floats[64] = {0};
    const struct kva_merge good = {sizeof(good),     KVA_DEVICE_CPU,  2, 1, 1, 8,
                                   KVMEM_DTYPE_FP32, KVMEM_DTYPE_FP32};

    cr_assert_eq(kva_merge_run(NULL, floats, floats, floats, NULL, NULL), KVMEM_E_INVALID);
    cr_assert_eq(kva_merge_run(&good, NULL, floats, floats, NULL, NULL), KVMEM_E_INVALID);
    cr_assert_eq(kva_merge_run(&good, floats, NULL, floats, NULL, NULL), KVMEM_E_INVALID);
    cr_assert_eq(kva_merge_run(&good, floats, floats, NULL, NULL, NULL), KVMEM_E_INVALID);
    for (uint32_t i = 0; i < 4; i++) {
        static const char *const fields[] = {"parts", "part_lse", "out", "lse"};
        char *at[4] = {(char *)floats, (char *)floats, (char *)floats, (char *)floats};

        at[i] += 2;
        cr_assert_eq(kva_merge_run(&good, at[0], (float *)(void *)at[1], at[2],
                                   (float *)(void *)at[3], NULL),
                     KVMEM_E_INVALID);
        cr_assert(strncmp(kva_error(), fields[i], strlen(fields[i])) == 0, "%s", kva_error());
    }
    REFUSED(size, 1, KVMEM_E_INVALID);
    REFUSED(device, 0, KVMEM_E_INVALID);
    REFUSED(part_count, 0, KVMEM_E_INVALID);
    REFUSED(part_count, 257, KVMEM_E_INVALID);
    REFUSED(row_count, 1u << 25, KVMEM_E_INVALID);
    REFUSED(head_count, 5000, KVMEM_E_INVALID);
    REFUSED(head_dim, 0, KVMEM_E_INVALID);
    REFUSED(head_dim, 1025, KVMEM_E_INVALID);
    REFUSED(part_dtype, KVMEM_DTYPE_INT8, KVMEM_E_INVALID);
    REFUSED(dtype, KVMEM_DTYPE_FP8_E4M3, KVMEM_E_INVALID);
}
