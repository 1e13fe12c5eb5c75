/* SPDX-License-Identifier: Apache-2.0
 *
 * What the driver's virtual memory calls do and cost: a program to be read, not a check.
 *
 *   vmm_probe             everything, in short: what a run of all tests does
 *   vmm_probe all         everything
 *   vmm_probe walk WORD   random walks over mappings, those whose name contains WORD
 *   vmm_probe times       what each call costs, 64 MiB a segment
 *
 *   KVMEM_CUDA_DEVICE=1   the device; KVMEM_CUDA_DRIVER=path the driver library
 *
 * A walk is the driver calls of the compliance case random_mappings_match_a_naive_twin: six
 * segments of one to three granules, mapped at random places of a small range, each perhaps at
 * several; runs of mappings change access and are unmapped. Variants differ in how a run is
 * unmapped and given access and in what is done between the steps; each has a process of its own,
 * since a context may not survive. When a call fails, what still works is asked next.
 *
 * Times are of an exporter and an importer in two processes: medians of 30 calls, and 128
 * segments imported, mapped and given access in a row.
 *
 * One line of JSON a row. Exit status 0, whatever the driver says; 77 without a device.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "backend/cuda_driver.h"
#include "support/backend_compliance.h"
#include "util/error.h"

#define SKIPPED  77
#define SEGMENTS 6
#define GRANULES 24
#define STEPS    20000
#define SAMPLES  30
#define ROW      128

static const struct kvi_cuda_driver *driver;
static struct kvi_cu_allocation allocation;
static uint64_t granule;
static bool is_short;

/* ---- the device ---- */

static void die(const char *what, int result)
{
    printf("{\"probe\": \"stopped\", \"call\": \"%s\", \"result\": \"%s (%d)\"}\n", what,
           driver ? kvi_cuda_result_name(driver, result) : "", result);
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
    size_t bytes;
    int rdma = 0;

    if (kvi_cuda_driver_open(getenv("KVMEM_CUDA_DRIVER"), &driver) < 0) {
        printf("%s\n", kvmem_error_detail()->text);
        exit(SKIPPED);
    }
    MUST(device_get, &device, index ? atoi(index) : 0);
    MUST(context_retain, &context, device);
    MUST(context_push, context);
    MUST(device_attribute, &rdma, KVI_CU_ATTRIBUTE_RDMA_WITH_VMM, device);
    allocation = (struct kvi_cu_allocation){
        .type = KVI_CU_ALLOCATION_PINNED,
        .handle_types = KVI_CU_HANDLE_POSIX_FD,
        .location = {.type = KVI_CU_LOCATION_DEVICE, .id = device},
        .gpu_direct_rdma_capable = rdma != 0,
    };
    MUST(memory_granularity, &bytes, &allocation, KVI_CU_GRANULARITY_MINIMUM);
    granule = bytes;
}

/* Wait for the device: an empty word of the default stream. */
static int device_wait(void)
{
    int (*synchronize)(void);
    void *function = kvi_cuda_driver_symbol(driver, "cuCtxSynchronize");

    if (function == NULL) /* the fake driver is always done */
        return 0;
    memcpy(&synchronize, &function, sizeof(function));
    return synchronize();
}

/* ---- a walk ---- */

struct variant {
    const char *name;
    bool keeps;      /* retain the handle of each mapping of a run while it is unmapped */
    bool unmaps_run; /* one cuMemUnmap over the run, else one a mapping */
    bool access_run; /* one cuMemSetAccess over the run, else one a mapping */
    bool waits;      /* for the device, before each step */
    bool copies;     /* a granule in and out after each step */
    bool is_single;  /* a segment is mapped at one place at most */
    bool is_opaque;  /* not exportable, no RDMA */
    bool upgrades;   /* access of a run changes at all */
};

