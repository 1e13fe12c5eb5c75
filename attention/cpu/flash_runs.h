/* SPDX-License-Identifier: Apache-2.0
 *
 * A tile of all heads of a strip of four rows, in the order that K and V have in memory: a run of K
 * of each head, the next run of each, and so on, then V likewise. Memory is read in runs as long as
 * the blocks have them, all heads of a block one after the other. Meanwhile the same head's next
 * run is prefetched: behind the last one of K comes V, behind V the next tile's K. Part of
 * flash_tile.h, for strips whose scores are in parts (flash_pairs.h) and K and V in bf16.
 */
#define SHORT_RUN                                                                  \
    32u /* tokens; more leave memory's order, fewer load and store sums more often \
         */

struct run {
    uint64_t from; /* the head: bytes from where the tile's pointers point to */
    uint32_t first, tokens;
};

static KVA_TARGET void run_of_scores(const struct strip *s, const struct tile *tile, struct run run)
{
    uint32_t end = run.first + run.tokens;
    struct ahead ahead = {.row = end < KVA_TILE ? tile->k + end : tile->v,
                          .from = run.from,
                          .bytes = 4ull * s->k_words};

    four_scores(s, tile->k + run.first, run.from, run.tokens, &ahead, s->scores + 4ull * run.first);
    if (end == KVA_TILE)
        soften_in_parts(s, tile);
}

static KVA_TARGET void run_of_values(const struct strip *s, const struct tile *tile, struct run run)
{
    uint32_t end = run.first + run.tokens;
    struct few_values of = {
        .v = tile->v + run.first,
        .from = run.from,
        .ahead = {.row = end < KVA_TILE ? tile->v + end : tile->next_k,
                  .from = run.from,
                  .bytes = 2ull * s->run->what->cache.head_dim_v},
        .factor = run.first ? NULL : s->factor,
        .p = s->scores + 2ull * run.first,
        .tokens = run.tokens,
        .p_row = 2,
        .p_four = 8,
    };

    all_few_sums(s, &of, 4);
}

static KVA_TARGET void do_runs(const struct strip *heads, const struct tile *tile)
{
    const struct kva_cache *c = &heads->run->what->cache;
    uint32_t count = heads->task->head_count;
    struct run run = {.tokens = c->block_tokens < KVA_TILE ? SHORT_RUN : KVA_TILE};

    for (run.first = 0; run.first < KVA_TILE; run.first += run.tokens)
        for (uint32_t h = 0; h < count; h++) {
            run.from = h * c->k_head_stride * 2;
            run_of_scores(heads + h, tile, run);
        }
    for (run.first = 0; run.first < KVA_TILE; run.first += run.tokens)
        for (uint32_t h = 0; h < count; h++) {
            run.from = h * c->v_head_stride * 2;
            run_of_values(heads + h, tile, run);
        }
}

KVA_INLINE int can_be_runs(const struct strip *heads, const struct tile *tile)
{
    return is_wide(heads->run->what->cache.dtype) && can_be_in_parts(heads, tile);
}
