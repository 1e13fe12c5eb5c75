/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA backend's operations, timed. See cuda_bench.h. Each round makes every operation once,
 * so that what one leaves behind (a warm cache, a cold one) is alike in all samples.
 */
#include "support/cuda_bench.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define ROUNDS  60
#define WARM_UP 10

/* X(symbol, name): in the order in which a round makes them. */
#define OPERATION_TABLE(X)                          \
    X(CREATE, "segment_create")                     \
    X(EXPORT, "segment_export")                     \
    X(IMPORT, "segment_import")                     \
    X(RESERVE, "reserve")                           \
    X(MAP, "map")                                   \
    X(MAP_IMPORTED, "map_imported")                 \
    X(RAISE, "map_alias")                           \
    X(LOWER, "unmap_alias")                         \
    X(COPY_IN, "copy_in_pinned_done")               \
    X(COPY_OUT, "copy_out_pinned_done")             \
    X(COPY, "copy_device_call")                     \
    X(SIGNAL, "fence_signal_call")                  \
    X(WAIT_REACHED, "fence_wait_reached")           \
    X(WAIT, "fence_wait_call")                      \
    X(MEMORY, "memory")                             \
    X(UNMAP, "unmap")                               \
    X(RELEASE_IMPORTED, "segment_release_imported") \
    X(RELEASE, "segment_release")                   \
    X(UNRESERVE, "unreserve")

enum operation {
#define OPERATION_ENUM(symbol, name) OPERATION_##symbol,
    OPERATION_TABLE(OPERATION_ENUM)
#undef OPERATION_ENUM
    OPERATION_COUNT
};

struct bench {
    struct kvt_backend *t;
    uint64_t bytes;
    void *memory; /* pinned, as long as a segment */
    double us[OPERATION_COUNT][ROUNDS];
    int round;
};

static double now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

