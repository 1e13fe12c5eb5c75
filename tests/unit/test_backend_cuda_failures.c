/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA backend on a fake driver whose calls fail: each function at each of its calls, runs of
 * mappings half way, a full device, a context that is dead, and memory of the process.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/backend_cuda_internal.h"
#include "backend/kernels.h"
#include "support/cuda_fake.h"
#include "util/error.h"

#define TIME_LIMIT_S 60

static void fail_here(const char *file, int line, const char *message)
{
    cr_assert_fail("%s:%d: %s", file, line, message);
    abort(); /* not reached */
}

/* ---- driver calls that fail ---- */

/* Not here: what cannot be failed, or has tests of its own (push), or is asked between the steps
 * (memory_info), or whose failure leaves something with the driver whatever we do. */
static bool call_is_failed(const char *name)
{
    static const char *const not_failed[] = {"cuInit",           "cuGetErrorName",
                                             "cuCtxPushCurrent", "cuCtxPopCurrent",
                                             "cuMemGetInfo",     "cuDevicePrimaryCtxRelease",
                                             "cuModuleUnload"};

    for (size_t i = 0; i < sizeof(not_failed) / sizeof(not_failed[0]); i++)
        if (strcmp(name, not_failed[i]) == 0)
            return false;
    return true;
}

/* The sequence unmaps one mapping at a time, waits for what is reached, and has kernels, or it has
 * none and does with the driver's fills. */
static bool call_is_not_used(const char *name)
{
    static const char *const kernels[] = {"cuModuleGetFunction", "cuLaunchKernel",
                                          "cuModuleLoadDataEx", "cuFuncSetAttribute"};
    static const char *const fills[] = {"cuMemsetD8Async", "cuMemsetD32Async"};
    bool built = kvi_kernels_image_bytes > 0;

    for (size_t i = 0; i < sizeof(kernels) / sizeof(kernels[0]); i++)
        if (!built && strcmp(name, kernels[i]) == 0)
            return true;
    for (size_t i = 0; i < sizeof(fills) / sizeof(fills[0]); i++)
        if (built && strcmp(name, fills[i]) == 0)
            return true;
    return strcmp(name, "cuMemRetainAllocationHandle") == 0 ||
           strcmp(name, "cuStreamWaitValue64") == 0;
}

/* Create, the suite's sequence, destroy, with the nth call of one function failing. False when
 * there was no nth call. */
static bool nth_driver_call_fails(struct kvt_backend *t, const char *name, uint64_t nth)
{
    struct kvt_sequence s = {.t = t, .code = KVMEM_E_SYSTEM};
    uint64_t failed = kvt_fake->failed;
    uint64_t context_refs = kvt_fake->context_refs;
    uint64_t modules = kvt_fake->modules;
    int rc;

    kvt_fake_fail(name, nth, KVI_CU_ILLEGAL_ADDRESS);
    rc = kvt_cuda_open(4 * t->granule, &s.b);
    if (rc == 0) {
        s.inner = s.b;
        kvt_sequence_run(&s);
        kvt_fake->fail_nth = 0;
        KVT_OK(t, kvi_backend_cuda_check(s.b));
        KVT_CHECK(t, s.before.handle_count == 0 && s.before.mapping_count == 0);
        KVT_CHECK(t, s.before.reservation_count == 0 && s.before.pin_count == 0);
        kvi_backend_destroy(s.b);
    }
    failed = kvt_fake->failed - failed;
    KVT_CHECK(t, failed == (rc < 0) + s.failed_count);
    KVT_CHECK(t, rc == 0 || rc == KVMEM_E_SYSTEM);
    if (failed > 0) {
        const struct kvmem_error_detail *detail = kvmem_error_detail();

        KVT_CHECK(t, detail->driver_result == KVI_CU_ILLEGAL_ADDRESS);
        KVT_CHECK(t, strstr(detail->text, name) != NULL);
        KVT_CHECK(t, strstr(detail->text, "CUDA_ERROR_ILLEGAL_ADDRESS (700)") != NULL);
    }
    kvt_fake->fail_nth = 0;
    KVT_CHECK(t, kvt_fake->objects == 0 && kvt_fake->handle_refs == 0 && kvt_fake->mappings == 0);
    KVT_CHECK(t, kvt_fake->reservations == 0 && kvt_fake->registrations == 0);
    KVT_CHECK(t, kvt_fake->allocations == 0 && kvt_fake->modules == modules);
    KVT_CHECK(t, kvt_fake->context_refs == context_refs);
    KVT_CHECK(t, kvt_fake_context_is_callers());
    return failed > 0;
}

