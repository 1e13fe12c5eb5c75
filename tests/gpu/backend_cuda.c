/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA backend on a real device: the compliance suite on it and on the fault backend around
 * it, then what the fake driver of the unit tests cannot answer for, and with
 * KVMEM_BACKEND_BENCH=1 what each operation costs ("short": with small segments only).
 *
 *   KVMEM_CUDA_DEVICE=1      the device to use; 0 is usual
 *   KVMEM_CUDA_DRIVER=path   the driver library
 *   KVMEM_CASE=word          only cases whose name contains it
 *
 * One line a case; what was learned of the driver, and the figures, as lines of JSON. Exit status
 * 0 when all passed, 77 when there is no device, 1 otherwise. Needs nothing but libc and a driver.
 *
 * "backend_cuda --importer BYTES" is the other process of a case: it imports descriptor 3.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "backend/cuda_driver.h"
#include "support/cuda_bench.h"
#include "support/cuda_device.h"
#include "util/error.h"

#define SKIPPED        77
#define IMPORTED_FD    3
#define WAIT_LIMIT_MS  10000
#define NON_BLOCKING   1 /* CU_STREAM_NON_BLOCKING: not held up by stream 0, nor holding it up */
#define SEED_PARENT    101
#define SEED_CHILD     102
#define BENCH_SEGMENTS 4

extern char **environ;

static const struct kvi_cuda_driver *driver;
static jmp_buf case_over;
static int passed_count;
static int failed_count;

static void fail_case(const char *file, int line, const char *message)
{
    printf("  %s:%d: %s\n", file, line, message);
    longjmp(case_over, 1);
}

static void skip_part(const char *reason)
{
    printf("  not asked: %s\n", reason);
}

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* A function of the driver that the backend has no use for. */
static void driver_function(void *member, const char *name)
{
    void *function = kvi_cuda_driver_symbol(driver, name);

    if (function == NULL) {
        printf("the driver has no %s\n", name);
        exit(1);
    }
    memcpy(member, &function, sizeof(function));
}

static kvi_cu_context context_now(void)
{
    int (*current)(kvi_cu_context * out);
    kvi_cu_context context = NULL;

    driver_function(&current, "cuCtxGetCurrent");
    return current(&context) == 0 ? context : NULL;
}

/* ---- fences on streams ---- */

static kvi_cu_stream stream_new(struct kvt_backend *t, kvi_cu_context context)
{
    int (*create)(kvi_cu_stream * out, unsigned flags);
    kvi_cu_stream stream = NULL;
    kvi_cu_context popped;

    driver_function(&create, "cuStreamCreate");
    KVT_CHECK(t, driver->context_push(context) == 0);
    KVT_CHECK(t, create(&stream, NON_BLOCKING) == 0);
    KVT_CHECK(t, driver->context_pop(&popped) == 0);
    return stream;
}

static void stream_drop(kvi_cu_stream stream)
{
    int (*destroy)(kvi_cu_stream stream);

    driver_function(&destroy, "cuStreamDestroy");
    destroy(stream);
}

/* Is the stream done, within the limit? */
static bool stream_done(kvi_cu_stream stream, int64_t limit_ms)
{
    int (*query)(kvi_cu_stream stream);
    int64_t end_ms = now_ms() + limit_ms;
    int result;

    driver_function(&query, "cuStreamQuery");
    while ((result = query(stream)) != 0 && now_ms() < end_ms)
        usleep(200);
    return result == 0;
}

