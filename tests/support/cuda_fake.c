/* SPDX-License-Identifier: Apache-2.0
 *
 * The frame of tests on the fake CUDA driver. See cuda_fake.h.
 */
#include "support/cuda_fake.h"

#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "support/spawn.h"
#include "util/error.h"

struct fake_cuda_control *kvt_fake;
const struct kvi_cuda_driver *kvt_fake_driver;

static kvi_cu_context callers_context;

const char *kvt_fake_path(void)
{
    static char path[512];

    snprintf(path, sizeof(path), "%s", kvt_program_path("tests/fake_cuda/libcuda.so.1"));
    return path;
}

void kvt_fake_open(void (*fail)(const char *file, int line, const char *message))
{
    const char *path = kvt_fake_path();
    void *library = dlopen(path, RTLD_NOW);

    kvt_fake = library != NULL ? dlsym(library, FAKE_CUDA_CONTROL) : NULL;
    if (kvt_fake == NULL)
        kvt_die("no fake driver: %s", dlerror());
    kvt_cuda.driver_path = path;
    kvt_cuda_factory.fail = fail;
    kvt_cuda_fault_factory.fail = fail;
    if (kvi_cuda_driver_open(path, &kvt_fake_driver) < 0)
        kvt_die("%s", kvmem_error_detail()->text);
    if (kvt_fake_driver->context_retain(&callers_context, 1) != 0 ||
        kvt_fake_driver->context_push(callers_context) != 0)
        kvt_die("the fake driver has no context for the caller");
}

void kvt_fake_function(void *member, const char *name)
{
    void *function = kvi_cuda_driver_symbol(kvt_fake_driver, name);

    if (function == NULL)
        kvt_die("the fake driver has no %s", name);
    memcpy(member, &function, sizeof(function));
}

bool kvt_fake_context_is_callers(void)
{
    int (*current)(kvi_cu_context * out);
    kvi_cu_context context = NULL;

    kvt_fake_function(&current, "cuCtxGetCurrent");
    return current(&context) == 0 && context == callers_context;
}

void kvt_fake_quiet(void)
{
    const struct fake_cuda_control *fake = kvt_fake;
    char message[256];

    snprintf(message, sizeof(message),
             "the fake driver: misuse %" PRIu64 " (%s), handles %" PRIu64 ", objects %" PRIu64
             ", reservations %" PRIu64 ", mappings %" PRIu64 ", registrations %" PRIu64
             ", allocations %" PRIu64 ", contexts %" PRIu64 " of 1, queued %" PRIu64 "%s",
             fake->misuse, fake->misused, fake->handle_refs, fake->objects, fake->reservations,
             fake->mappings, fake->registrations, fake->allocations, fake->context_refs,
             fake->queued, kvt_fake_context_is_callers() ? "" : ", another context is current");
    if (fake->misuse != 0 || fake->handle_refs != 0 || fake->objects != 0 ||
        fake->reservations != 0 || fake->mappings != 0 || fake->registrations != 0 ||
        fake->allocations != 0 || fake->context_refs != 1 || fake->queued != 0 ||
        !kvt_fake_context_is_callers())
        kvt_cuda_factory.fail(__FILE__, __LINE__, message);
}

void kvt_fake_run(const struct kvt_backend_factory *factory, kvt_backend_case test_case,
                  void (*fail)(const char *file, int line, const char *message))
{
    kvt_fake_open(fail);
    kvt_backend_run(factory, test_case);
    kvt_fake_quiet();
}

void kvt_fake_fail(const char *name, uint64_t nth, int result)
{
    kvt_fake->fail_name = name;
    kvt_fake->fail_nth = nth;
    kvt_fake->fail_result = result;
    kvt_fake->fail_always = false;
}
