/* SPDX-License-Identifier: Apache-2.0
 *
 * Out of device memory is an answer: of the daemon's budget, and of the driver when somebody else
 * has taken the device. What works goes on working, and when memory is there again it is given.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/gpu/cases.h"
#include "support/gpu/engine.h"

#define SMALL_BLOCKS 16u
#define MORE_BLOCKS  2048u /* 4 GiB */
#define LEFT_BYTES   (UINT64_C(1) << 30)

struct scene {
    struct kvt_daemon daemon;
    struct kvt_gpu_engine engine;
    struct kvmem_seq seq;
};

static void begin(struct scene *scene, const char *name, const char *device_bytes)
{
    struct kvt_gpu_engine_options options = {.name = "greedy", .seed = kvt_seed(name)};

    kvt_gpu_daemon_start(&scene->daemon, NULL, device_bytes, NULL);
    options.socket_path = scene->daemon.socket_path;
    kvt_gpu_engine_open(&scene->engine, &options);
    scene->seq = kvt_gpu_put(&scene->engine, 1, SMALL_BLOCKS);
}

/* What was there is right, and more can be had, written and given back. */
static void goes_on(struct scene *scene, uint64_t prefix)
{
    struct kvt_gpu_engine *engine = &scene->engine;
    struct kvmem_seq other = kvt_gpu_put(engine, prefix, SMALL_BLOCKS);

    KVT_REQUIRE(kvt_gpu_prefix_wrong(engine, 1, kvt_gpu_table(engine, scene->seq, SMALL_BLOCKS),
                                     SMALL_BLOCKS) == 0,
                "the old blocks");
    KVT_REQUIRE(kvt_gpu_prefix_wrong(engine, prefix, kvt_gpu_table(engine, other, SMALL_BLOCKS),
                                     SMALL_BLOCKS) == 0,
                "new blocks");
    kvt_gpu_seq_free(engine, other, kvmem_fence_none());
    kvt_gpu_must(kvmem_client_dispatch(engine->client, 0), "client_dispatch");
    kvt_gpu_must(kvmem_client_check(engine->client), "client_check");
    KVT_REQUIRE(kvt_wire_is_clean(scene->daemon.wire), "the directory is not clean");
}

static void end(struct scene *scene)
{
    kvt_gpu_seq_free(&scene->engine, scene->seq, kvmem_fence_none());
    kvt_gpu_engine_close(&scene->engine);
    kvt_daemon_end_observed(&scene->daemon);
}

static void expect_full(int rc, const char *what)
{
    KVT_REQUIRE(rc == KVMEM_E_OUT_OF_BLOCKS || rc == KVMEM_E_DEVICE_FULL ||
                    rc == KVMEM_E_REFILL_PENDING,
                "%s said %s", what, rc < 0 ? kvmem_error_name(rc) : "success");
    KVT_REQUIRE(kvmem_error_detail()->text[0], "%s: no text", what);
    printf("  %s: %s: %s\n", what, kvmem_error_name(rc), kvmem_error_detail()->text);
}

static void case_more_than_the_pool(void)
{
    static struct scene scene;

    begin(&scene, "more_than_the_pool", "1GiB");
    expect_full(kvmem_space_reserve(scene.engine.space, 600, KVT_MS(500)), "600 of 512 blocks");
    goes_on(&scene, 2);
    KVT_REQUIRE(kvmem_space_reserve(scene.engine.space, 1u << 30, KVT_MS(500)) == KVMEM_E_INVALID,
                "more than the index range");
    goes_on(&scene, 3);
    end(&scene);
}

/* Take the device but for LEFT_BYTES. */
static void *hog(uint64_t *bytes)
{
    void *memory = NULL;

    for (*bytes = kvt_gpu_free_bytes() - LEFT_BYTES; kvt_gpu_try_alloc(*bytes, &memory) != 0;
         *bytes -= LEFT_BYTES / 8)
        KVT_REQUIRE(*bytes > LEFT_BYTES, "nothing to take: %" PRIu64, *bytes);
    return memory;
}

static void case_the_driver_has_no_more(void)
{
    static struct scene scene;
    char pool[32];
    uint64_t bytes;
    void *memory;

    if (kvt_gpu_is_fake())
        kvt_case_skip("nobody else takes the fake GPU's memory");
    snprintf(pool, sizeof(pool), "%" PRIu64 "GiB", kvt_gpu_total_bytes() >> 31); /* half of it */
    begin(&scene, "the_driver_has_no_more", pool);
    memory = hog(&bytes);
    for (int i = 0; i < 3; i++)
        expect_full(kvmem_space_reserve(scene.engine.space, MORE_BLOCKS, KVT_MS(500)),
                    "4 GiB where 1 GiB is left");
    kvt_gpu_must(kvmem_space_trim(scene.engine.space), "space_trim");
    goes_on(&scene, 2);
    kvt_gpu_free(memory);
    kvt_gpu_must(kvt_gpu_reserve(&scene.engine, MORE_BLOCKS, KVT_ANSWER_LIMIT),
                 "4 GiB once they are there");
    goes_on(&scene, 3);
    end(&scene);
}

int main(int argc, char **argv)
{
    static const struct kvt_case cases[] = {
        {"more_than_the_pool", case_more_than_the_pool, 0},
        {"the_driver_has_no_more", case_the_driver_has_no_more, 0},
        {NULL, NULL, 0}};

    return kvt_cases_main(argc, argv, cases, NULL);
}
