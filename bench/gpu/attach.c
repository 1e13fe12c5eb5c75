/* SPDX-License-Identifier: Apache-2.0
 *
 * attach: a new process gets at 8 GiB of blocks that another one has published. From its connect
 * to the end of the first kernel that reads all of them (8 bytes of every 4 KiB); its CUDA context
 * is there before, its names are hashed meanwhile. Limit 4 ms a GiB.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "common.h"

#define BLOCKS  4096u
#define GIB     8.0
#define PREFIX  1u
#define SAMPLES 30u

static double attach_us(char **arguments, struct kvt_gpu_engine *engine, int32_t *blocks)
{
    struct kvt_gpu_engine_options options = {
        .socket_path = arguments[0], .name = "attacher", .seed = strtoull(arguments[1], NULL, 0)};
    struct kvt_gpu_verdict *verdict = kvt_gpu_verdict_new(), seen;
    uint64_t start = kvb_now_ns(), opened, found, end;
    struct kvmem_fence ready;
    struct kvt_gpu_part part;

    kvt_gpu_engine_open(engine, &options);
    opened = kvb_now_ns();
    if (kvt_gpu_lookup(engine, PREFIX, BLOCKS, blocks, &ready) != BLOCKS)
        kvt_die("not all %u blocks are found", BLOCKS);
    found = kvb_now_ns();
    kvt_gpu_must(kvmem_fence_order(engine->space, engine->stream, &ready), "fence_order");
    part = kvt_gpu_prefix_part(engine, PREFIX, blocks, BLOCKS);
    part.step_words = 512;
    kvt_gpu_check(&part, verdict, engine->stream);
    kvt_gpu_sync(engine->stream);
    end = kvb_now_ns();
    seen = kvt_gpu_verdict_read(verdict, engine->stream);
    if (seen.wrong || !seen.checked)
        kvt_die("%llu of %llu words are wrong", seen.wrong, seen.checked);
    fprintf(stderr, "attach: open %.2f ms, look-up and mapping %.2f, kernel %.2f\n",
            (double)(opened - start) / 1e6, (double)(found - opened) / 1e6,
            (double)(end - found) / 1e6);
    return (double)(end - start) / 1e3;
}

/* SOCKET SEED */
static int role_attacher(char **arguments)
{
    static int32_t blocks[BLOCKS];
    struct kvt_gpu_engine engine;
    char line[KVT_LINE_BYTES];
    double us;

    kvt_role_say("ready");
    if (!kvt_role_hear(line))
        return 0;
    us = attach_us(arguments, &engine, blocks);
    if (kvt_gpu_prefix_wrong(&engine, PREFIX, blocks, BLOCKS))
        kvt_die("wrong bytes after the attach");
    kvt_gpu_must(kvmem_prefix_release(engine.space, BLOCKS, blocks, kvmem_fence_none()),
                 "prefix_release");
    kvt_gpu_engine_close(&engine);
    kvt_role_say("attached ns=%llu", (unsigned long long)(us * 1e3));
    return 0;
}

static double sample_ms_a_gib(const struct kvt_daemon *daemon, const char *seed)
{
    struct kvt_process other;
    double ns;

    kvt_role_spawn(&other, 0, "attacher", daemon->socket_path, seed, NULL);
    kvt_role_expect(&other, "ready");
    kvt_tell(&other, "go");
    ns = (double)kvt_answer_number(kvt_role_expect(&other, "attached"), "ns");
    kvt_role_end(&other);
    return ns / 1e6 / GIB;
}

int main(int argc, char **argv)
{
    static const struct kvt_role roles[] = {{"attacher", role_attacher}, {NULL, NULL}};
    static struct kvb_row row = {.bench = "attach",
                                 .metric = "ms a GiB, connect to first kernel, 8 GiB",
                                 .limit = 4,
                                 .limit_kind = KVB_LIMIT_MEDIAN_MAX};
    struct kvt_gpu_engine_options options = {.name = "owner", .seed = 0x41545441};
    struct kvt_gpu_engine owner;
    struct kvt_daemon daemon;
    char seed[24];

    kvb_gpu_begin(argc, argv, roles);
    kvt_gpu_daemon_start(&daemon, NULL, "9GiB", NULL);
    options.socket_path = daemon.socket_path;
    snprintf(seed, sizeof(seed), "%" PRIu64, options.seed);
    kvt_gpu_engine_open(&owner, &options);
    kvt_gpu_put(&owner, PREFIX, BLOCKS);
    sample_ms_a_gib(&daemon, seed);
    for (uint32_t i = kvb_gpu_samples(SAMPLES); i > 0; i--)
        kvb_add(&row.own, sample_ms_a_gib(&daemon, seed));
    kvt_gpu_engine_close(&owner);
    kvt_daemon_end_observed(&daemon);
    return kvb_report(&row);
}
