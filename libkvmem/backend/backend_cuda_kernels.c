/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA backend's kernels: loaded once an instance, into its context, unloaded with it.
 *
 *   NONE ──▶ READY     an instance that only imports, which is what an engine has, loads them when
 *    │                 it is created; another one (a test, never the daemon) at the first list
 *    └─────▶ ABSENT    the library was built without nvcc, or the device can run neither the
 *                      machine code nor the PTX: blocks and cells go by copies of the driver
 *
 * Loading takes milliseconds and may not happen while a stream is captured: so not when the first
 * list comes. And the driver loads lazily (since CUDA 11.7): a kernel's code may come with its
 * first launch only, which then waits for the whole context, so for streams that wait for fences
 * which this very thread is to signal. So each kernel is launched once, with nothing to do, when it
 * is loaded. Later launches take no lock.
 *
 * A long copy asks for shared memory that it does not use, so that only four of its thread blocks
 * are on an SM at a time: on an H100 it then takes 0.985 of what the driver's own copy of as many
 * bytes does, else 0.975. A list that L2 holds loses by it.
 */
#include <inttypes.h>
#include <string.h>

#include "backend/backend_cuda_internal.h"
#include "backend/kernels.h"
#include "util/error.h"

#define PIECE_MIN     4096u
#define PIECE_MAX     16384u
#define PIECES_PER_SM 8u /* so many at least, if the blocks can be cut so far */

/* The shared memory of an SM for which it was measured, as much as four thread blocks of 56 KiB and
 * the driver's 1 KiB each; and the pieces an SM from which it wins. */
#define SHARED_PER_SM      (228 * 1024)
#define COPY_SHARED_BYTES  (56u * 1024)
#define COPY_PIECES_PER_SM 24u

/* ---- loading, under cuda->lock, entered ---- */

static int kernels_failed(const struct kvi_backend_cuda *cuda, int result, const char *call)
{
    return kvi_cuda_failed(cuda->driver, result, KVMEM_E_DEVICE_FULL, "kernels", call);
}

static int functions_get(struct kvi_backend_cuda *cuda, struct kvi_backend_cuda_kernels *kernels)
{
    const struct {
        const char *name;
        kvi_cu_function *function;
    } wanted[] = {
        {KVI_KERNEL_COPY, &kernels->copy},
        {KVI_KERNEL_ZERO, &kernels->zero},
        {KVI_KERNEL_CELLS, &kernels->cells},
    };

    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
        int result =
            cuda->driver->module_function(wanted[i].function, kernels->module, wanted[i].name);

        if (result != 0)
            return kernels_failed(cuda, result, "cuModuleGetFunction");
    }
    return 0;
}

/* Shared memory for long copies, on devices that were seen to gain by it. */
static int copy_shared_set(struct kvi_backend_cuda *cuda, struct kvi_backend_cuda_kernels *kernels)
{
    int bytes = 0;
    int result =
        cuda->driver->device_attribute(&bytes, KVI_CU_ATTRIBUTE_SHARED_BYTES_PER_SM, cuda->device);

    if (result != 0)
        return kernels_failed(cuda, result, "cuDeviceGetAttribute");
    if (bytes != SHARED_PER_SM)
        return 0;
    result = cuda->driver->function_attribute(
        kernels->copy, KVI_CU_FUNCTION_DYNAMIC_SHARED_BYTES_MAX, COPY_SHARED_BYTES);
    if (result != 0)
        return kernels_failed(cuda, result, "cuFuncSetAttribute");
    kernels->copy_shared_bytes = COPY_SHARED_BYTES;
    return 0;
}

/* One launch of each with nothing to do. */
static int functions_warm(struct kvi_backend_cuda *cuda, struct kvi_backend_cuda_kernels *kernels)
{
    static const struct kvi_kernel_blocks no_blocks;
    uint64_t nowhere = 0;
    uint32_t none = 0;
    void *blocks[] = {(void *)&no_blocks};
    void *cells[] = {&nowhere, &nowhere, &none};
    const struct {
        kvi_cu_function function;
        void **parameters;
    } launches[] = {{kernels->copy, blocks}, {kernels->zero, blocks}, {kernels->cells, cells}};

    for (size_t i = 0; i < sizeof(launches) / sizeof(launches[0]); i++) {
        int result = cuda->driver->launch(launches[i].function, 1, 1, 1, KVI_KERNEL_THREADS, 1, 1,
                                          0, NULL, launches[i].parameters, NULL);

        if (result != 0)
            return kernels_failed(cuda, result, "cuLaunchKernel");
    }
    return 0;
}

/* The device, or the driver, is made for other code than ours. */
static bool code_does_not_fit(int result)
{
    return result == KVI_CU_INVALID_PTX || result == KVI_CU_NO_BINARY_FOR_GPU ||
           result == KVI_CU_UNSUPPORTED_PTX_VERSION || result == KVI_CU_JIT_COMPILER_NOT_FOUND;
}

