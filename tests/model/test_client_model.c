/* SPDX-License-Identifier: Apache-2.0
 *
 * The client against a naive twin: random operations through the public API on embedded clients
 * with small pools, each predicted by the twin (client_model.h), compared, and followed by
 * kvmem_client_check(). Tags are written into K and V of every token, so that a missing or wrong
 * copy-on-write shows as a wrong byte.
 *
 * What is given up and published comes with promises, fulfilled at random times and in any order:
 * the twin keeps what cools by value, so that it knows which blocks may not be used again yet, and
 * what a look-up has to wait for.
 *
 * A sequence begins with one of 6 prompts, so that sequences meet in names: publications that
 * exist already, lookups that hit. The same seed twice must give the same digest.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <kvmem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/client_model.h"

#ifdef KVI_SANITIZE
#define OPERATIONS 150000u
#else
#define OPERATIONS 1050000u
#endif
#define RARE 1000u
#define ENDS 400u

/* A segment is one block. */
static bool is_single;

/* ---- looking ---- */

static void do_verify(struct kvt_model *m)
{
    struct kvt_model_seq *s = kvt_model_any_seq(m);
    struct kvmem_seq_info info = {.size = sizeof(info)};
    int32_t row[KVT_MODEL_TABLE + 1], indptr[2], csr[KVT_MODEL_TABLE], last, length;
    int64_t slots[KVT_MODEL_TOKENS];
    uint32_t shared = 0, used, tokens;

    if (!s)
        return;
    kvt_model_verify_tags(m, s);
    used = kvt_model_blocks_for(s->appended);
    cr_assert(kvmem_seq_info(m->space, s->id, &info) == 0);
    for (uint32_t i = 0; i < s->count; i++)
        shared += m->refs[s->blocks[i]] > 1;
    cr_assert(info.block_count == s->count && info.appended_tokens == s->appended &&
              info.committed_tokens == s->committed && info.shared_blocks == shared);
    cr_assert(kvmem_table_padded(m->space, 0, 1, &s->id, used + 1, row, &length) == 0);
    cr_assert(row[used] == KVMEM_BLOCK_NONE && length == (int32_t)s->appended);
    cr_assert(!used || !memcmp(row, s->blocks, used * sizeof(*row)));
    cr_assert(kvmem_table_csr(m->space, 0, 1, &s->id, KVT_MODEL_TABLE, indptr, csr, &last) ==
              (int)used);
    cr_assert(indptr[1] == (int)used && (!used || !memcmp(csr, s->blocks, used * sizeof(*csr))));
    cr_assert(last == (int)(used ? s->appended - (used - 1) * KVT_MODEL_BLOCK_TOKENS : 0));
    tokens = kvt_model_below(m, s->appended + 1);
    cr_assert(kvmem_table_slots(m->space, 0, 1, &s->id, &tokens, tokens, slots) == (int)tokens);
    for (uint32_t i = 0; i < tokens; i++) {
        uint32_t t = s->appended - tokens + i;

        cr_assert(slots[i] ==
                  (int64_t)s->blocks[t / KVT_MODEL_BLOCK_TOKENS] * KVT_MODEL_BLOCK_TOKENS +
                      t % KVT_MODEL_BLOCK_TOKENS);
    }
}

static void do_counts(struct kvt_model *m)
{
    struct kvmem_capacity capacity = {.size = sizeof(capacity)};
    uint64_t used = 0;

    for (uint32_t i = 0; i < m->range; i++)
        used += m->state[i] != KVT_MODEL_NONE;
    cr_assert(kvmem_space_capacity(m->space, &capacity) == 0);
    cr_assert(capacity.used_blocks == used, "%" PRIu64 " blocks used, expected %" PRIu64,
              capacity.used_blocks, used);
    kvt_model_note(m, capacity.free_blocks);
}

