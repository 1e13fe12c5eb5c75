/* SPDX-License-Identifier: Apache-2.0
 *
 * The timeline page: 64 lanes of a producer's progress, in one memfd page that the daemon makes and
 * that the producer and its consumers map and pin.
 *
 *   lane 0   | counter | broken | ... 64 bytes      promises of the CPU
 *   lane 1   | counter | broken |                   one CUDA stream each,
 *   ...                                             more streams than lanes take turns
 *   lane 63  | counter | broken |
 *
 *   fence = (timeline, value)      timeline = 64 × session serial (modulo 2^32) + lane
 *   reached ⇔ counter ≥ value and (broken = 0 or value < broken)
 *   broken  ⇔ broken ≠ 0 and value ≥ broken
 *
 * A counter only grows, values stay below KVI_FENCE_LIMIT. `broken` is 0 while the producer lives.
 * At its death the daemon stores broken = 1 + the counter, then the largest counter there is
 * (release): whoever waits goes on, and whoever sees that counter sees that it is broken.
 *
 * Threads: one writer a lane (a stream, or the client's thread; the daemon once the process is
 * gone), any readers, in any process.
 */
#ifndef KVI_CLIENT_TIMELINE_H
#define KVI_CLIENT_TIMELINE_H

#include <stdbool.h>
#include <stdint.h>

#include "wire/protocol.h"

#define KVI_LANE_BROKEN ((uint64_t)INT64_MAX) /* counter of a lane that was broken */

struct kvi_lane {
    uint64_t counter;
    uint64_t broken; /* 0, or 1 + the value that was reached when the producer died */
    uint64_t reserved[6];
};

_Static_assert(sizeof(struct kvi_lane) == 64, "laid down in the page");

#define KVI_TIMELINE_BYTES (KVI_LANE_COUNT * sizeof(struct kvi_lane))

_Static_assert(KVI_TIMELINE_BYTES == 4096, "one page of the smallest kind");

enum kvi_lane_state {
    KVI_LANE_PENDING = 0,
    KVI_LANE_REACHED = 1,
    KVI_LANE_IS_BROKEN = 2
};

/* What has become of `value`. REACHED orders the producer's earlier stores before the caller's
 * later loads. */
static inline enum kvi_lane_state kvi_lane_poll(const struct kvi_lane *lane, uint64_t value)
{
    uint64_t broken;

    if (__atomic_load_n(&lane->counter, __ATOMIC_ACQUIRE) < value)
        return KVI_LANE_PENDING;
    /* The daemon stores broken before the counter that lets waiters go on. */
    broken = __atomic_load_n(&lane->broken, __ATOMIC_RELAXED);
    return !broken || value < broken ? KVI_LANE_REACHED : KVI_LANE_IS_BROKEN;
}

/* Writer: `value` is reached; everything stored before is seen by whoever sees it. */
static inline void kvi_lane_reach(struct kvi_lane *lane, uint64_t value)
{
    __atomic_store_n(&lane->counter, value, __ATOMIC_RELEASE);
}

/* Daemon: the producer is gone and writes no more. What it has not reached never will be. */
static inline void kvi_lane_break(struct kvi_lane *lane)
{
    uint64_t reached = __atomic_load_n(&lane->counter, __ATOMIC_RELAXED);

    if (__atomic_load_n(&lane->broken, __ATOMIC_RELAXED) == 0)
        __atomic_store_n(&lane->broken, reached < KVI_FENCE_LIMIT ? reached + 1 : KVI_FENCE_LIMIT,
                         __ATOMIC_RELAXED);
    /* Also when the producer itself scribbled over `broken`: nobody waits for ever. */
    __atomic_store_n(&lane->counter, KVI_LANE_BROKEN, __ATOMIC_RELEASE);
}

#endif
