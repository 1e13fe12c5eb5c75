/* SPDX-License-Identifier: Apache-2.0
 *
 * Segments change hands while kernels read them. In every segment one half of the blocks is kept,
 * and a kernel checks these again and again without a pause; the other half is given back, handed
 * in with its segment, taken over, written and published anew, round after round, by the same
 * process or by another one. Nothing of that may fault the reader, or change a byte that it sees.
 *
 *   a segment  | kept kept kept kept | spare spare spare spare |
 *                read all the time     others' in turn: the segment is handed in and adopted
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/gpu/cases.h"
#include "support/gpu/engine.h"

#define POOL       "1GiB" /* 512 blocks, 8 a segment */
#define KEPT       240u
#define RUN_BLOCKS 4u
#define ROUNDS     100u
#define KEPT_NAME  1u
#define SPARE_NAME 2u

/* A kernel that reads the kept blocks, on a stream of its own. */
struct watch {
    struct kvt_gpu_verdict *verdict;
    uint64_t *flag;
    void *stream;
};

static void watch_begin(struct watch *watch, struct kvt_gpu_engine *engine, const int32_t *blocks)
{
    struct kvt_gpu_part part = kvt_gpu_prefix_part(engine, KEPT_NAME, blocks, KEPT);

    KVT_REQUIRE(kvt_gpu_wrong(&part, engine->stream) == 0, "before it began");
    part.step_words = kvt_gpu_is_fake() ? 64 : 1;
    watch->verdict = kvt_gpu_verdict_new();
    watch->flag = kvt_gpu_host_alloc(sizeof(*watch->flag));
    watch->stream = kvt_gpu_stream_new();
    kvt_gpu_watch(&part, watch->verdict, watch->flag, 1, watch->stream);
}

static void watch_end(struct watch *watch)
{
    struct kvt_gpu_verdict verdict;
    int result;

    KVT_REQUIRE(!kvt_gpu_is_done(watch->stream), "the reader stopped before its time");
    __atomic_store_n(watch->flag, 1, __ATOMIC_RELEASE);
    result = kvt_gpu_try_sync(watch->stream);
    KVT_REQUIRE(result == 0, "the reader got %s", kvt_gpu_result_name(result));
    verdict = kvt_gpu_verdict_read(watch->verdict, watch->stream);
    printf("  the reader looked at %llu words\n", verdict.checked);
    KVT_REQUIRE(verdict.checked > 0 && verdict.wrong == 0, "%llu of %llu words wrong",
                verdict.wrong, verdict.checked);
    kvt_gpu_stream_drop(watch->stream);
    kvt_gpu_free(watch->verdict);
    kvt_gpu_host_free(watch->flag);
}

/* Kept and spare blocks, a run of each in turn; all published. */
static void fill_pool(struct kvt_gpu_engine *engine, struct kvmem_seq seqs[2])
{
    static const uint64_t names[] = {KEPT_NAME, SPARE_NAME};
    const uint32_t tokens[] = {RUN_BLOCKS * KVT_GPU_BLOCK_TOKENS,
                               RUN_BLOCKS * KVT_GPU_BLOCK_TOKENS};

    kvt_gpu_must(kvmem_seqs_create(engine->space, 2, seqs), "seqs_create");
    kvt_gpu_must(kvt_gpu_reserve(engine, 2 * (uint64_t)KEPT, KVT_ANSWER_LIMIT), "space_reserve");
    for (uint32_t run = 0; run < KEPT / RUN_BLOCKS; run++) {
        kvt_gpu_must(kvmem_seqs_append(engine->space, 2, seqs, tokens, kvmem_fence_none()),
                     "seqs_append");
        kvt_gpu_must(kvmem_seqs_commit(engine->space, 2, seqs, tokens), "seqs_commit");
    }
    for (int i = 0; i < 2; i++) {
        struct kvt_gpu_part part = kvt_gpu_part_of(engine, seqs[i], KEPT, names[i]);

        kvt_gpu_fill(&part, engine->stream);
        kvt_gpu_sync(engine->stream);
        KVT_REQUIRE(kvt_gpu_wrong(&part, engine->stream) == 0, "what was written");
        kvt_gpu_publish(engine, seqs[i], names[i], KEPT, kvmem_fence_none());
    }
}

/* Segments that hold blocks of both. */
static uint32_t mixed_segments(struct kvt_gpu_engine *engine, const struct kvmem_seq seqs[2])
{
    const int32_t *kept = kvt_gpu_table(engine, seqs[0], KEPT);
    const int32_t *spare = kvt_gpu_table(engine, seqs[1], KEPT);
    uint32_t per_segment = engine->geometry.blocks_per_segment, count = 0;

    for (uint32_t i = 0; i < KEPT; i += RUN_BLOCKS)
        count += (uint32_t)kept[i] / per_segment == (uint32_t)spare[i] / per_segment;
    return count;
}

/* Take what others handed in, write and check it, publish it, hand it in. */
static void take_turns(struct kvt_gpu_engine *engine, uint64_t name, uint32_t rounds)
{
    for (uint32_t round = 0; round < rounds; round++, name++) {
        struct kvmem_seq seq = kvt_gpu_put(engine, name, KEPT);

        KVT_REQUIRE(kvt_gpu_prefix_wrong(engine, name, kvt_gpu_table(engine, seq, KEPT), KEPT) == 0,
                    "round %" PRIu32, round);
        kvt_gpu_seq_free(engine, seq, kvmem_fence_none());
        kvt_gpu_must(kvmem_space_trim(engine->space), "space_trim");
        kvt_gpu_must(kvmem_client_check(engine->client), "client_check");
    }
}

