/* SPDX-License-Identifier: Apache-2.0
 *
 * The compliance suite's frame: what runs around each case, and the helpers that the cases in
 * backend_compliance_segment.c, _space.c, _copy.c and _blocks.c share.
 */
#include "support/backend_compliance.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "util/error.h"

#define SETTLE_LIMIT_NS (INT64_C(20) * 1000 * 1000 * 1000)
#define MAPS_BYTES      (32u << 20)

/* ---- checks ---- */

void kvt_check(struct kvt_backend *t, bool condition, const char *file, int line, const char *text)
{
    if (!condition)
        t->factory->fail(file, line, text);
}

void kvt_result(struct kvt_backend *t, int result, int wanted, const char *word, const char *file,
                int line, const char *text)
{
    const struct kvmem_error_detail *detail = kvmem_error_detail();
    char message[1024];

    if (result == wanted && (wanted >= 0 || (detail->code == wanted && strstr(detail->text, word))))
        return;
    snprintf(message, sizeof(message),
             "%s\n  gave %d %s, want %d %s; detail %d: \"%s\", want \"%s\" in it", text, result,
             kvmem_error_name(result), wanted, kvmem_error_name(wanted), detail->code, detail->text,
             word ? word : "");
    t->factory->fail(file, line, message);
}

/* ---- the process ---- */

int kvt_fd_count(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int count = 0;

    if (directory == NULL)
        return -1;
    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count;
}

/* /proc/self/maps in one string of static storage: malloc could change what it shows. */
static const char *maps_text(void)
{
    static char text[MAPS_BYTES];
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    size_t length = 0;
    ssize_t got;

    if (fd < 0)
        abort();
    while ((got = read(fd, text + length, sizeof(text) - 1 - length)) > 0)
        length += (size_t)got;
    close(fd);
    text[length] = '\0';
    return text;
}

int kvt_map_count(void)
{
    const char *wanted = KVT_SANITIZED ? "memfd:kvmem" : "\n";
    int count = 0;

    for (const char *at = maps_text(); (at = strstr(at, wanted)) != NULL; at++)
        count++;
    return count;
}

uint64_t kvt_mapped_bytes(uint64_t address, uint64_t bytes)
{
    uint64_t found_bytes = 0;
    const char *line = maps_text();

    while (line != NULL && *line != '\0') {
        char *rest;
        uint64_t start = strtoull(line, &rest, 16); /* "start-end rights ..." */
        uint64_t end = strtoull(rest + 1, NULL, 16);

        start = start > address ? start : address;
        end = end < address + bytes ? end : address + bytes;
        found_bytes += end > start ? end - start : 0;
        line = strchr(line, '\n');
        line = line ? line + 1 : NULL;
    }
    return found_bytes;
}

/* ---- faults on purpose ---- */

static sigjmp_buf fault_return;

static void fault_handler(int signal_number)
{
    siglongjmp(fault_return, signal_number);
}

/* Load the byte, and store it again if asked to. */
__attribute__((no_sanitize("address"))) static bool touch_faults(uint64_t address, bool store)
{
    volatile unsigned char *byte = (volatile unsigned char *)kvi_backend_pointer(address);
    struct sigaction action = {.sa_handler = fault_handler};
    struct sigaction old_segv;
    struct sigaction old_bus;
    bool faulted;

    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, &old_segv);
    sigaction(SIGBUS, &action, &old_bus);
    faulted = sigsetjmp(fault_return, 1) != 0;
    if (!faulted) {
        unsigned char value = *byte;

        if (store)
            *byte = value;
    }
    sigaction(SIGSEGV, &old_segv, NULL);
    sigaction(SIGBUS, &old_bus, NULL);
    return faulted;
}

bool kvt_load_faults(uint64_t address)
{
    return touch_faults(address, false);
}

bool kvt_store_faults(uint64_t address)
{
    return touch_faults(address, true);
}

/* ---- what cases are made of ---- */

uint64_t kvt_next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void kvt_reached(struct kvt_backend *t, const uint64_t *counter, uint64_t value)
{
    int64_t limit_ns = now_ns() + SETTLE_LIMIT_NS;

    while (kvi_backend_fence_poll(counter, value) == KVI_FENCE_PENDING)
        KVT_CHECK(t, now_ns() < limit_ns);
}

void kvt_settle(struct kvt_backend *t, struct kvi_backend *b)
{
    t->signal_count++;
    KVT_OK(t, kvi_backend_fence_signal(b, t->counters, t->signal_count, 0));
    kvt_reached(t, t->counters, t->signal_count);
}

struct kvi_phys kvt_segment(struct kvt_backend *t, uint64_t granules)
{
    struct kvi_phys phys = {0};

    KVT_OK(t, kvi_backend_segment_create(t->device, granules * t->granule, &phys));
    return phys;
}

struct kvi_phys kvt_imported(struct kvt_backend *t, struct kvi_phys phys, uint64_t granules)
{
    struct kvi_phys imported = {0};
    int fd = -1;

    KVT_OK(t, kvi_backend_segment_export(t->device, phys, &fd));
    KVT_OK(t, kvi_backend_segment_import_consume(t->client, fd, granules * t->granule, &imported));
    return imported;
}

void kvt_remap_read_only(struct kvt_backend *t, struct kvi_backend *b, struct kvi_phys phys,
                         uint64_t address, uint64_t bytes)
{
    kvt_settle(t, b);
    KVT_OK(t, kvi_backend_unmap(b, address, bytes));
    KVT_OK(t, kvi_backend_map(b, phys, address, bytes, KVI_ACCESS_RO));
}

