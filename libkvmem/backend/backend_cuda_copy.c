/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA backend's copies and fences, all asynchronous on the caller's stream.
 *
 * Ranges are looked up in the books under their own lock and the driver is called without any:
 * the caller keeps the ranges mapped meanwhile. Host memory of a copy that is not pinned goes
 * through the driver's staging: it may be reused on return after copy_in, and copy_out returns
 * when the bytes are there. Pinned memory is in use until the stream is past the copy.
 *
 * A fence is a stream operation on the counter's device address: the write comes after
 * everything before it on the stream, with a memory barrier; the wait compares cyclically,
 * (int64_t)(counter − value) >= 0, so values from 2^63 on are refused: such a wait would be over
 * at once, or never.
 */
#include <inttypes.h>

#include "backend/backend_cuda_internal.h"
#include "util/error.h"

static kvi_cu_stream stream_of(uint64_t stream)
{
    return (kvi_cu_stream)(uintptr_t)stream;
}

static int copy_done(struct kvi_backend_cuda *cuda, int result, const char *operation,
                     const char *call)
{
    kvi_backend_cuda_leave(cuda);
    if (result != 0)
        return kvi_cuda_failed(cuda->driver, result, KVMEM_E_SYSTEM, operation, call);
    return 0;
}

int kvi_backend_cuda_copy(struct kvi_backend *b, uint64_t to, uint64_t from, uint64_t bytes,
                          uint64_t stream)
{
    struct kvi_backend_cuda *cuda = kvi_backend_cuda_of(b);
    int rc = kvi_book_span_check(&cuda->book, to, bytes, KVI_ACCESS_RW, "copy");

    if (rc == 0)
        rc = kvi_book_span_check(&cuda->book, from, bytes, KVI_ACCESS_RO, "copy");
    if (rc == 0)
        rc = kvi_backend_cuda_enter(cuda, "copy");
    if (rc < 0)
        return rc;
    return copy_done(cuda, cuda->driver->copy_device(to, from, bytes, stream_of(stream)), "copy",
                     "cuMemcpyDtoDAsync");
}

int kvi_backend_cuda_copy_in(struct kvi_backend *b, uint64_t to, const void *from, uint64_t bytes,
                             uint64_t stream)
{
    struct kvi_backend_cuda *cuda = kvi_backend_cuda_of(b);
    int rc = kvi_book_span_check(&cuda->book, to, bytes, KVI_ACCESS_RW, "copy_in");

    if (rc == 0)
        rc = kvi_backend_cuda_enter(cuda, "copy_in");
    if (rc < 0)
        return rc;
    return copy_done(cuda, cuda->driver->copy_in(to, from, bytes, stream_of(stream)), "copy_in",
                     "cuMemcpyHtoDAsync");
}

int kvi_backend_cuda_copy_out(struct kvi_backend *b, void *to, uint64_t from, uint64_t bytes,
                              uint64_t stream)
{
    struct kvi_backend_cuda *cuda = kvi_backend_cuda_of(b);
    int rc = kvi_book_span_check(&cuda->book, from, bytes, KVI_ACCESS_RO, "copy_out");

    if (rc == 0)
        rc = kvi_backend_cuda_enter(cuda, "copy_out");
    if (rc < 0)
        return rc;
    return copy_done(cuda, cuda->driver->copy_out(to, from, bytes, stream_of(stream)), "copy_out",
                     "cuMemcpyDtoHAsync");
}

/* ---- fences ---- */

static int fence_check(struct kvi_backend_cuda *cuda, const uint64_t *counter, uint64_t value,
                       const char *operation, kvi_cu_address *out_address)
{
    if (value > KVI_BACKEND_CUDA_FENCE_VALUE_MAX)
        return kvi_error_set(KVMEM_E_INVALID,
                             "%s: value is %" PRIu64 ": want 0 to 2^63 - 1: the device compares "
                             "values cyclically",
                             operation, value);
    return kvi_backend_cuda_pin_find(cuda, counter, sizeof(*counter), operation, out_address);
}

int kvi_backend_cuda_fence_signal(struct kvi_backend *b, uint64_t *counter, uint64_t value,
                                  uint64_t stream)
{
    struct kvi_backend_cuda *cuda = kvi_backend_cuda_of(b);
    kvi_cu_address address = 0;
    int rc = fence_check(cuda, counter, value, "fence_signal", &address);
    int result;

    if (rc == 0)
        rc = kvi_backend_cuda_enter(cuda, "fence_signal");
    if (rc < 0)
        return rc;
    result = cuda->driver->stream_write_64(stream_of(stream), address, value,
                                           KVI_CU_WRITE_VALUE_DEFAULT);
    return copy_done(cuda, result, "fence_signal", "cuStreamWriteValue64");
}

int kvi_backend_cuda_fence_wait(struct kvi_backend *b, uint64_t *counter, uint64_t value,
                                uint64_t stream)
{
    struct kvi_backend_cuda *cuda = kvi_backend_cuda_of(b);
    kvi_cu_address address = 0;
    int rc = fence_check(cuda, counter, value, "fence_wait", &address);
    int result;

    if (rc < 0)
        return rc;
    /* Reached already: what is enqueued from now on runs after it, without the 1.2 µs. */
    if (kvi_backend_fence_poll(counter, value) == KVI_FENCE_REACHED)
        return KVI_FENCE_REACHED;
    rc = kvi_backend_cuda_enter(cuda, "fence_wait");
    if (rc < 0)
        return rc;
    result = cuda->driver->stream_wait_64(stream_of(stream), address, value, KVI_CU_WAIT_VALUE_GEQ);
    return copy_done(cuda, result, "fence_wait", "cuStreamWaitValue64");
}