/* one:  wait(5)  copy "b" in  signal(6)          two:  wait(6)  copy out           the CPU: 5 */
static void case_streams_wait_for_fences(struct kvt_backend *t)
{
    kvi_cu_context context = NULL;
    uint64_t *counter = t->counters + 8;
    volatile char *bytes = (char *)t->counters + 2048; /* pinned: no copy waits for its stream */
    struct kvi_phys phys = kvt_segment(t, 1);
    uint64_t base = kvt_reserved(t, t->device, 1);
    kvi_cu_stream one;
    kvi_cu_stream two;

    KVT_CHECK(t, driver->context_retain(&context, (int)kvt_cuda.device_index) == 0);
    one = stream_new(t, context);
    two = stream_new(t, context);
    KVT_OK(t, kvi_backend_map(t->device, phys, base, t->granule, KVI_ACCESS_RW));
    KVT_OK(t, kvi_backend_copy_in(t->device, base, "a", 1, 0));
    kvt_settle(t, t->device);
    bytes[0] = 'b';
    bytes[1] = 'x';
    *counter = 4;
    KVT_OK(t, kvi_backend_fence_wait(t->device, counter, 5, (uintptr_t)one));
    KVT_OK(t, kvi_backend_copy_in(t->device, base, (const char *)bytes, 1, (uintptr_t)one));
    KVT_OK(t, kvi_backend_fence_signal(t->device, counter, 6, (uintptr_t)one));
    KVT_OK(t, kvi_backend_fence_wait(t->device, counter, 6, (uintptr_t)two));
    KVT_OK(t, kvi_backend_copy_out(t->device, (char *)bytes + 1, base, 1, (uintptr_t)two));
    KVT_CHECK(t, !stream_done(one, 100) && !stream_done(two, 100));
    KVT_CHECK(t, bytes[1] == 'x' && *(volatile uint64_t *)counter == 4);
    __atomic_store_n(counter, 5, __ATOMIC_RELEASE);
    KVT_CHECK(t, stream_done(one, WAIT_LIMIT_MS) && stream_done(two, WAIT_LIMIT_MS));
    KVT_CHECK(t, bytes[1] == 'b' && *(volatile uint64_t *)counter == 6);
    stream_drop(one);
    stream_drop(two);
    KVT_CHECK(t, driver->context_release((int)kvt_cuda.device_index) == 0);
    KVT_OK(t, kvi_backend_unmap(t->device, base, t->granule));
    KVT_OK(t, kvi_backend_unreserve(t->device, base, t->granule));
    KVT_OK(t, kvi_backend_segment_release(t->device, phys));
}

/* ---- lists in a graph ---- */

#define THREAD_LOCAL 1 /* CU_STREAM_CAPTURE_MODE_THREAD_LOCAL */

struct graph_calls {
    int (*begin)(kvi_cu_stream stream, int mode);
    int (*end)(kvi_cu_stream stream, void **out_graph);
    int (*instantiate)(void **out, void *graph, unsigned long long flags);
    int (*launch)(void *executable, kvi_cu_stream stream);
    int (*drop_executable)(void *executable);
    int (*drop)(void *graph);
};

/* False on the fake driver. */
static bool graph_calls_get(struct graph_calls *calls)
{
    static const char *const names[] = {"cuStreamBeginCapture",        "cuStreamEndCapture",
                                        "cuGraphInstantiateWithFlags", "cuGraphLaunch",
                                        "cuGraphExecDestroy",          "cuGraphDestroy"};
    void *members[] = {&calls->begin,           &calls->end, &calls->instantiate, &calls->launch,
                       &calls->drop_executable, &calls->drop};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        void *function = kvi_cuda_driver_symbol(driver, names[i]);

        if (function == NULL)
            return false;
        memcpy(members[i], &function, sizeof(function));
    }
    return true;
}

