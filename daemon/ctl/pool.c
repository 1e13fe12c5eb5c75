/* SPDX-License-Identifier: Apache-2.0
 *
 * Finding things in the fetched lists. Pure.
 */
#include "pool.h"

#include <stdlib.h>
#include <string.h>

void kvctl_pool_free(struct kvctl_pool *pool)
{
    free(pool->clients);
    free(pool->spaces);
    free(pool->segments);
    memset(pool, 0, sizeof(*pool));
}

bool kvctl_space_is_named(const struct kvi_rec_space_info *space, const char *wanted)
{
    size_t domain_bytes = strnlen(space->domain, sizeof(space->domain));

    if (strncmp(space->name, wanted, sizeof(space->name)) == 0)
        return true;
    return strncmp(wanted, space->domain, domain_bytes) == 0 && wanted[domain_bytes] == '/' &&
           strncmp(space->name, wanted + domain_bytes + 1, sizeof(space->name)) == 0;
}

size_t kvctl_pool_keep_space(struct kvctl_pool *pool, const char *name)
{
    size_t kept = 0;

    pool->is_filtered = true;
    for (size_t i = 0; i < pool->space_count; i++)
        if (kvctl_space_is_named(&pool->spaces[i], name))
            pool->spaces[kept++] = pool->spaces[i];
    pool->space_count = kept;
    kept = 0;
    for (size_t i = 0; i < pool->segment_count; i++)
        if (kvctl_pool_space(pool, pool->segments[i].space))
            pool->segments[kept++] = pool->segments[i];
    pool->segment_count = kept;
    return pool->space_count;
}

const struct kvi_rec_space_info *kvctl_pool_space(const struct kvctl_pool *pool, uint32_t space)
{
    for (size_t i = 0; i < pool->space_count; i++)
        if (pool->spaces[i].space == space)
            return &pool->spaces[i];
    return NULL;
}

const struct kvi_rec_client_info *kvctl_pool_client(const struct kvctl_pool *pool, uint32_t client)
{
    for (size_t i = 0; i < pool->client_count; i++)
        if (pool->clients[i].client == client)
            return &pool->clients[i];
    return NULL;
}

const char *kvctl_segment_state_name(uint32_t state)
{
    static const char *const names[] = {"free",      "creating",    "owned",
                                        "handed in", "quarantined", "draining"};

    return state < sizeof(names) / sizeof(names[0]) ? names[state] : "unknown";
}