/* What cools goes in the calls in which the twin drains, and in no other. */
static void check_cooling(const struct kvt_model *m)
{
    struct kvmem_space_stats stats = {.size = sizeof(stats)};

    cr_assert(kvmem_space_stats(m->space, &stats) == 0);
    cr_assert(stats.cooling_blocks == m->cooling_blocks,
              "operation %" PRIu64 ": %" PRIu64 " references cool, expected %" PRIu64,
              m->operations, stats.cooling_blocks, m->cooling_blocks);
}

static void do_dispatch(struct kvt_model *m)
{
    int code = kvmem_client_dispatch(m->client, 0);

    kvt_model_drain(m);
    cr_assert(code >= 0, "dispatch: %s", kvmem_error_detail()->text);
    kvt_model_note(m, (uint64_t)code);
}

static void do_trim(struct kvt_model *m)
{
    int code;

    kvt_model_fulfil_all(m);
    kvt_model_drain(m);
    code = kvmem_space_trim(m->space);
    cr_assert(code >= 0, "trim: %s", kvmem_error_detail()->text);
    kvt_model_note(m, (uint64_t)code);
    m->trims += (uint32_t)code;
}

static void do_space_reserve(struct kvt_model *m)
{
    uint32_t blocks = kvt_model_below(m, m->range / 2);
    int code;

    if (blocks > kvt_model_free_blocks(m))
        kvt_model_drain(m);
    code = kvmem_space_reserve(m->space, blocks, 0);
    kvt_model_note(m, (uint64_t)code);
    cr_assert(code == 0 || kvt_model_is_lack(code) || code == KVMEM_E_QUOTA, "reserve: %s",
              kvmem_error_detail()->text);
}

static void do_scratch(struct kvt_model *m)
{
    int32_t scratch;

    if (m->scratch < 0 && !kvt_model_free_blocks(m))
        kvt_model_drain(m);
    scratch = kvmem_space_scratch(m->space, 0);
    if (m->scratch >= 0) {
        cr_assert(scratch == m->scratch);
    } else if (scratch >= 0) {
        cr_assert(m->state[scratch] == KVT_MODEL_NONE);
        m->scratch = scratch;
    } else {
        cr_assert(kvt_model_is_lack(scratch));
    }
}

static void step(struct kvt_model *m)
{
    static void (*const operations[])(struct kvt_model *) = {
        kvt_model_append, kvt_model_append,   kvt_model_append,   kvt_model_append,
        kvt_model_append, kvt_model_append,   kvt_model_commit,   kvt_model_commit,
        kvt_model_fork,   kvt_model_truncate, kvt_model_truncate, kvt_model_create,
        kvt_model_free,   kvt_model_free,     kvt_model_publish,  kvt_model_lookup,
        kvt_model_lookup, kvt_model_reserve,  do_verify,          do_counts,
        do_dispatch,      do_dispatch,        kvt_model_promise,  kvt_model_promise,
        kvt_model_fulfil};
    uint32_t rare = kvt_model_below(m, 300);

    if (rare == 0)
        do_trim(m);
    else if (rare == 1)
        do_space_reserve(m);
    else if (rare == 2)
        do_scratch(m);
    else
        operations[kvt_model_below(m, sizeof(operations) / sizeof(operations[0]))](m);
    kvt_model_take_results(m);
    check_cooling(m);
    m->operations++;
}

/* ---- a run ---- */

