/* SPDX-License-Identifier: Apache-2.0
 *
 * Factories for the CUDA backend. See cuda_device.h.
 */
#include "support/cuda_device.h"

#include <stdlib.h>

#include "backend/backend_fault.h"

#define WRAPPED_MAX 16

struct kvt_cuda kvt_cuda;

const struct kvt_cuda_case kvt_cuda_cases[] = {
#define CASE_ROW(name) {#name, kvt_backend_##name},
    KVT_BACKEND_CASES(CASE_ROW)
#undef CASE_ROW
        {NULL, NULL},
};

static struct kvi_backend_cuda_options options_of(uint64_t bytes)
{
    return (struct kvi_backend_cuda_options){.options_bytes =
                                                 sizeof(struct kvi_backend_cuda_options),
                                             .device_index = kvt_cuda.device_index,
                                             .device_bytes = bytes,
                                             .driver_path = kvt_cuda.driver_path};
}

int kvt_cuda_query(struct kvi_backend_cuda_device *out)
{
    struct kvi_backend_cuda_options options = options_of(0);

    return kvi_backend_cuda_query(&options, out);
}

int kvt_cuda_open(uint64_t bytes, struct kvi_backend **out)
{
    struct kvi_backend_cuda_options options = options_of(bytes);

    return kvi_backend_cuda_create(&options, out);
}

static int cuda_create(void *context, uint64_t granules, struct kvi_backend **out)
{
    struct kvi_backend_cuda_device what;
    int rc = kvt_cuda_query(&what);

    (void)context;
    return rc < 0 ? rc : kvt_cuda_open(granules * what.granule_bytes, out);
}

static void cuda_destroy(void *context, struct kvi_backend *b)
{
    (void)context;
    kvi_backend_destroy(b);
}

static int cuda_check(void *context, struct kvi_backend *b)
{
    (void)context;
    return kvi_backend_cuda_check(b);
}

/* ---- the fault backend around it, which does not own what it wraps ---- */

static struct {
    struct kvi_backend *fault;
    struct kvi_backend *inner;
} wrapped[WRAPPED_MAX];

static size_t wrapped_find(const struct kvi_backend *fault)
{
    size_t at = 0;

    while (wrapped[at].fault != fault)
        if (++at == WRAPPED_MAX)
            abort();
    return at;
}

struct kvi_backend *kvt_cuda_fault_inner(const struct kvi_backend *fault)
{
    return wrapped[wrapped_find(fault)].inner;
}

static int fault_create(void *context, uint64_t granules, struct kvi_backend **out)
{
    struct kvi_backend *inner = NULL;
    int rc = cuda_create(context, granules, &inner);
    size_t at = wrapped_find(NULL);

    if (rc < 0)
        return rc;
    rc = kvi_backend_fault_create(inner, out);
    if (rc < 0) {
        kvi_backend_destroy(inner);
        return rc;
    }
    wrapped[at].fault = *out;
    wrapped[at].inner = inner;
    return 0;
}

static void fault_destroy(void *context, struct kvi_backend *b)
{
    size_t at = wrapped_find(b);

    (void)context;
    kvi_backend_destroy(b);
    kvi_backend_destroy(wrapped[at].inner);
    wrapped[at].fault = NULL;
    wrapped[at].inner = NULL;
}

static int fault_check(void *context, struct kvi_backend *b)
{
    (void)context;
    return kvi_backend_cuda_check(kvt_cuda_fault_inner(b));
}

struct kvt_backend_factory kvt_cuda_factory = {
    .create = cuda_create,
    .destroy = cuda_destroy,
    .check = cuda_check,
};

struct kvt_backend_factory kvt_cuda_fault_factory = {
    .create = fault_create,
    .destroy = fault_destroy,
    .check = fault_check,
};
