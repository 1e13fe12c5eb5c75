/* SPDX-License-Identifier: Apache-2.0
 *
 * attention.h: copies are done on return, so that no stream has to wait for another.
 */
#include "support/gpu/attention.h"

#include <stdlib.h>

#include "backend/cuda_driver.h"
#include "support/attention_scene.h"
#include "support/gpu/gpu.h"
#include "support/spawn.h"

static void *alloc(uint64_t bytes)
{
    void *memory;

    return kvt_gpu_try_alloc(bytes, &memory) ? NULL : memory;
}

static void release(void *memory)
{
    if (memory)
        kvt_gpu_free(memory);
}

static void copy(void *to, const void *from, uint64_t bytes)
{
    kvt_gpu_copy(to, from, bytes, NULL);
    kvt_gpu_sync(NULL);
}

static void set(void *to, int byte, uint64_t bytes)
{
    kvt_gpu_set(to, byte, bytes, NULL);
    kvt_gpu_sync(NULL);
}

struct kvt_memory kvt_gpu_attention_memory(void *stream)
{
    return (struct kvt_memory){.name = "gpu",
                               .device = KVA_DEVICE_CUDA,
                               .alloc = alloc,
                               .release = release,
                               .put = copy,
                               .get = copy,
                               .set = set,
                               .sync = kvt_gpu_try_sync,
                               .stream = stream};
}

/* ---- a range of addresses with holes ---- */

#define GRANULE (UINT64_C(2) << 20)

static const struct kvi_cuda_driver *driver;

static struct {
    char *base;
    uint64_t bytes;
    bool *is_backed; /* by granule */
} span;

static void must(int result, const char *call)
{
    if (result)
        kvt_die("%s: %s (%d)", call, kvi_cuda_result_name(driver, result), result);
}

static void *far_alloc(uint64_t bytes)
{
    kvi_cu_address address;

    if (bytes < KVT_GPU_FAR_BYTES)
        return alloc(bytes);
    if (span.base || kvi_cuda_driver_open(NULL, &driver) < 0)
        return NULL;
    bytes = (bytes + GRANULE - 1) / GRANULE * GRANULE;
    must(driver->address_reserve(&address, bytes, GRANULE, 0, 0), "cuMemAddressReserve");
    span.base = (char *)(uintptr_t)address;
    span.bytes = bytes;
    span.is_backed = kvt_attention_need(bytes / GRANULE * sizeof(bool));
    return span.base;
}

static void back(uint64_t granule)
{
    const struct kvi_cu_location here = {KVI_CU_LOCATION_DEVICE, kvt_gpu_current()};
    const struct kvi_cu_allocation allocation = {.type = KVI_CU_ALLOCATION_PINNED,
                                                 .location = here};
    const struct kvi_cu_access access = {here, KVI_CU_ACCESS_READ_WRITE};
    kvi_cu_address address = (uintptr_t)span.base + granule * GRANULE;
    kvi_cu_handle handle;

    must(driver->memory_create(&handle, GRANULE, &allocation, 0), "cuMemCreate");
    must(driver->map(address, GRANULE, 0, handle, 0), "cuMemMap");
    must(driver->set_access(address, GRANULE, &access, 1), "cuMemSetAccess");
    must(driver->memory_release(handle), "cuMemRelease");
    set((void *)(uintptr_t)address, 0xff, GRANULE);
    span.is_backed[granule] = true;
}

static void far_put(void *to, const void *from, uint64_t bytes)
{
    uint64_t at = (uint64_t)((char *)to - span.base);

    if (span.base && (char *)to >= span.base && at < span.bytes)
        for (uint64_t g = at / GRANULE; g <= (at + bytes - 1) / GRANULE; g++)
            if (!span.is_backed[g])
                back(g);
    copy(to, from, bytes);
}

static void far_release(void *memory)
{
    if (!memory || memory != span.base) {
        release(memory);
        return;
    }
    for (uint64_t g = 0; g < span.bytes / GRANULE; g++)
        if (span.is_backed[g])
            must(driver->unmap((uintptr_t)span.base + g * GRANULE, GRANULE), "cuMemUnmap");
    must(driver->address_free((uintptr_t)span.base, span.bytes), "cuMemAddressFree");
    free(span.is_backed);
    span.base = NULL;
}

struct kvt_memory kvt_gpu_attention_far_memory(void *stream)
{
    struct kvt_memory memory = kvt_gpu_attention_memory(stream);

    memory.alloc = far_alloc;
    memory.put = far_put;
    memory.release = far_release;
    return memory;
}
