/* SPDX-License-Identifier: Apache-2.0
 *
 * kva_write_run on the CPU: random cases, every byte of pool and scales; conversions over all
 * codes; what it refuses.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../../attention/cpu/element.h"
#include "../../attention/reference.h"
#include "support/attention_write.h"
#include "support/random.h"

#define CASES 600u

static void check_case(uint64_t seed, uint32_t threads)
{
    struct kvt_write_world world;
    char name[200], text[200];
    uint8_t *poisoned[3];
    const uint8_t *pool, *scales;

    kvt_write_make(&world, seed);
    world.what.threads = threads;
    for (uint32_t i = 0; i < 3; i++) {
        poisoned[i] = malloc(world.bytes[i] + 1);
        if (world.bytes[i])
            memcpy(poisoned[i], kvt_write_parts(&world.host)[i], world.bytes[i]);
    }
    {
        struct kvt_write_memory at = world.host;

        at.pool = poisoned[0];
        at.k_scale = world.bytes[1] ? poisoned[1] : NULL;
        at.v_scale = world.bytes[2] ? poisoned[2] : NULL;
        cr_assert_eq(kvt_write_run(&world, KVA_DEVICE_CPU, &at, NULL), 0, "%s: %s",
                     kvt_write_name(&world, name), kva_error());
    }
    pool = poisoned[0];
    scales = poisoned[1];
    kvt_write_compare(&world, pool, scales, poisoned[2], text);
    cr_assert(text[0] == '\0', "%s: %s", kvt_write_name(&world, name), text);
    for (uint32_t i = 0; i < 3; i++)
        free(poisoned[i]);
    kvt_write_drop(&world);
}

Test(attention_write, random_cases)
{
    for (uint64_t seed = 1; seed <= CASES; seed++)
        check_case(seed, 0);
}

static uint32_t stored(uint32_t dtype, double value)
{
    uint32_t code = 0;

    kva_reference_store(dtype, &code, 0, value);
    return code;
}

/* Every code of the small types, and what lies between them, against the types' definitions. */
Test(attention_write, conversions_by_definition)
{
    uint64_t random = 5;

    for (uint32_t code = 0; code < 65536; code++) {
        float half = kva_from_fp16((uint16_t)code);
        float brain = kva_from_bf16((uint16_t)code);
        float eight = kva_from_e4m3((uint8_t)code);

        cr_assert(isnan(half) ? isnan(kva_from_fp16(kva_to_fp16(half)))
                              : kva_to_fp16(half) == code);
        cr_assert(isnan(brain) ? isnan(kva_from_bf16(kva_to_bf16(brain)))
                               : kva_to_bf16(brain) == code);
        cr_assert_eq(kva_to_e4m3(eight), code & 255);
    }
    for (uint32_t i = 0; i < 2000000; i++) {
        uint32_t bits = (uint32_t)kvt_random(&random);
        float value;

        if (i % 2) /* near the small types' range, often half way between two codes */
            bits = (bits & 0x80000000u) | ((90u + bits % 60) << 23) | (bits >> 9 & 0x7ff000);
        value = kva_float_of_bits(bits);
        if (isnan(value))
            continue;
        cr_assert_eq(kva_to_bf16(value), stored(KVMEM_DTYPE_BF16, value), "%a", value);
        cr_assert_eq(kva_to_fp16(value), stored(KVMEM_DTYPE_FP16, value), "%a", value);
        cr_assert_eq(kva_to_e4m3(value), stored(KVMEM_DTYPE_FP8_E4M3, value), "%a", value);
        cr_assert_eq((uint8_t)kva_to_int8(value), stored(KVMEM_DTYPE_INT8, value) & 255, "%a",
                     value);
    }
}

static uint32_t pieces_seen;

static void backwards(void *context, uint32_t n, void (*work)(void *argument, uint32_t i),
                      void *argument)
{
    cr_assert_eq(context, &pieces_seen);
    pieces_seen += n;
    while (n-- > 0)
        work(argument, n);
}

