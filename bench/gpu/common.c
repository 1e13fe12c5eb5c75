/* SPDX-License-Identifier: Apache-2.0
 *
 * Samples, single figures and timers of the benchmarks on a GPU.
 */
#include "common.h"

#define SPIN_NS     1000000u
#define PIECE_BYTES (UINT64_C(2) << 20)

void kvb_gpu_begin(int argc, char **argv, const struct kvt_role *roles)
{
    kvt_gpu_begin(argc, argv, roles);
    kvt_gpu_use(kvt_gpu_ordinal());
}

uint32_t kvb_gpu_samples(uint32_t usual)
{
    return kvt_count_from_env("KVMEM_SAMPLES", usual, 1);
}

int kvb_gpu_figure(const char *bench, const char *metric, double value, double limit)
{
    static struct kvb_row row;

    row.bench = bench;
    row.metric = metric;
    row.limit = limit;
    row.limit_kind = KVB_LIMIT_MEDIAN_MAX;
    row.own.count = 0;
    kvb_add(&row.own, value);
    return kvb_report(&row);
}

double kvb_gpu_memory_calls(const struct kvt_gpu_engine *engine)
{
    struct kvmem_client_stats stats = {.size = sizeof(stats)};

    kvt_gpu_must(kvmem_client_stats(engine->client, &stats), "client_stats");
    return (double)(stats.driver_calls_inline + stats.helper_jobs);
}

void kvb_gpu_fill(void *memory, uint64_t bytes, void *stream)
{
    struct kvt_gpu_shape shape = {.base = memory,
                                  .write_base = memory,
                                  .stride_bytes = PIECE_BYTES,
                                  .block_bytes = PIECE_BYTES};

    for (int32_t i = 0; i < (int32_t)(bytes / PIECE_BYTES); i++) {
        struct kvt_gpu_part part = {
            .shape = &shape, .blocks = &i, .count = 1, .seed = kvb_now_ns(), .position = 1};

        kvt_gpu_fill(&part, stream);
    }
}

void kvb_gpu_timer_begin(struct kvb_gpu_timer *timer, void *stream)
{
    if (!timer->from) {
        timer->from = kvt_gpu_event_new();
        timer->to = kvt_gpu_event_new();
    }
    timer->stream = stream;
    kvt_gpu_spin(SPIN_NS, stream);
    kvt_gpu_event_record(timer->from, stream);
}

double kvb_gpu_timer_end(struct kvb_gpu_timer *timer)
{
    kvt_gpu_event_record(timer->to, timer->stream);
    kvt_gpu_event_sync(timer->to);
    return kvt_gpu_event_us(timer->from, timer->to);
}
