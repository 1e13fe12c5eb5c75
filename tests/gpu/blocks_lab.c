/* SPDX-License-Identifier: Apache-2.0
 *
 * A laboratory for the library's kernels: each variant is checked on random data, every byte, then
 * timed beside the driver's own copy of as many bytes in the same run.
 *
 *   blocks_lab        checks, and times a little: what a run of all tests does
 *   blocks_lab all    times every variant at every shape
 *
 *   KVMEM_CUDA_DEVICE=1   the device; KVMEM_CUDA_DRIVER=path the driver library
 *
 * Variants are the kernel (the library's, or another of support/lab), the length of a piece, the
 * thread blocks an SM gets, and shared memory that keeps more of them from an SM at a time. Bytes a
 * second count what is read and what is written. Medians of 30, by events around one launch; the
 * first and the last line of a shape's copies is the roof, one cuMemcpyDtoDAsync over as many
 * adjoining bytes.
 *
 * One line of JSON a row. Exit status 0, 77 without a device, 1 when a copy was wrong.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "backend/cuda_driver.h"
#include "backend/kernels.h"
#include "support/cuda_device.h"
#include "support/lab/lab.h"
#include "util/error.h"

#define SKIPPED       77
#define SAMPLES       30
#define WARM          3
#define CHECKED_BYTES (UINT64_C(48) << 20)
#define CHECKED       12 /* blocks of a list that is checked */
#define SHARED_MAX    (227 * 1024)

struct variant {
    const char *kernel;
    uint32_t threads;
    uint32_t piece_bytes;
    uint32_t groups_per_sm; /* 0: a thread block for each piece */
    uint32_t shared_bytes;
};

#define KIB(n)         (1024u * (n))
#define A_PIECE(bytes) (KIB(bytes) + KVT_LAB_BULK_EXTRA)
#define RUN_ON(bytes)  (KVT_LAB_BULK_STAGES * KIB(bytes) + KVT_LAB_BULK_EXTRA)
#define BULK           KVT_LAB_BULK_THREADS

static const struct variant copies[] = {
    {KVI_KERNEL_COPY, 256, KIB(16), 0, KIB(56)}, /* the library's choice for long lists */
    {KVI_KERNEL_COPY, 256, KIB(16), 0, 0},       /* and for short ones */
    {KVI_KERNEL_COPY, 256, KIB(16), 8, 0},
    {KVI_KERNEL_COPY, 256, KIB(32), 0, 0},
    {KVI_KERNEL_COPY, 256, KIB(64), 0, 0},
    {KVI_KERNEL_COPY, 128, KIB(8), 0, 0},
    /* at most 6, 3, 2 thread blocks on an SM; the first are 4 */
    {KVI_KERNEL_COPY, 256, KIB(16), 0, KIB(37)},
    {KVI_KERNEL_COPY, 256, KIB(16), 0, KIB(75)},
    {KVI_KERNEL_COPY, 256, KIB(16), 0, KIB(112)},
    {"kvt_lab_cs4", 256, KIB(16), 0, 0},
    {"kvt_lab_cs4_cs", 256, KIB(16), 0, 0},
    {"kvt_lab_na4", 256, KIB(16), 0, 0},
    {"kvt_lab_na4", 256, KIB(32), 0, 0},
    {"kvt_lab_na4_cs", 256, KIB(16), 0, 0},
    {"kvt_lab_na4_first", 256, KIB(16), 0, 0},
    {"kvt_lab_na4_256", 256, KIB(16), 0, 0},
    {"kvt_lab_first4", 256, KIB(16), 0, 0},
    {"kvt_lab_shift4", 256, KIB(16), 0, 0},
    {"kvt_lab_spread4", 256, KIB(16), 0, 0},
    {"kvt_lab_warp4", 256, KIB(16), 0, 0},
    {"kvt_lab_pipe4", 256, KIB(32), 0, 0},
    {"kvt_lab_pipe4", 256, KIB(64), 0, 0},
    {"kvt_lab_pipe4_first", 256, KIB(64), 0, 0},
    {"kvt_lab_pipe4", 256, KIB(16), 6, 0},
    {"kvt_lab_cs8", 256, KIB(32), 0, 0},
    {"kvt_lab_cs8", 512, KIB(64), 0, 0},
    {"kvt_lab_na8", 256, KIB(32), 0, 0},
    {"kvt_lab_na8", 512, KIB(64), 0, 0},
    {"kvt_lab_na8", 128, KIB(16), 0, 0},
    {"kvt_lab_first8_first", 512, KIB(64), 0, 0},
    {"kvt_lab_warp8", 256, KIB(32), 0, 0},
    {"kvt_lab_warp8", 512, KIB(64), 0, 0},
    {"kvt_lab_cs16", 256, KIB(64), 0, 0},
    {"kvt_lab_na16", 256, KIB(64), 0, 0},
    {"kvt_lab_na16", 128, KIB(32), 0, 0},
    {"kvt_lab_bulk_on", BULK, KIB(8), 6, RUN_ON(8)},
    {"kvt_lab_bulk_on", BULK, KIB(16), 3, RUN_ON(16)},
    {"kvt_lab_bulk_on", BULK, KIB(32), 1, RUN_ON(32)},
    {"kvt_lab_bulk_on_first", BULK, KIB(8), 6, RUN_ON(8)},
    {"kvt_lab_bulk_on_first", BULK, KIB(16), 3, RUN_ON(16)},
    {"kvt_lab_bulk_one", BULK, KIB(16), 0, A_PIECE(16)},
    {"kvt_lab_bulk_one", BULK, KIB(32), 0, A_PIECE(32)},
    {"kvt_lab_bulk_one", BULK, KIB(64), 0, A_PIECE(64)},
    {"kvt_lab_bulk_one", BULK, KIB(96), 0, A_PIECE(96)},
    {"kvt_lab_bulk_one_load_first", BULK, KIB(32), 0, A_PIECE(32)},
    {"kvt_lab_bulk_one_first", BULK, KIB(16), 0, A_PIECE(16)},
    {"kvt_lab_bulk_one_first", BULK, KIB(32), 0, A_PIECE(32)},
    {"kvt_lab_bulk_one_first", BULK, KIB(64), 0, A_PIECE(64)},
};