/* Block 0 goes to block 1, and 2 is cleared, each time that the graph is launched. */
static void graph_launches_check(struct kvt_backend *t, const struct graph_calls *calls,
                                 void *executable, kvi_cu_stream stream, uint64_t base)
{
    uint64_t bytes = t->granule / 4;
    unsigned char *zero = calloc(1, bytes);
    unsigned char *found = malloc(bytes);

    KVT_CHECK(t, zero != NULL && found != NULL);
    for (uint32_t round = 1; round <= 3; round++) {
        kvt_fill(t, t->device, base, bytes, round);
        kvt_fill(t, t->device, base + 2 * bytes, bytes, round + 10);
        KVT_CHECK(t, calls->launch(executable, stream) == 0);
        KVT_CHECK(t, stream_done(stream, WAIT_LIMIT_MS));
        KVT_CHECK(t, kvt_filled(t, t->device, base + bytes, bytes, round));
        KVT_OK(t, kvi_backend_copy_out(t->device, found, base + 2 * bytes, bytes, 0));
        kvt_settle(t, t->device);
        KVT_CHECK(t, memcmp(found, zero, bytes) == 0);
    }
    free(zero);
    free(found);
}

static void case_lists_are_captured_in_a_graph(struct kvt_backend *t)
{
    static const int32_t blocks[] = {0, 1, 2};
    struct kvi_phys phys = kvt_segment(t, 1);
    uint64_t base = kvt_reserved(t, t->device, 1);
    struct kvi_backend_blocks copy = {.to_base = base,
                                      .from_base = base,
                                      .stride_bytes = t->granule / 4,
                                      .bytes = t->granule / 4,
                                      .count = 1,
                                      .from = blocks,
                                      .to = blocks + 1};
    struct kvi_backend_blocks zero = copy;
    kvi_cu_context context = NULL;
    struct graph_calls calls;
    kvi_cu_stream stream;
    void *executable = NULL;
    void *graph = NULL;

    zero.from = NULL;
    zero.to = blocks + 2;
    KVT_OK(t, kvi_backend_map(t->device, phys, base, t->granule, KVI_ACCESS_RW));
    KVT_OK(t, kvi_backend_blocks(t->device, &copy, 0)); /* this instance loads its kernels late */
    kvt_settle(t, t->device);
    if (graph_calls_get(&calls)) {
        KVT_CHECK(t, driver->context_retain(&context, (int)kvt_cuda.device_index) == 0);
        stream = stream_new(t, context);
        KVT_CHECK(t, driver->context_push(context) == 0); /* graphs want one */
        KVT_CHECK(t, calls.begin(stream, THREAD_LOCAL) == 0);
        KVT_OK(t, kvi_backend_blocks(t->device, &copy, (uintptr_t)stream));
        KVT_OK(t, kvi_backend_blocks(t->device, &zero, (uintptr_t)stream));
        KVT_CHECK(t, calls.end(stream, &graph) == 0);
        KVT_CHECK(t, calls.instantiate(&executable, graph, 0) == 0);
        graph_launches_check(t, &calls, executable, stream, base);
        KVT_CHECK(t, calls.drop_executable(executable) == 0 && calls.drop(graph) == 0);
        KVT_CHECK(t, driver->context_pop(&context) == 0);
        stream_drop(stream);
        KVT_CHECK(t, driver->context_release((int)kvt_cuda.device_index) == 0);
    } else {
        skip_part("the driver has no graphs");
    }
    KVT_OK(t, kvi_backend_unmap(t->device, base, t->granule));
    KVT_OK(t, kvi_backend_unreserve(t->device, base, t->granule));
    KVT_OK(t, kvi_backend_segment_release(t->device, phys));
}

/* ---- what the driver says to fds that are not what was promised ---- */

/* Import, and map once if that is what finds out; nothing is left. */
static int import_or_map(struct kvt_backend *t, int fd, uint64_t bytes, struct kvi_phys *phys)
{
    struct kvi_phys imported;
    uint64_t base = 0;
    int rc = kvi_backend_segment_import_consume(t->client, fd, bytes, &imported);

    if (rc < 0)
        return rc;
    KVT_OK(t, kvi_backend_reserve(t->client, bytes, 0, &base));
    rc = kvi_backend_map(t->client, imported, base, bytes, KVI_ACCESS_RO);
    if (rc < 0) {
        struct kvmem_error_detail detail = *kvmem_error_detail();

        KVT_OK(t, kvi_backend_segment_release(t->client, imported));
        KVT_OK(t, kvi_backend_unreserve(t->client, base, bytes));
        return kvi_error_restore(&detail);
    }
    *phys = imported;
    return 0;
}