static int kernels_open(struct kvi_backend_cuda *cuda, struct kvi_backend_cuda_kernels *kernels)
{
    int result = cuda->driver->device_attribute(
        &kernels->sm_count, KVI_CU_ATTRIBUTE_MULTIPROCESSOR_COUNT, cuda->device);
    int rc;

    if (result != 0)
        return kernels_failed(cuda, result, "cuDeviceGetAttribute");
    result = kvi_kernels_image_bytes == 0
                 ? KVI_CU_NO_BINARY_FOR_GPU
                 : cuda->driver->module_load(&kernels->module, kvi_kernels_image, 0, NULL, NULL);
    if (code_does_not_fit(result)) {
        kernels->module = NULL;
        return 0;
    }
    if (result != 0)
        return kernels_failed(cuda, result, "cuModuleLoadDataEx");
    rc = functions_get(cuda, kernels);
    if (rc == 0)
        rc = copy_shared_set(cuda, kernels);
    if (rc == 0)
        rc = functions_warm(cuda, kernels);
    if (rc < 0)
        (void)cuda->driver->module_unload(kernels->module);
    return rc;
}

int kvi_backend_cuda_kernels_load(struct kvi_backend_cuda *cuda)
{
    struct kvi_backend_cuda_kernels kernels = {0};
    int rc = kvi_backend_cuda_lock(cuda, "kernels");

    if (rc < 0)
        return rc;
    if (cuda->kernels.state == KVI_KERNELS_NONE) {
        rc = kernels_open(cuda, &kernels);
        if (rc == 0) {
            enum kvi_backend_cuda_kernels_state state =
                kernels.module != NULL ? KVI_KERNELS_READY : KVI_KERNELS_ABSENT;

            kernels.state = cuda->kernels.state;
            cuda->kernels = kernels;
            /* The functions before the state, for kvi_backend_cuda_kernels_state(). */
            __atomic_store_n(&cuda->kernels.state, state, __ATOMIC_RELEASE);
        }
    }
    kvi_backend_cuda_unlock(cuda);
    return rc;
}

void kvi_backend_cuda_kernels_fini(struct kvi_backend_cuda *cuda)
{
    if (cuda->kernels.module != NULL)
        (void)cuda->driver->module_unload(cuda->kernels.module);
}

/* ---- launches, entered ---- */

struct shape {
    uint32_t groups;
    uint32_t shared_bytes; /* a group */
};

static int launch(struct kvi_backend_cuda *cuda, kvi_cu_function function, struct shape shape,
                  kvi_cu_stream stream, void **parameters, const char *operation)
{
    int result = cuda->driver->launch(function, shape.groups, 1, 1, KVI_KERNEL_THREADS, 1, 1,
                                      shape.shared_bytes, stream, parameters, NULL);

    if (result != 0)
        return kvi_cuda_failed(cuda->driver, result, KVMEM_E_SYSTEM, operation, "cuLaunchKernel");
    return 0;
}

/* Pieces as long as may be with enough of them for all SMs. */
static void pieces_choose(const struct kvi_backend_cuda *cuda, struct kvi_kernel_blocks *list)
{
    uint64_t wanted = (uint64_t)cuda->kernels.sm_count * PIECES_PER_SM;
    uint32_t piece_bytes = PIECE_MAX;

    while (piece_bytes > PIECE_MIN && list->bytes / piece_bytes * list->count < wanted)
        piece_bytes /= 2;
    list->piece_bytes = piece_bytes;
    list->pieces = (uint32_t)((list->bytes + piece_bytes - 1) / piece_bytes);
}

/* A thread block a piece: as many as an SM holds, each with several, lose 3 % to the last ones. */
static int blocks_launch(struct kvi_backend_cuda *cuda, struct kvi_kernel_blocks *list, bool zero,
                         kvi_cu_stream stream)
{
    const struct kvi_backend_cuda_kernels *kernels = &cuda->kernels;
    void *parameters[] = {list};
    struct shape shape = {0};

    pieces_choose(cuda, list);
    shape.groups = list->pieces * list->count;
    if (!zero && shape.groups >= (uint32_t)kernels->sm_count * COPY_PIECES_PER_SM)
        shape.shared_bytes = kernels->copy_shared_bytes;
    return launch(cuda, zero ? kernels->zero : kernels->copy, shape, stream, parameters, "blocks");
}

int kvi_backend_cuda_kernels_blocks(struct kvi_backend_cuda *cuda,
                                    const struct kvi_backend_blocks *list, kvi_cu_stream stream)
{
    struct kvi_kernel_blocks one;
    int rc = 0;

    one.to_base = list->to_base;
    one.from_base = list->from_base;
    one.stride_bytes = list->stride_bytes;
    one.bytes = list->bytes;
    one.reserved = 0;
    for (uint32_t at = 0; at < list->count && rc == 0; at += one.count) {
        uint32_t left = list->count - at;

        one.count = left < KVI_KERNEL_BLOCKS ? left : KVI_KERNEL_BLOCKS;
        memcpy(one.to, list->to + at, one.count * sizeof(*one.to));
        if (list->from != NULL)
            memcpy(one.from, list->from + at, one.count * sizeof(*one.from));
        rc = blocks_launch(cuda, &one, list->from == NULL, stream);
    }
    return rc;
}

int kvi_backend_cuda_kernels_cells(struct kvi_backend_cuda *cuda, uint64_t base,
                                   kvi_cu_address cells, uint32_t count, kvi_cu_stream stream)
{
    void *parameters[] = {&base, &cells, &count};

    struct shape shape = {.groups = (count - 1) / KVI_KERNEL_THREADS + 1};

    return launch(cuda, cuda->kernels.cells, shape, stream, parameters, "cells");
}
