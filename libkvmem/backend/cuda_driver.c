/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA driver, opened at run time: see cuda_driver.h. The only state of the process here is
 * the list of drivers that were opened, under one mutex that is held while one starts (cuInit
 * takes up to seconds on a machine with many GPUs).
 */
#include "backend/cuda_driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "util/error.h"

static pthread_mutex_t drivers_lock = PTHREAD_MUTEX_INITIALIZER;
static struct kvi_cuda_driver *drivers; /* never freed */

/* ---- results ---- */

const char *kvi_cuda_result_name(const struct kvi_cuda_driver *driver, int result)
{
    const char *name = NULL;

    if (driver->error_name == NULL || driver->error_name(result, &name) != 0 || name == NULL)
        return "an unknown result";
    return name;
}

int kvi_cuda_result_is_fatal(int result)
{
    switch (result) {
    case KVI_CU_NOT_INITIALIZED:
    case KVI_CU_DEINITIALIZED:
    case KVI_CU_INVALID_CONTEXT:
    case KVI_CU_ECC_UNCORRECTABLE:
    case KVI_CU_NVLINK_UNCORRECTABLE:
    case KVI_CU_CONTAINED:
    case KVI_CU_ILLEGAL_ADDRESS:
    case KVI_CU_LAUNCH_TIMEOUT:
    case KVI_CU_CONTEXT_IS_DESTROYED:
    case KVI_CU_ASSERT: return 1;
    default:
        return (result >= KVI_CU_HARDWARE_STACK_ERROR && result <= KVI_CU_LAUNCH_FAILED) ||
               (result >= KVI_CU_MPS_CONNECTION_FAILED && result <= KVI_CU_MPS_CLIENT_TERMINATED);
    }
}

int kvi_cuda_failed(const struct kvi_cuda_driver *driver, int result, int full_code,
                    const char *operation, const char *call)
{
    const char *name = kvi_cuda_result_name(driver, result);

    if (result == KVI_CU_OUT_OF_MEMORY)
        return kvi_error_driver(full_code, result, "%s: %s: %s (%d)", operation, call, name,
                                result);
    return kvi_error_driver(
        KVMEM_E_SYSTEM, result, "%s: %s: %s (%d)%s", operation, call, name, result,
        kvi_cuda_result_is_fatal(result) ? ": this process's CUDA context is dead: start it again"
                                         : "");
}

/* ---- opening ---- */

/* A driver that is there but does not start: is it a machine without CUDA, or a failure? */
static int start_failed(const struct kvi_cuda_driver *driver, int result, const char *call)
{
    bool absent = result == KVI_CU_NO_DEVICE || result == KVI_CU_STUB_LIBRARY ||
                  result == KVI_CU_SYSTEM_DRIVER_MISMATCH ||
                  result == KVI_CU_COMPAT_NOT_SUPPORTED_ON_DEVICE;
    const char *remedy = result == KVI_CU_STUB_LIBRARY
                             ? "this is the toolkit's stub: install NVIDIA's driver, "
                         : result == KVI_CU_NO_DEVICE ? "there is no CUDA device to be seen: "
                                                        "see CUDA_VISIBLE_DEVICES, "
                         : absent                     ? "install a driver that fits, "
                                                      : "see nvidia-smi, ";

    return kvi_error_driver(absent ? KVMEM_E_NOT_SUPPORTED : KVMEM_E_SYSTEM, result,
                            "CUDA driver %.80s: %s: %s (%d): %s" KVI_CUDA_NO_DRIVER_HINT,
                            driver->path, call, kvi_cuda_result_name(driver, result), result,
                            remedy);
}

static void *symbol_of(const struct kvi_cuda_driver *driver, const char *name)
{
    void *function = NULL;
    int status = 0;

    if (driver->proc_address(name, &function, KVI_CUDA_VERSION_LEAST,
                             KVI_CU_PROC_ADDRESS_LEGACY_STREAM, &status) != 0)
        return NULL;
    return function;
}

