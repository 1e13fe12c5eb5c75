/* SPDX-License-Identifier: Apache-2.0
 *
 * Ordering by fences, between processes and inside one: what is published behind a stream is read
 * when it is written, what is freed behind a stream is not written before it is read, and a
 * producer that dies releases who waits for it.
 *
 *   producer   [ gate ──────── fill ] publish(STREAM)          gate: a kernel that runs until the
 *   consumer        lookup  order  [ ........ check ]          consumer's CPU opens it
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "support/gpu/cases.h"
#include "support/gpu/engine.h"

#define PAGE_BYTES     4096u
#define PUBLISH_ROUNDS 200u
#define PUBLISH_BLOCKS 2u
#define KILL_ROUNDS    20u
#define FREE_POOL      "1GiB"
#define FREE_BLOCKS    512u
#define GATED_FREES    50u
#define TIMED_FREES    200u

/* ---- the gate's page, in both processes ---- */

static int gate_fd(void)
{
    int fd = memfd_create("kvmem-test-gate", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, PAGE_BYTES))
        kvt_die("memfd for the gate");
    return fd;
}

static uint64_t *gate_map(int fd)
{
    uint64_t *gate = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (gate == MAP_FAILED)
        kvt_die("mmap of the gate");
    return gate;
}

static void gate_open(uint64_t *gate, uint64_t value)
{
    __atomic_store_n(gate, value, __ATOMIC_RELEASE);
}

/* ---- the producer ---- */

/* "put ROUND GATE NS": behind a gate of that value, or (GATE 0) so many nanoseconds. */
static void produce(struct kvt_gpu_engine *engine, const uint64_t *gate, const char *line)
{
    unsigned long long round, value, ns;
    struct kvt_gpu_part part;
    struct kvmem_fence fence;
    struct kvmem_seq seq;

    if (sscanf(line, "put %llu %llu %llu", &round, &value, &ns) != 3)
        kvt_die("told \"%s\"", line);
    seq = kvt_gpu_seq_new(engine, PUBLISH_BLOCKS);
    part = kvt_gpu_part_of(engine, seq, PUBLISH_BLOCKS, round);
    if (value)
        kvt_gpu_gate(gate, value, engine->stream);
    else
        kvt_gpu_spin(ns, engine->stream);
    kvt_gpu_fill(&part, engine->stream);
    fence = kvmem_fence_stream(engine->stream);
    kvt_gpu_publish(engine, seq, round, PUBLISH_BLOCKS, fence);
    kvt_gpu_seq_free(engine, seq, fence);
    kvt_gpu_must(kvmem_client_dispatch(engine->client, 0), "client_dispatch");
    kvt_role_say("published round=%llu", round);
}

/* SOCKET SEED, and the gate's page as a gift */
static int role_producer(char **arguments)
{
    struct kvt_gpu_engine_options options = {
        .socket_path = arguments[0], .name = "producer", .seed = strtoull(arguments[1], NULL, 0)};
    uint64_t *gate = gate_map(KVT_GIFT_FD);
    struct kvt_gpu_engine engine;
    char line[KVT_LINE_BYTES];

    kvt_gpu_host_pin(gate, PAGE_BYTES);
    kvt_gpu_engine_open(&engine, &options);
    kvt_role_say("ready");
    while (kvt_role_hear(line))
        produce(&engine, gate, line);
    kvt_gpu_engine_close(&engine);
    return 0;
}

struct scene {
    struct kvt_daemon daemon;
    struct kvt_gpu_engine consumer;
    struct kvt_process producer;
    struct kvt_gpu_verdict *verdict; /* of the ordered check */
    struct kvt_gpu_verdict *control; /* of one that is not ordered */
    void *control_stream;
    uint64_t *gate;
    int gate_fd;
    uint64_t seed;
    char seed_text[24];
};

static void start_producer(struct scene *scene)
{
    kvt_role_spawn(&scene->producer, scene->gate_fd, "producer", scene->daemon.socket_path,
                   scene->seed_text, NULL);
    kvt_role_expect(&scene->producer, "ready");
}

