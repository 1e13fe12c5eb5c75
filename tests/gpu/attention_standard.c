/* SPDX-License-Identifier: Apache-2.0
 *
 * Standard attention and cascades on a GPU, against the reference.
 */
#include <stdlib.h>

#include "support/attention_others.h"
#include "support/gpu/attention.h"
#include "support/gpu/cases.h"

static uint32_t step(void)
{
    const char *share = getenv("KVMEM_ROUNDS_SHARE");

    return share ? (uint32_t)atoi(share) : 1;
}

static void standard(void)
{
    const struct kvt_memory memory = kvt_gpu_attention_memory(NULL);

    kvt_attention_threads = 8;
    for (uint32_t i = 0; i < KVT_STANDARD_CASES; i += step()) {
        struct kvt_attention_case c = kvt_standard_case(i, KVA_DEVICE_CUDA);
        const char *text = kvt_standard_check(&c, &memory);

        KVT_REQUIRE(!text, "case %u: %s", i, text);
    }
}

/* Large enough for several waves of tiles; every tenth row is compared. */
static void standard_large(void)
{
    const struct kvt_attention_case c = {.seed = 7,
                                         .seq_count = 2,
                                         .row_count = 700,
                                         .length = 1500,
                                         .heads = 8,
                                         .kv_heads = 2,
                                         .dim_k = 128,
                                         .flags = KVA_CAUSAL,
                                         .row_step = 10};
    const struct kvt_memory memory = kvt_gpu_attention_memory(NULL);
    const char *text;

    kvt_attention_threads = 16;
    text = kvt_standard_check(&c, &memory);
    KVT_REQUIRE(!text, "%s", text);
}

static void cascade(void)
{
    const struct kvt_memory memory = kvt_gpu_attention_memory(NULL);

    kvt_attention_threads = 8;
    for (uint32_t i = 0; i < KVT_CASCADE_CASES; i += step()) {
        struct kvt_attention_case c = kvt_cascade_case(i, KVA_DEVICE_CUDA);
        uint32_t prefix_tokens;
        const char *text = kvt_cascade_check(&c, &memory, &prefix_tokens);

        KVT_REQUIRE(!text, "case %u, prefix of %u: %s", i, prefix_tokens, text);
    }
}

static const struct kvt_case cases[] = {{"standard", standard, 0},
                                        {"standard_large", standard_large, 0},
                                        {"cascade", cascade, 0},
                                        {NULL, NULL, 0}};

int main(int argc, char **argv)
{
    return kvt_cases_main(argc, argv, cases, NULL);
}
