/* SPDX-License-Identifier: Apache-2.0
 *
 * Prefixes whose fence is pending, and prefixes whose producer died: a whole embedded replay in
 * which look-ups answer with fences that this test decides on.
 */
#include <criterion/criterion.h>
#include <kvmem.h>
#include <string.h>

/* request.c calls these in place of the library's. */
static int poll_guard(struct kvmem_client *client, const struct kvmem_fence *fence);
static int publish_guarded(struct kvmem_space *space, struct kvmem_seq seq, uint32_t first_block,
                           uint32_t count, const struct kvmem_name *names,
                           struct kvmem_fence fence);
#define kvmem_fence_poll  poll_guard
#define kvmem_seq_publish publish_guarded
#include "replay/request.c"
#undef kvmem_fence_poll
#undef kvmem_seq_publish

static struct kvb_engine engine;
static uint32_t polls, broken, refused;
static uint32_t broken_every; /* 0: none */

/* Pending at the first look, reached or broken at the second one. */
static int poll_guard(struct kvmem_client *client, const struct kvmem_fence *fence)
{
    cr_assert_eq(kvmem_fence_poll(client, fence), 1);
    if (++polls % 2 == 1)
        return 0;
    if (broken_every == 0 || polls / 2 % broken_every != 0)
        return 1;
    broken++;
    return KVMEM_E_STALE;
}

/* As the library does: nothing of a sequence is published while its guard is pending. */
static int publish_guarded(struct kvmem_space *space, struct kvmem_seq seq, uint32_t first_block,
                           uint32_t count, const struct kvmem_name *names, struct kvmem_fence fence)
{
    for (uint32_t i = 0; i <= engine.running && i < engine.options->concurrency; i++) {
        const struct kvb_live *live = &engine.lives[i];

        if (live->is_guarded && memcmp(&live->seq, &seq, sizeof(seq)) == 0)
            return refused++ % 2 == 0 ? KVMEM_E_BUSY : KVMEM_E_STALE;
    }
    return kvmem_seq_publish(space, seq, first_block, count, names, fence);
}

static void replay(uint32_t every, const char *concurrency)
{
    char *argv[] = {"kvmem-replay",  "--trace",           "tests/data/mooncake_excerpt.jsonl",
                    "--embedded",    "--requests",        "40",
                    "--concurrency", (char *)concurrency, NULL};
    struct kvb_options options;
    struct kvb_trace trace;
    char error[512] = "";

    broken_every = every;
    cr_assert_eq(kvb_options_parse(8, argv, &options, error, sizeof(error)), KVB_OPTIONS_RUN, "%s",
                 error);
    cr_assert_eq(kvb_trace_load(options.trace_path, options.tokens_per_id, options.request_limit,
                                &trace, error, sizeof(error)),
                 0, "%s", error);
    cr_assert_eq(kvb_replay_open(&engine, &options, &trace), 0, "%s", engine.error);
    cr_assert_eq(kvb_replay_run(&engine), 0, "%s", engine.error);
    cr_assert_eq(kvb_replay_close(&engine), 0, "%s", engine.error);
    kvb_trace_fini(&trace);
    cr_assert_eq(engine.counts.requests, 40);
    cr_assert_eq(engine.counts.wrong_bytes, 0);
    cr_assert_eq(engine.counts.attention_wrong, 0);
    cr_assert_eq(engine.counts.held_blocks_at_end, 0);
    cr_assert_eq(engine.counts.stale_prefixes, broken);
    cr_assert(polls > 20);
    cr_assert(refused > 0);
}

Test(replay_settle, a_pending_guard_only_delays)
{
    replay(0, "8");
    cr_assert_eq(broken, 0);
}

Test(replay_settle, what_a_dead_producer_left_is_computed_again)
{
    replay(3, "8");
    cr_assert(broken > 5);
}

Test(replay_settle, all_prefixes_broken)
{
    replay(1, "1");
    cr_assert(broken > 10);
}