static void import_answer(struct kvt_backend *t, const char *what, int fd, uint64_t bytes)
{
    const struct kvmem_error_detail *detail = kvmem_error_detail();
    struct kvi_phys phys = {77};
    int rc;

    if (fd < 0) {
        printf("  not asked: no %s here\n", what);
        return;
    }
    rc = import_or_map(t, fd, bytes, &phys);
    printf("{\"import_of\": \"%s\", \"code\": \"%s\", \"driver_result\": %d, \"text\": \"%s\"}\n",
           what, kvmem_error_name(rc), rc < 0 ? detail->driver_result : 0,
           rc < 0 ? detail->text : "");
    KVT_CHECK(t, rc == KVMEM_E_CORRUPT && phys.id == 77);
    KVT_CHECK(t, fcntl(fd, F_GETFD) < 0 && errno == EBADF);
    KVT_CHECK(t, kvt_memory(t, t->client).handle_count == 0);
}

static int exported(struct kvt_backend *t, struct kvi_phys phys)
{
    int fd = -1;

    KVT_OK(t, kvi_backend_segment_export(t->device, phys, &fd));
    return fd;
}

static void case_wrong_imports_are_corrupt(struct kvt_backend *t)
{
    struct kvi_phys phys = kvt_segment(t, 2);
    uint64_t g = t->granule;
    int ends[2];

    KVT_CHECK(t, pipe2(ends, O_CLOEXEC) == 0);
    import_answer(t, "pipe", ends[0], g);
    close(ends[1]);
    KVT_CHECK(t, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    import_answer(t, "socket", ends[0], g);
    close(ends[1]);
    import_answer(t, "eventfd", eventfd(0, EFD_CLOEXEC), g);
    import_answer(t, "memfd", memfd_create("kvmem-test", MFD_CLOEXEC), g);
    import_answer(t, "/dev/null", open("/dev/null", O_RDWR | O_CLOEXEC), g);
    import_answer(t, "directory", open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC), g);
    import_answer(t, "/dev/nvidiactl", open("/dev/nvidiactl", O_RDWR | O_CLOEXEC), g);
    import_answer(t, "/dev/nvidia0", open("/dev/nvidia0", O_RDWR | O_CLOEXEC), g);
    import_answer(t, "2 granules promised as 1", exported(t, phys), g);
    import_answer(t, "2 granules promised as 3", exported(t, phys), 3 * g);
    import_answer(t, "2 granules promised as 4096", exported(t, phys), 4096 * g);
    KVT_OK(t, kvi_backend_segment_release(t->device, phys));
}

/* ---- a full device ---- */

#define FULL_MAX 512

/* Take all there is, in ever smaller segments. */
static int fill(struct kvt_backend *t, struct kvi_backend *b, uint64_t bytes, struct kvi_phys *all)
{
    int count = 0;

    while (bytes >= t->granule && count < FULL_MAX) {
        struct kvi_backend_memory before = kvt_memory(t, b);
        int rc = kvi_backend_segment_create(b, bytes, &all[count]);
        struct kvi_backend_memory after = kvt_memory(t, b);

        KVT_CHECK(t, rc == 0 || rc == KVMEM_E_DEVICE_FULL);
        KVT_CHECK(t, rc == 0 || kvt_memory_same(&before, &after));
        if (rc == 0)
            count++;
        else
            bytes = bytes / 2 / t->granule * t->granule;
    }
    return count;
}

