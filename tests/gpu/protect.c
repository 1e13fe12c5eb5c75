/* SPDX-License-Identifier: Apache-2.0
 *
 * What one process does wrong reaches no other: a kernel that writes into a block of somebody else,
 * or into one's own where it is read, faults in its own process alone; a client whose context is
 * gone gets errors and closes cleanly; and what cannot be is refused by name.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "support/gpu/cases.h"
#include "support/gpu/engine.h"

#define POOL   "2GiB"
#define BLOCKS 32u
#define PREFIX 1u

/* ---- the other process ---- */

static void open_second(struct kvt_gpu_engine *engine, char **arguments, int32_t *blocks)
{
    struct kvt_gpu_engine_options options = {
        .socket_path = arguments[0], .name = "offender", .seed = strtoull(arguments[1], NULL, 0)};
    struct kvmem_fence ready;

    kvt_gpu_engine_open(engine, &options);
    kvt_gpu_lookup_all(engine, PREFIX, BLOCKS, blocks, &ready);
    kvt_gpu_must(kvmem_fence_order(engine->space, engine->stream, &ready), "fence_order");
    KVT_REQUIRE(kvt_gpu_prefix_wrong(engine, PREFIX, blocks, BLOCKS) == 0,
                "the shared blocks are not what their owner wrote");
}

/* Where a block is read. */
static char *address_of(const struct kvt_gpu_engine *engine, int32_t block)
{
    return (char *)engine->shape.base + (uint64_t)block * engine->shape.stride_bytes;
}

/* A store where a block is read: "first", "last" word of a shared one, of one's "own", or all over
 * all shared ones; or "alias", where shared ones would be written if they were one's own. */
static int offend(struct kvt_gpu_engine *engine, const char *how, const int32_t *blocks,
                  int32_t own)
{
    struct kvt_gpu_shape shape = engine->shape;
    struct kvt_gpu_part all = {.shape = &shape, .blocks = blocks, .count = BLOCKS, .seed = 99};

    if (strcmp(how, "alias") != 0)
        shape.write_base = (void *)shape.base;
    if (strcmp(how, "first") == 0)
        kvt_gpu_poke(address_of(engine, blocks[0]), 1, engine->stream);
    else if (strcmp(how, "last") == 0)
        kvt_gpu_poke(address_of(engine, blocks[BLOCKS - 1]) + engine->shape.block_bytes - 8, 1,
                     engine->stream);
    else if (strcmp(how, "own") == 0)
        kvt_gpu_poke(address_of(engine, own), 1, engine->stream);
    else
        kvt_gpu_fill(&all, engine->stream);
    return kvt_gpu_try_sync(engine->stream);
}

/* SOCKET SEED HOW */
static int role_stray(char **arguments)
{
    static int32_t blocks[BLOCKS];
    struct kvt_gpu_engine engine;
    struct kvmem_seq own;

    open_second(&engine, arguments, blocks);
    own = kvt_gpu_put(&engine, 2 + (uint64_t)getpid(), 4); /* what is its own it may write */
    KVT_REQUIRE(kvt_gpu_prefix_wrong(&engine, 2 + (uint64_t)getpid(),
                                     kvt_gpu_table(&engine, own, 4), 4) == 0,
                "own blocks");
    kvt_role_say("stored result=%d",
                 offend(&engine, arguments[2], blocks, kvt_gpu_table(&engine, own, 4)[0]));
    (void)getchar();
    _exit(0); /* its context is gone: nothing here can be closed but by the kernel */
}

/* What calls say once the context is gone. None may succeed halfway. */
static void ask_everything(struct kvt_gpu_engine *engine, struct kvmem_seq own)
{
    struct kvmem_seq_info before = {.size = sizeof(before)}, after = {.size = sizeof(after)};
    struct kvmem_fence fence;
    struct kvmem_seq child;
    int rc;

    rc = kvmem_fence_record(engine->space, engine->stream, &fence);
    KVT_REQUIRE(rc == KVMEM_E_SYSTEM, "fence_record said %s", kvmem_error_name(rc));
    KVT_REQUIRE(kvmem_error_detail()->driver_result == KVT_GPU_ILLEGAL_ADDRESS &&
                    kvmem_error_detail()->text[0],
                "driver result %d, \"%s\"", kvmem_error_detail()->driver_result,
                kvmem_error_detail()->text);
    kvt_gpu_must(kvmem_seq_fork(engine->space, own, &child), "seq_fork");
    kvt_gpu_must(kvmem_seq_info(engine->space, child, &before), "seq_info");
    rc = kvmem_seq_append(engine->space, child, 1, kvmem_fence_stream(engine->stream));
    KVT_REQUIRE(rc == KVMEM_E_SYSTEM, "a tail copy said %s", kvmem_error_name(rc));
    kvt_gpu_must(kvmem_seq_info(engine->space, child, &after), "seq_info");
    KVT_REQUIRE(memcmp(&before, &after, sizeof(after)) == 0, "the sequence changed");
    rc = kvmem_space_reserve(engine->space, 256, KVT_MS(1000));
    printf("  with a dead context space_reserve says %s: %s\n", kvmem_error_name(rc),
           rc < 0 ? kvmem_error_detail()->text : "");
    kvt_gpu_must(kvmem_client_check(engine->client), "client_check");
}