static void begin(struct scene *scene, const char *name)
{
    struct kvt_gpu_engine_options options = {.name = "consumer", .seed = kvt_seed(name)};

    scene->seed = options.seed;
    snprintf(scene->seed_text, sizeof(scene->seed_text), "%" PRIu64, options.seed);
    kvt_gpu_daemon_start(&scene->daemon, NULL, "2GiB", NULL);
    options.socket_path = scene->daemon.socket_path;
    kvt_gpu_engine_open(&scene->consumer, &options);
    scene->verdict = kvt_gpu_verdict_new();
    scene->control = kvt_gpu_verdict_new();
    scene->control_stream = kvt_gpu_stream_new();
    scene->gate_fd = gate_fd();
    scene->gate = gate_map(scene->gate_fd);
}

static void end(struct scene *scene)
{
    if (scene->control_stream)
        kvt_gpu_stream_drop(scene->control_stream);
    kvt_gpu_engine_close(&scene->consumer);
    kvt_daemon_end_observed(&scene->daemon);
}

static struct kvt_gpu_part part_of(struct scene *scene, const int32_t *blocks, uint64_t prefix)
{
    return kvt_gpu_prefix_part(&scene->consumer, prefix, blocks, PUBLISH_BLOCKS);
}

static uint64_t words_of(const struct kvt_gpu_part *part)
{
    return part->count * (part->shape->block_bytes / 8);
}

/* The bytes are not there yet: a check that nobody ordered sees others. */
static void control(struct scene *scene, const struct kvt_gpu_part *part)
{
    struct kvt_gpu_verdict seen;

    kvt_gpu_verdict_clear(scene->control, scene->control_stream);
    kvt_gpu_check(part, scene->control, scene->control_stream);
    seen = kvt_gpu_verdict_read(scene->control, scene->control_stream);
    KVT_REQUIRE(seen.wrong > seen.checked / 2,
                "%llu of %llu words are there before they were written", seen.checked - seen.wrong,
                seen.checked);
}

/* Order the stream behind `ready` and put a check there. */
static void order_and_check(struct scene *scene, const struct kvt_gpu_part *part,
                            const struct kvmem_fence *ready)
{
    void *stream = scene->consumer.stream;

    kvt_gpu_verdict_clear(scene->verdict, stream);
    kvt_gpu_must(kvmem_fence_order(scene->consumer.space, stream, ready), "fence_order");
    kvt_gpu_check(part, scene->verdict, stream);
}

static void expect_right(struct scene *scene, const struct kvt_gpu_part *part, uint64_t round)
{
    struct kvt_gpu_verdict seen;

    KVT_REQUIRE(kvt_gpu_done_within(scene->consumer.stream, KVT_ANSWER_LIMIT),
                "round %" PRIu64 ": the stream still waits", round);
    seen = kvt_gpu_verdict_read(scene->verdict, scene->consumer.stream);
    KVT_REQUIRE(seen.checked == words_of(part) && seen.wrong == 0,
                "round %" PRIu64 ": %llu wrong of %llu; at %#llx: %#llx, not %#llx", round,
                seen.wrong, seen.checked, seen.where, seen.found, seen.expected);
}

/* ---- published behind a stream ---- */