/* Can something be mapped where nothing is free for page tables? Either answer is right. */
static void map_when_full(struct kvt_backend *t, struct kvi_backend *b, struct kvi_phys phys,
                          uint64_t bytes)
{
    uint64_t base = 0;
    int rc;

    KVT_OK(t, kvi_backend_reserve(b, bytes, 0, &base));
    rc = kvi_backend_map(b, phys, base, bytes, KVI_ACCESS_RW);
    printf("{\"full_device\": \"map\", \"code\": \"%s\"}\n", kvmem_error_name(rc));
    KVT_CHECK(t, rc == 0 || rc == KVMEM_E_DEVICE_FULL);
    if (rc == 0)
        KVT_OK(t, kvi_backend_unmap(b, base, bytes));
    KVT_OK(t, kvi_backend_unreserve(b, base, bytes));
}

static void case_a_full_device(struct kvt_backend *t)
{
    static struct kvi_phys all[FULL_MAX];
    struct kvi_backend_memory before = kvt_memory(t, t->device);
    uint64_t granules = before.total_bytes / t->granule;
    uint64_t bytes = granules / 64 * t->granule;
    struct kvi_backend *hog = NULL;
    struct kvi_backend_memory full;
    struct kvi_backend_memory after;
    int64_t end_ms;
    int count;

    KVT_OK(t, kvt_cuda_open(granules * t->granule, &hog));
    count = fill(t, hog, bytes, all);
    full = kvt_memory(t, hog);
    KVT_CHECK(t, count > 0 && count < FULL_MAX && full.handle_count == (uint64_t)count);
    KVT_REFUSED(t, KVMEM_E_DEVICE_FULL, "cuMemCreate",
                kvi_backend_segment_create(t->device, t->granule, &all[count]));
    map_when_full(t, hog, all[0], bytes);
    while (count > 0)
        KVT_OK(t, kvi_backend_segment_release(hog, all[--count]));
    end_ms = now_ms() + WAIT_LIMIT_MS;
    do
        after = kvt_memory(t, hog);
    while (after.free_bytes < before.free_bytes && now_ms() < end_ms);
    printf("{\"full_device\": \"free_bytes\", \"before\": %" PRIu64 ", \"full\": %" PRIu64
           ", \"after\": %" PRIu64 "}\n",
           before.free_bytes, full.free_bytes, after.free_bytes);
    kvi_backend_destroy(hog);
    KVT_CHECK(t, after.free_bytes + (UINT64_C(64) << 20) >= before.free_bytes);
}

/* ---- another process ---- */

static int importer_status(struct kvt_backend *t, int fd, uint64_t bytes)
{
    posix_spawn_file_actions_t actions;
    char number[32];
    char *arguments[] = {(char *)"backend_cuda", (char *)"--importer", number, NULL};
    int status = -1;
    pid_t pid = 0;

    fflush(stdout);
    snprintf(number, sizeof(number), "%" PRIu64, bytes);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fd, IMPORTED_FD);
    if (fd == IMPORTED_FD) /* dup2 onto itself clears the flag in glibc since 2.29 only */
        fcntl(fd, F_SETFD, 0);
    KVT_CHECK(t, posix_spawn(&pid, "/proc/self/exe", &actions, NULL, arguments, environ) == 0);
    posix_spawn_file_actions_destroy(&actions);
    KVT_CHECK(t, waitpid(pid, &status, 0) == pid);
    return status;
}

static void case_another_process_imports(struct kvt_backend *t)
{
    struct kvi_phys phys = kvt_segment(t, 4);
    uint64_t bytes = 4 * t->granule;
    uint64_t base = kvt_reserved(t, t->device, 4);
    int fd;

    KVT_OK(t, kvi_backend_map(t->device, phys, base, bytes, KVI_ACCESS_RW));
    kvt_fill(t, t->device, base, bytes, SEED_PARENT);
    fd = exported(t, phys);
    KVT_CHECK(t, importer_status(t, fd, bytes) == 0);
    KVT_CHECK(t, kvt_filled(t, t->device, base, bytes, SEED_CHILD));
    close(fd);
    KVT_OK(t, kvi_backend_unmap(t->device, base, bytes));
    KVT_OK(t, kvi_backend_unreserve(t->device, base, bytes));
    KVT_OK(t, kvi_backend_segment_release(t->device, phys));
}