static const struct variant zeros[] = {
    {KVI_KERNEL_ZERO, 256, KIB(4), 8, 0},
    {KVI_KERNEL_ZERO, 256, KIB(16), 8, 0},
    {KVI_KERNEL_ZERO, 256, KIB(32), 8, 0},
    {KVI_KERNEL_ZERO, 256, KIB(32), 0, 0},
};

static const struct {
    uint64_t bytes;
    uint32_t count;
} shapes[] = {
    {UINT64_C(2) << 20, 1},     {UINT64_C(2) << 20, 16},   {UINT64_C(2) << 20, 256},
    {UINT64_C(2) << 20, 1000},  {UINT64_C(256) << 10, 1},  {UINT64_C(256) << 10, 16},
    {UINT64_C(256) << 10, 256}, {UINT64_C(64) << 10, 256}, {UINT64_C(1310720), 100},
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const struct kvi_cuda_driver *driver;
static kvi_cu_module module; /* the library's */
static kvi_cu_module lab;
static int sm_count = 1;
static int capability;
static int wrong_count;

/* ---- the device ---- */

static void die(const char *what, int result)
{
    printf("{\"lab\": \"stopped\", \"call\": \"%s\", \"result\": \"%s (%d)\"}\n", what,
           kvi_cuda_result_name(driver, result), result);
    exit(1);
}

#define MUST(call, ...)                              \
    do {                                             \
        int must_result = driver->call(__VA_ARGS__); \
                                                     \
        if (must_result != 0)                        \
            die(#call, must_result);                 \
    } while (0)

static void device_open(void)
{
    const char *index = getenv("KVMEM_CUDA_DEVICE");
    kvi_cu_context context;
    kvi_cu_device device;

    kvt_cuda.driver_path = getenv("KVMEM_CUDA_DRIVER");
    kvt_cuda.device_index = index ? (uint32_t)atoi(index) : 0;
    if (kvi_cuda_driver_open(kvt_cuda.driver_path, &driver) < 0) {
        printf("%s\n", kvmem_error_detail()->text);
        exit(SKIPPED);
    }
    if (kvi_kernels_image_bytes == 0) {
        printf("the library was built without kernels: nvcc is needed\n");
        exit(SKIPPED);
    }
    MUST(device_get, &device, (int)kvt_cuda.device_index);
    MUST(context_retain, &context, device);
    MUST(context_push, context);
    MUST(device_attribute, &sm_count, KVI_CU_ATTRIBUTE_MULTIPROCESSOR_COUNT, device);
    MUST(device_attribute, &capability, KVI_CU_ATTRIBUTE_CAPABILITY_MAJOR, device);
    MUST(module_load, &module, kvi_kernels_image, 0, NULL, NULL);
    MUST(module_load, &lab, kvt_lab_image, 0, NULL, NULL);
}

static void *optional(const char *name)
{
    return kvi_cuda_driver_symbol(driver, name);
}

static void device_wait(void)
{
    int (*synchronize)(void);
    void *function = optional("cuCtxSynchronize");
    int result;

    if (function == NULL) /* the fake driver is always done */
        return;
    memcpy(&synchronize, &function, sizeof(function));
    result = synchronize();
    if (result != 0)
        die("cuCtxSynchronize", result);
}

/* Shared memory beyond 48 KiB is for who asks. */
static kvi_cu_function function_of(const struct variant *v)
{
    int (*attribute)(kvi_cu_function function, int which, int value);
    void *set = optional("cuFuncSetAttribute");
    kvi_cu_function function = NULL;
    int result;

    MUST(module_function, &function, strncmp(v->kernel, "kvt_lab_", 8) == 0 ? lab : module,
         v->kernel);
    if (v->shared_bytes == 0 || set == NULL || capability < 9)
        return function;
    memcpy(&attribute, &set, sizeof(set));
    result =
        attribute(function, 8, SHARED_MAX); /* CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES */
    if (result != 0)
        die("cuFuncSetAttribute", result);
    return function;
}

/* ---- lists ---- */

struct list {
    struct kvi_backend_blocks blocks;
    int32_t *to;
    int32_t *from;
};

/* `count` pairs among 2 × count blocks, in random order. */
static struct list list_new(uint64_t base, uint64_t stride, uint64_t bytes, uint32_t count,
                            uint64_t *state)
{
    struct list list = {
        .blocks = {.to_base = base, .from_base = base, .stride_bytes = stride, .bytes = bytes}};
    int32_t *all = calloc(2 * (size_t)count, sizeof(*all));

    if (all == NULL)
        die("calloc", KVI_CU_OUT_OF_MEMORY);
    for (uint32_t i = 0; i < 2 * count; i++) {
        uint32_t other = (uint32_t)(kvt_next_random(state) % (i + 1));

        all[i] = all[other];
        all[other] = (int32_t)i;
    }
    list.to = all;
    list.from = all + count;
    list.blocks.count = count;
    return list;
}

static void list_free(struct list *list)
{
    free(list->to);
}

static void list_launch(const struct variant *v, kvi_cu_function function, const struct list *list)
{
    struct kvi_kernel_blocks one = {.to_base = list->blocks.to_base,
                                    .from_base = list->blocks.from_base,
                                    .stride_bytes = list->blocks.stride_bytes,
                                    .bytes = list->blocks.bytes,
                                    .piece_bytes = v->piece_bytes};
    void *parameters[] = {&one};
    uint32_t shared = capability < 9 ? 0 : v->shared_bytes; /* and no bulk copies */

    one.pieces = (uint32_t)((one.bytes + v->piece_bytes - 1) / v->piece_bytes);
    for (uint32_t at = 0; at < list->blocks.count; at += one.count) {
        uint32_t left = list->blocks.count - at;
        uint32_t groups_max = v->groups_per_sm * (uint32_t)sm_count;
        uint32_t groups;

        one.count = left < KVI_KERNEL_BLOCKS ? left : KVI_KERNEL_BLOCKS;
        groups = one.count * one.pieces;
        groups = groups_max != 0 && groups > groups_max ? groups_max : groups;
        memcpy(one.to, list->to + at, one.count * sizeof(int32_t));
        memcpy(one.from, list->from + at, one.count * sizeof(int32_t));
        MUST(launch, function, groups, 1, 1, v->threads, 1, 1, shared, NULL, parameters, NULL);
    }
}

/* ---- right? ---- */

static void twin_apply(unsigned char *twin, const struct list *list, bool zero)
{
    for (uint32_t i = 0; i < list->blocks.count; i++) {
        unsigned char *to = twin + (uint64_t)list->to[i] * list->blocks.stride_bytes;

        if (zero)
            memset(to, 0, list->blocks.bytes);
        else
            memcpy(to, twin + (uint64_t)list->from[i] * list->blocks.stride_bytes,
                   list->blocks.bytes);
    }
}

static void variant_check(const struct variant *v, uint64_t pool, unsigned char *twin,
                          unsigned char *found, uint64_t bytes, uint64_t *state)
{
    uint64_t stride = bytes + 16 * (kvt_next_random(state) % 3);
    struct list list = list_new(pool, stride, bytes, CHECKED, state);
    uint64_t all_bytes = 2 * CHECKED * stride;
    bool zero = strcmp(v->kernel, KVI_KERNEL_ZERO) == 0;

    for (uint64_t i = 0; i + 8 <= all_bytes; i += 8) {
        uint64_t random = kvt_next_random(state);

        memcpy(twin + i, &random, 8);
    }
    MUST(copy_in, pool, twin, all_bytes, NULL);
    list_launch(v, function_of(v), &list);
    MUST(copy_out, found, pool, all_bytes, NULL);
    device_wait();
    twin_apply(twin, &list, zero);
    if (memcmp(twin, found, all_bytes) != 0) {
        wrong_count++;
        printf("{\"lab\": \"WRONG\", \"kernel\": \"%s\", \"threads\": %u, \"piece\": %u, "
               "\"groups_per_sm\": %u, \"shared\": %u, \"bytes\": %" PRIu64 "}\n",
               v->kernel, v->threads, v->piece_bytes, v->groups_per_sm, v->shared_bytes, bytes);
    }
    list_free(&list);
}

static void variants_check(const struct variant *all, size_t count, uint64_t *state)
{
    static const uint64_t sizes[] = {16, 48, 4080, 4096, 4112, 65536, 100000 / 16 * 16, 1310720};
    unsigned char *twin = malloc(CHECKED_BYTES);
    unsigned char *found = malloc(CHECKED_BYTES);
    uint64_t pool = 0;

    if (twin == NULL || found == NULL)
        die("malloc", KVI_CU_OUT_OF_MEMORY);
    MUST(device_alloc, &pool, CHECKED_BYTES);
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < COUNT(sizes); j++)
            variant_check(&all[i], pool, twin, found, sizes[j], state);
    MUST(device_free, pool);
    free(twin);
    free(found);
}

/* ---- fast? ---- */

struct events {
    int (*create)(void **out, unsigned flags);
    int (*record)(void *event, kvi_cu_stream stream);
    int (*wait)(void *event);
    int (*elapsed)(float *out_ms, void *start, void *end);
    void *start;
    void *end;
};

/* False where there are none: on the fake driver nothing is timed. */
static bool events_open(struct events *events)
{
    static const char *const names[] = {"cuEventCreate", "cuEventRecord", "cuEventSynchronize",
                                        "cuEventElapsedTime"};
    void *members[] = {&events->create, &events->record, &events->wait, &events->elapsed};

    for (size_t i = 0; i < COUNT(names); i++) {
        void *function = optional(names[i]);

        if (function == NULL)
            return false;
        memcpy(members[i], &function, sizeof(function));
    }
    return events->create(&events->start, 0) == 0 && events->create(&events->end, 0) == 0;
}

static int us_compare(const void *left, const void *right)
{
    double a = *(const double *)left;
    double b = *(const double *)right;

    return (a > b) - (a < b);
}

typedef void (*timed)(const struct variant *v, kvi_cu_function function, const struct list *list);

static double median_us(struct events *events, timed run, const struct variant *v,
                        const struct list *list)
{
    kvi_cu_function function = v != NULL ? function_of(v) : NULL;
    double us[SAMPLES];
    float ms = 0;

    for (int i = -WARM; i < SAMPLES; i++) {
        events->record(events->start, NULL);
        run(v, function, list);
        events->record(events->end, NULL);
        if (events->wait(events->end) != 0 || events->elapsed(&ms, events->start, events->end) != 0)
            die("cuEventSynchronize", KVI_CU_LAUNCH_FAILED);
        if (i >= 0)
            us[i] = (double)ms * 1e3;
    }
    qsort(us, SAMPLES, sizeof(us[0]), us_compare);
    return us[SAMPLES / 2];
}

static void run_roof_copy(const struct variant *v, kvi_cu_function function,
                          const struct list *list)
{
    uint64_t bytes = list->blocks.count * list->blocks.bytes;

    (void)v, (void)function;
    MUST(copy_device, list->blocks.to_base, list->blocks.to_base + bytes, bytes, NULL);
}

static void run_roof_zero(const struct variant *v, kvi_cu_function function,
                          const struct list *list)
{
    (void)v, (void)function;
    MUST(fill_8, list->blocks.to_base, 0, list->blocks.count * list->blocks.bytes, NULL);
}

static void run_driver_list(const struct variant *v, kvi_cu_function function,
                            const struct list *list)
{
    const struct kvi_backend_blocks *blocks = &list->blocks;

    (void)v, (void)function;
    for (uint32_t i = 0; i < blocks->count; i++)
        MUST(copy_device, blocks->to_base + (uint64_t)list->to[i] * blocks->stride_bytes,
             blocks->from_base + (uint64_t)list->from[i] * blocks->stride_bytes, blocks->bytes,
             NULL);
}

static void row_print(const char *what, const struct variant *v, const struct list *list, double us,
                      double roof_us, int directions)
{
    double bytes = (double)(list->blocks.count * list->blocks.bytes) * directions;

    printf(
        "{\"lab\": \"%s\", \"block_kib\": %" PRIu64 ", \"blocks\": %u, \"threads\": %u, "
        "\"piece\": %u, \"groups_per_sm\": %u, \"shared\": %u, \"us\": %.1f, \"gb_per_s\": %.0f, "
        "\"of_roof\": %.3f}\n",
        what, list->blocks.bytes >> 10, list->blocks.count, v ? v->threads : 0,
        v ? v->piece_bytes : 0, v ? v->groups_per_sm : 0, v ? v->shared_bytes : 0, us,
        bytes / us / 1e3, roof_us / us);
}

/* Random bytes throughout: a device may be faster on zeros. */
static void pool_fill(uint64_t pool, uint64_t bytes, uint64_t *state)
{
    uint64_t part = bytes < CHECKED_BYTES ? bytes : CHECKED_BYTES;
    uint64_t *random = malloc(part);

    if (random == NULL)
        die("malloc", KVI_CU_OUT_OF_MEMORY);
    for (uint64_t i = 0; i < part / 8; i++)
        random[i] = kvt_next_random(state);
    for (uint64_t at = 0; at < bytes; at += part)
        MUST(copy_in, pool + at, random, bytes - at < part ? bytes - at : part, NULL);
    device_wait();
    free(random);
}

static void shape_time(struct events *events, uint64_t bytes, uint32_t count, bool all,
                       uint64_t *state)
{
    struct list list;
    uint64_t pool = 0;
    double copy_us;
    double zero_us;

    MUST(device_alloc, &pool, 2 * count * bytes);
    pool_fill(pool, 2 * count * bytes, state);
    list = list_new(pool, bytes, bytes, count, state);
    copy_us = median_us(events, run_roof_copy, NULL, &list);
    row_print("roof: one driver copy", NULL, &list, copy_us, copy_us, 2);
    row_print("driver copies", NULL, &list, median_us(events, run_driver_list, NULL, &list),
              copy_us, 2);
    for (size_t i = 0; i < COUNT(copies); i++)
        if (all || i % 12 == 0)
            row_print(copies[i].kernel, &copies[i], &list,
                      median_us(events, list_launch, &copies[i], &list), copy_us, 2);
    row_print("roof: one driver copy", NULL, &list, median_us(events, run_roof_copy, NULL, &list),
              copy_us, 2);
    zero_us = median_us(events, run_roof_zero, NULL, &list);
    row_print("roof: one driver fill", NULL, &list, zero_us, zero_us, 1);
    for (size_t i = 0; i < COUNT(zeros); i++)
        if (all || i == 2)
            row_print(zeros[i].kernel, &zeros[i], &list,
                      median_us(events, list_launch, &zeros[i], &list), zero_us, 1);
    list_free(&list);
    MUST(device_free, pool);
}

/* ---- what a call of the backend costs the CPU ---- */

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void ok(int rc)
{
    if (rc < 0) {
        printf("{\"lab\": \"stopped\", \"text\": \"%s\"}\n", kvmem_error_detail()->text);
        exit(1);
    }
}

/* 1 GiB of mapped segments, as a space has them. */
static uint64_t space_new(struct kvi_backend *b, uint64_t segment_bytes, uint32_t segments)
{
    uint64_t base = 0;

    ok(kvi_backend_reserve(b, segments * segment_bytes, 0, &base));
    for (uint32_t i = 0; i < segments; i++) {
        struct kvi_phys phys = {0};

        ok(kvi_backend_segment_create(b, segment_bytes, &phys));
        ok(kvi_backend_map(b, phys, base + i * segment_bytes, segment_bytes, KVI_ACCESS_RW));
    }
    return base;
}

static void cpu_row(const char *what, uint32_t count, double *us)
{
    qsort(us, SAMPLES, sizeof(us[0]), us_compare);
    printf("{\"lab\": \"CPU of %s\", \"count\": %u, \"median_us\": %.2f, \"most_us\": %.2f}\n",
           what, count, us[SAMPLES / 2], us[SAMPLES - 1]);
}

static void blocks_cpu(struct kvi_backend *b, uint64_t base, uint64_t bytes, uint32_t count,
                       uint64_t *state)
{
    struct list list = list_new(base, bytes, bytes, count, state);
    double us[SAMPLES];

    list.blocks.to = list.to;
    list.blocks.from = list.from;
    for (int i = -WARM; i < SAMPLES; i++) {
        int64_t start = now_ns();

        ok(kvi_backend_blocks(b, &list.blocks, 0));
        if (i >= 0)
            us[i] = (double)(now_ns() - start) / 1e3;
        device_wait();
    }
    cpu_row("kvi_backend_blocks", count, us);
    list_free(&list);
}

static void cells_cpu(struct kvi_backend *b, uint32_t count)
{
    uint64_t pinned = UINT64_C(1) << 16;
    void *memory = mmap(NULL, pinned, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct kvi_backend_cell *cells = memory;
    uint64_t table = 0;
    double us[SAMPLES];

    if (memory == MAP_FAILED)
        die("mmap", KVI_CU_OUT_OF_MEMORY);
    ok(kvi_backend_host_pin(b, memory, pinned));
    ok(kvi_backend_device_alloc(b, UINT64_C(1) << 22, &table));
    for (uint32_t i = 0; i < count; i++)
        cells[i] = (struct kvi_backend_cell){i * 97, (int32_t)i};
    for (int i = -WARM; i < SAMPLES; i++) {
        int64_t start = now_ns();

        ok(kvi_backend_cells(b, table, cells, count, 0));
        if (i >= 0)
            us[i] = (double)(now_ns() - start) / 1e3;
        device_wait();
    }
    cpu_row("kvi_backend_cells", count, us);
    ok(kvi_backend_device_free(b, table, UINT64_C(1) << 22));
    ok(kvi_backend_host_unpin(b, memory, pinned));
    munmap(memory, pinned);
}

static void cpu_times(bool all, uint64_t *state)
{
    uint64_t bytes = all ? UINT64_C(1) << 30 : UINT64_C(32) << 20;
    struct kvi_backend *b = NULL;
    uint64_t base;

    ok(kvt_cuda_open(bytes, &b));
    base = space_new(b, bytes / 16, 16);
    blocks_cpu(b, base, bytes / 512, 1, state);
    blocks_cpu(b, base, bytes / 512, 256, state);
    cells_cpu(b, 272);
    cells_cpu(b, 4096);
    device_wait();
    kvi_backend_destroy(b);
}

int main(int argument_count, char **arguments)
{
    bool all = argument_count > 1 && strcmp(arguments[1], "all") == 0;
    uint64_t state = (uint64_t)now_ns();
    struct events events;

    printf("{\"lab\": \"seed\", \"seed\": %" PRIu64 "}\n", state);
    device_open();
    variants_check(copies, COUNT(copies), &state);
    variants_check(zeros, COUNT(zeros), &state);
    printf("{\"lab\": \"checked\", \"variants\": %zu, \"wrong\": %d}\n",
           COUNT(copies) + COUNT(zeros), wrong_count);
    for (size_t i = 0; i < COUNT(shapes) && events_open(&events); i++)
        if (all || i == 1)
            shape_time(&events, shapes[i].bytes, shapes[i].count, all, &state);
    cpu_times(all, &state);
    MUST(module_unload, lab);
    MUST(module_unload, module);
    return wrong_count > 0;
}
