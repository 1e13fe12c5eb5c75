/* SPDX-License-Identifier: Apache-2.0
 *
 * The command line of bench/attention.
 */
#include "shape.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bench.h"

struct word {
    const char *text;
    uint32_t value;
};

static const struct word DTYPES[] = {{"bf16", KVMEM_DTYPE_BF16}, {"fp16", KVMEM_DTYPE_FP16},
                                     {"fp32", KVMEM_DTYPE_FP32}, {"fp8", KVMEM_DTYPE_FP8_E4M3},
                                     {"int8", KVMEM_DTYPE_INT8}, {NULL, 0}};
static const struct word LAYOUTS[] = {{"page", KVMEM_LAYOUT_PAGE_HEAD_TOKEN},
                                      {"page-token", KVMEM_LAYOUT_PAGE_TOKEN_HEAD},
                                      {"layer", KVMEM_LAYOUT_PER_LAYER},
                                      {NULL, 0}};

static uint32_t word_of(const struct word *words, const char *option, const char *text)
{
    for (; words->text; words++)
        if (!strcmp(words->text, text))
            return words->value;
    kvb_fail("%s: %s is none of its words (see bench/attention/shape.c)", option, text);
}

static uint32_t number_of(const char *option, const char *text, uint32_t low, uint32_t high)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);

    if (*end || end == text || value < low || value > high)
        kvb_fail("%s: %s is no number from %u to %u", option, text, low, high);
    return (uint32_t)value;
}

/* decode:64x8192, prefill:4x4096 */
static void parse_shape(struct kvb_shape *s, const char *text)
{
    char kind[16], rest;

    if (sscanf(text, "%15[a-z]:%ux%u%c", kind, &s->seqs, &s->length, &rest) != 3 || !s->seqs ||
        !s->length || (strcmp(kind, "decode") && strcmp(kind, "prefill")))
        kvb_fail("--shape: %s is not decode:NxTOKENS or prefill:NxTOKENS", text);
    s->rows = kind[0] == 'd' ? 1 : s->length;
    s->flags |= KVA_CAUSAL;
}

static void parse_pair(const char *option, const char *text, uint32_t *first, uint32_t *second)
{
    char rest;
    int count = sscanf(text, "%u/%u%c", first, second, &rest);

    if (count == 1)
        *second = *first;
    else if (count != 2)
        kvb_fail("%s: %s is neither N nor N/N", option, text);
}

/* cpu, cuda, cuda:1 */
static void parse_device(struct kvb_shape *s, const char *text)
{
    s->device = strncmp(text, "cuda", 4) ? KVA_DEVICE_CPU : KVA_DEVICE_CUDA;
    if (!strncmp(text, "cuda:", 5)) {
        number_of("--device cuda", text + 5, 0, 1023);
        setenv("KVMEM_CUDA_DEVICE", text + 5, 1);
    } else if (strcmp(text, "cpu") && strcmp(text, "cuda")) {
        kvb_fail("--device: %s is neither cpu nor cuda nor cuda:N", text);
    }
}

static void parse_option(struct kvb_shape *s, const char *option, const char *text)
{
    if (!strcmp(option, "--shape"))
        parse_shape(s, text);
    else if (!strcmp(option, "--device"))
        parse_device(s, text);
    else if (!strcmp(option, "--heads"))
        parse_pair(option, text, &s->heads, &s->kv_heads);
    else if (!strcmp(option, "--dim"))
        parse_pair(option, text, &s->dim_k, &s->dim_v);
    else if (!strcmp(option, "--dtype"))
        s->dtype = s->kv_dtype = word_of(DTYPES, option, text);
    else if (!strcmp(option, "--kv-dtype"))
        s->kv_dtype = word_of(DTYPES, option, text);
    else if (!strcmp(option, "--layout"))
        s->layout = word_of(LAYOUTS, option, text);
    else if (!strcmp(option, "--block"))
        s->block_tokens = number_of(option, text, 1, 4096);
    else if (!strcmp(option, "--layers"))
        s->layers = number_of(option, text, 1, 1024);
    else if (!strcmp(option, "--rows"))
        s->rows = number_of(option, text, 1, 1u << 20);
    else if (!strcmp(option, "--shortest"))
        s->shortest = number_of(option, text, 1, s->length);
    else if (!strcmp(option, "--window"))
        s->window_tokens = number_of(option, text, 0, 1u << 30);
    else if (!strcmp(option, "--threads"))
        s->threads = number_of(option, text, 1, 1024);
    else if (!strcmp(option, "--samples"))
        s->samples = number_of(option, text, 1, 4096);
    else if (!strcmp(option, "--kernel"))
        s->kernel = text;
    else
        kvb_fail(
            "%s: no such option; there are --shape --device --heads --dim --dtype --kv-dtype "
            "--layout --block --layers --rows --shortest --window --threads --samples --kernel "
            "--invariant --not-causal",
            option);
}

int kvb_shape_parse(struct kvb_shape *shape, int argc, char **argv)
{
    int has_shape = 0;

    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--not-causal")) {
            shape->flags &= ~(uint32_t)KVA_CAUSAL;
        } else if (!strcmp(argv[i], "--invariant")) {
            shape->flags |= KVA_BATCH_INVARIANT;
        } else if (i + 1 == argc) {
            kvb_fail("%s: needs a value", argv[i]);
        } else {
            has_shape |= !strcmp(argv[i], "--shape");
            parse_option(shape, argv[i], argv[i + 1]);
            i++;
        }
    }
    return has_shape;
}

const char *kvb_shape_name(const struct kvb_shape *shape)
{
    static char name[64];

    snprintf(name, sizeof(name), "%s_%ux%u", shape->rows == shape->length ? "prefill" : "decode",
             shape->seqs, shape->length);
    return name;
}