Test(attention_write, the_callers_threads_do_the_work)
{
    struct kvt_write_world world;
    char name[200], text[200];

    for (uint64_t seed = 1001; seed < 1040; seed++) {
        struct kvt_write_memory at;
        uint8_t *pool;

        kvt_write_make(&world, seed);
        world.what.parallel = backwards;
        world.what.parallel_context = &pieces_seen;
        if (!world.bytes[1]) {
            pool = malloc(world.bytes[0]);
            memcpy(pool, world.host.pool, world.bytes[0]);
            at = world.host;
            at.pool = pool;
            cr_assert_eq(kvt_write_run(&world, KVA_DEVICE_CPU, &at, NULL), 0);
            kvt_write_compare(&world, pool, NULL, NULL, text);
            cr_assert(text[0] == '\0', "%s: %s", kvt_write_name(&world, name), text);
            free(pool);
        }
        kvt_write_drop(&world);
    }
    cr_assert(pieces_seen > 30);
}

/* ---- what is refused ---- */

static float floats[4096];
static int64_t some_slots[4] = {0, 1, 2, 3};
static int32_t some_positions[4];

static struct kva_write good(void)
{
    struct kva_write what = {.size = sizeof(what),
                             .device = KVA_DEVICE_CPU,
                             .token_count = 4,
                             .dtype = KVMEM_DTYPE_FP32,
                             .k_token_stride = 8,
                             .k_head_stride = 8,
                             .v_token_stride = 8,
                             .v_head_stride = 8,
                             .slots = some_slots,
                             .rotary_dim = 8,
                             .rotary_limit = 1,
                             .rotary_cos_sin = floats,
                             .positions = some_positions,
                             .cache = {.dtype = KVMEM_DTYPE_FP32,
                                       .block_tokens = 4,
                                       .block_count = 1,
                                       .layer_count = 2,
                                       .kv_head_count = 1,
                                       .head_dim_k = 8,
                                       .head_dim_v = 8,
                                       .k = floats,
                                       .v = floats + 64,
                                       .layer_stride = 32,
                                       .k_token_stride = 8,
                                       .v_token_stride = 8}};

    return what;
}

static void refused(const struct kva_write *what, const char *field)
{
    int code = kva_write_run(what, 0, 2, floats, 0, floats, 0, NULL);

    cr_assert_eq(code, KVMEM_E_INVALID, "%s: %d", field, code);
    cr_assert(strncmp(kva_error(), field, strlen(field)) == 0, "%s: %s", field, kva_error());
}