static void gated_round(struct scene *scene, uint64_t round)
{
    struct kvmem_fence ready;
    int32_t blocks[PUBLISH_BLOCKS];
    struct kvt_gpu_part part;

    kvt_tell(&scene->producer, "put %" PRIu64 " %" PRIu64 " 0", round, round);
    kvt_role_expect(&scene->producer, "published");
    kvt_gpu_lookup_all(&scene->consumer, round, PUBLISH_BLOCKS, blocks, &ready);
    part = part_of(scene, blocks, round);
    KVT_REQUIRE(ready.kind == KVMEM_FENCE_TIMELINE, "the look-up gave a fence of kind %u",
                ready.kind);
    KVT_REQUIRE(kvmem_fence_poll(scene->consumer.client, &ready) == 0,
                "the fence passed before the gate was opened");
    control(scene, &part);
    order_and_check(scene, &part, &ready);
    kvt_sleep_ns(KVT_MS(1));
    KVT_REQUIRE(!kvt_gpu_is_done(scene->consumer.stream), "the stream did not wait");
    gate_open(scene->gate, round);
    expect_right(scene, &part, round);
    KVT_REQUIRE(kvmem_fence_poll(scene->consumer.client, &ready) == 1, "poll after it passed");
    kvt_gpu_must(kvmem_prefix_release(scene->consumer.space, PUBLISH_BLOCKS, blocks,
                                      kvmem_fence_stream(scene->consumer.stream)),
                 "prefix_release");
}

/* Returns 1 when the fence was under way at the look-up. */
static int timed_round(struct scene *scene, uint64_t round, uint64_t ns)
{
    struct kvmem_fence ready;
    int32_t blocks[PUBLISH_BLOCKS];
    struct kvt_gpu_part part;
    int is_early;

    kvt_tell(&scene->producer, "put %" PRIu64 " 0 %" PRIu64, round, ns);
    kvt_role_expect(&scene->producer, "published");
    kvt_gpu_lookup_all(&scene->consumer, round, PUBLISH_BLOCKS, blocks, &ready);
    part = part_of(scene, blocks, round);
    is_early = kvmem_fence_poll(scene->consumer.client, &ready) == 0;
    order_and_check(scene, &part, &ready);
    expect_right(scene, &part, round);
    kvt_gpu_must(kvmem_prefix_release(scene->consumer.space, PUBLISH_BLOCKS, blocks,
                                      kvmem_fence_stream(scene->consumer.stream)),
                 "prefix_release");
    return is_early;
}

static void case_published_behind_a_stream(void)
{
    static struct scene scene;
    uint32_t rounds = kvt_gpu_rounds(PUBLISH_ROUNDS);
    uint64_t random;
    int early = 0;

    begin(&scene, "published_behind_a_stream");
    random = scene.seed;
    start_producer(&scene);
    for (uint64_t round = 1; round <= rounds; round++)
        gated_round(&scene, round);
    for (uint64_t round = rounds + 1; round <= 2 * rounds; round++)
        early += timed_round(&scene, round, kvt_random(&random) % 3000000);
    printf("  %u gated rounds, none ready at the look-up; %u timed ones, %d not ready\n", rounds,
           rounds, early);
    kvt_role_end(&scene.producer);
    end(&scene);
}

/* ---- a producer that dies ---- */

/* A sequence in front of which guarded blocks lie, with a full block of its own. */
static struct kvmem_seq guarded_seq(struct scene *scene, const int32_t *blocks)
{
    struct kvt_gpu_engine *consumer = &scene->consumer;
    struct kvmem_seq seq;

    kvt_gpu_must(kvt_gpu_reserve(consumer, 1, KVT_ANSWER_LIMIT), "space_reserve");
    kvt_gpu_must(kvmem_seq_create(consumer->space, &seq), "seq_create");
    kvt_gpu_must(kvmem_seq_attach(consumer->space, seq, PUBLISH_BLOCKS, blocks), "seq_attach");
    kvt_gpu_must(kvmem_seq_append(consumer->space, seq, KVT_GPU_BLOCK_TOKENS, kvmem_fence_none()),
                 "seq_append");
    kvt_gpu_must(kvmem_seq_commit(consumer->space, seq, KVT_GPU_BLOCK_TOKENS), "seq_commit");
    return seq;
}

static int publish_own(struct scene *scene, struct kvmem_seq seq, uint64_t round)
{
    const struct kvmem_name *names = kvt_gpu_names(&scene->consumer, round, PUBLISH_BLOCKS + 1);

    return kvmem_seq_publish(scene->consumer.space, seq, PUBLISH_BLOCKS, 1, names + PUBLISH_BLOCKS,
                             kvmem_fence_none());
}

