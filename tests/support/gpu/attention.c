/* SPDX-License-Identifier: Apache-2.0
 *
 * attention.h: copies are done on return, so that no stream has to wait for another.
 */
#include "support/gpu/attention.h"

#include "support/gpu/gpu.h"

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