static void begin(struct kvt_model *m, uint64_t device_bytes, uint64_t seed, uint32_t flags)
{
    struct kvmem_embed_options embed = {.size = sizeof(embed),
                                        .device_bytes = device_bytes,
                                        .granule_bytes = 4096,
                                        .outbox_records = 1024,
                                        .flags = flags};
    struct kvmem_space_options options = {.size = sizeof(options),
                                          .name = "model",
                                          .block_tokens = KVT_MODEL_BLOCK_TOKENS,
                                          .group_count = 1,
                                          .shard_count = 1,
                                          .seq_limit = KVT_MODEL_SEQS,
                                          .low_water_blocks = 4,
                                          .refill_blocks = 8};

    options.groups[0] = (struct kvmem_group_options){.layer_count = 1,
                                                     .kv_head_count = 1,
                                                     .head_dim_k = is_single ? 256 : 64,
                                                     .head_dim_v = is_single ? 256 : 64,
                                                     .dtype_k = KVMEM_DTYPE_BF16,
                                                     .dtype_v = KVMEM_DTYPE_BF16};
    options.flags = is_single ? KVMEM_SPACE_REGIONS : 0;
    memset(m, 0, sizeof(*m));
    m->random = seed;
    m->scratch = KVMEM_BLOCK_NONE;
    m->geometry.size = sizeof(m->geometry);
    cr_assert(kvmem_client_embed(&embed, &m->client) == 0, "%s", kvmem_error_detail()->text);
    cr_assert(kvmem_space_open(m->client, &options, &m->space) == 0, "%s",
              kvmem_error_detail()->text);
    cr_assert(kvmem_space_geometry(m->space, 0, &m->geometry) == 0);
    m->base = kvmem_space_base(m->space, 0, 0);
    m->write_base = kvmem_space_write_base(m->space, 0, 0);
    m->range = m->geometry.blocks_per_segment * m->geometry.segment_limit;
    m->refs = calloc(m->range, sizeof(*m->refs));
    m->state = calloc(m->range, 1);
    m->fences = calloc(m->range, sizeof(*m->fences));
}

/* A long run must have seen enough of what is rare. Every entry beyond the pool's blocks was
 * evicted before. */
static void assert_rare_ones(const struct kvt_model *m)
{
    struct kvmem_space_stats stats = {.size = sizeof(stats)};

    cr_assert(kvmem_space_stats(m->space, &stats) == 0);
    printf("client model: %" PRIu64 " published, %" PRIu64 " adoptions\n", stats.published_blocks,
           stats.adopted_segments);
    cr_assert(stats.published_blocks >= m->range + RARE, "evictions");
    cr_assert(stats.adopted_segments >= RARE, "adoptions");
    cr_assert(m->refusals >= RARE, "refusals");
    cr_assert(m->cooled >= RARE && m->waits >= RARE && m->held_copies >= RARE, "fences");
}

/* Who made them: one thread or the other. (Look-ups alone map on this one, and find all mapped.) */
static void assert_driver_calls(const struct kvt_model *m, bool has_helper)
{
    struct kvmem_client_stats stats = {.size = sizeof(stats)};

    cr_assert(kvmem_client_stats(m->client, &stats) == 0);
    printf("client model: %" PRIu64 " mappings by the helper, %" PRIu64 " inline\n",
           stats.helper_jobs, stats.driver_calls_inline);
    cr_assert(has_helper ? stats.helper_jobs >= RARE / 20 : !stats.helper_jobs);
    cr_assert(has_helper ? !stats.driver_calls_inline : stats.driver_calls_inline >= RARE / 10);
}

/* The client is checked after every operation. */
static void walk(struct kvt_model *m, uint64_t operations)
{
    for (uint64_t i = 0; i < operations; i++) {
        step(m);
        cr_assert(kvmem_client_check(m->client) == 0, "operation %" PRIu64 ": %s", i,
                  kvmem_error_detail()->text);
    }
    cr_assert(m->operations == operations);
}

/* All promises are kept: nothing cools any more, and no byte is wrong. */
static void finish(struct kvt_model *m)
{
    for (uint32_t i = 0; i < KVT_MODEL_SEQS; i++)
        if (m->seqs[i].is_alive)
            kvt_model_verify_tags(m, &m->seqs[i]);
    kvt_model_fulfil_all(m);
    do_dispatch(m);
    m->late = 0;
    kvt_model_take_results(m);
    do_counts(m);
    check_cooling(m);
    cr_assert(!m->cooling);
}

static void end(struct kvt_model *m)
{
    kvmem_space_close(m->space);
    kvmem_client_close(m->client);
    free(m->refs);
    free(m->state);
    free(m->fences);
    free(m);
}

