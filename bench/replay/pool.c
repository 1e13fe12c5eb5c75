/* SPDX-License-Identifier: Apache-2.0
 *
 * Accounts of an embedded device, kept by its only client with what the public API tells.
 *
 * Blocks that became entries are marked when the answer to publish comes. A marked block that
 * turns up in a sequence as a new one was evicted in between. So, a moment in time:
 *   blocks      = blocks of mapped segments (the only client has mapped them all)
 *   entries     = marked − those evicted and not yet used again
 *   held tokens = entries × block_tokens + tokens of blocks in sequences that are no entries
 *   waste       = 1 − held tokens × token bytes ÷ bytes of the segments
 * Evicted and not used again are at most the free blocks that were used before; all of these are
 * taken off, so that waste is never stated too small.
 */
#include "replay.h"

#include <stdlib.h>
#include <string.h>

struct kvb_pool {
    struct kvmem_geometry geometry;
    uint8_t *states; /* by block index */
    uint64_t state_count;
    uint64_t marked;
    uint64_t touched; /* blocks that were ever used */
    uint64_t evicted;
    double waste_sum;
    double unused_sum;
    uint64_t samples;
};

enum {
    STATE_TOUCHED = 1,
    STATE_MARKED = 2
};

struct kvb_pool *kvb_pool_create(const struct kvmem_geometry *geometry)
{
    struct kvb_pool *pool = calloc(1, sizeof(*pool));

    if (pool != NULL)
        pool->geometry = *geometry;
    return pool;
}

void kvb_pool_destroy(struct kvb_pool *pool)
{
    if (pool == NULL)
        return;
    free(pool->states);
    free(pool);
}

static int cover(struct kvb_pool *pool, uint64_t index)
{
    uint64_t wanted = pool->state_count == 0 ? 65536 : pool->state_count;
    uint8_t *grown;

    if (index < pool->state_count)
        return 0;
    while (wanted <= index)
        wanted *= 2;
    grown = realloc(pool->states, wanted);
    if (grown == NULL)
        return -1;
    memset(grown + pool->state_count, 0, wanted - pool->state_count);
    pool->states = grown;
    pool->state_count = wanted;
    return 0;
}

int kvb_pool_taken(struct kvb_pool *pool, const int32_t *blocks, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t index = (uint32_t)blocks[i];

        if (cover(pool, index) != 0)
            return -1;
        pool->touched += !(pool->states[index] & STATE_TOUCHED);
        pool->marked -= (pool->states[index] & STATE_MARKED) != 0;
        pool->evicted += (pool->states[index] & STATE_MARKED) != 0;
        pool->states[index] = STATE_TOUCHED;
    }
    return 0;
}

int kvb_pool_published(struct kvb_pool *pool, struct kvmem_space *space)
{
    struct kvmem_publish_result results[1024];
    int count;

    do {
        count = kvmem_publish_results(space, 1024, results);
        for (int i = 0; i < count; i++) {
            uint32_t index = (uint32_t)results[i].block;

            if (results[i].state != KVMEM_PUBLISHED)
                continue;
            if (cover(pool, index) != 0)
                return -1;
            pool->marked += !(pool->states[index] & STATE_MARKED);
            pool->states[index] |= STATE_MARKED;
        }
    } while (count == 1024);
    return 0;
}

void kvb_pool_sample(struct kvb_pool *pool, const struct kvb_engine *engine)
{
    const struct kvmem_geometry *g = &pool->geometry;
    struct kvmem_space_stats stats = {.size = sizeof(stats)};
    uint64_t private_tokens = 0, private_blocks = 0, never, gone, entries, blocks;

    if (kvmem_space_stats(engine->space, &stats) != 0 || stats.mapped_segments == 0)
        return;
    for (uint32_t i = 0; i < engine->running; i++) {
        const struct kvb_live *live = &engine->lives[i];
        uint32_t tokens = live->committed - live->published * g->block_tokens;

        private_tokens += tokens;
        private_blocks += (tokens + g->block_tokens - 1) / g->block_tokens;
    }
    blocks = stats.mapped_segments * g->blocks_per_segment;
    never = blocks > pool->touched ? blocks - pool->touched : 0;
    gone = stats.free_blocks > never ? stats.free_blocks - never : 0;
    entries = pool->marked > gone ? pool->marked - gone : 0;

    double token_bytes = (double)g->block_bytes / g->block_tokens;
    double held = (double)(entries * g->block_tokens + private_tokens);
    double used = (double)((entries + private_blocks) * g->block_tokens);

    pool->waste_sum +=
        1 - held * token_bytes / ((double)stats.mapped_segments * (double)g->segment_bytes);
    pool->unused_sum += used > 0 ? 1 - held / used : 0;
    pool->samples++;
}

void kvb_pool_finish(const struct kvb_pool *pool, struct kvb_counts *counts)
{
    counts->reused_entry_blocks = pool->evicted;
    if (pool->samples == 0)
        return;
    counts->waste_ratio = pool->waste_sum / (double)pool->samples;
    counts->unused_slot_ratio = pool->unused_sum / (double)pool->samples;
}