#define TIMED(bench, operation, call)                                             \
    do {                                                                          \
        double start_us = now_us();                                               \
        int result = (call);                                                      \
                                                                                  \
        (bench)->us[OPERATION_##operation][(bench)->round] = now_us() - start_us; \
        kvt_result((bench)->t, result, 0, NULL, __FILE__, __LINE__, #call);       \
    } while (0)

static int copy_in_done(const struct bench *bench, struct kvi_backend *b, uint64_t to)
{
    int rc = kvi_backend_copy_in(b, to, bench->memory, bench->bytes, 0);

    if (rc == 0)
        kvt_settle(bench->t, b);
    return rc;
}

static int copy_out_done(const struct bench *bench, struct kvi_backend *b, uint64_t from)
{
    int rc = kvi_backend_copy_out(b, bench->memory, from, bench->bytes, 0);

    if (rc == 0)
        kvt_settle(bench->t, b);
    return rc;
}

/* A wait that is not over when it is made, and is soon after. */
static int wait_once(struct bench *bench, struct kvi_backend *b)
{
    uint64_t *counter = bench->t->counters + 8;
    uint64_t value = *counter + 1;
    double start_us = now_us();
    int rc = kvi_backend_fence_wait(b, counter, value, 0);

    bench->us[OPERATION_WAIT][bench->round] = now_us() - start_us;
    __atomic_store_n(counter, value, __ATOMIC_RELEASE);
    kvt_settle(bench->t, b);
    return rc;
}

/* Copies and fences on two mappings. */
static void round_streams(struct bench *bench, struct kvi_backend *b, uint64_t base, uint64_t other)
{
    uint64_t *counter = bench->t->counters + 16;
    struct kvi_backend_memory memory;

    TIMED(bench, COPY_IN, copy_in_done(bench, b, base));
    TIMED(bench, COPY_OUT, copy_out_done(bench, b, base));
    TIMED(bench, COPY, kvi_backend_copy(b, other, base, bench->bytes / 2, 0));
    kvt_settle(bench->t, b);
    TIMED(bench, SIGNAL, kvi_backend_fence_signal(b, counter, (uint64_t)bench->round, 0));
    kvt_settle(bench->t, b);
    TIMED(bench, WAIT_REACHED, kvi_backend_fence_wait(b, counter, 0, 0));
    KVT_OK(bench->t, wait_once(bench, b));
    TIMED(bench, MEMORY, kvi_backend_memory(b, &memory));
}

static void round_once(struct bench *bench)
{
    struct kvi_backend *b = bench->t->device;
    uint64_t bytes = bench->bytes;
    struct kvi_phys phys = {0};
    struct kvi_phys imported = {0};
    struct kvi_phys second = {0};
    uint64_t base = 0;
    int fd = -1;

    TIMED(bench, CREATE, kvi_backend_segment_create(b, bytes, &phys));
    KVT_OK(bench->t, kvi_backend_segment_create(b, bytes, &second));
    TIMED(bench, EXPORT, kvi_backend_segment_export(b, phys, &fd));
    TIMED(bench, IMPORT, kvi_backend_segment_import_consume(b, fd, bytes, &imported));
    TIMED(bench, RESERVE, kvi_backend_reserve(b, 4 * bytes, 0, &base));
    TIMED(bench, MAP, kvi_backend_map(b, phys, base, bytes, KVI_ACCESS_RW));
    TIMED(bench, MAP_IMPORTED, kvi_backend_map(b, imported, base + bytes, bytes, KVI_ACCESS_RO));
    KVT_OK(bench->t, kvi_backend_map(b, second, base + 2 * bytes, bytes, KVI_ACCESS_RW));
    TIMED(bench, RAISE, kvi_backend_map(b, imported, base + 3 * bytes, bytes, KVI_ACCESS_RW));
    TIMED(bench, LOWER, kvi_backend_unmap(b, base + 3 * bytes, bytes));
    round_streams(bench, b, base, base + 2 * bytes);
    TIMED(bench, UNMAP, kvi_backend_unmap(b, base, bytes));
    KVT_OK(bench->t, kvi_backend_unmap(b, base + bytes, 2 * bytes));
    TIMED(bench, RELEASE_IMPORTED, kvi_backend_segment_release(b, imported));
    TIMED(bench, RELEASE, kvi_backend_segment_release(b, phys));
    KVT_OK(bench->t, kvi_backend_segment_release(b, second));
    TIMED(bench, UNRESERVE, kvi_backend_unreserve(b, base, 4 * bytes));
}

static int by_size(const void *a, const void *b)
{
    double left = *(const double *)a;
    double right = *(const double *)b;

    return (left > right) - (left < right);
}

static void bench_print(struct bench *bench)
{
    static const char *const names[] = {
#define OPERATION_NAME(symbol, name) name,
        OPERATION_TABLE(OPERATION_NAME)
#undef OPERATION_NAME
    };

    for (int at = 0; at < OPERATION_COUNT; at++) {
        double *us = bench->us[at];
        double median;

        qsort(us, ROUNDS, sizeof(*us), by_size);
        median = us[ROUNDS / 2];
        printf("{\"bench\": \"backend_cuda\", \"operation\": \"%s\", \"bytes\": %" PRIu64
               ", \"samples\": %d, \"median_us\": %.2f, \"p99_us\": %.2f, \"min_us\": %.2f",
               names[at], bench->bytes, ROUNDS, median, us[ROUNDS * 99 / 100], us[0]);
        if (at == OPERATION_COPY_IN || at == OPERATION_COPY_OUT)
            printf(", \"gb_per_s\": %.1f", (double)bench->bytes / median / 1e3);
        printf("}\n");
    }
    fflush(stdout);
}

void kvt_cuda_bench(struct kvt_backend *t, uint64_t bytes)
{
    static struct bench bench;
    double start_us;

    bench = (struct bench){.t = t, .bytes = bytes};
    bench.memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    KVT_CHECK(t, bench.memory != MAP_FAILED);
    memset(bench.memory, 1, bytes);
    start_us = now_us();
    KVT_OK(t, kvi_backend_host_pin(t->device, bench.memory, bytes));
    printf("{\"bench\": \"backend_cuda\", \"operation\": \"host_pin\", \"bytes\": %" PRIu64
           ", \"samples\": 1, \"median_us\": %.2f}\n",
           bytes, now_us() - start_us);
    for (int round = 0; round < WARM_UP + ROUNDS; round++) {
        bench.round = round % ROUNDS; /* the first are written over */
        round_once(&bench);
    }
    bench_print(&bench);
    KVT_OK(t, kvi_backend_host_unpin(t->device, bench.memory, bytes));
    munmap(bench.memory, bytes);
}
