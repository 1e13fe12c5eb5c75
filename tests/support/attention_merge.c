/* SPDX-License-Identifier: Apache-2.0 */
#include "support/attention_merge.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../attention/reference.h"
#include "support/random.h"

static uint32_t bytes_of(uint32_t dtype)
{
    return dtype == KVMEM_DTYPE_FP32 ? 4 : 2;
}

static uint32_t below(uint64_t *random, uint32_t limit)
{
    return (uint32_t)(kvt_random(random) % limit);
}

static double fraction(uint64_t *random)
{
    return ldexp((double)(int64_t)kvt_random(random), -63);
}

static float random_lse(uint64_t *random)
{
    switch (below(random, 12)) {
    case 0: return -INFINITY;
    case 1: return (float)(300 * fraction(random));
    default: return (float)(8 * fraction(random));
    }
}

/* Parts that count nothing hold NaN. */
static void fill(struct kvt_merge_world *world, uint64_t *random)
{
    const struct kva_merge *m = &world->what;
    uint64_t vectors = (uint64_t)m->part_count * m->row_count * m->head_count;
    uint32_t is_blind = below(random, 6) == 0;

    for (uint64_t i = 0; i < vectors; i++) {
        uint64_t of_row = i % ((uint64_t)m->row_count * m->head_count);

        world->part_lse[i] = is_blind && of_row % 3 == 0 ? -INFINITY : random_lse(random);
        for (uint32_t d = 0; d < m->head_dim; d++)
            kva_reference_store(m->part_dtype, world->parts, i * m->head_dim + d,
                                world->part_lse[i] == -INFINITY ? (double)NAN
                                                                : 4 * fraction(random));
    }
}

void kvt_merge_make(struct kvt_merge_world *world, uint64_t seed)
{
    static const uint16_t dims[] = {8, 64, 80, 128, 256, 512, 1024};
    static const uint16_t parts[] = {1, 2, 2, 3, 5, 17, 32, 97, 256};
    struct kva_merge *m = &world->what;
    uint64_t random = seed, vectors;

    memset(world, 0, sizeof(*world));
    world->seed = seed;
    *m = (struct kva_merge){.size = sizeof(*m),
                            .part_count = parts[below(&random, 9)],
                            .row_count = 1 + below(&random, 9),
                            .head_count = 1 + below(&random, 5),
                            .head_dim = dims[below(&random, 7)],
                            .part_dtype = KVMEM_DTYPE_BF16 + below(&random, 3),
                            .dtype = KVMEM_DTYPE_BF16 + below(&random, 3)};
    vectors = (uint64_t)m->row_count * m->head_count;
    world->part_bytes = vectors * m->part_count * m->head_dim * bytes_of(m->part_dtype);
    world->part_lse_bytes = vectors * m->part_count * 4;
    world->out_bytes = vectors * m->head_dim * bytes_of(m->dtype);
    world->lse_bytes = vectors * 4;
    world->parts = malloc(world->part_bytes);
    world->part_lse = malloc(world->part_lse_bytes);
    fill(world, &random);
}

void kvt_merge_drop(struct kvt_merge_world *world)
{
    free(world->parts);
    free(world->part_lse);
}

/* Rounding once to the type of the result, and some float arithmetic before. */
static double allowed(uint32_t dtype, double value)
{
    return kva_reference_unit(dtype) * 1.01 * fabs(value) + 4e-6 +
           (dtype == KVMEM_DTYPE_FP16) * 6e-8;
}

static void say(const struct kvt_merge_world *world, const char *what, uint64_t at, double seen,
                double right, char text[200])
{
    const struct kva_merge *m = &world->what;

    snprintf(text, 200,
             "seed %" PRIu64 ": %u parts, %u rows, %u heads of %u, %u to %u: %s[%" PRIu64
             "] is %.9g, not %.9g",
             world->seed, m->part_count, m->row_count, m->head_count, m->head_dim, m->part_dtype,
             m->dtype, what, at, seen, right);
}

void kvt_merge_compare(const struct kvt_merge_world *world, const void *out, const float *lse,
                       char text[200])
{
    const struct kva_merge *m = &world->what;
    uint64_t vectors = (uint64_t)m->row_count * m->head_count;

    text[0] = '\0';
    for (uint64_t at = 0; at < vectors; at++) {
        double most = -INFINITY, sum = 0, right;

        for (uint32_t p = 0; p < m->part_count; p++)
            most = fmax(most, (double)world->part_lse[p * vectors + at]);
        for (uint32_t p = 0; p < m->part_count; p++)
            sum += isinf(most) ? 0 : exp(world->part_lse[p * vectors + at] - most);
        right = sum == 0 ? -INFINITY : most + log(sum);
        if (lse && !(isinf(right) ? (double)lse[at] == right
                                  : fabs(lse[at] - right) <= 1e-6 * (1 + fabs(right)) + 1e-6))
            say(world, "lse", at, lse[at], right, text);
        for (uint32_t d = 0; d < m->head_dim; d++) {
            double seen = kva_reference_element(m->dtype, out, at * m->head_dim + d);
            double value = 0;

            for (uint32_t p = 0; p < m->part_count; p++)
                if (world->part_lse[p * vectors + at] != -INFINITY)
                    value += exp(world->part_lse[p * vectors + at] - right) *
                             kva_reference_element(m->part_dtype, world->parts,
                                                   (p * vectors + at) * m->head_dim + d);
            if (!(fabs(seen - value) <= allowed(m->dtype, value)))
                say(world, "out", at * m->head_dim + d, seen, value, text);
        }
    }
}
