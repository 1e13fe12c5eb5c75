/* SPDX-License-Identifier: Apache-2.0
 *
 * The grids of support/attention_grid.h on the CPU: every kernel of the list that takes a case,
 * more than 2,000 cases in all.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "support/attention_grid.h"

#define COST_LIMIT  3e6
#define TRUTH_LIMIT 1e6
#ifdef KVI_SANITIZE
#define CASE_LIMIT 20u
#else
#define CASE_LIMIT 150u /* 15 grids, 2,196 cases */
#endif

static void run(const char *name)
{
    struct kvt_attention_plan plan = {.memory = &kvt_host_memory,
                                      .cost_limit = COST_LIMIT,
                                      .truth_limit = TRUTH_LIMIT,
                                      .case_limit = CASE_LIMIT};
    struct kvt_attention_count count = {0};

    for (const struct kvt_attention_grid *g = kvt_attention_grids; g->name; g++)
        if (!strcmp(g->name, name))
            kvt_attention_grid_run(g, &plan, &count);
    printf("%s: %u cases, %u runs, worst %.2f of the bound\n", name, count.cases, count.runs,
           count.worst);
    cr_assert_eq(count.wrong, 0, "%u wrong: %s", count.wrong, count.text);
    cr_assert_eq(count.refused, 0, "%u refused: %s", count.refused, count.text);
    cr_assert_geq(count.cases, CASE_LIMIT < 96 ? CASE_LIMIT : 96);
}

#define GRID(name)             \
    Test(attention_grid, name) \
    {                          \
        run(#name);            \
    }
KVT_ATTENTION_GRIDS(GRID)
GRID(cpu_odd)