static void case_every_driver_call_fails(struct kvt_backend *t)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    static const char *const names[] = {
#define NAME_ROW(member, name, parameters) #name,
        KVI_CUDA_CALL_TABLE(NAME_ROW)
#undef NAME_ROW
    };
    uint64_t count = 0;

    KVT_OK(t, kvi_backend_host_unpin(t->device, t->counters, page));
    KVT_OK(t, kvi_backend_host_unpin(t->client, t->counters, page));
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        uint64_t nth = 1;

        while (call_is_failed(names[i]) && nth_driver_call_fails(t, names[i], nth))
            nth++;
        count += nth - 1;
        KVT_CHECK(t, nth > 1 || !call_is_failed(names[i]) || call_is_not_used(names[i]));
    }
    KVT_CHECK(t, count > 30);
    KVT_OK(t, kvi_backend_host_pin(t->device, t->counters, page));
    KVT_OK(t, kvi_backend_host_pin(t->client, t->counters, page));
}

static void case_a_dead_context_is_not_opened(struct kvt_backend *t)
{
    uint64_t context_refs = kvt_fake->context_refs;
    struct kvi_backend *b = t->device;

    kvt_fake_fail("cuMemGetInfo", 1, KVI_CU_LAUNCH_FAILED);
    KVT_REFUSED(t, KVMEM_E_SYSTEM, "context is dead", kvt_cuda_open(0, &b));
    kvt_fake_fail("cuCtxPushCurrent", 1, KVI_CU_CONTEXT_IS_DESTROYED);
    KVT_REFUSED(t, KVMEM_E_SYSTEM, "cuCtxPushCurrent", kvt_cuda_open(0, &b));
    kvt_fake_fail("cuDevicePrimaryCtxRetain", 1, KVI_CU_OUT_OF_MEMORY);
    KVT_REFUSED(t, KVMEM_E_DEVICE_FULL, "cuDevicePrimaryCtxRetain", kvt_cuda_open(0, &b));
    KVT_CHECK(t, b == t->device && kvt_fake->context_refs == context_refs);
}

/* An instance that only imports has its kernels from the start, or is not there. */
static void case_kernels_are_loaded_or_said_to_fail(struct kvt_backend *t)
{
    static const char *const calls[] = {"cuModuleLoadDataEx", "cuModuleGetFunction",
                                        "cuFuncSetAttribute", "cuLaunchKernel"};
    static const uint64_t nth[] = {1, 2, 1, 3};
    uint64_t modules = kvt_fake->modules;
    struct kvi_backend *b = NULL;

    for (size_t i = 0; i < 4 && kvi_kernels_image_bytes > 0; i++) {
        kvt_fake_fail(calls[i], nth[i], KVI_CU_LAUNCH_FAILED);
        KVT_REFUSED(t, KVMEM_E_SYSTEM, calls[i], kvt_cuda_open(0, &b));
        kvt_fake_fail(calls[i], nth[i], KVI_CU_OUT_OF_MEMORY);
        KVT_REFUSED(t, KVMEM_E_DEVICE_FULL, calls[i], kvt_cuda_open(0, &b));
        KVT_CHECK(t, b == NULL && kvt_fake->modules == modules);
    }
    KVT_OK(t, kvt_cuda_open(0, &b));
    KVT_CHECK(t, kvt_fake->modules == modules + (kvi_kernels_image_bytes > 0));
    kvi_backend_destroy(b);
    KVT_OK(t, kvt_cuda_open(t->granule, &b)); /* a daemon's has none */
    KVT_CHECK(t, kvt_fake->modules == modules);
    kvi_backend_destroy(b);
}