/*                              keeps  run    access wait   copies single opaque upgrades */
static const struct variant variants[] = {
    {"as-the-backend", true, false, true, false, true, false, false, true},
    {"no-keep", false, false, true, false, true, false, false, true},
    {"unmap-over-the-run", false, true, true, false, true, false, false, true},
    {"keep-unmap-over-the-run", true, true, true, false, true, false, false, true},
    {"access-one-by-one", true, false, false, false, true, false, false, true},
    {"no-keep-all-one-by-one", false, false, false, false, true, false, false, true},
    {"wait-between", true, false, true, true, true, false, false, true},
    {"no-copies", true, false, true, false, false, false, false, true},
    {"one-place-a-segment", true, false, true, false, true, true, false, true},
    {"no-keep-one-place", false, false, false, false, true, true, false, true},
    {"not-exportable", true, false, true, false, true, false, true, true},
    {"access-never-changes", true, false, true, false, true, false, false, false},
    {"least", false, false, false, true, false, true, true, false},
};

struct walk {
    const struct variant *variant;
    uint64_t base;
    kvi_cu_handle handles[SEGMENTS];
    int places[SEGMENTS];  /* where it is mapped, how often */
    int start[GRANULES];   /* granule where the mapping that covers this one starts, or −1 */
    int segment[GRANULES]; /* of that mapping */
    bool writable[GRANULES];
    int step;
    uint64_t maps;
    uint64_t unmaps;
    uint64_t accesses;
};

static int granules_of(int segment)
{
    return 1 + segment % 3;
}

static uint64_t address_of(const struct walk *w, int at)
{
    return w->base + (uint64_t)at * granule;
}

static int access_give(const struct walk *w, int at, int granules, bool writable)
{
    struct kvi_cu_access access = {.location = allocation.location,
                                   .flags =
                                       writable ? KVI_CU_ACCESS_READ_WRITE : KVI_CU_ACCESS_READ};

    return driver->set_access(address_of(w, at), (uint64_t)granules * granule, &access, 1);
}

static int map_call(const struct walk *w, int at, int segment)
{
    return driver->map(address_of(w, at), (uint64_t)granules_of(segment) * granule, 0,
                       w->handles[segment], 0);
}

static bool is_free(const struct walk *w, int at, int granules)
{
    for (int i = at; i < at + granules; i++)
        if (i >= GRANULES || w->start[i] >= 0)
            return false;
    return true;
}

static void answer(const char *question, int result)
{
    printf(", \"%s\": \"%s\"", question, result ? kvi_cuda_result_name(driver, result) : "works");
}

/* After a failed map: is it the place, the handle, the moment? */
static void questions(struct walk *w, int at, int segment)
{
    int granules = granules_of(segment);
    kvi_cu_handle fresh = 0;
    int result;

    answer("again", map_call(w, at, segment));
    answer("wait", device_wait());
    answer("again after it", map_call(w, at, segment));
    result = driver->memory_create(&fresh, (uint64_t)granules * granule, &allocation, 0);
    if (result == 0)
        result = driver->map(address_of(w, at), (uint64_t)granules * granule, 0, fresh, 0);
    answer("a new segment there", result);
    if (result == 0)
        (void)driver->unmap(address_of(w, at), (uint64_t)granules * granule);
    for (int other = 0; other < SEGMENTS; other++)
        if (other != segment && is_free(w, at, granules_of(other))) {
            answer("another segment there", map_call(w, at, other));
            break;
        }
    for (int place = 0; place < GRANULES; place++)
        if (place != at && is_free(w, place, granules)) {
            answer("the segment elsewhere", map_call(w, place, segment));
            break;
        }
    result = driver->address_reserve(&w->base, (uint64_t)granules * granule, 0, 0, 0);
    answer("in a new reservation", result ? result : map_call(w, 0, segment));
}

