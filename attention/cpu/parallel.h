/* SPDX-License-Identifier: Apache-2.0
 *
 * The one way in which the CPU's kernels use threads: n items of work, in any order, on the threads
 * of the caller's function, or of OpenMP, or on the calling thread alone. Items are handed out one
 * by one as threads become free, so cut work into a few times as many items as there are threads.
 */
#ifndef KVA_CPU_PARALLEL_H
#define KVA_CPU_PARALLEL_H

#include "../internal.h"

/* The fields of that name in struct kva_attention and struct kva_write. */
struct kva_threads {
    void (*parallel)(void *context, uint32_t n, void (*work)(void *argument, uint32_t i),
                     void *argument);
    void *context;
    uint32_t threads;
};

#define KVA_THREADS_OF(what) \
    ((struct kva_threads){(what)->parallel, (what)->parallel_context, (what)->threads})

/* Call work(argument, i) for each i < n; returns when all are done. */
void kva_parallel(const struct kva_threads *threads, uint32_t n,
                  void (*work)(void *argument, uint32_t i), void *argument);

/* How many items may be under way at once; a guess when the caller's function runs them. */
uint32_t kva_thread_count(const struct kva_threads *threads);

#endif