/* The context cannot be entered, and the call does nothing. */
#define PUSH_FAILS(t, call)                                           \
    do {                                                              \
        kvt_fake_fail("cuCtxPushCurrent", 1, KVI_CU_INVALID_CONTEXT); \
        KVT_REFUSED((t), KVMEM_E_SYSTEM, "cuCtxPushCurrent", call);   \
        KVT_CHECK((t), kvmem_error_detail()->driver_result == 201);   \
    } while (0)

static void case_a_context_that_cannot_be_entered(struct kvt_backend *t)
{
    uint64_t g = t->granule;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    struct kvi_phys phys = kvt_segment(t, 1);
    struct kvi_phys other = {77};
    uint64_t base = kvt_reserved(t, t->device, 4);
    struct kvi_backend_memory memory;
    struct kvi_backend_memory before;
    struct kvi_backend_cell *cells = (struct kvi_backend_cell *)(void *)(t->counters + 32);
    const int32_t block = 0;
    struct kvi_backend_blocks list = {.stride_bytes = 64, .bytes = 64, .count = 1, .to = &block};
    uint64_t memory_of = 0;
    char byte;
    int fd = -1;

    KVT_OK(t, kvi_backend_segment_export(t->device, phys, &fd));
    KVT_OK(t, kvi_backend_map(t->device, phys, base, g, KVI_ACCESS_RW));
    KVT_OK(t, kvi_backend_device_alloc(t->device, 64, &memory_of));
    list.to_base = base;
    before = kvt_memory(t, t->device);
    *t->counters = 0;
    PUSH_FAILS(t, kvi_backend_memory(t->device, &memory));
    PUSH_FAILS(t, kvi_backend_segment_create(t->device, g, &other));
    PUSH_FAILS(t, kvi_backend_segment_import_consume(t->device, fd, g, &other));
    KVT_CHECK(t, fcntl(fd, F_GETFD) < 0 && other.id == 77);
    fd = -2;
    PUSH_FAILS(t, kvi_backend_segment_export(t->device, phys, &fd));
    PUSH_FAILS(t, kvi_backend_segment_release(t->device, phys));
    PUSH_FAILS(t, kvi_backend_map(t->device, phys, base + g, g, KVI_ACCESS_RW));
    PUSH_FAILS(t, kvi_backend_unmap(t->device, base, g));
    PUSH_FAILS(t, kvi_backend_unreserve(t->device, base, 4 * g));
    PUSH_FAILS(t, kvi_backend_copy(t->device, base + 8, base, 8, 0));
    PUSH_FAILS(t, kvi_backend_copy_in(t->device, base, "x", 1, 0));
    PUSH_FAILS(t, kvi_backend_copy_out(t->device, &byte, base, 1, 0));
    PUSH_FAILS(t, kvi_backend_blocks(t->device, &list, 0));
    PUSH_FAILS(t, kvi_backend_cells(t->device, memory_of, cells, 1, 0));
    PUSH_FAILS(t, kvi_backend_device_alloc(t->device, 64, &base));
    PUSH_FAILS(t, kvi_backend_device_free(t->device, memory_of, 64));
    PUSH_FAILS(t, kvi_backend_fence_signal(t->device, t->counters, 1, 0));
    PUSH_FAILS(t, kvi_backend_fence_wait(t->device, t->counters, 1, 0));
    PUSH_FAILS(t, kvi_backend_host_pin(t->device, (char *)t->counters + page, page));
    memory = kvt_memory(t, t->device);
    KVT_CHECK(t, kvt_memory_same(&before, &memory) && fd == -2);
    KVT_OK(t, kvi_backend_copy_in(t->device, base, "x", 1, 0)); /* still read-write */
    KVT_OK(t, kvi_backend_device_free(t->device, memory_of, 64));
    KVT_OK(t, kvi_backend_unmap(t->device, base, g));
    KVT_OK(t, kvi_backend_unreserve(t->device, base, 4 * g));
    KVT_OK(t, kvi_backend_segment_release(t->device, phys));
}