static void failed(struct walk *w, const char *call, int result, int at, int segment)
{
    printf("{\"walk\": \"%s\", \"fails_at_step\": %d, \"call\": \"%s\", \"result\": \"%s (%d)\", "
           "\"granule\": %d, \"segment\": %d, \"granules\": %d, \"places_of_it\": %d, "
           "\"maps\": %" PRIu64 ", \"unmaps\": %" PRIu64 ", \"accesses\": %" PRIu64,
           w->variant->name, w->step, call, kvi_cuda_result_name(driver, result), result, at,
           segment, segment >= 0 ? granules_of(segment) : 0, segment >= 0 ? w->places[segment] : 0,
           w->maps, w->unmaps, w->accesses);
    printf(", \"map\": \"");
    for (int i = 0; i < GRANULES; i++)
        printf("%c", w->start[i] < 0  ? '.'
                     : w->writable[i] ? 'A' + w->segment[i]
                                      : 'a' + w->segment[i]);
    printf("\"");
    if (strcmp(call, "cuMemMap") == 0)
        questions(w, at, segment);
    printf("}\n");
    fflush(stdout);
    _exit(0);
}

static void walk_map(struct walk *w, int at, int segment, bool writable)
{
    int granules = granules_of(segment);
    int result;

    if (!is_free(w, at, granules) || (w->variant->is_single && w->places[segment] > 0))
        return;
    result = map_call(w, at, segment);
    if (result != 0)
        failed(w, "cuMemMap", result, at, segment);
    w->maps++;
    result = access_give(w, at, granules, writable);
    if (result != 0)
        failed(w, "cuMemSetAccess after cuMemMap", result, at, segment);
    w->accesses++;
    w->places[segment]++;
    for (int i = at; i < at + granules; i++) {
        w->start[i] = at;
        w->segment[i] = segment;
        w->writable[i] = writable;
    }
}

static bool is_run(const struct walk *w, int at, int granules)
{
    int end = at + granules;

    if (end > GRANULES || w->start[at] != at)
        return false;
    for (int i = at; i < end; i++)
        if (w->start[i] < 0)
            return false;
    return end == GRANULES || w->start[end] < 0 || w->start[end] == end;
}

static void run_keep(struct walk *w, int at, int end, kvi_cu_handle *kept)
{
    for (int i = at; i < end; i += granules_of(w->segment[i])) {
        int result = driver->memory_retain(&kept[i], (void *)(uintptr_t)address_of(w, i));

        if (result != 0)
            failed(w, "cuMemRetainAllocationHandle", result, i, w->segment[i]);
    }
}

static void walk_unmap(struct walk *w, int at, int granules)
{
    kvi_cu_handle kept[GRANULES] = {0};
    bool keeps = w->variant->keeps && granules_of(w->segment[at]) != granules;
    int result = 0;

    if (!is_run(w, at, granules))
        return;
    if (keeps)
        run_keep(w, at, at + granules, kept);
    if (w->variant->unmaps_run)
        result = driver->unmap(address_of(w, at), (uint64_t)granules * granule);
    for (int i = at; i < at + granules; i += granules_of(w->segment[i])) {
        if (!w->variant->unmaps_run)
            result =
                driver->unmap(address_of(w, i), (uint64_t)granules_of(w->segment[i]) * granule);
        if (result != 0)
            failed(w, "cuMemUnmap", result, i, w->segment[i]);
        w->unmaps++;
        w->places[w->segment[i]]--;
    }
    for (int i = at; i < at + granules; i++) {
        w->start[i] = -1;
        if (kept[i] != 0 && (result = driver->memory_release(kept[i])) != 0)
            failed(w, "cuMemRelease of what was kept", result, i, w->segment[i]);
    }
}

static void walk_access(struct walk *w, int at, int granules, bool writable)
{
    int result = 0;

    if (!is_run(w, at, granules) || !w->variant->upgrades)
        return;
    if (w->variant->access_run)
        result = access_give(w, at, granules, writable);
    for (int i = at; i < at + granules && result == 0 && !w->variant->access_run;
         i += granules_of(w->segment[i]))
        result = access_give(w, i, granules_of(w->segment[i]), writable);
    if (result != 0)
        failed(w, "cuMemSetAccess", result, at, w->segment[at]);
    w->accesses++;
    for (int i = at; i < at + granules; i++)
        w->writable[i] = writable;
}

