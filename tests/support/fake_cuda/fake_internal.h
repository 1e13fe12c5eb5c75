/* SPDX-License-Identifier: Apache-2.0
 *
 * What the fake driver's files share: fake_driver.c (symbols, devices, contexts),
 * fake_memory.c (handles, addresses), fake_stream.c (copies, stream operations, host memory) and
 * fake_kernel.c (modules, launches).
 *
 * One lock around every call; failures on order are looked at first.
 */
#ifndef KVT_FAKE_INTERNAL_H
#define KVT_FAKE_INTERNAL_H

#include <stddef.h>

#include "backend/cuda_driver.h"
#include "support/fake_cuda/fake_cuda.h"

#define FAKE_DEVICES_MAX 4
#define FAKE_HOST_ALIAS  (UINT64_C(1) << 62) /* the device's address of pinned host memory */
#define FAKE_NOT_FOUND   500
#define FAKE_NOT_READY   600
#define FAKE_EXPORT      __attribute__((visibility("default")))

extern struct fake_cuda_control fake_cuda_control;

/* Take the lock, unless this call is to fail: then its result, without the lock. */
int fake_enter(const char *name);
void fake_leave(void);

/* Note a misuse of `name`; returns `result`. Under the lock. */
int fake_misused(const char *name, int result);

/* The device of the current context, or −1. */
int fake_current_device(void);

/* Is the whole device range mapped, for reading or for writing? Under the lock. */
bool fake_range_ok(uint64_t address, uint64_t bytes, bool write);

/* Is the whole range host memory that was registered? Under the lock. */
bool fake_registered(uint64_t start, uint64_t bytes);

/* Run what no stream holds back. Under the lock. */
void fake_queue_drain(void);

/* Enqueue a launch; `parameters` is freed when it has run. Under the lock. */
void fake_kernel_add(kvi_cu_stream stream, const void *function, void *parameters);
void fake_kernel_run(const void *function, const void *parameters);

/* Parameters of KVI_KERNEL_CELLS. */
struct fake_kernel_cells {
    uint64_t base;
    uint64_t cells;
    uint32_t count;
};

#define FAKE_DECLARE(member, name, parameters) int fake_##member parameters;
KVI_CUDA_CALL_TABLE(FAKE_DECLARE)
#undef FAKE_DECLARE

int fake_context_current(kvi_cu_context *out);
int fake_stream_create(kvi_cu_stream *out, unsigned flags);
int fake_stream_destroy(kvi_cu_stream stream);
int fake_stream_query(kvi_cu_stream stream);

FAKE_EXPORT fake_cuda_launch_function fake_cuda_launch;
FAKE_EXPORT int cuDriverGetVersion(int *out_version);
FAKE_EXPORT int cuGetProcAddress_v2(const char *name, void **out, int version, uint64_t flags,
                                    int *out_status);

#endif
