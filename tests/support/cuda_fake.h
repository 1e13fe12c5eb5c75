/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of the CUDA backend on the fake driver (fake_cuda/fake_cuda.h), and what holds around
 * each: the caller has a context of its own current, on another device, and still has it at the
 * end; the driver holds nothing; nothing was asked of it that it may not be asked.
 */
#ifndef KVT_CUDA_FAKE_H
#define KVT_CUDA_FAKE_H

#include "backend/cuda_driver.h"
#include "support/cuda_device.h"
#include "support/fake_cuda/fake_cuda.h"

extern struct fake_cuda_control *kvt_fake;
extern const struct kvi_cuda_driver *kvt_fake_driver;

/* Where it is. Static storage. */
const char *kvt_fake_path(void);

/* Open it, make kvt_cuda and its factories use it and `fail`, and a context the caller's. */
void kvt_fake_open(void (*fail)(const char *file, int line, const char *message));

/* A function of the driver that the backend has no use for, into a pointer to such. */
void kvt_fake_function(void *member, const char *name);

/* Is the caller's context the current one? */
bool kvt_fake_context_is_callers(void);

/* Nothing is left in the driver, nothing was misused; else the test fails. */
void kvt_fake_quiet(void);

/* Open, one case, quiet. */
void kvt_fake_run(const struct kvt_backend_factory *factory, kvt_backend_case test_case,
                  void (*fail)(const char *file, int line, const char *message));

/* Let the nth call of `name` from now on fail once. */
void kvt_fake_fail(const char *name, uint64_t nth, int result);

#endif
