/* SPDX-License-Identifier: Apache-2.0
 *
 * The fake driver's streams and pinned host memory. See fake_cuda.h.
 *
 *   queue   operations of all streams in the order of their calls. Each call looks through it:
 *           an operation runs unless one of its stream before it is held back. So a stream whose
 *           wait is not over stands still until a later call finds it over.
 */
#include <stdlib.h>
#include <string.h>

#include "support/fake_cuda/fake_internal.h"

#define STREAMS_MAX 256

enum fake_kind {
    FAKE_COPY,
    FAKE_FILL,
    FAKE_KERNEL,
    FAKE_TEST_KERNEL,
    FAKE_WRITE,
    FAKE_WAIT,
};

struct fake_operation {
    struct fake_operation *next;
    kvi_cu_stream stream;
    enum fake_kind kind;
    void *to;             /* or the counter */
    const void *from;     /* or the kernel */
    fake_cuda_kernel run; /* or the test's */
    void *staged;         /* a copy of host memory as it was, `from` points to it; or parameters */
    size_t bytes;
    size_t pattern; /* bytes of the value that a fill repeats */
    uint64_t value;
};

struct fake_registration {
    struct fake_registration *next;
    uint64_t start;
    uint64_t bytes;
};

static struct fake_operation *queue;
static struct fake_registration *registrations;

static void *zeroed(size_t bytes)
{
    void *memory = calloc(1, bytes);

    if (memory == NULL)
        abort();
    return memory;
}

/* ---- the queue ---- */

/* `bytes` of the low `pattern` bytes of value, over and over. */
static void fill(void *to, size_t bytes, size_t pattern, uint64_t value)
{
    for (size_t at = 0; at < bytes; at += pattern)
        memcpy((char *)to + at, &value, pattern);
}

static bool operation_run(const struct fake_operation *one)
{
    uint64_t *counter = one->to;

    switch (one->kind) {
    case FAKE_COPY: memcpy(one->to, one->from, one->bytes); return true;
    case FAKE_FILL: fill(one->to, one->bytes, one->pattern, one->value); return true;
    case FAKE_KERNEL: fake_kernel_run(one->from, one->staged); return true;
    case FAKE_TEST_KERNEL: return one->run(one->staged);
    case FAKE_WRITE: __atomic_store_n(counter, one->value, __ATOMIC_RELEASE); return true;
    case FAKE_WAIT: return (int64_t)(__atomic_load_n(counter, __ATOMIC_ACQUIRE) - one->value) >= 0;
    }
    return true;
}

static bool stream_in(const kvi_cu_stream *streams, size_t count, kvi_cu_stream stream)
{
    for (size_t i = 0; i < count; i++)
        if (streams[i] == stream)
            return true;
    return false;
}

/* Run what can run. An operation of one stream may end another's wait: until nothing moves. */
void fake_queue_drain(void)
{
    bool moved = true;

    while (moved) {
        kvi_cu_stream held[STREAMS_MAX];
        size_t held_count = 0;
        struct fake_operation **at = &queue;

        moved = false;
        while (*at != NULL) {
            struct fake_operation *one = *at;

            if (!stream_in(held, held_count, one->stream) && operation_run(one)) {
                *at = one->next;
                free(one->staged);
                free(one);
                fake_cuda_control.queued--;
                moved = true;
                continue;
            }
            if (!stream_in(held, held_count, one->stream) && held_count < STREAMS_MAX)
                held[held_count++] = one->stream;
            at = &one->next;
        }
    }
}

static void queue_add(const struct fake_operation *what)
{
    struct fake_operation *one = zeroed(sizeof(*one));
    struct fake_operation **at = &queue;

    *one = *what;
    while (*at != NULL)
        at = &(*at)->next;
    *at = one;
    fake_cuda_control.queued++;
    fake_queue_drain();
}

void fake_kernel_add(kvi_cu_stream stream, const void *function, void *parameters)
{
    struct fake_operation one = {
        .stream = stream, .kind = FAKE_KERNEL, .from = function, .staged = parameters};

    queue_add(&one);
}