/* Out of device memory, by the driver's word. */
static void case_full_is_its_own_code(struct kvt_backend *t)
{
    uint64_t g = t->granule;
    struct kvi_phys phys = kvt_segment(t, 1);
    struct kvi_phys other = {77};
    uint64_t base = kvt_reserved(t, t->device, 4);
    struct kvi_backend_memory before = kvt_memory(t, t->device);
    struct kvi_backend_memory after;
    int fd = -1;

    kvt_fake_fail("cuMemCreate", 1, KVI_CU_OUT_OF_MEMORY);
    KVT_REFUSED(t, KVMEM_E_DEVICE_FULL, "cuMemCreate",
                kvi_backend_segment_create(t->device, g, &other));
    KVT_CHECK(t, kvmem_error_detail()->driver_result == KVI_CU_OUT_OF_MEMORY);
    kvt_fake_fail("cuMemMap", 1, KVI_CU_OUT_OF_MEMORY);
    KVT_REFUSED(t, KVMEM_E_DEVICE_FULL, "cuMemMap",
                kvi_backend_map(t->device, phys, base, g, KVI_ACCESS_RW));
    kvt_fake_fail("cuMemSetAccess", 1, KVI_CU_OUT_OF_MEMORY);
    KVT_REFUSED(t, KVMEM_E_DEVICE_FULL, "cuMemSetAccess",
                kvi_backend_map(t->device, phys, base, g, KVI_ACCESS_RW));
    kvt_fake_fail("cuMemAlloc", 1, KVI_CU_OUT_OF_MEMORY);
    KVT_REFUSED(t, KVMEM_E_DEVICE_FULL, "cuMemAlloc",
                kvi_backend_device_alloc(t->device, 64, &base));
    kvt_fake_fail("cuMemAddressReserve", 1, KVI_CU_OUT_OF_MEMORY);
    KVT_REFUSED(t, KVMEM_E_NO_MEMORY, "cuMemAddressReserve",
                kvi_backend_reserve(t->device, g, 0, &base));
    KVT_OK(t, kvi_backend_segment_export(t->device, phys, &fd));
    kvt_fake_fail("cuMemImportFromShareableHandle", 1, KVI_CU_OUT_OF_MEMORY);
    KVT_REFUSED(t, KVMEM_E_DEVICE_FULL, "segment_import",
                kvi_backend_segment_import_consume(t->device, fd, g, &other));
    after = kvt_memory(t, t->device);
    KVT_CHECK(t, kvt_memory_same(&before, &after) && other.id == 77);
    KVT_CHECK(t, kvt_fake->handle_refs == 1 && kvt_fake->mappings == 0);
    KVT_OK(t, kvi_backend_segment_release(t->device, phys));
    KVT_OK(t, kvi_backend_unreserve(t->device, base, 4 * g));
}

/* Out of device memory, because others have it. */
static void case_others_fill_the_device(struct kvt_backend *t)
{
    uint64_t total = kvt_memory(t, t->device).total_bytes;
    struct kvi_backend *hog = NULL;
    struct kvi_phys all = {0};
    struct kvi_phys phys = {77};

    KVT_OK(t, kvt_cuda_open(total, &hog));
    KVT_OK(t, kvi_backend_segment_create(hog, total, &all));
    KVT_CHECK(t, kvt_memory(t, t->device).free_bytes == 0);
    KVT_REFUSED(t, KVMEM_E_DEVICE_FULL, "cuMemCreate",
                kvi_backend_segment_create(t->device, t->granule, &phys));
    KVT_CHECK(t, phys.id == 77 && kvt_memory(t, t->device).handle_count == 0);
    KVT_OK(t, kvi_backend_segment_release(hog, all));
    KVT_OK(t, kvi_backend_segment_create(t->device, t->granule, &phys));
    KVT_OK(t, kvi_backend_segment_release(t->device, phys));
    kvi_backend_destroy(hog);
}

/* ---- runs of mappings, all or nothing ---- */