static void kill_round(struct scene *scene, struct kvt_gpu_engine *third, uint64_t round)
{
    struct kvmem_fence ready, none;
    int32_t blocks[PUBLISH_BLOCKS];
    struct kvt_gpu_part part;
    struct kvmem_seq seq;
    int rc;

    start_producer(scene);
    kvt_tell(&scene->producer, "put %" PRIu64 " %" PRIu64 " 0", round, UINT64_MAX / 2);
    kvt_role_expect(&scene->producer, "published");
    kvt_gpu_lookup_all(&scene->consumer, round, PUBLISH_BLOCKS, blocks, &ready);
    part = part_of(scene, blocks, round);
    order_and_check(scene, &part, &ready);
    seq = guarded_seq(scene, blocks);
    rc = publish_own(scene, seq, round);
    KVT_REQUIRE(rc == KVMEM_E_BUSY, "publishing behind a pending guard: %s", kvmem_error_name(rc));
    KVT_REQUIRE(!kvt_gpu_is_done(scene->consumer.stream), "the stream did not wait");
    kvt_kill(&scene->producer);
    KVT_REQUIRE(kvt_gpu_done_within(scene->consumer.stream, KVT_ANSWER_LIMIT),
                "the stream hangs after its producer died");
    kvt_reap(&scene->producer, KVT_ANSWER_LIMIT);
    rc = kvmem_fence_poll(scene->consumer.client, &ready);
    KVT_REQUIRE(rc == KVMEM_E_STALE, "poll said %s", kvmem_error_name(rc));
    rc = kvmem_fence_order(scene->consumer.space, scene->consumer.stream, &ready);
    KVT_REQUIRE(rc == KVMEM_E_STALE, "order said %s", kvmem_error_name(rc));
    rc = publish_own(scene, seq, round);
    KVT_REQUIRE(rc == KVMEM_E_STALE, "publishing behind a broken guard: %s", kvmem_error_name(rc));
    KVT_REQUIRE(kvt_gpu_lookup(third, round, PUBLISH_BLOCKS, blocks, &none) == 0,
                "what the dead producer never wrote is found");
    kvt_gpu_seq_free(&scene->consumer, seq, kvmem_fence_none());
    kvt_gpu_must(kvmem_client_dispatch(scene->consumer.client, 0), "client_dispatch");
    KVT_REQUIRE(kvt_gpu_lookup(&scene->consumer, round, PUBLISH_BLOCKS, blocks, &none) == 0,
                "found again after its release");
}

static void case_producer_killed(void)
{
    struct kvt_gpu_engine_options options = {.name = "third"};
    static struct kvt_gpu_engine third;
    static struct scene scene;

    begin(&scene, "producer_killed");
    options.socket_path = scene.daemon.socket_path;
    options.seed = scene.seed;
    kvt_gpu_engine_open(&third, &options);
    for (uint64_t round = 1; round <= kvt_gpu_rounds(KILL_ROUNDS); round++)
        kill_round(&scene, &third, round);
    kvt_gpu_engine_close(&third);
    end(&scene);
}

/* ---- freed behind a stream ---- */

static uint64_t free_blocks(const struct kvt_gpu_engine *engine)
{
    struct kvmem_capacity capacity = {.size = sizeof(capacity)};

    kvt_gpu_must(kvmem_space_capacity(engine->space, &capacity), "space_capacity");
    return capacity.free_blocks;
}

/* 0 when `blocks` blocks were appended to the empty sequence, else the retryable code. */
static int try_append(struct kvt_gpu_engine *engine, struct kvmem_seq seq, uint32_t blocks)
{
    int rc =
        kvmem_seq_append(engine->space, seq, blocks * KVT_GPU_BLOCK_TOKENS, kvmem_fence_none());

    if (rc < 0 && !kvmem_error_is_retryable(rc))
        kvt_gpu_must(rc, "seq_append");
    return rc;
}