void fake_cuda_launch(void *stream, fake_cuda_kernel kernel, void *data)
{
    struct fake_operation one = {
        .stream = stream, .kind = FAKE_TEST_KERNEL, .run = kernel, .staged = data};

    if (fake_enter(FAKE_CUDA_LAUNCH) != 0)
        abort();
    queue_add(&one);
    fake_leave();
}

/* ---- copies ---- */

static int copy_add(const char *name, const struct fake_operation *what, uint64_t to, uint64_t from)
{
    int result = 0;

    if (fake_current_device() < 0)
        result = fake_misused(name, KVI_CU_INVALID_CONTEXT);
    else if ((to != 0 && !fake_range_ok(to, what->bytes, true)) ||
             (from != 0 && !fake_range_ok(from, what->bytes, false)))
        result = fake_misused(name, KVI_CU_INVALID_VALUE);
    else
        queue_add(what);
    fake_leave();
    return result;
}

int fake_copy_device(kvi_cu_address to, kvi_cu_address from, size_t bytes, kvi_cu_stream stream)
{
    struct fake_operation one = {.stream = stream,
                                 .kind = FAKE_COPY,
                                 .to = (void *)(uintptr_t)to,
                                 .from = (const void *)(uintptr_t)from,
                                 .bytes = bytes};
    int result = fake_enter("cuMemcpyDtoDAsync");

    return result != 0 ? result : copy_add("cuMemcpyDtoDAsync", &one, to, from);
}

int fake_copy_in(kvi_cu_address to, const void *from, size_t bytes, kvi_cu_stream stream)
{
    struct fake_operation one = {
        .stream = stream, .kind = FAKE_COPY, .to = (void *)(uintptr_t)to, .bytes = bytes};
    int result = fake_enter("cuMemcpyHtoDAsync");

    if (result != 0)
        return result;
    one.staged = zeroed(bytes);
    memcpy(one.staged, from, bytes);
    one.from = one.staged;
    result = copy_add("cuMemcpyHtoDAsync", &one, to, 0);
    if (result != 0)
        free(one.staged);
    return result;
}

int fake_copy_out(void *to, kvi_cu_address from, size_t bytes, kvi_cu_stream stream)
{
    struct fake_operation one = {.stream = stream,
                                 .kind = FAKE_COPY,
                                 .to = to,
                                 .from = (const void *)(uintptr_t)from,
                                 .bytes = bytes};
    int result = fake_enter("cuMemcpyDtoHAsync");

    return result != 0 ? result : copy_add("cuMemcpyDtoHAsync", &one, 0, from);
}

int fake_fill_8(kvi_cu_address to, unsigned char value, size_t bytes, kvi_cu_stream stream)
{
    struct fake_operation one = {.stream = stream,
                                 .kind = FAKE_FILL,
                                 .to = (void *)(uintptr_t)to,
                                 .bytes = bytes,
                                 .pattern = 1,
                                 .value = value};
    int result = fake_enter("cuMemsetD8Async");

    return result != 0 ? result : copy_add("cuMemsetD8Async", &one, to, 0);
}

int fake_fill_32(kvi_cu_address to, unsigned value, size_t count, kvi_cu_stream stream)
{
    struct fake_operation one = {.stream = stream,
                                 .kind = FAKE_FILL,
                                 .to = (void *)(uintptr_t)to,
                                 .bytes = count * sizeof(value),
                                 .pattern = sizeof(value),
                                 .value = value};
    int result = fake_enter("cuMemsetD32Async");

    return result != 0 ? result : copy_add("cuMemsetD32Async", &one, to, 0);
}

/* ---- host memory ---- */

/* The registration with a byte in the range. */
static struct fake_registration **registration_in(uint64_t start, uint64_t bytes)
{
    struct fake_registration **at = &registrations;

    while (*at != NULL && ((*at)->start >= start + bytes || (*at)->start + (*at)->bytes <= start))
        at = &(*at)->next;
    return at;
}

bool fake_registered(uint64_t start, uint64_t bytes)
{
    const struct fake_registration *one = *registration_in(start, 1);

    return one != NULL && start + bytes <= one->start + one->bytes;
}