enum {
    RUN = 4
};

/* RUN segments side by side, each with its own bytes, the odd ones read-only; the handle of the
 * second is released already. */
static uint64_t run_open(struct kvt_backend *t, struct kvi_phys *phys)
{
    uint64_t g = t->granule;
    uint64_t base = kvt_reserved(t, t->device, RUN);

    for (uint32_t i = 0; i < RUN; i++) {
        phys[i] = kvt_segment(t, 1);
        KVT_OK(t, kvi_backend_map(t->device, phys[i], base + i * g, g, KVI_ACCESS_RW));
        kvt_fill(t, t->device, base + i * g, g, i);
        if (i % 2 == 1)
            kvt_remap_read_only(t, t->device, phys[i], base + i * g, g);
    }
    KVT_OK(t, kvi_backend_segment_release(t->device, phys[1]));
    return base;
}

/* All are as run_open made them; the driver thinks so too. */
static void run_check(struct kvt_backend *t, uint64_t base)
{
    uint64_t g = t->granule;

    KVT_CHECK(t, kvt_memory(t, t->device).mapping_count == RUN && kvt_fake->mappings == RUN);
    KVT_CHECK(t, kvt_fake->handle_refs == RUN - 1);
    for (uint32_t i = 0; i < RUN; i++) {
        KVT_CHECK(t, kvt_filled(t, t->device, base + i * g, g, i));
        KVT_CHECK(t, kvt_store_faults(base + i * g) == (i % 2 == 1)); /* the fake's memory */
    }
    KVT_OK(t, kvi_backend_cuda_check(t->device));
}

static void run_close(struct kvt_backend *t, uint64_t base, const struct kvi_phys *phys)
{
    KVT_OK(t, kvi_backend_unreserve(t->device, base, RUN * t->granule));
    for (int i = 0; i < RUN; i++)
        if (i != 1)
            KVT_OK(t, kvi_backend_segment_release(t->device, phys[i]));
}

static void case_unmap_of_a_run_is_undone(struct kvt_backend *t)
{
    static const char *const calls[] = {"cuMemRetainAllocationHandle", "cuMemUnmap"};
    struct kvi_phys phys[RUN];
    uint64_t base = run_open(t, phys);
    uint64_t bytes = RUN * t->granule;

    for (size_t call = 0; call < 2; call++)
        for (uint64_t nth = 1; nth <= RUN; nth++) {
            kvt_fake_fail(calls[call], nth, KVI_CU_INVALID_VALUE);
            KVT_REFUSED(t, KVMEM_E_SYSTEM, calls[call], kvi_backend_unmap(t->device, base, bytes));
            run_check(t, base);
        }
    KVT_OK(t, kvi_backend_unmap(t->device, base, bytes));
    KVT_CHECK(t, kvt_fake->mappings == 0 && kvt_fake->handle_refs == RUN - 1);
    run_close(t, base, phys);
}

/* ---- allocations that fail ---- */

struct failing_alloc {
    struct kvi_alloc alloc;
    uint64_t calls;
    uint64_t fail_nth;
    uint64_t live_bytes;
};

static void *failing_allocate(void *context, size_t bytes)
{
    struct failing_alloc *failing = context;
    void *memory;

    if (++failing->calls == failing->fail_nth)
        return NULL;
    memory = kvi_allocate(&kvi_alloc_libc, bytes);
    failing->live_bytes += bytes;
    return memory;
}

static void failing_release(void *context, void *memory, size_t bytes)
{
    struct failing_alloc *failing = context;

    failing->live_bytes -= bytes;
    kvi_release(&kvi_alloc_libc, memory, bytes);
}