static uint64_t adopted(struct kvt_gpu_engine *engine)
{
    struct kvmem_space_stats stats = {.size = sizeof(stats)};

    kvt_gpu_must(kvmem_space_stats(engine->space, &stats), "space_stats");
    printf("  %" PRIu64 " segments adopted, %" PRIu64 " handed in\n", stats.adopted_segments,
           stats.handed_in_segments);
    return stats.adopted_segments;
}

/* ---- cases ---- */

struct scene {
    struct kvt_daemon daemon;
    struct kvt_gpu_engine engine;
    struct kvmem_seq seqs[2];
    char seed[24];
};

/* Every segment is handed in; of each the kept blocks are leased. */
static void begin(struct scene *scene, const char *name, uint32_t flags)
{
    struct kvt_gpu_engine_options options = {
        .name = "keeper", .seed = kvt_seed(name), .client_flags = flags};
    uint32_t mixed;

    kvt_gpu_daemon_start(&scene->daemon, NULL, POOL, NULL);
    options.socket_path = scene->daemon.socket_path;
    snprintf(scene->seed, sizeof(scene->seed), "%" PRIu64, options.seed);
    kvt_gpu_engine_open(&scene->engine, &options);
    fill_pool(&scene->engine, scene->seqs);
    mixed = mixed_segments(&scene->engine, scene->seqs);
    KVT_REQUIRE(mixed >= KEPT / RUN_BLOCKS / 2, "%" PRIu32 " segments hold both", mixed);
    kvt_gpu_seq_free(&scene->engine, scene->seqs[1], kvmem_fence_none());
    kvt_gpu_must(kvmem_space_trim(scene->engine.space), "space_trim");
}

static void end(struct scene *scene)
{
    kvt_gpu_seq_free(&scene->engine, scene->seqs[0], kvmem_fence_none());
    kvt_gpu_engine_close(&scene->engine);
    KVT_REQUIRE(kvt_wire_is_clean(scene->daemon.wire), "the directory is not clean");
    kvt_daemon_end_observed(&scene->daemon);
}

static void read_while_adopting(const char *name, uint32_t flags)
{
    static struct scene scene;
    struct watch watch;

    begin(&scene, name, flags);
    watch_begin(&watch, &scene.engine, kvt_gpu_table(&scene.engine, scene.seqs[0], KEPT));
    take_turns(&scene.engine, 10, kvt_gpu_rounds(ROUNDS));
    watch_end(&watch);
    KVT_REQUIRE(adopted(&scene.engine) >= 10, "hardly anything changed hands");
    end(&scene);
}

static void case_readers_go_on(void)
{
    read_while_adopting("readers_go_on", 0);
}

static void case_readers_go_on_beside_the_helper(void)
{
    read_while_adopting("readers_go_on_beside_the_helper", KVMEM_CLIENT_HELPER);
}

/* SOCKET SEED FLAGS: reads what the other keeps, and takes turns. */
static int role_adopter(char **arguments)
{
    static int32_t blocks[KEPT];
    struct kvt_gpu_engine_options options = {.socket_path = arguments[0],
                                             .name = "adopter",
                                             .seed = strtoull(arguments[1], NULL, 0),
                                             .client_flags =
                                                 (uint32_t)strtoul(arguments[2], NULL, 0)};
    struct kvt_gpu_engine engine;
    struct kvmem_fence ready;
    struct watch watch;

    kvt_gpu_engine_open(&engine, &options);
    kvt_gpu_lookup_all(&engine, KEPT_NAME, KEPT, blocks, &ready);
    kvt_gpu_must(kvmem_fence_order(engine.space, engine.stream, &ready), "fence_order");
    take_turns(&engine, 1000, 1); /* the kernels are loaded from now on */
    watch_begin(&watch, &engine, blocks);
    take_turns(&engine, UINT64_C(1) << 32, kvt_gpu_rounds(ROUNDS));
    watch_end(&watch);
    kvt_role_say("adopted count=%" PRIu64, adopted(&engine));
    kvt_gpu_must(kvmem_prefix_release(engine.space, KEPT, blocks, kvmem_fence_none()),
                 "prefix_release");
    kvt_gpu_engine_close(&engine);
    return 0;
}

static void read_while_another_adopts(const char *name, uint32_t flags)
{
    static struct scene scene;
    struct kvt_process other;
    struct watch watch;
    const char *answer;
    char text[16];

    begin(&scene, name, flags);
    snprintf(text, sizeof(text), "%" PRIu32, flags);
    watch_begin(&watch, &scene.engine, kvt_gpu_table(&scene.engine, scene.seqs[0], KEPT));
    kvt_role_spawn(&other, 0, "adopter", scene.daemon.socket_path, scene.seed, text, NULL);
    answer = kvt_role_expect(&other, "adopted");
    KVT_REQUIRE(kvt_answer_number(answer, "count") >= 10, "%s", answer);
    kvt_role_end(&other);
    watch_end(&watch);
    end(&scene);
}

static void case_readers_go_on_in_two_processes(void)
{
    read_while_another_adopts("readers_go_on_in_two_processes", 0);
    read_while_another_adopts("readers_go_on_in_two_processes", KVMEM_CLIENT_HELPER);
}

int main(int argc, char **argv)
{
    static const struct kvt_case cases[] = {
        {"readers_go_on", case_readers_go_on, 0},
        {"readers_go_on_beside_the_helper", case_readers_go_on_beside_the_helper, 0},
        {"readers_go_on_in_two_processes", case_readers_go_on_in_two_processes, 0},
        {NULL, NULL, 0}};
    static const struct kvt_role roles[] = {{"adopter", role_adopter}, {NULL, NULL}};

    return kvt_cases_main(argc, argv, cases, roles);
}