static void append_when_free(struct kvt_gpu_engine *engine, struct kvmem_seq seq, uint32_t blocks)
{
    uint64_t end_ns = kvt_now_ns() + (uint64_t)KVT_ANSWER_LIMIT;

    while (try_append(engine, seq, blocks) < 0) {
        kvt_gpu_must(kvmem_client_dispatch(engine->client, 0), "client_dispatch");
        KVT_REQUIRE(kvt_now_ns() < end_ns, "%u blocks do not come back", blocks);
    }
}

struct reuse {
    struct scene *scene;
    void *writer; /* a stream that nothing orders behind the reader's */
    uint64_t round;
};

/* A sequence of `blocks` blocks, written, and its reader put on the engine's stream. */
static struct kvmem_seq read_slowly(struct reuse *reuse, uint32_t blocks, bool is_gated,
                                    uint64_t ns)
{
    struct kvt_gpu_engine *engine = &reuse->scene->consumer;
    struct kvmem_seq seq = kvt_gpu_seq_new(engine, blocks);
    struct kvt_gpu_part part = kvt_gpu_part_of(engine, seq, blocks, 2 * reuse->round);

    kvt_gpu_fill(&part, engine->stream);
    kvt_gpu_sync(engine->stream);
    kvt_gpu_verdict_clear(reuse->scene->verdict, engine->stream);
    if (is_gated)
        kvt_gpu_gate(reuse->scene->gate, reuse->round, engine->stream);
    else
        kvt_gpu_spin(ns, engine->stream);
    kvt_gpu_check(&part, reuse->scene->verdict, engine->stream);
    return seq;
}

/* What was granted is written at once, while the reader may still run if fences do not hold. */
static void write_fast(struct reuse *reuse, struct kvmem_seq seq, uint32_t blocks)
{
    struct kvt_gpu_engine *engine = &reuse->scene->consumer;
    struct kvt_gpu_part part = kvt_gpu_part_of(engine, seq, blocks, 2 * reuse->round + 1);
    struct kvt_gpu_verdict seen;

    kvt_gpu_fill(&part, reuse->writer);
    kvt_gpu_sync(reuse->writer);
    seen = kvt_gpu_verdict_read(reuse->scene->verdict, engine->stream);
    KVT_REQUIRE(seen.checked && seen.wrong == 0,
                "round %" PRIu64 ": the reader saw %llu wrong words of %llu", reuse->round,
                seen.wrong, seen.checked);
    kvt_gpu_seq_free(engine, seq, kvmem_fence_none());
}

static void gated_free(struct reuse *reuse, uint32_t blocks)
{
    struct kvt_gpu_engine *engine = &reuse->scene->consumer;
    struct kvmem_seq old = read_slowly(reuse, blocks, true, 0), young;

    kvt_gpu_must(kvmem_seq_create(engine->space, &young), "seq_create");
    kvt_gpu_seq_free(engine, old, kvmem_fence_stream(engine->stream));
    for (int i = 0; i < 10; i++) {
        KVT_REQUIRE(free_blocks(engine) == 0, "%" PRIu64 " blocks are free that are being read",
                    free_blocks(engine));
        KVT_REQUIRE(try_append(engine, young, 1) < 0, "a block was granted that is being read");
        kvt_gpu_must(kvmem_client_dispatch(engine->client, 100000), "client_dispatch");
    }
    KVT_REQUIRE(!kvt_gpu_is_done(engine->stream), "the reader did not wait for its gate");
    gate_open(reuse->scene->gate, reuse->round);
    append_when_free(engine, young, blocks);
    write_fast(reuse, young, blocks);
}

static void timed_free(struct reuse *reuse, uint64_t *random)
{
    struct kvt_gpu_engine *engine = &reuse->scene->consumer;
    struct kvmem_fence fence = kvmem_fence_stream(engine->stream);
    uint32_t blocks = 1 + (uint32_t)(kvt_random(random) % FREE_BLOCKS);
    struct kvmem_seq old = read_slowly(reuse, blocks, false, kvt_random(random) % 500000), young;

    kvt_gpu_must(kvmem_seq_create(engine->space, &young), "seq_create");
    if (kvt_random(random) % 2) {
        kvt_gpu_seq_free(engine, old, fence);
        append_when_free(engine, young, blocks);
    } else {
        kvt_gpu_must(kvmem_seq_truncate(engine->space, old, 0, fence), "seq_truncate");
        append_when_free(engine, young, blocks);
        kvt_gpu_seq_free(engine, old, fence);
    }
    write_fast(reuse, young, blocks);
}