uint64_t kvt_reserved(struct kvt_backend *t, struct kvi_backend *b, uint64_t granules)
{
    uint64_t base = 0;

    KVT_OK(t, kvi_backend_reserve(b, granules * t->granule, 0, &base));
    return base;
}

/* A pattern without a period that a wrong offset could hit. */
static unsigned char *pattern_new(uint64_t bytes, uint32_t seed)
{
    unsigned char *pattern = malloc(bytes);
    uint64_t state = seed;

    if (pattern == NULL)
        abort();
    for (uint64_t i = 0; i < bytes; i++)
        pattern[i] = (unsigned char)kvt_next_random(&state);
    return pattern;
}

void kvt_fill(struct kvt_backend *t, struct kvi_backend *b, uint64_t address, uint64_t bytes,
              uint32_t seed)
{
    unsigned char *pattern = pattern_new(bytes, seed);

    KVT_OK(t, kvi_backend_copy_in(b, address, pattern, bytes, 0));
    kvt_settle(t, b);
    free(pattern);
}

bool kvt_filled(struct kvt_backend *t, struct kvi_backend *b, uint64_t address, uint64_t bytes,
                uint32_t seed)
{
    unsigned char *pattern = pattern_new(bytes, seed);
    unsigned char *found = calloc(1, bytes);
    bool same;

    if (found == NULL)
        abort();
    KVT_OK(t, kvi_backend_copy_out(b, found, address, bytes, 0));
    kvt_settle(t, b);
    same = memcmp(pattern, found, bytes) == 0;
    free(pattern);
    free(found);
    return same;
}

struct kvi_backend_memory kvt_memory(struct kvt_backend *t, struct kvi_backend *b)
{
    struct kvi_backend_memory memory = {0};

    KVT_OK(t, kvi_backend_memory(b, &memory));
    return memory;
}

bool kvt_memory_same(const struct kvi_backend_memory *a, const struct kvi_backend_memory *b)
{
    return a->total_bytes == b->total_bytes && a->created_bytes == b->created_bytes &&
           a->handle_count == b->handle_count && a->reservation_count == b->reservation_count &&
           a->reserved_bytes == b->reserved_bytes && a->mapping_count == b->mapping_count &&
           a->mapped_bytes == b->mapped_bytes && a->pin_count == b->pin_count &&
           a->allocation_count == b->allocation_count && a->allocation_bytes == b->allocation_bytes;
}

/* ---- around a case ---- */

static void counters_open(struct kvt_backend *t)
{
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);

    t->counters = mmap(NULL, page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    KVT_CHECK(t, t->counters != MAP_FAILED);
    KVT_OK(t, kvi_backend_host_pin(t->device, t->counters, page_bytes));
    KVT_OK(t, kvi_backend_host_pin(t->client, t->counters, page_bytes));
}

static void counters_close(struct kvt_backend *t)
{
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);

    KVT_OK(t, kvi_backend_host_unpin(t->device, t->counters, page_bytes));
    KVT_OK(t, kvi_backend_host_unpin(t->client, t->counters, page_bytes));
    munmap(t->counters, page_bytes);
}

static void unchanged_check(struct kvt_backend *t, struct kvi_backend *b,
                            const struct kvi_backend_memory *before)
{
    struct kvi_backend_memory after = kvt_memory(t, b);

    KVT_CHECK(t, kvt_memory_same(before, &after));
    if (t->factory->check != NULL)
        KVT_OK(t, t->factory->check(t->factory->context, b));
}

/* Returns the device's flags. */
static uint32_t case_once(const struct kvt_backend_factory *factory, kvt_backend_case test_case)
{
    struct kvt_backend frame = {.factory = factory};
    struct kvt_backend *t = &frame;
    struct kvi_backend_memory device_before;
    struct kvi_backend_memory client_before;
    uint32_t flags;

    KVT_OK(t, factory->create(factory->context, KVT_DEVICE_GRANULES, &t->device));
    KVT_OK(t, factory->create(factory->context, 0, &t->client));
    t->granule = t->device->info.granule_bytes;
    counters_open(t);
    device_before = kvt_memory(t, t->device);
    client_before = kvt_memory(t, t->client);
    test_case(t);
    unchanged_check(t, t->device, &device_before);
    unchanged_check(t, t->client, &client_before);
    counters_close(t);
    flags = t->device->info.flags;
    factory->destroy(factory->context, t->client);
    factory->destroy(factory->context, t->device);
    return flags;
}

void kvt_backend_run(const struct kvt_backend_factory *factory, kvt_backend_case test_case)
{
    bool visible = case_once(factory, test_case) & KVI_BACKEND_CPU_VISIBLE;
    char message[128];
    int fd_count;
    int map_count;
    bool same;
    int rounds = 1;

    do {
        fd_count = kvt_fd_count();
        map_count = kvt_map_count();
        case_once(factory, test_case);
        rounds++;
        snprintf(message, sizeof(message),
                 "fds: %d before, %d after; mappings: %d before, %d after", fd_count,
                 kvt_fd_count(), map_count, kvt_map_count());
        same = kvt_fd_count() == fd_count && (!visible || kvt_map_count() == map_count);
    } while (!same && !visible && rounds < KVT_ROUNDS_MAX);
    if (!same)
        factory->fail(__FILE__, __LINE__, message);
}
