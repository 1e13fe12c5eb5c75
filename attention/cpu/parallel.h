/* SPDX-License-Identifier: Apache-2.0
 *
 * Work cut into n pieces, done by the caller's threads, by OpenMP's, or one after the other.
 */
#ifndef KVA_CPU_PARALLEL_H
#define KVA_CPU_PARALLEL_H

#include <stdint.h>
#ifdef _OPENMP
#include <omp.h>
#endif

/* The fields of the same names of struct kva_attention and struct kva_write. */
struct kva_threads {
    void (*parallel)(void *context, uint32_t n, void (*work)(void *argument, uint32_t i),
                     void *argument);
    void *context;
    uint32_t threads;
};

static inline void kva_parallel(const struct kva_threads *threads, uint32_t n,
                                void (*work)(void *argument, uint32_t i), void *argument)
{
    if (threads->parallel) {
        threads->parallel(threads->context, n, work, argument);
        return;
    }
#ifdef _OPENMP
    if (n > 1 && threads->threads != 1) {
        int count = threads->threads ? (int)threads->threads : omp_get_max_threads();

#pragma omp parallel for schedule(dynamic) num_threads(count)
        for (uint32_t i = 0; i < n; i++)
            work(argument, i);
        return;
    }
#endif
    for (uint32_t i = 0; i < n; i++)
        work(argument, i);
}

#endif