static void case_nth_allocation_fails(struct kvt_backend *t)
{
    uint64_t nth = 0;
    bool reached;

    do {
        struct failing_alloc failing = {.alloc = {&failing, failing_allocate, failing_release},
                                        .fail_nth = ++nth};
        struct kvi_backend_cuda_options options = {.options_bytes = sizeof(options),
                                                   .device_bytes = 4 * t->granule,
                                                   .driver_path = kvt_cuda.driver_path,
                                                   .alloc = &failing.alloc};
        struct kvt_sequence s = {.t = t, .code = KVMEM_E_NO_MEMORY};
        int rc = kvi_backend_cuda_create(&options, &s.b);

        KVT_CHECK(t, rc == (nth == 1 ? KVMEM_E_NO_MEMORY : 0));
        if (rc == 0) {
            s.inner = s.b;
            kvt_sequence_run(&s);
            KVT_OK(t, kvi_backend_cuda_check(s.b));
            kvi_backend_destroy(s.b);
        }
        reached = failing.calls >= nth;
        KVT_CHECK(t, s.failed_count == (reached && nth > 1 ? 1 : 0));
        KVT_CHECK(t, failing.live_bytes == 0);
    } while (reached);
    /* Backend, pins, handles, reservations, rights, mappings, allocations; then none. */
    KVT_CHECK(t, nth == 8);
}

#define FAILURE_TEST(name)                                       \
    Test(backend_cuda_failures, name, .timeout = TIME_LIMIT_S)   \
    {                                                            \
        kvt_fake_run(&kvt_cuda_factory, case_##name, fail_here); \
    }

FAILURE_TEST(every_driver_call_fails)
FAILURE_TEST(a_dead_context_is_not_opened)
FAILURE_TEST(kernels_are_loaded_or_said_to_fail)
FAILURE_TEST(a_context_that_cannot_be_entered)
FAILURE_TEST(full_is_its_own_code)
FAILURE_TEST(others_fill_the_device)
FAILURE_TEST(unmap_of_a_run_is_undone)
FAILURE_TEST(nth_allocation_fails)

/* ---- a context that a kernel's fault has killed ---- */

/* Every driver call fails: each operation says so, an fd to be consumed is, and destroy comes to
 * an end. What the driver held is lost with the context, so nothing is counted here. */
Test(backend_cuda_dead, every_operation_says_so, .timeout = TIME_LIMIT_S)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    struct kvt_backend frame = {.factory = &kvt_cuda_factory};
    struct kvt_backend *t = &frame;
    struct kvi_phys phys;
    struct kvi_phys other;
    uint64_t base = 0;
    int fd = -1;

    kvt_fake_open(fail_here);
    KVT_OK(t, kvt_cuda_open(UINT64_C(4) << 16, &t->device));
    t->granule = t->device->info.granule_bytes;
    t->counters = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    KVT_OK(t, kvi_backend_host_pin(t->device, t->counters, page));
    phys = kvt_segment(t, 1);
    KVT_OK(t, kvi_backend_segment_export(t->device, phys, &fd));
    KVT_OK(t, kvi_backend_reserve(t->device, t->granule, 0, &base));
    KVT_OK(t, kvi_backend_map(t->device, phys, base, t->granule, KVI_ACCESS_RW));
    kvt_fake_fail("*", 1, KVI_CU_ILLEGAL_ADDRESS);
    kvt_fake->fail_always = true;
    KVT_REFUSED(t, KVMEM_E_SYSTEM, "context is dead",
                kvi_backend_segment_import_consume(t->device, fd, t->granule, &other));
    cr_assert_lt(fcntl(fd, F_GETFD), 0);
    KVT_REFUSED(t, KVMEM_E_SYSTEM, "context is dead",
                kvi_backend_unmap(t->device, base, t->granule));
    KVT_REFUSED(t, KVMEM_E_SYSTEM, "context is dead",
                kvi_backend_segment_create(t->device, t->granule, &other));
    KVT_REFUSED(t, KVMEM_E_SYSTEM, "context is dead",
                kvi_backend_fence_signal(t->device, t->counters, 1, 0));
    KVT_REFUSED(t, KVMEM_E_SYSTEM, "context is dead",
                kvi_backend_host_unpin(t->device, t->counters, page));
    kvi_backend_destroy(t->device);
    kvt_fake->fail_nth = 0;
    cr_assert(kvt_fake_context_is_callers());
    munmap(t->counters, page);
}
