/* SPDX-License-Identifier: Apache-2.0
 *
 * Running the grids of attention_grid.h.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/attention_grid.h"
#include "support/random.h"

#define STEP 1000003u /* a prime */

const char *kvt_attention_kernel(uint32_t device, const char *word, uint32_t i)
{
    const struct kva_kernel *const *list =
        device == KVA_DEVICE_CUDA ? kva_cuda_kernels() : kva_cpu_kernels;

    for (; *list; list++)
        if ((!word || strstr((*list)->name, word)) && i-- == 0)
            return (*list)->name;
    return NULL;
}

/* ---- cutting down ---- */

static void halve(uint32_t *value, uint32_t least)
{
    *value = *value / 2 > least ? *value - *value / 2 : least;
}

/* One step: fewer sequences, fewer groups of heads, then shorter ones. */
static void shrink(struct kvt_attention_case *c)
{
    uint32_t group = c->heads / c->kv_heads;

    if (c->seq_count > 3) {
        c->seq_count = 3;
    } else if (c->kv_heads > 2) {
        c->kv_heads = 2;
        c->heads = 2 * group;
    } else if (c->row_count > 128) {
        halve(&c->row_count, 1);
    } else if (c->length > 600) {
        halve(&c->length, 1);
    } else if (c->seq_count > 1) {
        c->seq_count--;
    } else if (c->kv_heads > 1) {
        c->kv_heads = 1;
        c->heads = group;
    } else if (group > 16) {
        halve(&c->heads, 1);
    } else {
        halve(&c->row_count, 1);
        halve(&c->length, 1);
    }
}

/* What a GPU takes: blocks of a power of two of tokens from 8 on, or of a multiple of 64. */
static void fit_device(struct kvt_attention_case *c, uint32_t device)
{
    uint32_t tokens = c->block_tokens;

    if (device == KVA_DEVICE_CUDA && tokens && tokens % 64 && (tokens < 8 || tokens & (tokens - 1)))
        c->block_tokens = 8 << tokens % 3;
}

void kvt_attention_fit(struct kvt_attention_case *c, double cost_limit, double truth_limit)
{
    while (kvt_attention_cost(c) > cost_limit && c->length > 1)
        shrink(c);
    c->row_step = (uint32_t)ceil(kvt_attention_cost(c) / truth_limit);
}

/* ---- running ---- */

static uint64_t seed_of(const char *name, uint32_t i)
{
    uint64_t seed = i;

    for (; *name; name++)
        seed = seed * 31 + (unsigned char)*name;
    return kvt_random(&seed);
}

static void run_kernels(struct kvt_attention_scene *s, const struct kvt_attention_plan *plan,
                        struct kvt_attention_count *count)
{
    uint32_t taken = 0;
    const char *name;

    for (uint32_t k = 0; (name = kvt_attention_kernel(plan->memory->device, plan->kernel, k));
         k++) {
        enum kvt_verdict verdict = kvt_attention_try(s, name);

        taken += verdict != KVT_REFUSED;
        if (verdict == KVT_RIGHT)
            count->worst = fmax(count->worst, s->worst);
        if (verdict == KVT_WRONG && count->wrong++ == 0)
            snprintf(count->text, sizeof(count->text), "%s: %.440s", name, s->text);
    }
    count->runs += taken;
    count->refused += taken == 0;
    if (!taken && !count->wrong)
        memcpy(count->text, s->text, sizeof(count->text));
}

static void run_case(const struct kvt_attention_case *c, const struct kvt_attention_plan *plan,
                     struct kvt_attention_count *count)
{
    struct kvt_attention_scene *s = malloc(sizeof(*s));

    count->cases++;
    if (s && kvt_attention_begin(s, c, plan->memory)) {
        run_kernels(s, plan, count);
        kvt_attention_end(s);
    } else {
        count->refused++;
    }
    free(s);
}

void kvt_attention_grid_run(const struct kvt_attention_grid *grid,
                            const struct kvt_attention_plan *plan,
                            struct kvt_attention_count *count)
{
    struct kvt_attention_case c = {0};
    uint32_t total = 0;
    uint32_t cases;

    while (grid->make(total, &c))
        total++;
    cases = plan->case_limit && plan->case_limit < total ? plan->case_limit : total;
    *count = (struct kvt_attention_count){0};
    for (uint32_t k = 0; k < cases; k++) {
        uint32_t i = (uint32_t)((uint64_t)k * STEP % total); /* no digit repeats in step with k */

        c = (struct kvt_attention_case){.seed = seed_of(grid->name, i)};
        grid->make(i, &c);
        fit_device(&c, plan->memory->device);
        kvt_attention_fit(&c, plan->cost_limit, plan->truth_limit);
        run_case(&c, plan, count);
    }
}