static void case_freed_behind_a_stream(void)
{
    static struct scene scene;
    /* So that nothing is handed in: all blocks stay this client's. */
    struct kvt_gpu_engine_options options = {
        .name = "reuse", .low_water_blocks = 1, .refill_blocks = FREE_BLOCKS};
    struct reuse reuse = {.scene = &scene, .round = 1};
    struct kvmem_fence first;
    uint64_t random;

    options.seed = scene.seed = random = kvt_seed("freed_behind_a_stream");
    kvt_gpu_daemon_start(&scene.daemon, NULL, FREE_POOL, NULL);
    options.socket_path = scene.daemon.socket_path;
    kvt_gpu_engine_open(&scene.consumer, &options);
    scene.verdict = kvt_gpu_verdict_new();
    scene.gate = kvt_gpu_host_alloc(PAGE_BYTES);
    reuse.writer = kvt_gpu_stream_new();
    kvt_gpu_must(kvt_gpu_reserve(&scene.consumer, FREE_BLOCKS, KVT_ANSWER_LIMIT), "space_reserve");
    /* The first fence maps and pins the timeline, which the driver may do behind the gate. */
    kvt_gpu_must(kvmem_fence_record(scene.consumer.space, scene.consumer.stream, &first),
                 "fence_record");
    KVT_REQUIRE(free_blocks(&scene.consumer) == FREE_BLOCKS, "%" PRIu64 " blocks are free",
                free_blocks(&scene.consumer));
    for (; reuse.round <= kvt_gpu_rounds(GATED_FREES); reuse.round++)
        gated_free(&reuse, FREE_BLOCKS);
    for (; reuse.round <= kvt_gpu_rounds(GATED_FREES + TIMED_FREES); reuse.round++)
        timed_free(&reuse, &random);
    kvt_gpu_stream_drop(reuse.writer);
    end(&scene);
}

/* ---- promises: fences of work that no stream holds ---- */

static void case_a_promise_holds_a_stream(void)
{
    static struct scene scene;
    struct kvmem_fence promise;

    begin(&scene, "a_promise_holds_a_stream");
    for (int i = 0; i < 100; i++) {
        kvt_gpu_must(kvmem_fence_promise(scene.consumer.client, &promise), "fence_promise");
        kvt_gpu_must(kvmem_fence_order(scene.consumer.space, scene.consumer.stream, &promise),
                     "fence_order");
        kvt_gpu_verdict_clear(scene.verdict, scene.consumer.stream);
        kvt_sleep_ns(100000);
        KVT_REQUIRE(!kvt_gpu_is_done(scene.consumer.stream), "promise %d does not hold", i);
        kvt_gpu_must(kvmem_fence_fulfil(scene.consumer.client, &promise), "fence_fulfil");
        KVT_REQUIRE(kvt_gpu_done_within(scene.consumer.stream, KVT_ANSWER_LIMIT),
                    "promise %d was fulfilled and holds", i);
    }
    end(&scene);
}

int main(int argc, char **argv)
{
    static const struct kvt_case cases[] = {
        {"published_behind_a_stream", case_published_behind_a_stream, 0},
        {"producer_killed", case_producer_killed, 0},
        {"freed_behind_a_stream", case_freed_behind_a_stream, 0},
        {"a_promise_holds_a_stream", case_a_promise_holds_a_stream, 0},
        {NULL, NULL, 0}};
    static const struct kvt_role roles[] = {{"producer", role_producer}, {NULL, NULL}};

    return kvt_cases_main(argc, argv, cases, roles);
}
