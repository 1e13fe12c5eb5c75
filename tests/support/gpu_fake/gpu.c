/* SPDX-License-Identifier: Apache-2.0
 *
 * gpu.h on the fake driver. Memory of the test's own is main memory.
 */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/cuda_driver.h"
#include "support/gpu_fake/fake_gpu.h"
#include "support/spawn.h"

#define DRAIN_NS    50000
#define GRAPH_LIMIT 16
#define NOT_READY   600
#define DRIVER      "devices=2 granule=65536 bytes=4294967296"

static const struct kvi_cuda_driver *driver;
static int current_device;
static fake_cuda_launch_function *launch;
static int (*stream_create)(kvi_cu_stream *out, unsigned flags);
static int (*stream_destroy)(kvi_cu_stream stream);
static int (*stream_query)(kvi_cu_stream stream);

/* ---- the driver ---- */

/* Start again with the fake driver where dlopen looks first: for processes started here too. */
static void become_faked(void)
{
    static char text[8192];
    char *arguments[64], path[512];
    size_t bytes, count = 0;
    FILE *file = fopen("/proc/self/cmdline", "r");

    snprintf(path, sizeof(path), "%s", kvt_program_path("tests/fake_cuda"));
    if (getenv("LD_LIBRARY_PATH") && strstr(getenv("LD_LIBRARY_PATH"), path)) {
        if (file)
            fclose(file);
        return;
    }
    if (!file)
        kvt_die("/proc/self/cmdline: %s", strerror(errno));
    bytes = fread(text, 1, sizeof(text) - 1, file);
    fclose(file);
    for (char *at = text; at < text + bytes && count < 63; at += strlen(at) + 1)
        arguments[count++] = at;
    arguments[count] = NULL;
    setenv("LD_LIBRARY_PATH", path, 1);
    setenv("KVMEM_FAKE_CUDA", DRIVER, 0);
    execv("/proc/self/exe", arguments);
    kvt_die("execv: %s", strerror(errno));
}

static void function_of(void *member, const char *name)
{
    void *function = kvi_cuda_driver_symbol(driver, name);

    if (!function)
        kvt_die("the fake driver has no %s", name);
    memcpy(member, &function, sizeof(function));
}

/* What a GPU does by itself: get on with what its streams hold. */
static void *device_thread(void *unused)
{
    (void)unused;
    for (;;) {
        (void)stream_query(NULL);
        kvt_sleep_ns(DRAIN_NS);
    }
    return NULL;
}

static void driver_open(void)
{
    pthread_t thread;
    void *library, *hook;

    if (driver)
        return;
    if (kvi_cuda_driver_open(NULL, &driver) < 0)
        kvt_die("no fake driver: is tests/fake_cuda built?");
    library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    hook = library ? dlsym(library, FAKE_CUDA_LAUNCH) : NULL;
    if (!hook)
        kvt_die("this libcuda.so.1 is not the fake one");
    memcpy(&launch, &hook, sizeof(hook));
    function_of(&stream_create, "cuStreamCreate");
    function_of(&stream_destroy, "cuStreamDestroy");
    function_of(&stream_query, "cuStreamQuery");
    if (driver->init(0) || pthread_create(&thread, NULL, device_thread, NULL))
        kvt_die("cuInit or pthread_create");
    pthread_detach(thread);
}

/* ---- launches, and graphs of them ---- */

struct node {
    fake_cuda_kernel kernel;
    void *data;
    size_t bytes;
};

struct graph {
    size_t count;
    struct node nodes[GRAPH_LIMIT];
};

static struct graph *capturing;
static void *captured_stream;

static void *copy_of(const void *data, size_t bytes)
{
    void *copy = malloc(bytes);

    if (!copy)
        kvt_die("no memory");
    return memcpy(copy, data, bytes);
}

void kvt_fake_gpu_launch(void *stream, fake_cuda_kernel kernel, const void *data, size_t bytes)
{
    if (!capturing || stream != captured_stream) {
        launch(stream, kernel, copy_of(data, bytes));
        return;
    }
    if (capturing->count == GRAPH_LIMIT)
        kvt_die("more than %d nodes in a graph", GRAPH_LIMIT);
    capturing->nodes[capturing->count++] = (struct node){kernel, copy_of(data, bytes), bytes};
}

/* What the library launches meanwhile is not captured but carried out. */
void kvt_gpu_capture_begin(void *stream)
{
    capturing = calloc(1, sizeof(*capturing));
    captured_stream = stream;
    if (!capturing)
        kvt_die("no memory");
}

void *kvt_gpu_capture_end(void *stream, struct kvt_gpu_nodes *nodes)
{
    struct graph *graph = capturing;

    (void)stream;
    capturing = NULL;
    if (nodes)
        *nodes = (struct kvt_gpu_nodes){graph->count, graph->count};
    return graph;
}

void kvt_gpu_graph_launch(void *graph, void *stream)
{
    const struct graph *what = graph;

    for (size_t i = 0; i < what->count; i++)
        kvt_fake_gpu_launch(stream, what->nodes[i].kernel, what->nodes[i].data,
                            what->nodes[i].bytes);
}