static void open_and_close(char **arguments)
{
    static int32_t blocks[BLOCKS];
    struct kvt_gpu_engine engine;

    open_second(&engine, arguments, blocks);
    kvt_gpu_must(kvmem_prefix_release(engine.space, BLOCKS, blocks, kvmem_fence_none()),
                 "prefix_release");
    kvt_gpu_engine_close(&engine);
}

/* SOCKET SEED */
static int role_dead(char **arguments)
{
    static int32_t blocks[BLOCKS];
    struct kvt_gpu_engine engine;
    struct kvmem_seq own;
    int fds, result;

    open_and_close(arguments); /* the driver's own descriptors are there from now on */
    fds = kvt_process_fd_count(getpid());
    open_second(&engine, arguments, blocks);
    kvt_gpu_must(kvmem_seq_create(engine.space, &own), "seq_create");
    kvt_gpu_must(kvt_gpu_reserve(&engine, 4, KVT_ANSWER_LIMIT), "space_reserve");
    kvt_gpu_must(kvmem_seq_append(engine.space, own, 8, kvmem_fence_none()), "seq_append");
    kvt_gpu_must(kvmem_seq_commit(engine.space, own, 8), "seq_commit");
    result = offend(&engine, "first", blocks, KVMEM_BLOCK_NONE);
    KVT_REQUIRE(result == KVT_GPU_ILLEGAL_ADDRESS, "the store gave %s",
                kvt_gpu_result_name(result));
    ask_everything(&engine, own);
    kvmem_client_close(engine.client);
    KVT_REQUIRE(kvt_process_fd_count(getpid()) <= fds, "%d descriptors, %d before it was opened",
                kvt_process_fd_count(getpid()), fds);
    kvt_role_say("closed");
    (void)getchar();
    _exit(0);
}

/* ---- the owner ---- */

struct scene {
    struct kvt_daemon daemon;
    struct kvt_gpu_engine owner;
    struct kvmem_seq shared;
    char seed[24];
};

static void begin(struct scene *scene, const char *name)
{
    struct kvt_gpu_engine_options options = {.name = "owner", .seed = kvt_seed(name)};

    kvt_gpu_daemon_start(&scene->daemon, NULL, POOL, NULL);
    options.socket_path = scene->daemon.socket_path;
    snprintf(scene->seed, sizeof(scene->seed), "%" PRIu64, options.seed);
    kvt_gpu_engine_open(&scene->owner, &options);
    scene->shared = kvt_gpu_put(&scene->owner, PREFIX, BLOCKS);
}

/* The owner's bytes, its context and the daemon are as they were. */
static void untouched(struct scene *scene, uint64_t prefix)
{
    struct kvt_gpu_engine *owner = &scene->owner;
    struct kvmem_seq fresh;

    KVT_REQUIRE(kvt_gpu_prefix_wrong(owner, PREFIX, kvt_gpu_table(owner, scene->shared, BLOCKS),
                                     BLOCKS) == 0,
                "the owner's bytes changed");
    fresh = kvt_gpu_put(owner, prefix, 4);
    KVT_REQUIRE(kvt_gpu_prefix_wrong(owner, prefix, kvt_gpu_table(owner, fresh, 4), 4) == 0,
                "the owner's new blocks");
    kvt_gpu_seq_free(owner, fresh, kvmem_fence_none());
    KVT_REQUIRE(kvt_wire_is_clean(scene->daemon.wire), "the directory is not clean");
}

static void end(struct scene *scene)
{
    kvt_gpu_seq_free(&scene->owner, scene->shared, kvmem_fence_none());
    kvt_gpu_engine_close(&scene->owner);
    kvt_daemon_end_observed(&scene->daemon);
}

