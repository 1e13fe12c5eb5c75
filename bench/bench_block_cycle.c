/* SPDX-License-Identifier: Apache-2.0
 *
 * block_cycle_lifo: take and give back one block, against jemalloc's malloc and free of 64 bytes.
 *
 * block_cycle_random: 100,000 live blocks in sequences of 1 to 256; a random one is freed whole
 * and another of random length begins, so that the live count stays. Against jemalloc in the
 * same pattern; per block taken and given back.
 * Its second row: wholly free segments after that churn, over the ideal number (all live blocks
 * packed together).
 */
#include <jemalloc/jemalloc.h>
#include <stdlib.h>

#include "client/pool.h"
#include "common/bench.h"

#define SEGMENT_BLOCKS 512u
#define SEGMENTS       512u /* 262,144 blocks */
#define LIVE_BLOCKS    100000u
#define LONGEST        256u
#define SEQUENCES      4096u
#define CYCLES         100000
#define CHURNS         256
#define PACKED_ENOUGH  0.95

/* A sequence of blocks, or of allocations. */
struct holding {
    uint32_t count;
    union {
        int32_t blocks[LONGEST];
        void *memory[LONGEST];
    };
};

static struct kvi_pool pool;
static struct holding own[SEQUENCES], peer[SEQUENCES];

static void make_pool(uint32_t segments)
{
    kvb_check(kvi_pool_init(&pool, &kvi_alloc_libc, segments, SEGMENT_BLOCKS), "kvi_pool_init");
    for (uint32_t s = 0; s < segments; s++) {
        kvi_pool_own(&pool, s, NULL);
        for (uint32_t i = 0; i < SEGMENT_BLOCKS; i++)
            kvi_pool_add(&pool, s * SEGMENT_BLOCKS + i);
    }
}

static double own_lifo_ns(void)
{
    uint64_t start = kvb_now_ns();

    for (int i = 0; i < CYCLES; i++) {
        int32_t block = kvi_pool_take(&pool);

        __asm__ volatile("" : "+r"(block));
        kvi_pool_give(&pool, (uint32_t)block);
    }
    return (double)(kvb_now_ns() - start) / CYCLES;
}

static double peer_lifo_ns(void)
{
    uint64_t start = kvb_now_ns();

    for (int i = 0; i < CYCLES; i++) {
        void *memory = malloc(64);

        __asm__ volatile("" : "+r"(memory) : : "memory");
        free(memory);
    }
    return (double)(kvb_now_ns() - start) / CYCLES;
}

static int lifo(void)
{
    static struct kvb_row row = {.bench = "block_cycle_lifo",
                                 .metric = "ns to take and give back a block",
                                 .peer = "jemalloc malloc + free of 64 bytes",
                                 .limit = 1.0,
                                 .limit_kind = KVB_LIMIT_RATIO_MAX};

    make_pool(8);
    own_lifo_ns();
    peer_lifo_ns();
    for (int i = 0; i < KVB_SAMPLES; i++) {
        kvb_add(&row.own, own_lifo_ns());
        kvb_add(&row.peer_samples, peer_lifo_ns());
    }
    kvi_pool_fini(&pool);
    return kvb_report(&row);
}

static void own_fill(struct holding *holding, uint32_t count)
{
    holding->count = count;
    for (uint32_t i = 0; i < count; i++)
        holding->blocks[i] = kvi_pool_take(&pool);
}

static void own_free(struct holding *holding)
{
    for (uint32_t i = holding->count; i-- > 0;)
        kvi_pool_give(&pool, (uint32_t)holding->blocks[i]);
}

static void peer_fill(struct holding *holding, uint32_t count)
{
    holding->count = count;
    for (uint32_t i = 0; i < count; i++)
        holding->memory[i] = malloc(64);
}

static void peer_free(struct holding *holding)
{
    for (uint32_t i = holding->count; i-- > 0;)
        free(holding->memory[i]);
}

/* Sequences that live now, in holdings[0 .. count). */
struct population {
    struct holding *holdings;
    void (*fill)(struct holding *, uint32_t);
    void (*drop)(struct holding *);
    uint32_t count;
    uint32_t live_blocks;
    uint64_t random;
};

static void begin_one(struct population *p)
{
    uint32_t length = 1 + (uint32_t)(kvb_random(&p->random) % LONGEST);

    if (p->count == SEQUENCES)
        kvb_fail("more sequences than room");
    p->fill(&p->holdings[p->count++], length);
    p->live_blocks += length;
}

static void end_one(struct population *p)
{
    uint32_t which = (uint32_t)(kvb_random(&p->random) % p->count);

    p->live_blocks -= p->holdings[which].count;
    p->drop(&p->holdings[which]);
    p->holdings[which] = p->holdings[--p->count];
}

/* Nanoseconds a block that was taken and given back. */
static double churn_ns(struct population *p)
{
    uint64_t start = kvb_now_ns(), blocks = 0;

    for (int i = 0; i < CHURNS; i++) {
        uint32_t before = p->live_blocks;

        end_one(p);
        blocks += before - p->live_blocks;
        while (p->live_blocks < LIVE_BLOCKS)
            begin_one(p);
    }
    return (double)(kvb_now_ns() - start) / (double)blocks;
}

static double packed_share(uint32_t live_blocks)
{
    uint32_t wholly_free = 0;

    for (uint32_t s = 0; s < SEGMENTS; s++)
        wholly_free += pool.segments[s].free_count == SEGMENT_BLOCKS;
    return (double)wholly_free /
           (double)((SEGMENTS * SEGMENT_BLOCKS - live_blocks) / SEGMENT_BLOCKS);
}

static int random_order(void)
{
    static struct kvb_row row = {.bench = "block_cycle_random",
                                 .metric = "ns to take and give back a block, 100,000 live",
                                 .peer = "jemalloc malloc + free of 64 bytes, same pattern",
                                 .limit = 1.5,
                                 .limit_kind = KVB_LIMIT_RATIO_MAX};
    static struct kvb_row packing = {.bench = "block_cycle_random",
                                     .metric = "wholly free segments over the ideal number",
                                     .limit = PACKED_ENOUGH,
                                     .limit_kind = KVB_LIMIT_MEDIAN_MIN};
    struct population ours = {own, own_fill, own_free, 0, 0, 9};
    struct population theirs = {peer, peer_fill, peer_free, 0, 0, 9};

    make_pool(SEGMENTS);
    while (ours.live_blocks < LIVE_BLOCKS)
        begin_one(&ours);
    while (theirs.live_blocks < LIVE_BLOCKS)
        begin_one(&theirs);
    for (int i = 0; i < 4 * KVB_SAMPLES; i++) {
        double ours_ns = churn_ns(&ours), theirs_ns = churn_ns(&theirs);

        if (i < 3 * KVB_SAMPLES)
            continue; /* 31,488 sequences come and go before anything is counted */
        kvb_add(&row.own, ours_ns);
        kvb_add(&row.peer_samples, theirs_ns);
        kvb_add(&packing.own, packed_share(ours.live_blocks));
    }
    kvb_check(kvi_pool_check(&pool), "kvi_pool_check");
    return kvb_report(&row) | kvb_report(&packing);
}

int main(void)
{
    return lifo() | random_order();
}