static void assert_enough(const struct kvt_model *m)
{
    printf("client model: %" PRIu64 " promises, %" PRIu64 " cooled, %" PRIu64 " waits, %" PRIu64
           " copies held up\n",
           m->promised, m->cooled, m->waits, m->held_copies);
    printf("client model: %u blocks, %" PRIu64 " operations, %" PRIu64 " copies, %" PRIu64
           " refusals, %" PRIu64 " hits, %" PRIu64 " exist, %" PRIu64 " trimmed\n",
           m->range, m->operations, m->copies, m->refusals, m->hits, m->exists, m->trims);
    cr_assert(m->copies >= m->operations / 1000 && m->hits >= m->operations / 1000 && m->exists &&
              m->refusals >= m->operations / 10000 && m->trims);
    cr_assert(m->cooled >= m->operations / 1000 && m->waits && m->held_copies);
    if (m->operations >= 1000 * RARE)
        assert_rare_ones(m);
}

static uint64_t run_with(uint32_t flags, uint64_t device_bytes, uint64_t seed, uint64_t operations)
{
    struct kvt_model *m = malloc(sizeof(*m));
    uint64_t digest;

    printf("client model: seed %" PRIu64 ", device %" PRIu64 "\n", seed, device_bytes);
    fflush(stdout);
    begin(m, device_bytes, seed, flags);
    walk(m, operations);
    finish(m);
    assert_enough(m);
    assert_driver_calls(m, flags & KVMEM_CLIENT_HELPER);
    digest = m->digest;
    end(m);
    return digest;
}

static uint64_t run(uint64_t device_bytes, uint64_t seed, uint64_t operations)
{
    return run_with(0, device_bytes, seed, operations);
}

Test(client_model, tiny_pool, .timeout = 600)
{
    run(64 * 1024, 1, OPERATIONS);
}

Test(client_model, small_pool, .timeout = 600)
{
    run(256 * 1024, 2, OPERATIONS);
}

Test(client_model, other_seeds, .timeout = 600)
{
    for (uint64_t seed = 10; seed < 20; seed++)
        run(64 * 1024 + (seed % 4) * 32 * 1024, seed, OPERATIONS / 10);
}

Test(client_model, one_block_a_segment, .timeout = 600)
{
    is_single = true;
    run(128 * 1024, 5, OPERATIONS / 10);
    run(256 * 1024, 6, OPERATIONS / 10);
}

Test(client_model, same_seed_same_digest, .timeout = 600)
{
    uint64_t first = run(128 * 1024, 77, OPERATIONS / 20);

    cr_assert(first == run(128 * 1024, 77, OPERATIONS / 20));
}

/* What comes when is the helper's choice: no digest, but every operation is predicted all the same.
 */
Test(client_model, with_a_helper, .timeout = 600)
{
    for (uint64_t seed = 30; seed < 36; seed++)
        run_with(KVMEM_CLIENT_HELPER, 64 * 1024 + (seed % 4) * 64 * 1024, seed, OPERATIONS / 10);
}

/* Many ends, each behind publications whose sequences are freed before they are answered: the last
 * dispatch alone brings the answers, and the blocks go with them. */
static uint32_t run_to_many_ends(uint32_t flags)
{
    uint32_t late = 0;

    for (uint64_t seed = 1; seed <= ENDS; seed++) {
        struct kvt_model *m = malloc(sizeof(*m));

        begin(m, 64 * 1024, seed, flags);
        walk(m, 100 + seed);
        for (int i = 0; i < 4; i++)
            kvt_model_publish(m);
        for (int i = 0; i < 8; i++)
            kvt_model_free(m);
        finish(m);
        late += m->late;
        end(m);
    }
    return late;
}

Test(client_model, many_ends, .timeout = 600)
{
    uint32_t alone = run_to_many_ends(0);
    uint32_t helped = run_to_many_ends(KVMEM_CLIENT_HELPER);

    printf("client model: %u late answers without a helper, %u with one\n", alone, helped);
    cr_assert(alone >= ENDS / 4 && helped >= 1);
}