static void case_stray_write(void)
{
    static const char *const ways[] = {"first", "last", "all", "own", "alias"};
    static struct scene scene;

    if (kvt_gpu_is_fake())
        kvt_case_skip("a stray write ends the process on the fake GPU");
    begin(&scene, "stray_write");
    for (uint64_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        struct kvt_process other;
        const char *answer;

        untouched(&scene, 100 + 2 * i);
        kvt_role_spawn(&other, 0, "stray", scene.daemon.socket_path, scene.seed, ways[i], NULL);
        answer = kvt_role_expect(&other, "stored");
        KVT_REQUIRE(kvt_answer_number(answer, "result") == KVT_GPU_ILLEGAL_ADDRESS,
                    "writing %s: %s, not an illegal address", ways[i], answer);
        untouched(&scene, 101 + 2 * i);
        kvt_role_end(&other);
    }
    end(&scene);
}

static void case_dead_context(void)
{
    static struct scene scene;
    struct kvt_process other;

    if (kvt_gpu_is_fake())
        kvt_case_skip("the fake GPU's contexts do not die");
    begin(&scene, "dead_context");
    kvt_role_spawn(&other, 0, "dead", scene.daemon.socket_path, scene.seed, NULL);
    kvt_role_expect(&other, "closed");
    untouched(&scene, 200);
    kvt_role_end(&other);
    end(&scene);
}

/* ---- what cannot be ---- */

static void expect(int rc, int code, const char *what)
{
    KVT_REQUIRE(rc == code, "%s: %s, not %s (%s)", what, kvmem_error_name(rc),
                kvmem_error_name(code), rc < 0 ? kvmem_error_detail()->text : "");
    KVT_REQUIRE(kvmem_error_detail()->text[0], "%s: no text", what);
}

static void case_refusals(void)
{
    static struct scene scene;
    struct kvmem_fence unknown = {.kind = KVMEM_FENCE_TIMELINE, .timeline = 0x7fffffc1, .value = 9};
    struct kvmem_fence nonsense = {.kind = 17}, stream;
    struct kvmem_space *space;
    struct kvmem_seq own;
    const int32_t *shared;
    int32_t blocks[2];

    begin(&scene, "refusals");
    space = scene.owner.space;
    stream = kvmem_fence_stream(scene.owner.stream);
    expect(kvmem_fence_order(space, scene.owner.stream, &unknown), KVMEM_E_INVALID,
           "a timeline of nobody");
    expect(kvmem_fence_poll(scene.owner.client, &nonsense), KVMEM_E_INVALID, "kind 17");
    expect(kvmem_fence_poll(scene.owner.client, &stream), KVMEM_E_NOT_SUPPORTED, "polling STREAM");
    own = kvt_gpu_seq_new(&scene.owner, 2);
    memcpy(blocks, kvt_gpu_table(&scene.owner, own, 2), sizeof(blocks));
    shared = kvt_gpu_table(&scene.owner, scene.shared, BLOCKS);
    expect(kvmem_blocks_copy(space, 0, 1, blocks, shared, scene.owner.stream), KVMEM_E_INVALID,
           "a copy into a sealed block");
    expect(kvmem_blocks_copy(space, 0, 2, shared, (int32_t[]){blocks[0], blocks[0]},
                             scene.owner.stream),
           KVMEM_E_INVALID, "a copy twice into one block");
    expect(kvmem_blocks_zero(space, 0, 1, (int32_t[]){1000000}, scene.owner.stream),
           KVMEM_E_INVALID, "zeroing block 1000000");
    kvt_gpu_seq_free(&scene.owner, own, kvmem_fence_none());
    untouched(&scene, 300);
    end(&scene);
}

static void case_unknown_device(void)
{
    static const char *const none[] = {"--device", "cuda:99", "--socket", NULL, NULL};
    const char *arguments[5];
    struct kvt_daemon daemon;
    int status;

    kvt_daemon_prepare(&daemon);
    memcpy(arguments, none, sizeof(none));
    arguments[3] = daemon.socket_path;
    kvt_daemon_spawn(&daemon, "bin/kvmemd", arguments);
    status = kvt_daemon_wait(&daemon, KVT_DAEMON_LIMIT);
    KVT_REQUIRE(status == 1 || status == 2, "kvmemd --device cuda:99 ended with %d", status);
    KVT_REQUIRE(kvt_daemon_logged(&daemon, "cuda:99", 0), "it did not name the device");
    kvt_daemon_end(&daemon);
}

int main(int argc, char **argv)
{
    static const struct kvt_case cases[] = {{"stray_write", case_stray_write, 0},
                                            {"dead_context", case_dead_context, 0},
                                            {"refusals", case_refusals, 0},
                                            {"unknown_device", case_unknown_device, 0},
                                            {NULL, NULL, 0}};
    static const struct kvt_role roles[] = {
        {"stray", role_stray}, {"dead", role_dead}, {NULL, NULL}};

    return kvt_cases_main(argc, argv, cases, roles);
}