void *kvi_cuda_driver_symbol(const struct kvi_cuda_driver *driver, const char *name)
{
    return symbol_of(driver, name);
}

/* ISO C has no cast from an object's pointer to a function's; POSIX has them alike. */
static bool function_set(void *member, void *function)
{
    memcpy(member, &function, sizeof(function));
    return function != NULL;
}

static int symbol_missing(const struct kvi_cuda_driver *driver, const char *name)
{
    return kvi_error_set(KVMEM_E_NOT_SUPPORTED,
                         "CUDA driver %.80s has no %s: install NVIDIA's driver 12.0 or "
                         "newer, " KVI_CUDA_NO_DRIVER_HINT,
                         driver->path, name);
}

static int version_check(struct kvi_cuda_driver *driver)
{
    int (*driver_version)(int *out_version);
    int result;

    if (!function_set(&driver_version, dlsym(driver->library, "cuDriverGetVersion")))
        return symbol_missing(driver, "cuDriverGetVersion");
    result = driver_version(&driver->version);
    if (result != 0)
        return start_failed(driver, result, "cuDriverGetVersion");
    if (driver->version < KVI_CUDA_VERSION_LEAST)
        return kvi_error_set(KVMEM_E_NOT_SUPPORTED,
                             "CUDA driver %.80s is %d.%d: want 12.0 or newer: update NVIDIA's "
                             "driver, " KVI_CUDA_NO_DRIVER_HINT,
                             driver->path, driver->version / 1000, driver->version % 1000 / 10);
    return 0;
}

static int symbols_load(struct kvi_cuda_driver *driver)
{
    int rc = version_check(driver);
    int result;

    if (rc < 0)
        return rc;
    if (!function_set(&driver->proc_address, dlsym(driver->library, "cuGetProcAddress_v2")))
        return symbol_missing(driver, "cuGetProcAddress_v2");
#define LOAD_MEMBER(member, name, parameters)                     \
    if (!function_set(&driver->member, symbol_of(driver, #name))) \
        return symbol_missing(driver, #name);
    KVI_CUDA_CALL_TABLE(LOAD_MEMBER)
#undef LOAD_MEMBER
    result = driver->init(0);
    return result != 0 ? start_failed(driver, result, "cuInit") : 0;
}

static int driver_new(const char *path, struct kvi_cuda_driver **out)
{
    struct kvi_cuda_driver *driver = calloc(1, sizeof(*driver));
    int rc;

    if (driver == NULL || (driver->path = strdup(path)) == NULL) {
        rc = kvi_error_set(KVMEM_E_NO_MEMORY, "CUDA driver: no memory for its table");
        goto fail_driver;
    }
    driver->library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (driver->library == NULL) {
        const char *why = dlerror();

        rc = kvi_error_set(KVMEM_E_NOT_SUPPORTED,
                           "CUDA driver: %.140s: install NVIDIA's driver, " KVI_CUDA_NO_DRIVER_HINT,
                           why != NULL ? why : path);
        goto fail_path;
    }
    rc = symbols_load(driver);
    if (rc < 0)
        goto fail_library;
    *out = driver;
    return 0;

fail_library:
    dlclose(driver->library);
fail_path:
    free(driver->path);
fail_driver:
    free(driver);
    return rc;
}

int kvi_cuda_driver_open(const char *path, const struct kvi_cuda_driver **out)
{
    struct kvi_cuda_driver *driver;
    int rc = 0;

    if (path == NULL)
        path = KVI_CUDA_DRIVER_PATH;
    pthread_mutex_lock(&drivers_lock);
    driver = drivers;
    while (driver != NULL && strcmp(driver->path, path) != 0)
        driver = driver->next;
    if (driver == NULL) {
        rc = driver_new(path, &driver);
        if (rc == 0) {
            driver->next = drivers;
            drivers = driver;
        }
    }
    pthread_mutex_unlock(&drivers_lock);
    if (rc == 0)
        *out = driver;
    return rc;
}