static void walk_copy(struct walk *w, int at)
{
    unsigned char mark[2] = {1, 2};
    int result;

    if (w->start[at] < 0 || !w->variant->copies)
        return;
    result = driver->copy_out(mark, address_of(w, at), 2, NULL);
    if (result == 0 && w->writable[at])
        result = driver->copy_in(address_of(w, at), mark, 2, NULL);
    if (result == 0)
        result = device_wait();
    if (result != 0)
        failed(w, "a copy", result, at, w->segment[at]);
}

static void walk_step(struct walk *w, uint64_t dice)
{
    int at = (int)(dice >> 8 & 0xff) % GRANULES;
    int granules = 1 + (int)(dice >> 16 & 0xff) % 6;
    bool writable = dice >> 24 & 1;

    if (w->variant->waits)
        (void)device_wait();
    switch (dice % 4) {
    case 0:
    case 1: walk_map(w, at, (int)(dice >> 32 & 0xff) % SEGMENTS, writable); break;
    case 2: walk_unmap(w, at, granules); break;
    case 3: walk_access(w, at, granules, writable); break;
    }
    walk_copy(w, (int)(dice >> 40 & 0xff) % GRANULES);
}

/* In a process of its own. */
static void walk_run(const struct variant *variant)
{
    struct walk w = {.variant = variant};
    uint64_t state = 20260101; /* the compliance case's */

    device_open();
    if (variant->is_opaque) {
        allocation.handle_types = 0;
        allocation.gpu_direct_rdma_capable = 0;
    }
    MUST(address_reserve, &w.base, GRANULES * granule, granule, 0, 0);
    for (int i = 0; i < GRANULES; i++)
        w.start[i] = -1;
    for (int segment = 0; segment < SEGMENTS; segment++)
        MUST(memory_create, &w.handles[segment], (uint64_t)granules_of(segment) * granule,
             &allocation, 0);
    for (int segment = 0; segment < SEGMENTS; segment++) {
        walk_map(&w, 0, segment, true);
        walk_copy(&w, 0);
        walk_unmap(&w, 0, granules_of(segment));
    }
    for (w.step = 0; w.step < (is_short ? STEPS / 20 : STEPS); w.step++)
        walk_step(&w, kvt_next_random(&state));
    printf("{\"walk\": \"%s\", \"passes_steps\": %d, \"maps\": %" PRIu64 ", \"unmaps\": %" PRIu64
           ", \"accesses\": %" PRIu64 "}\n",
           variant->name, w.step, w.maps, w.unmaps, w.accesses);
}

/* `run` in a child; its exit status. */
static int child_status(void (*run)(const struct variant *), const struct variant *variant)
{
    pid_t pid;
    int status = 0;

    fflush(stdout);
    pid = fork();
    if (pid == 0) {
        run(variant);
        fflush(stdout);
        _exit(0);
    }
    if (pid < 0 || waitpid(pid, &status, 0) < 0)
        return 1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

static int walks_run(const char *word)
{
    int worst = 0;

    for (size_t i = 0; i < sizeof(variants) / sizeof(variants[0]) && worst != SKIPPED; i++) {
        int status;

        if (strstr(variants[i].name, word) == NULL)
            continue;
        status = child_status(walk_run, &variants[i]);
        if (status != 0 && status != SKIPPED)
            printf("{\"walk\": \"%s\", \"ended_with_status\": %d}\n", variants[i].name, status);
        worst = status > worst ? status : worst;
    }
    return worst;
}

/* ---- times ---- */

struct series {
    const char *name;
    int64_t ns[SAMPLES];
    int count;
};

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int ns_compare(const void *left, const void *right)
{
    int64_t a = *(const int64_t *)left;
    int64_t b = *(const int64_t *)right;

    return (a > b) - (a < b);
}

static void series_print(struct series *series, const char *process, uint64_t bytes)
{
    qsort(series->ns, (size_t)series->count, sizeof(series->ns[0]), ns_compare);
    printf("{\"times\": \"%s\", \"process\": \"%s\", \"mib\": %" PRIu64
           ", \"median_us\": %.1f, \"least_us\": %.1f, \"most_us\": %.1f, \"samples\": %d}\n",
           series->name, process, bytes >> 20, (double)series->ns[series->count / 2] / 1e3,
           (double)series->ns[0] / 1e3, (double)series->ns[series->count - 1] / 1e3, series->count);
}

/* Time one call, which must work. */
#define TIMED(series, call, ...)                                            \
    do {                                                                    \
        int64_t timed_start = now_ns();                                     \
        int timed_result = driver->call(__VA_ARGS__);                       \
                                                                            \
        (series)->ns[(series)->count++ % SAMPLES] = now_ns() - timed_start; \
        if (timed_result != 0)                                              \
            die(#call, timed_result);                                       \
    } while (0)

static void fd_send(int socket, int fd)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.header = {.cmsg_level = SOL_SOCKET,
                            .cmsg_type = SCM_RIGHTS,
                            .cmsg_len = CMSG_LEN(sizeof(int))}};
    char byte = 0;
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof(control.bytes)};

    memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
    if (sendmsg(socket, &message, 0) != 1)
        die("sendmsg", errno);
}

