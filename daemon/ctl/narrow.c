/* SPDX-License-Identifier: Apache-2.0
 *
 * --space NAME for the verbs that take it.
 */
#include "narrow.h"

#include "text.h"

static void name_spaces(FILE *err, const struct kvctl_pool *pool)
{
    if (pool->space_count == 0)
        fputs("No space is open.\n", err);
    else
        fputs("There are:\n", err);
    for (size_t i = 0; i < pool->space_count; i++) {
        char name[KVCTL_NAME_BYTES], domain[KVCTL_NAME_BYTES];

        kvctl_clean(name, sizeof(name), pool->spaces[i].name, sizeof(pool->spaces[i].name), true);
        kvctl_clean(domain, sizeof(domain), pool->spaces[i].domain, sizeof(pool->spaces[i].domain),
                    true);
        fprintf(err, "  %s (or %s/%s)\n", name, domain, name);
    }
}

int kvctl_pool_fetch_narrowed(struct kvctl_run *run, struct kvctl_pool *out)
{
    const char *wanted = run->options.space;
    size_t matching = 0;

    if (kvctl_pool_fetch(&run->session, KVCTL_POOL_ALL, out) < 0)
        return kvctl_explain(stderr, &run->session.failure);
    if (!wanted)
        return KVCTL_EXIT_OK;
    for (size_t i = 0; i < out->space_count; i++)
        matching += kvctl_space_is_named(&out->spaces[i], wanted);
    if (matching == 0) {
        fprintf(stderr, "kvmemctl: --space %s: there is no such space. ", wanted);
        name_spaces(stderr, out);
        return KVCTL_EXIT_USAGE;
    }
    kvctl_pool_keep_space(out, wanted);
    return KVCTL_EXIT_OK;
}
