/* SPDX-License-Identifier: Apache-2.0
 *
 * parallel.h: this file alone knows OpenMP.
 */
#include "parallel.h"

#ifdef _OPENMP
#include <omp.h>
#endif

uint32_t kva_thread_count(const struct kva_threads *threads)
{
    if (threads->threads)
        return threads->threads;
#ifdef _OPENMP
    return (uint32_t)omp_get_max_threads();
#else
    return 1;
#endif
}

void kva_parallel(const struct kva_threads *threads, uint32_t n,
                  void (*work)(void *argument, uint32_t i), void *argument)
{
    if (threads->parallel) {
        threads->parallel(threads->context, n, work, argument);
        return;
    }
#ifdef _OPENMP
    uint32_t count = kva_thread_count(threads);

    count = count < n ? count : n;
    if (count > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(count)
        for (uint32_t i = 0; i < n; i++)
            work(argument, i);
        return;
    }
#endif
    for (uint32_t i = 0; i < n; i++)
        work(argument, i);
}
