/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention on the CPU, to the last bit: over layouts, over batches, over threads, for each kernel;
 * and pools whose addresses need 64 bits.
 */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "support/attention_equal.h"
#include "support/attention_grid.h"

static const struct kvt_attention_case CASES[] = {
    {.seed = 1,
     .seq_count = 4,
     .row_count = 1,
     .length = 700,
     .heads = 8,
     .kv_heads = 2,
     .dim_k = 128,
     .is_ragged = true,
     .flags = KVA_CAUSAL},
    {.seed = 2,
     .seq_count = 5,
     .row_count = 8,
     .length = 150,
     .heads = 4,
     .kv_heads = 4,
     .dim_k = 64,
     .is_ragged = true,
     .flags = KVA_CAUSAL,
     .window_tokens = 50,
     .has_sinks = true,
     .dtype = KVMEM_DTYPE_FP16},
    {.seed = 3,
     .seq_count = 3,
     .row_count = 100,
     .length = 260,
     .heads = 4,
     .kv_heads = 1,
     .dim_k = 128,
     .is_ragged = true,
     .flags = KVA_CAUSAL,
     .has_slopes = true},
    {.seed = 4,
     .seq_count = 3,
     .row_count = 5,
     .length = 300,
     .heads = 8,
     .kv_heads = 2,
     .dim_k = 128,
     .has_tree = true,
     .cache_dtype = KVMEM_DTYPE_INT8,
     .scale_mode = KVMEM_SCALE_TOKEN_HEAD},
    {.seed = 5,
     .seq_count = 3,
     .row_count = 1,
     .length = 400,
     .heads = 8,
     .kv_heads = 2,
     .dim_k = 128,
     .cache_dtype = KVMEM_DTYPE_FP8_E4M3,
     .scale_mode = KVMEM_SCALE_HEAD},
    {.seed = 6,
     .seq_count = 2,
     .row_count = 2,
     .length = 200,
     .heads = 16,
     .kv_heads = 1,
     .dim_k = 576,
     .dim_v = 512,
     .is_latent = true,
     .flags = KVA_CAUSAL},
};
#define CASE_COUNT (sizeof(CASES) / sizeof(*CASES))

/* Each kernel and case; the portable one refuses none. */
#define FOR_ALL(call)                                                                       \
    do {                                                                                    \
        const char *kernel;                                                                 \
        for (uint32_t k = 0; (kernel = kvt_attention_kernel(KVA_DEVICE_CPU, NULL, k)); k++) \
            for (uint32_t i = 0; i < CASE_COUNT; i++) {                                     \
                bool refused = false;                                                       \
                const char *text = call;                                                    \
                cr_assert(!text || refused, "%s: %s", kernel, text);                        \
                cr_assert(!refused || strcmp(kernel, "cpu portable"));                      \
            }                                                                               \
    } while (0)

Test(attention_equal, layouts)
{
    FOR_ALL(kvt_attention_equal_layouts(&CASES[i], &kvt_host_memory, kernel, &refused));
}

Test(attention_equal, alone_and_among_others)
{
    FOR_ALL(kvt_attention_equal_alone(&CASES[i], &kvt_host_memory, kernel, &refused));
}

Test(attention_equal, again_with_other_threads)
{
    FOR_ALL(kvt_attention_equal_again(&CASES[i], &kvt_host_memory, kernel, 4, &refused));
}

/* The caller's threads: here four, which take items from the last one on. */
struct crew {
    void (*work)(void *argument, uint32_t i);
    void *argument;
    atomic_int left;
};

static void *crew_member(void *argument)
{
    struct crew *crew = argument;
    int i;

    while ((i = atomic_fetch_sub(&crew->left, 1) - 1) >= 0)
        crew->work(crew->argument, (uint32_t)i);
    return NULL;
}

static void crew_run(void *context, uint32_t n, void (*work)(void *argument, uint32_t i),
                     void *argument)
{
    struct crew crew = {.work = work, .argument = argument, .left = (int)n};
    pthread_t threads[4];

    *(uint32_t *)context += n;
    for (uint32_t i = 0; i < 4; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, crew_member, &crew), 0);
    for (uint32_t i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
}

static void compare_with_crew(const struct kvt_attention_case *c, const char *kernel)
{
    struct kvt_attention_scene s;
    uint32_t items = 0;
    void *before;

    cr_assert(kvt_attention_begin(&s, c, &kvt_host_memory));
    if (kvt_attention_try(&s, kernel) == KVT_RIGHT) {
        before = malloc(s.out.bytes);
        memcpy(before, s.out.host, s.out.bytes);
        s.device.parallel = crew_run;
        s.device.parallel_context = &items;
        cr_assert_eq(kvt_attention_run(&s, kernel), KVT_RIGHT, "%s", s.text);
        cr_assert(!memcmp(before, s.out.host, s.out.bytes), "%s: %s", kernel,
                  kvt_attention_describe(c));
        cr_assert_gt(items, 0);
        free(before);
    }
    kvt_attention_end(&s);
}

Test(attention_equal, threads_of_the_caller)
{
    const char *kernel;

    for (uint32_t k = 0; (kernel = kvt_attention_kernel(KVA_DEVICE_CPU, NULL, k)); k++)
        for (uint32_t i = 0; i < CASE_COUNT; i++)
            compare_with_crew(&CASES[i], kernel);
}

/* Blocks 3 GB apart, 120 GB and more in all, of which next to nothing is touched. */
Test(attention_equal, pools_beyond_32_bits)
{
    struct kvt_attention_case c = CASES[0];
    const char *kernel;

    c.length = 150;
    c.block_stride_bytes = UINT64_C(3) << 30;
    for (uint32_t k = 0; (kernel = kvt_attention_kernel(KVA_DEVICE_CPU, NULL, k)); k++) {
        enum kvt_verdict verdict;
        const char *text = kvt_attention_check(&c, &kvt_host_memory, kernel, &verdict);

        cr_assert(!text || verdict == KVT_REFUSED, "%s: %s", kernel, text);
    }
}
