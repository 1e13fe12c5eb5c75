/* SPDX-License-Identifier: Apache-2.0
 *
 * block_copy: kvmem_blocks_copy of 1,000 blocks of 2 MiB to 1,000 others, in random order, against
 * cudaMemcpyAsync of as many bytes in one piece, in turn. At least 90 % of its speed: at most 1.11
 * of its time.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"

#define BLOCKS  1000u
#define SAMPLES 50u

struct run {
    struct kvt_gpu_engine engine;
    int32_t from[BLOCKS], to[BLOCKS];
    void *peer_from, *peer_to;
    uint64_t bytes;
};

static void shuffle(int32_t *blocks, uint64_t *random)
{
    for (uint32_t i = BLOCKS - 1; i > 0; i--) {
        uint32_t j = (uint32_t)(kvb_random(random) % (i + 1));
        int32_t block = blocks[i];

        blocks[i] = blocks[j];
        blocks[j] = block;
    }
}

static void copy(struct run *run)
{
    kvt_gpu_must(
        kvmem_blocks_copy(run->engine.space, 0, BLOCKS, run->from, run->to, run->engine.stream),
        "blocks_copy");
}

static double own_us(struct run *run)
{
    static struct kvb_gpu_timer timer;

    kvb_gpu_timer_begin(&timer, run->engine.stream);
    copy(run);
    return kvb_gpu_timer_end(&timer);
}

static double peer_us(struct run *run)
{
    static struct kvb_gpu_timer timer;

    kvb_gpu_timer_begin(&timer, run->engine.stream);
    kvt_gpu_copy(run->peer_to, run->peer_from, run->bytes, run->engine.stream);
    return kvb_gpu_timer_end(&timer);
}

/* Other bytes in the sources, also of the peer; the copies hold them afterwards. */
static void verify(struct run *run, uint64_t prefix)
{
    struct kvt_gpu_part part = kvt_gpu_prefix_part(&run->engine, prefix, run->from, BLOCKS);

    kvt_gpu_fill(&part, run->engine.stream);
    copy(run);
    part.blocks = run->to;
    if (kvt_gpu_wrong(&part, run->engine.stream))
        kvt_die("the copies are wrong");
}

static void make_lists(struct run *run)
{
    struct kvmem_seq from = kvt_gpu_seq_new(&run->engine, BLOCKS);
    struct kvmem_seq to = kvt_gpu_seq_new(&run->engine, BLOCKS);
    uint64_t random = 0x434f5059;

    memcpy(run->from, kvt_gpu_table(&run->engine, from, BLOCKS), sizeof(run->from));
    memcpy(run->to, kvt_gpu_table(&run->engine, to, BLOCKS), sizeof(run->to));
    shuffle(run->from, &random);
    shuffle(run->to, &random);
    run->bytes = BLOCKS * run->engine.geometry.block_bytes;
    run->peer_from = kvt_gpu_alloc(run->bytes);
    run->peer_to = kvt_gpu_alloc(run->bytes);
    kvb_gpu_fill(run->peer_from, run->bytes, run->engine.stream);
}

int main(int argc, char **argv)
{
    static struct kvb_row row = {.bench = "block_copy",
                                 .metric = "us for 1,000 blocks of 2 MiB",
                                 .peer = "cudaMemcpyAsync",
                                 .limit = 1 / 0.9,
                                 .limit_kind = KVB_LIMIT_RATIO_MAX};
    struct kvt_gpu_engine_options options = {.name = "copy"};
    static struct run run;
    struct kvt_daemon daemon;

    kvb_gpu_begin(argc, argv, NULL);
    options.seed = kvt_now_ns();
    kvt_gpu_daemon_start(&daemon, NULL, "8GiB", NULL);
    options.socket_path = daemon.socket_path;
    kvt_gpu_engine_open(&run.engine, &options);
    make_lists(&run);
    verify(&run, 1);
    for (uint32_t i = 0; i < 3; i++) {
        own_us(&run);
        peer_us(&run);
    }
    for (uint32_t i = kvb_gpu_samples(SAMPLES); i > 0; i--) {
        kvb_add(&row.own, own_us(&run));
        kvb_add(&row.peer_samples, peer_us(&run));
    }
    verify(&run, 2);
    kvt_gpu_engine_close(&run.engine);
    kvt_daemon_end_observed(&daemon);
    fprintf(stderr, "block_copy: %.0f GB/s, read and written\n",
            2e-3 * (double)run.bytes / kvb_quantile(&row.own, 0.5));
    return kvb_report(&row);
}