/* In the other process: wrong sizes are refused, the parent's bytes seen, ours written. */
static void importer_checks(struct kvt_backend *t, uint64_t bytes)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    struct kvi_phys phys = {0};
    uint64_t base = 0;

    KVT_OK(t, kvt_cuda_open(0, &t->client));
    t->granule = t->client->info.granule_bytes;
    t->counters = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    KVT_CHECK(t, t->counters != MAP_FAILED);
    KVT_OK(t, kvi_backend_host_pin(t->client, t->counters, page));
    import_answer(t, "4 granules of another process, promised as 3",
                  fcntl(IMPORTED_FD, F_DUPFD_CLOEXEC, 0), bytes - t->granule);
    import_answer(t, "4 granules of another process, promised as 5",
                  fcntl(IMPORTED_FD, F_DUPFD_CLOEXEC, 0), bytes + t->granule);
    KVT_OK(t, kvi_backend_segment_import_consume(t->client, IMPORTED_FD, bytes, &phys));
    KVT_REFUSED(t, KVMEM_E_NOT_SUPPORTED, "creator",
                kvi_backend_segment_export(t->client, phys, &(int){-1}));
    KVT_OK(t, kvi_backend_reserve(t->client, bytes, 0, &base));
    KVT_OK(t, kvi_backend_map(t->client, phys, base, bytes, KVI_ACCESS_RO));
    KVT_CHECK(t, kvt_filled(t, t->client, base, bytes, SEED_PARENT));
    KVT_OK(t, kvi_backend_set_access(t->client, base, bytes, KVI_ACCESS_RW));
    kvt_fill(t, t->client, base, bytes, SEED_CHILD);
    kvi_backend_destroy(t->client);
}

static int importer_main(uint64_t bytes)
{
    struct kvt_backend frame = {.factory = &kvt_cuda_factory};

    if (setjmp(case_over) != 0)
        return 1;
    importer_checks(&frame, bytes);
    return 0;
}

/* ---- figures ---- */

static void bench_once(const struct kvi_backend_cuda_device *what, uint64_t bytes)
{
    struct kvt_backend frame = {.factory = &kvt_cuda_factory};
    struct kvt_backend *t = &frame;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

    bytes = bytes < what->granule_bytes ? what->granule_bytes : bytes;
    t->granule = what->granule_bytes;
    KVT_OK(t, kvt_cuda_open(BENCH_SEGMENTS * bytes, &t->device));
    t->counters = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    KVT_CHECK(t, t->counters != MAP_FAILED);
    KVT_OK(t, kvi_backend_host_pin(t->device, t->counters, page));
    kvt_cuda_bench(t, bytes);
    kvi_backend_destroy(t->device);
    munmap(t->counters, page);
}

static void bench_all(const struct kvi_backend_cuda_device *what)
{
    if (setjmp(case_over) != 0) {
        failed_count++;
        return;
    }
    bench_once(what, UINT64_C(2) << 20);
    if (strcmp(getenv("KVMEM_BACKEND_BENCH"), "short") != 0)
        bench_once(what, UINT64_C(64) << 20);
}

/* ---- running ---- */

static const struct kvt_cuda_case own_cases[] = {
    {"streams_wait_for_fences", case_streams_wait_for_fences},
    {"lists_are_captured_in_a_graph", case_lists_are_captured_in_a_graph},
    {"wrong_imports_are_corrupt", case_wrong_imports_are_corrupt},
    {"another_process_imports", case_another_process_imports},
    {"a_full_device", case_a_full_device},
    {NULL, NULL},
};

