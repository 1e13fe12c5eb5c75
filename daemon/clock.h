/* SPDX-License-Identifier: Apache-2.0
 *
 * The daemon's one clock: monotonic nanoseconds. Deadlines are points on it.
 */
#ifndef KVD_CLOCK_H
#define KVD_CLOCK_H

#include <stdint.h>
#include <time.h>

#define KVD_SECOND_NS      UINT64_C(1000000000)
#define KVD_MILLISECOND_NS UINT64_C(1000000)
#define KVD_NEVER_NS       UINT64_MAX

static inline uint64_t kvd_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * KVD_SECOND_NS + (uint64_t)now.tv_nsec;
}

static inline uint64_t kvd_earlier_ns(uint64_t a_ns, uint64_t b_ns)
{
    return a_ns < b_ns ? a_ns : b_ns;
}

#endif
