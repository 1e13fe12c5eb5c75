/* SPDX-License-Identifier: Apache-2.0
 *
 * fork: fork a sequence of 2,000 blocks and free the fork, rotating over 256 parents whose blocks
 * lie all over a pool of 70,000. Limit 8,000 ns: 4,000 reference counts go up and down.
 */
#include "common/bench.h"
#include "common/engine.h"

#define PARENTS       256u
#define DISTINCT      34u /* × 2,000 blocks nearly fill the pool; the other parents are forks */
#define PARENT_BLOCKS 2000u
#define POOL_BLOCKS   70000u
#define REPEATS       256

static struct kvmem_seq parents[PARENTS];

/* Grow the distinct parents in turn, so that each one's blocks are spread over the pool. */
static void grow(struct kvmem_client *client, struct kvmem_space *space)
{
    uint64_t random = 3;

    for (uint32_t i = 0; i < DISTINCT; i++)
        kvb_check(kvmem_seq_create(space, &parents[i]), "kvmem_seq_create");
    for (uint32_t round = 0; round < PARENT_BLOCKS * DISTINCT; round++) {
        uint32_t i = (uint32_t)(kvb_random(&random) % DISTINCT);
        const int32_t *blocks;

        while ((uint32_t)kvmem_table_view(space, 0, parents[i], &blocks) == PARENT_BLOCKS)
            i = (i + 1) % DISTINCT;
        while (kvmem_seq_append(space, parents[i], KVB_BLOCK_TOKENS, kvmem_fence_none()) < 0)
            kvb_check(kvmem_client_dispatch(client, 1000000000), "kvmem_client_dispatch");
    }
    for (uint32_t i = DISTINCT; i < PARENTS; i++)
        kvb_check(kvmem_seq_fork(space, parents[i % DISTINCT], &parents[i]), "kvmem_seq_fork");
}

static double sample_ns(struct kvmem_space *space)
{
    uint64_t start = kvb_now_ns();

    for (uint32_t i = 0; i < REPEATS; i++) {
        struct kvmem_seq child;

        kvb_check(kvmem_seq_fork(space, parents[i % PARENTS], &child), "kvmem_seq_fork");
        kvb_check(kvmem_seq_free(space, child, kvmem_fence_none()), "kvmem_seq_free");
    }
    return (double)(kvb_now_ns() - start) / REPEATS;
}

int main(void)
{
    static struct kvb_row row = {.bench = "fork",
                                 .metric = "ns to fork and free 2,000 blocks",
                                 .limit = 8000,
                                 .limit_kind = KVB_LIMIT_MEDIAN_MAX};
    struct kvmem_space_options options = kvb_space_options("fork");
    struct kvmem_client *client;
    struct kvmem_space *space;

    kvb_embed(POOL_BLOCKS + 64, &options, &client, &space);
    grow(client, space);
    sample_ns(space);
    for (int i = 0; i < KVB_SAMPLES; i++)
        kvb_add(&row.own, sample_ns(space));
    kvb_check(kvmem_client_check(client), "kvmem_client_check");
    kvmem_client_close(client);
    return kvb_report(&row);
}