static void run_case(const char *suite, const struct kvt_backend_factory *factory,
                     const struct kvt_cuda_case *one)
{
    const char *only = getenv("KVMEM_CASE");
    kvi_cu_context context = context_now();
    int64_t start_ms = now_ms();
    bool failed;

    if (only != NULL && strstr(one->name, only) == NULL)
        return;
    failed = setjmp(case_over) != 0;
    if (!failed)
        kvt_backend_run(factory, one->test_case);
    if (context_now() != context) {
        printf("  the caller's context is not current any more\n");
        failed = true;
    }
    printf("%s %s %s, %" PRId64 " ms\n", failed ? "FAIL" : "ok  ", suite, one->name,
           now_ms() - start_ms);
    fflush(stdout);
    passed_count += !failed;
    failed_count += failed;
}

static void run_cases(const char *suite, const struct kvt_backend_factory *factory,
                      const struct kvt_cuda_case *cases)
{
    for (size_t i = 0; cases[i].name != NULL; i++)
        run_case(suite, factory, &cases[i]);
}

static void device_print(const struct kvi_backend_cuda_device *what, struct kvi_backend *b)
{
    struct kvi_backend_memory memory = {0};

    (void)kvi_backend_memory(b, &memory);
    printf("{\"device\": \"%s\", \"name\": \"%s\", \"driver\": \"%d.%d\", \"sm\": %d, "
           "\"devices\": %" PRIu32 ", \"granule_bytes\": %" PRIu64 ", \"total_bytes\": %" PRIu64
           ", \"free_bytes\": %" PRIu64 ", \"rdma_flag\": %s}\n",
           b->info.name, what->name, what->driver_version / 1000, what->driver_version % 1000 / 10,
           what->capability, what->device_count, what->granule_bytes, memory.total_bytes,
           memory.free_bytes, what->rdma_capable ? "true" : "false");
    fflush(stdout);
}

static int run_all(const struct kvi_backend_cuda_device *what)
{
    struct kvi_backend *keeper = NULL; /* so that the context is made once */

    if (kvt_cuda_open(0, &keeper) < 0 || kvi_cuda_driver_open(kvt_cuda.driver_path, &driver) < 0) {
        printf("%s\n", kvmem_error_detail()->text);
        return 1;
    }
    device_print(what, keeper);
    run_cases("cuda", &kvt_cuda_factory, kvt_cuda_cases);
    run_cases("fault(cuda)", &kvt_cuda_fault_factory, kvt_cuda_cases);
    run_cases("gpu", &kvt_cuda_factory, own_cases);
    if (getenv("KVMEM_BACKEND_BENCH") != NULL)
        bench_all(what);
    device_print(what, keeper);
    kvi_backend_destroy(keeper);
    printf("%d passed, %d failed\n", passed_count, failed_count);
    return failed_count > 0 || passed_count == 0;
}

int main(int argc, char **argv)
{
    struct kvi_backend_cuda_device what;
    const char *device = getenv("KVMEM_CUDA_DEVICE");
    int rc;

    kvt_cuda.driver_path = getenv("KVMEM_CUDA_DRIVER");
    kvt_cuda.device_index = device != NULL ? (uint32_t)strtoul(device, NULL, 10) : 0;
    kvt_cuda_factory.fail = fail_case;
    kvt_cuda_factory.skip = skip_part;
    kvt_cuda_fault_factory.fail = fail_case;
    rc = kvt_cuda_query(&what);
    if (rc == KVMEM_E_NOT_SUPPORTED) {
        printf("%s\n", kvmem_error_detail()->text);
        return SKIPPED;
    }
    if (rc < 0) {
        printf("%s: %s\n", kvmem_error_name(rc), kvmem_error_detail()->text);
        return 1;
    }
    if (argc == 3 && strcmp(argv[1], "--importer") == 0)
        return importer_main(strtoull(argv[2], NULL, 10));
    return run_all(&what);
}