#define REFUSED(field, value)          \
    do {                               \
        struct kva_write bad = good(); \
                                       \
        bad.field = value;             \
        refused(&bad, #field);         \
    } while (0)

/* The same address, so many bytes on. */
#define MOVED(pointer, bytes) (void *)((uintptr_t)(pointer) + (bytes))

/* A cache in fp8 with a computed scale for each token. */
static struct kva_write good_computed(void)
{
    struct kva_write what = good();

    what.cache.dtype = KVMEM_DTYPE_FP8_E4M3;
    what.cache.scale_dtype = KVMEM_DTYPE_FP32;
    what.cache.block_count = 2;
    what.cache.kv_head_count = 2;
    what.cache.k_head_stride = what.cache.v_head_stride = 64;
    what.cache.block_stride = 128;
    what.cache.k_scale = floats + 1024;
    what.cache.v_scale = floats + 2048;
    what.cache.scale_token_stride = 1;
    what.cache.scale_head_stride = 4;
    what.cache.scale_layer_stride = 8;
    what.cache.scale_block_stride = 16;
    return what;
}

Test(attention_write, computed_scales_need_a_place_each)
{
    struct kva_write what = good_computed();

    cr_assert_eq(kva_write_run(&what, 0, 2, floats, 0, floats, 0, NULL), 0, "%s", kva_error());
    what.cache.scale_head_stride = 0;
    refused(&what, "cache.scale_head_stride");
    what.cache.kv_head_count = 1;
    cr_assert_eq(kva_write_run(&what, 0, 2, floats, 0, floats, 0, NULL), 0, "%s", kva_error());
    what = good_computed();
    what.cache.scale_layer_stride = 0;
    refused(&what, "cache.scale_layer_stride");
    what = good_computed();
    what.cache.scale_block_stride = 0;
    refused(&what, "cache.scale_block_stride");
    what.cache.scale_token_stride = 0; /* those are read, and may be shared */
    cr_assert_eq(kva_write_run(&what, 0, 2, floats, 0, floats, 0, NULL), 0, "%s", kva_error());
    what.cache.k_scale = MOVED(floats, 2);
    refused(&what, "cache.k_scale");
}

Test(attention_write, bad_input_is_named)
{
    struct kva_write what = good();

    cr_assert_eq(kva_write_run(&what, 0, 2, floats, 0, floats, 0, NULL), 0, "%s", kva_error());
    cr_assert_eq(kva_write_run(NULL, 0, 2, floats, 0, floats, 0, NULL), KVMEM_E_INVALID);
    cr_assert_eq(kva_write_run(&what, 1, 2, floats, 0, floats, 0, NULL), KVMEM_E_INVALID);
    cr_assert_eq(kva_write_run(&what, 0, 2, NULL, 0, floats, 0, NULL), KVMEM_E_INVALID);
    cr_assert_eq(kva_write_run(&what, 0, 2, floats, 0, NULL, 0, NULL), 0);
    REFUSED(size, 3);
    REFUSED(device, 9);
    REFUSED(token_count, (1u << 24) + 1);
    REFUSED(dtype, KVMEM_DTYPE_INT8);
    REFUSED(dtype, KVMEM_DTYPE_NONE);
    REFUSED(slots, NULL);
    REFUSED(slots, MOVED(some_slots, 4));
    REFUSED(positions, MOVED(some_positions, 2));
    REFUSED(rotary_cos_sin, MOVED(floats, 1));
    REFUSED(cache.k, MOVED(floats, 2));
    REFUSED(cache.v, MOVED(floats, 2));
    cr_assert_eq(kva_write_run(&what, 0, 2, MOVED(floats, 2), 0, floats, 0, NULL), KVMEM_E_INVALID);
    cr_assert(strncmp(kva_error(), "k: ", 3) == 0, "%s", kva_error());
    cr_assert_eq(kva_write_run(&what, 0, 2, floats, 0, MOVED(floats, 2), 0, NULL), KVMEM_E_INVALID);
    cr_assert(strncmp(kva_error(), "v: ", 3) == 0, "%s", kva_error());
    REFUSED(rotary_dim, 7);
    REFUSED(rotary_dim, 10);
    REFUSED(rotary_interleaved, 2);
    REFUSED(rotary_cos_sin, NULL);
    REFUSED(reserved, 1);
    REFUSED(cache.dtype, 6);
    REFUSED(cache.block_tokens, 0);
    REFUSED(cache.block_count, 0);
    REFUSED(cache.layer_count, 0);
    REFUSED(cache.kv_head_count, 0);
    REFUSED(cache.head_dim_k, 0);
    REFUSED(cache.head_dim_v, 4097);
    REFUSED(cache.k, NULL);
    REFUSED(cache.v, NULL);
    REFUSED(cache.block_stride, UINT64_C(1) << 41);
    what.cache.dtype = KVMEM_DTYPE_INT8;
    refused(&what, "cache.scale_dtype");
    what.cache.scale_dtype = KVMEM_DTYPE_FP32;
    refused(&what, "cache.k_scale");
    what.cache.k_scale = floats;
    refused(&what, "cache.v_scale");
}

Test(attention_write, a_slot_outside_writes_nothing)
{
    struct kva_write what = good();
    float before[4096];

    for (uint32_t i = 0; i < 4096; i++)
        floats[i] = (float)i;
    memcpy(before, floats, sizeof(before));
    some_slots[3] = 4;
    refused(&what, "slots[3]");
    cr_assert(memcmp(before, floats, sizeof(before)) == 0);
}