static int fd_receive(int socket)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    char byte;
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof(control.bytes)};
    int fd = -1;

    if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1)
        exit(SKIPPED); /* the exporter has said why */
    memcpy(&fd, CMSG_DATA(&control.header), sizeof(fd));
    return fd;
}

static void wait_for_peer(int socket)
{
    char byte;

    if (read(socket, &byte, 1) < 0)
        die("read", errno);
}

static void exporter_run(int socket, uint64_t bytes, int count)
{
    struct series create = {.name = "create"};
    struct series export = {.name = "export"};
    struct series release = {.name = "release"};
    kvi_cu_handle *handles = calloc((size_t)count, sizeof(*handles));
    int *fds = calloc((size_t)count, sizeof(*fds));

    if (handles == NULL || fds == NULL)
        die("calloc", ENOMEM);
    device_open();
    for (int i = 0; i < count; i++)
        TIMED(&create, memory_create, &handles[i], bytes, &allocation, 0);
    for (int i = 0; i < count; i++)
        TIMED(&export, memory_export, &fds[i], handles[i], KVI_CU_HANDLE_POSIX_FD, 0);
    for (int i = 0; i < count; i++)
        fd_send(socket, fds[i]);
    wait_for_peer(socket);
    for (int i = 0; i < count; i++) {
        close(fds[i]);
        TIMED(&release, memory_release, handles[i]);
    }
    create.count = export.count = release.count = count < SAMPLES ? count : SAMPLES;
    series_print(&create, "exporter", bytes);
    series_print(&export, "exporter", bytes);
    series_print(&release, "exporter", bytes);
    free(handles);
    free(fds);
}

struct importer {
    uint64_t bytes;
    uint64_t base;
    kvi_cu_handle handles[ROW];
    struct series import, properties, map, read_only, upgrade, unmap, release;
};

static void range_access(struct series *series, uint64_t address, uint64_t bytes, int flags)
{
    struct kvi_cu_access access = {.location = allocation.location, .flags = flags};

    TIMED(series, set_access, address, bytes, &access, 1);
}

/* Each call SAMPLES times, of segments that stay mapped meanwhile. */
static void importer_samples(struct importer *one, const int *fds, int count)
{
    for (int i = 0; i < count; i++) {
        uint64_t at = one->base + (uint64_t)i * one->bytes;
        struct kvi_cu_allocation what;

        TIMED(&one->import, memory_import, &one->handles[i], (void *)(intptr_t)fds[i],
              KVI_CU_HANDLE_POSIX_FD);
        TIMED(&one->properties, memory_properties, &what, one->handles[i]);
        TIMED(&one->map, map, at, one->bytes, 0, one->handles[i], 0);
        range_access(&one->read_only, at, one->bytes, KVI_CU_ACCESS_READ);
        range_access(&one->upgrade, at, one->bytes, KVI_CU_ACCESS_READ_WRITE);
    }
    for (int i = 0; i < count; i++) {
        TIMED(&one->unmap, unmap, one->base + (uint64_t)i * one->bytes, one->bytes);
        TIMED(&one->release, memory_release, one->handles[i]);
    }
}