void kvt_gpu_graph_drop(void *graph)
{
    struct graph *what = graph;

    for (size_t i = 0; i < what->count; i++)
        free(what->nodes[i].data);
    free(what);
}

/* ---- devices ---- */

bool kvt_gpu_is_fake(void)
{
    return true;
}

const char *kvt_gpu_missing(void)
{
    become_faked();
    return NULL;
}

int kvt_gpu_count(void)
{
    int count = 0;

    driver_open();
    return driver->device_count(&count) == 0 ? count : 0;
}

int kvt_gpu_ordinal(void)
{
    return 0;
}

void kvt_gpu_use(int device)
{
    kvi_cu_context context = NULL;

    driver_open();
    if (driver->context_retain(&context, device) || driver->context_push(context))
        kvt_die("no context on device %d", device);
    current_device = device;
}

int kvt_gpu_current(void)
{
    return current_device;
}

uint64_t kvt_gpu_free_bytes(void)
{
    return kvt_gpu_total_bytes();
}

uint64_t kvt_gpu_total_bytes(void)
{
    return UINT64_C(4) << 30;
}

const char *kvt_gpu_result_name(int result)
{
    return result == 0 ? "success" : "an error of the fake driver";
}

/* ---- memory ---- */

static void *pages(uint64_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        kvt_die("mmap of %llu bytes: %s", (unsigned long long)bytes, strerror(errno));
    return memory;
}

void *kvt_gpu_alloc(uint64_t bytes)
{
    return pages(bytes);
}

int kvt_gpu_try_alloc(uint64_t bytes, void **out)
{
    *out = pages(bytes);
    return 0;
}

void kvt_gpu_free(void *memory)
{
    (void)memory; /* until the process ends */
}

void *kvt_gpu_host_alloc(uint64_t bytes)
{
    return pages(bytes);
}

void kvt_gpu_host_free(void *memory)
{
    (void)memory;
}

void kvt_gpu_host_pin(void *memory, uint64_t bytes)
{
    (void)memory;
    (void)bytes;
}

/* ---- streams ---- */

void *kvt_gpu_stream_new(void)
{
    kvi_cu_stream stream = NULL;

    if (stream_create(&stream, 1))
        kvt_die("cuStreamCreate");
    return stream;
}

void kvt_gpu_stream_drop(void *stream)
{
    (void)stream_destroy(stream);
}

bool kvt_gpu_is_done(void *stream)
{
    int result = stream_query(stream);

    if (result != 0 && result != NOT_READY)
        kvt_die("cuStreamQuery: %d", result);
    return result == 0;
}

bool kvt_gpu_done_within(void *stream, int64_t limit_ns)
{
    uint64_t end_ns = kvt_now_ns() + (uint64_t)limit_ns;

    while (!kvt_gpu_is_done(stream)) {
        if (kvt_now_ns() > end_ns)
            return false;
        kvt_sleep_ns(DRAIN_NS);
    }
    return true;
}

void kvt_gpu_sync(void *stream)
{
    if (!kvt_gpu_done_within(stream, KVT_MS(60000)))
        kvt_die("a stream does not end");
}

int kvt_gpu_try_sync(void *stream)
{
    kvt_gpu_sync(stream);
    return 0;
}

/* ---- events ---- */

struct event {
    uint64_t recorded_ns; /* 0: not yet */
};

static bool event_run(void *data)
{
    struct event *event = *(struct event **)data;

    __atomic_store_n(&event->recorded_ns, kvt_now_ns(), __ATOMIC_RELEASE);
    return true;
}

void *kvt_gpu_event_new(void)
{
    return pages(sizeof(struct event));
}

void kvt_gpu_event_drop(void *event)
{
    munmap(event, sizeof(struct event));
}

void kvt_gpu_event_record(void *event, void *stream)
{
    __atomic_store_n(&((struct event *)event)->recorded_ns, 0, __ATOMIC_RELEASE);
    kvt_fake_gpu_launch(stream, event_run, &event, sizeof(event));
}

void kvt_gpu_event_sync(void *event)
{
    while (!__atomic_load_n(&((struct event *)event)->recorded_ns, __ATOMIC_ACQUIRE))
        kvt_sleep_ns(DRAIN_NS);
}

double kvt_gpu_event_us(void *from, void *to)
{
    const struct event *first = from, *second = to;

    return (double)(second->recorded_ns - first->recorded_ns) / 1e3;
}

/* ---- copies ---- */

struct copy {
    void *to;
    const void *from; /* NULL: fill with `byte` */
    uint64_t bytes;
    int byte;
};

static bool copy_run(void *data)
{
    const struct copy *copy = data;

    if (copy->from)
        memcpy(copy->to, copy->from, copy->bytes);
    else
        memset(copy->to, copy->byte, copy->bytes);
    return true;
}

void kvt_gpu_copy(void *to, const void *from, uint64_t bytes, void *stream)
{
    struct copy copy = {to, from, bytes, 0};

    kvt_fake_gpu_launch(stream, copy_run, &copy, sizeof(copy));
}

void kvt_gpu_set(void *to, int byte, uint64_t bytes, void *stream)
{
    struct copy copy = {to, NULL, bytes, byte};

    kvt_fake_gpu_launch(stream, copy_run, &copy, sizeof(copy));
}