int fake_host_register(void *memory, size_t bytes, unsigned flags)
{
    int result = fake_enter("cuMemHostRegister");
    struct fake_registration *one;

    if (result != 0)
        return result;
    if (fake_current_device() < 0)
        result = fake_misused("cuMemHostRegister", KVI_CU_INVALID_CONTEXT);
    else if (flags != (KVI_CU_REGISTER_PORTABLE | KVI_CU_REGISTER_DEVICEMAP))
        result = fake_misused("cuMemHostRegister", KVI_CU_INVALID_VALUE);
    else if (*registration_in((uintptr_t)memory, bytes) != NULL)
        result = KVI_CU_HOST_MEMORY_ALREADY_REGISTERED;
    if (result == 0) {
        one = zeroed(sizeof(*one));
        *one = (struct fake_registration){registrations, (uintptr_t)memory, bytes};
        registrations = one;
        fake_cuda_control.registrations++;
    }
    fake_leave();
    return result;
}

int fake_host_unregister(void *memory)
{
    int result = fake_enter("cuMemHostUnregister");
    struct fake_registration **at;
    struct fake_registration *one;

    if (result != 0)
        return result;
    at = registration_in((uintptr_t)memory, 1);
    one = *at;
    if (fake_current_device() < 0 || one == NULL || one->start != (uintptr_t)memory) {
        result = fake_misused("cuMemHostUnregister", KVI_CU_HOST_MEMORY_NOT_REGISTERED);
    } else {
        *at = one->next;
        free(one);
        fake_cuda_control.registrations--;
    }
    fake_leave();
    return result;
}

int fake_host_address(kvi_cu_address *out, void *memory, unsigned flags)
{
    int result = fake_enter("cuMemHostGetDevicePointer");
    const struct fake_registration *one;

    if (result != 0)
        return result;
    one = *registration_in((uintptr_t)memory, 1);
    if (flags != 0 || fake_current_device() < 0 || one == NULL || one->start != (uintptr_t)memory)
        result = fake_misused("cuMemHostGetDevicePointer", KVI_CU_INVALID_VALUE);
    else
        *out = (uintptr_t)memory | FAKE_HOST_ALIAS;
    fake_leave();
    return result;
}

/* ---- stream operations ---- */

static int memory_operation(const char *name, kvi_cu_stream stream, enum fake_kind kind,
                            kvi_cu_address address, uint64_t value)
{
    uint64_t host = address & ~FAKE_HOST_ALIAS;
    struct fake_operation one = {
        .stream = stream, .kind = kind, .to = (void *)(uintptr_t)host, .value = value};
    int result = fake_enter(name);

    if (result != 0)
        return result;
    if (fake_current_device() < 0)
        result = fake_misused(name, KVI_CU_INVALID_CONTEXT);
    else if (!(address & FAKE_HOST_ALIAS) || address % 8 != 0 || *registration_in(host, 8) == NULL)
        result = fake_misused(name, KVI_CU_INVALID_VALUE);
    else
        queue_add(&one);
    fake_leave();
    return result;
}

int fake_stream_write_64(kvi_cu_stream stream, kvi_cu_address address, uint64_t value,
                         unsigned flags)
{
    (void)flags;
    return memory_operation("cuStreamWriteValue64", stream, FAKE_WRITE, address, value);
}

int fake_stream_wait_64(kvi_cu_stream stream, kvi_cu_address address, uint64_t value,
                        unsigned flags)
{
    (void)flags;
    return memory_operation("cuStreamWaitValue64", stream, FAKE_WAIT, address, value);
}

int fake_stream_create(kvi_cu_stream *out, unsigned flags)
{
    int result = fake_enter("cuStreamCreate");

    (void)flags;
    if (result != 0)
        return result;
    *out = zeroed(1);
    fake_leave();
    return 0;
}

int fake_stream_destroy(kvi_cu_stream stream)
{
    free(stream);
    return 0;
}

int fake_stream_query(kvi_cu_stream stream)
{
    int result = fake_enter("cuStreamQuery");

    if (result != 0)
        return result;
    fake_queue_drain();
    for (const struct fake_operation *one = queue; one != NULL; one = one->next)
        if (one->stream == stream)
            result = FAKE_NOT_READY;
    fake_leave();
    return result;
}
