/* SPDX-License-Identifier: Apache-2.0
 *
 * What the benchmarks share: a clock, samples with median and p99, pairs of own and peer taken
 * in turn, and the JSON line that each row prints.
 *
 *   {"bench":"append","metric":"ns a token","median":3.1,"p99":3.4,"peer":"limit",
 *    "peer_median":5.0,"ratio":0.62,"limit":5.0,"met":true,"samples":41}
 *
 * `peer` is what the row is compared with, measured in the same run, own and peer in turn;
 * where the goal is a number, the peer is "limit" and peer_median that number. `ratio` is
 * median ÷ peer_median, the median of the pairs' ratios when there are pairs. `limit` is the
 * largest median (or, with KVB_LIMIT_RATIO, the largest ratio) that meets the goal.
 */
#ifndef KVB_BENCH_H
#define KVB_BENCH_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define KVB_SAMPLES 41

static inline uint64_t kvb_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* SplitMix64: the benchmarks' only source of randomness; seeds are fixed in each program. */
static inline uint64_t kvb_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

struct kvb_samples {
    double values[4096];
    size_t count;
};

void kvb_add(struct kvb_samples *samples, double value);
/* The value at `share` (0.5 = median) of the sorted samples; 0 when there are none. */
double kvb_quantile(const struct kvb_samples *samples, double share);

enum kvb_limit {
    KVB_LIMIT_MEDIAN_MAX,
    KVB_LIMIT_RATIO_MAX,
    KVB_LIMIT_MEDIAN_MIN
};

struct kvb_row {
    const char *bench;
    const char *metric; /* what and in which unit */
    struct kvb_samples own;
    struct kvb_samples peer_samples; /* paired with own when the counts are equal */
    const char *peer;                /* NULL: "limit", and peer_median is the limit */
    double limit;
    enum kvb_limit limit_kind;
    int is_void;      /* the run proves nothing: not met, "void":true */
    char fields[160]; /* further ones of the JSON line, "name":value, or nothing */
};

/* Print the row; 0 when it meets its limit, else 1. A peer without samples is absent: not met. */
int kvb_report(struct kvb_row *row);

/* A failed step of a benchmark ends it: the text, kvmem's error detail, exit status 2. */
void kvb_check(int result, const char *what);
_Noreturn void kvb_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Keep this process, and those it starts from now on, on one processor. */
void kvb_pin_to_core(int core);

/* Path of a program of this build, "bin/kvmemd"; static storage. */
const char *kvb_program(const char *relative);

/* A kvmemd of its own on the host device, in a temporary runtime directory. */
struct kvb_daemon {
    int pid;
    char directory[128];
    char socket_path[160];
};
void kvb_daemon_start(struct kvb_daemon *daemon, const char *device_bytes);
void kvb_daemon_stop(struct kvb_daemon *daemon);

#endif