/* Import, map and access of `count` in a row; access one by one, or once over all. */
static void importer_row(struct importer *one, const int *fds, int count, bool at_once)
{
    struct series none = {.name = ""};
    int64_t start = now_ns();

    for (int i = 0; i < count; i++) {
        uint64_t at = one->base + (uint64_t)i * one->bytes;

        MUST(memory_import, &one->handles[i], (void *)(intptr_t)fds[i], KVI_CU_HANDLE_POSIX_FD);
        MUST(map, at, one->bytes, 0, one->handles[i], 0);
        if (!at_once)
            range_access(&none, at, one->bytes, KVI_CU_ACCESS_READ);
    }
    if (at_once)
        range_access(&none, one->base, (uint64_t)count * one->bytes, KVI_CU_ACCESS_READ);
    printf("{\"times\": \"import, map, access of %d%s\", \"mib\": %" PRIu64
           ", \"total_us\": %.1f, \"each_us\": %.1f}\n",
           count, at_once ? ", access at once" : "", one->bytes >> 20,
           (double)(now_ns() - start) / 1e3, (double)(now_ns() - start) / 1e3 / count);
    for (int i = 0; i < count; i++) {
        MUST(unmap, one->base + (uint64_t)i * one->bytes, one->bytes);
        MUST(memory_release, one->handles[i]);
    }
}

static void importer_run(int socket, uint64_t bytes, int count)
{
    struct importer one = {.bytes = bytes,
                           .import = {.name = "import"},
                           .properties = {.name = "properties"},
                           .map = {.name = "map"},
                           .read_only = {.name = "set_access, read"},
                           .upgrade = {.name = "set_access, read to read-write"},
                           .unmap = {.name = "unmap"},
                           .release = {.name = "release of an import"}};
    struct series *series[] = {&one.import,  &one.properties, &one.map,    &one.read_only,
                               &one.upgrade, &one.unmap,      &one.release};
    int fds[ROW];
    int samples = count < SAMPLES ? count : SAMPLES;

    for (int i = 0; i < count; i++)
        fds[i] = fd_receive(socket);
    device_open();
    MUST(address_reserve, &one.base, (uint64_t)count * bytes, 0, 0, 0);
    importer_samples(&one, fds, samples); /* the first of each call sets things up */
    for (size_t i = 0; i < sizeof(series) / sizeof(series[0]); i++)
        series[i]->count = 0;
    importer_samples(&one, fds, samples);
    for (size_t i = 0; i < sizeof(series) / sizeof(series[0]); i++)
        series_print(series[i], "importer", bytes);
    importer_row(&one, fds, count, false);
    importer_row(&one, fds, count, true);
}

static int times_run(void)
{
    uint64_t bytes = is_short ? UINT64_C(2) << 20 : UINT64_C(64) << 20;
    int count = is_short ? 8 : ROW;
    int status = 0;
    int ends[2];
    pid_t pid;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        return 1;
    fflush(stdout);
    pid = fork();
    if (pid == 0) {
        close(ends[0]);
        importer_run(ends[1], bytes, count);
        fflush(stdout);
        _exit(0);
    }
    close(ends[1]);
    exporter_run(ends[0], bytes, count);
    close(ends[0]);
    if (pid < 0 || waitpid(pid, &status, 0) < 0)
        return 1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

int main(int argument_count, char **arguments)
{
    const char *what = argument_count > 1 ? arguments[1] : "";
    int status = 0;

    is_short = argument_count < 2;
    if (strcmp(what, "times") != 0)
        status = walks_run(argument_count > 2 ? arguments[2] : "");
    if (status != SKIPPED && strcmp(what, "walk") != 0)
        status = times_run();
    return status == SKIPPED ? SKIPPED : 0;
}
