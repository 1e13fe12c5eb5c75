/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA driver's table: what is said where there is no driver, or one that will not do; and
 * our own declarations held against cuda.h, where there is one.
 */
#include <criterion/criterion.h>
#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backend/backend_cuda.h"
#include "backend/cuda_driver.h"
#include "support/fake_cuda/fake_cuda.h"
#include "support/spawn.h"
#include "util/error.h"

#if __has_include(<cuda.h>)
#include <cuda.h>
#endif

#define STUB "/usr/local/cuda/lib64/stubs/libcuda.so"

static struct fake_cuda_control *fake_control(void)
{
    void *library = dlopen(kvt_program_path("tests/fake_cuda/libcuda.so.1"), RTLD_NOW);
    struct fake_cuda_control *control = library ? dlsym(library, FAKE_CUDA_CONTROL) : NULL;

    cr_assert_not_null(control, "no fake driver: %s", dlerror());
    return control;
}

/* Both entries give `code` with every word in the detail, and the outputs stay. */
static void refused(const char *path, uint32_t device_index, int code, const char *word,
                    const char *other)
{
    struct kvi_backend_cuda_options options = {
        .options_bytes = sizeof(options), .device_index = device_index, .driver_path = path};
    struct kvi_backend_cuda_device what = {.driver_version = 77};
    struct kvi_backend *b = (struct kvi_backend *)&options;
    const struct kvmem_error_detail *detail = kvmem_error_detail();
    int rc = kvi_backend_cuda_query(&options, &what);

    cr_assert_eq(rc, code, "%s: %s", kvmem_error_name(rc), detail->text);
    cr_assert_not_null(strstr(detail->text, word), "\"%s\" lacks \"%s\"", detail->text, word);
    cr_assert_not_null(strstr(detail->text, other), "\"%s\" lacks \"%s\"", detail->text, other);
    cr_assert_eq(kvi_backend_cuda_create(&options, &b), code);
    cr_assert_eq(detail->code, code);
    cr_assert_eq(what.driver_version, 77);
    cr_assert_eq((void *)b, (void *)&options);
}

static void refused_by_fake(int code, const char *word, const char *other)
{
    refused(kvt_program_path("tests/fake_cuda/libcuda.so.1"), 0, code, word, other);
}

/* ---- no driver ---- */

Test(cuda_driver, a_missing_library_is_named)
{
    refused("/nonexistent/libcuda.so.1", 0, KVMEM_E_NOT_SUPPORTED, "/nonexistent/libcuda.so.1",
            "use the host device");
    refused("libcuda-of-nobody.so.1", 0, KVMEM_E_NOT_SUPPORTED, "libcuda-of-nobody.so.1",
            "install NVIDIA's driver");
}

Test(cuda_driver, this_machine_has_one_or_says_so)
{
    struct kvi_backend_cuda_options options = {.options_bytes = sizeof(options)};
    struct kvi_backend_cuda_device what;
    int rc = kvi_backend_cuda_query(&options, &what);

    if (rc == 0)
        cr_skip_test("there is a CUDA driver here: %s", what.name);
    cr_assert_eq(rc, KVMEM_E_NOT_SUPPORTED, "%s", kvmem_error_detail()->text);
    cr_assert_not_null(strstr(kvmem_error_detail()->text, "libcuda.so.1"));
    cr_assert_not_null(strstr(kvmem_error_detail()->text, "use the host device"));
}

Test(cuda_driver, another_library_is_no_driver)
{
    refused("libm.so.6", 0, KVMEM_E_NOT_SUPPORTED, "cuDriverGetVersion", "use the host device");
}

Test(cuda_driver, the_toolkits_stub_is_no_driver)
{
    if (access(STUB, R_OK) != 0)
        cr_skip_test("no toolkit here, so no stub");
    refused(STUB, 0, KVMEM_E_NOT_SUPPORTED, "stub", "use the host device");
    cr_assert_eq(kvmem_error_detail()->driver_result, KVI_CU_STUB_LIBRARY);
}

/* ---- a driver or a device that will not do ---- */

Test(cuda_driver, an_old_driver_is_refused)
{
    struct fake_cuda_control *control = fake_control();

    control->version = 11080;
    refused_by_fake(KVMEM_E_NOT_SUPPORTED, "11.8", "want 12.0");
    control->version = 12000;
    refused(kvt_program_path("tests/fake_cuda/libcuda.so.1"), 2, KVMEM_E_INVALID, "device_index",
            "0 to 1");
}

Test(cuda_driver, every_missing_function_is_named)
{
    struct fake_cuda_control *control = fake_control();
    static const char *const names[] = {
#define NAME_ROW(member, name, parameters) #name,
        KVI_CUDA_CALL_TABLE(NAME_ROW)
#undef NAME_ROW
    };

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        control->missing = names[i];
        refused_by_fake(KVMEM_E_NOT_SUPPORTED, names[i], "use the host device");
    }
}

Test(cuda_driver, a_driver_that_does_not_start_is_refused)
{
    struct fake_cuda_control *control = fake_control();

    control->init_result = KVI_CU_NO_DEVICE;
    refused_by_fake(KVMEM_E_NOT_SUPPORTED, "CUDA_ERROR_NO_DEVICE", "CUDA_VISIBLE_DEVICES");
    control->init_result = KVI_CU_SYSTEM_DRIVER_MISMATCH;
    refused_by_fake(KVMEM_E_NOT_SUPPORTED, "803", "a driver that fits");
    control->init_result = 999;
    refused_by_fake(KVMEM_E_SYSTEM, "999", "nvidia-smi");
    cr_assert_eq(kvmem_error_detail()->driver_result, 999);
    control->init_result = 0;
    control->device_count = 0;
    refused_by_fake(KVMEM_E_NOT_SUPPORTED, "no device", "use the host device");
}

Test(cuda_driver, every_missing_attribute_is_named)
{
    struct fake_cuda_control *control = fake_control();

    control->attribute_off = KVI_CU_ATTRIBUTE_VMM;
    refused_by_fake(KVMEM_E_NOT_SUPPORTED, "VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED", "Fake GPU 0");
    control->attribute_off = KVI_CU_ATTRIBUTE_POSIX_FD;
    refused_by_fake(KVMEM_E_NOT_SUPPORTED, "HANDLE_TYPE_POSIX_FILE_DESCRIPTOR", "host device");
    control->attribute_off = KVI_CU_ATTRIBUTE_64_BIT_STREAM_MEM_OPS;
    refused_by_fake(KVMEM_E_NOT_SUPPORTED, "CAN_USE_64_BIT_STREAM_MEM_OPS", "host device");
    control->attribute_off = KVI_CU_ATTRIBUTE_UNIFIED_ADDRESSING;
    refused_by_fake(KVMEM_E_NOT_SUPPORTED, "UNIFIED_ADDRESSING", "host device");
}

Test(cuda_driver, a_device_says_who_it_is_and_whether_mps_is_before_it)
{
    struct fake_cuda_control *control = fake_control();
    struct kvi_backend_cuda_options options = {
        .options_bytes = sizeof(options),
        .device_index = 1,
        .driver_path = kvt_program_path("tests/fake_cuda/libcuda.so.1")};
    struct kvi_backend_cuda_device what;

    cr_assert_eq(kvi_backend_cuda_query(&options, &what), 0, "%s", kvmem_error_detail()->text);
    cr_assert_eq(memcmp(what.uuid, "fake gpu no. 1", 15), 0);
    cr_assert_not(what.under_mps);
    control->mps_enabled = 1;
    cr_assert_eq(kvi_backend_cuda_query(&options, &what), 0);
    cr_assert(what.under_mps);
    control->mps_enabled = -1; /* a driver that does not know */
    cr_assert_eq(kvi_backend_cuda_query(&options, &what), 0);
    cr_assert_not(what.under_mps);
}

Test(cuda_driver, opens_once)
{
    const struct kvi_cuda_driver *first = NULL;
    const struct kvi_cuda_driver *second = NULL;
    const char *path = kvt_program_path("tests/fake_cuda/libcuda.so.1");

    cr_assert_eq(kvi_cuda_driver_open(path, &first), 0, "%s", kvmem_error_detail()->text);
    cr_assert_eq(kvi_cuda_driver_open(path, &second), 0);
    cr_assert_eq(first, second);
    cr_assert_not_null(kvi_cuda_driver_symbol(first, "cuStreamCreate"));
    cr_assert_null(kvi_cuda_driver_symbol(first, "cuNobodyKnows"));
    cr_assert_str_eq(kvi_cuda_result_name(first, 2), "CUDA_ERROR_OUT_OF_MEMORY");
    cr_assert_str_eq(kvi_cuda_result_name(first, 12345), "an unknown result");
}

/* ---- our declarations against cuda.h ---- */

#if defined(CUDA_VERSION) && CUDA_VERSION >= 12000

#define SAME(ours, theirs) _Static_assert((long)(ours) == (long)(theirs), #ours)

SAME(KVI_CU_INVALID_VALUE, CUDA_ERROR_INVALID_VALUE);
SAME(KVI_CU_OUT_OF_MEMORY, CUDA_ERROR_OUT_OF_MEMORY);
SAME(KVI_CU_NOT_INITIALIZED, CUDA_ERROR_NOT_INITIALIZED);
SAME(KVI_CU_DEINITIALIZED, CUDA_ERROR_DEINITIALIZED);
SAME(KVI_CU_STUB_LIBRARY, CUDA_ERROR_STUB_LIBRARY);
SAME(KVI_CU_NO_DEVICE, CUDA_ERROR_NO_DEVICE);
SAME(KVI_CU_INVALID_DEVICE, CUDA_ERROR_INVALID_DEVICE);
SAME(KVI_CU_INVALID_CONTEXT, CUDA_ERROR_INVALID_CONTEXT);
SAME(KVI_CU_NO_BINARY_FOR_GPU, CUDA_ERROR_NO_BINARY_FOR_GPU);
SAME(KVI_CU_INVALID_PTX, CUDA_ERROR_INVALID_PTX);
SAME(KVI_CU_JIT_COMPILER_NOT_FOUND, CUDA_ERROR_JIT_COMPILER_NOT_FOUND);
SAME(KVI_CU_UNSUPPORTED_PTX_VERSION, CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
SAME(KVI_CU_ECC_UNCORRECTABLE, CUDA_ERROR_ECC_UNCORRECTABLE);
SAME(KVI_CU_NVLINK_UNCORRECTABLE, CUDA_ERROR_NVLINK_UNCORRECTABLE);
SAME(KVI_CU_OPERATING_SYSTEM, CUDA_ERROR_OPERATING_SYSTEM);
SAME(KVI_CU_INVALID_HANDLE, CUDA_ERROR_INVALID_HANDLE);
SAME(KVI_CU_ILLEGAL_ADDRESS, CUDA_ERROR_ILLEGAL_ADDRESS);
SAME(KVI_CU_LAUNCH_TIMEOUT, CUDA_ERROR_LAUNCH_TIMEOUT);
SAME(KVI_CU_CONTEXT_IS_DESTROYED, CUDA_ERROR_CONTEXT_IS_DESTROYED);
SAME(KVI_CU_ASSERT, CUDA_ERROR_ASSERT);
SAME(KVI_CU_HOST_MEMORY_ALREADY_REGISTERED, CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
SAME(KVI_CU_HOST_MEMORY_NOT_REGISTERED, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
SAME(KVI_CU_HARDWARE_STACK_ERROR, CUDA_ERROR_HARDWARE_STACK_ERROR);
SAME(KVI_CU_LAUNCH_FAILED, CUDA_ERROR_LAUNCH_FAILED);
SAME(KVI_CU_NOT_SUPPORTED, CUDA_ERROR_NOT_SUPPORTED);
SAME(KVI_CU_SYSTEM_DRIVER_MISMATCH, CUDA_ERROR_SYSTEM_DRIVER_MISMATCH);
SAME(KVI_CU_COMPAT_NOT_SUPPORTED_ON_DEVICE, CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE);
SAME(KVI_CU_MPS_CONNECTION_FAILED, CUDA_ERROR_MPS_CONNECTION_FAILED);
SAME(KVI_CU_MPS_CLIENT_TERMINATED, CUDA_ERROR_MPS_CLIENT_TERMINATED);
#if CUDA_VERSION >= 12050
SAME(KVI_CU_CONTAINED, CUDA_ERROR_CONTAINED);
#endif

SAME(KVI_CU_ATTRIBUTE_MULTIPROCESSOR_COUNT, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
SAME(KVI_CU_ATTRIBUTE_UNIFIED_ADDRESSING, CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING);
SAME(KVI_CU_ATTRIBUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
SAME(KVI_CU_ATTRIBUTE_CAPABILITY_MINOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
SAME(KVI_CU_ATTRIBUTE_SHARED_BYTES_PER_SM,
     CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR);
SAME(KVI_CU_ATTRIBUTE_VMM, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
SAME(KVI_CU_ATTRIBUTE_POSIX_FD, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED);
SAME(KVI_CU_ATTRIBUTE_RDMA_WITH_VMM, CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED);
SAME(KVI_CU_ATTRIBUTE_64_BIT_STREAM_MEM_OPS, CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS);
#if CUDA_VERSION >= 12010
SAME(KVI_CU_ATTRIBUTE_MPS_ENABLED, CU_DEVICE_ATTRIBUTE_MPS_ENABLED);
#endif

SAME(KVI_CU_FUNCTION_DYNAMIC_SHARED_BYTES_MAX, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
SAME(KVI_CU_ALLOCATION_PINNED, CU_MEM_ALLOCATION_TYPE_PINNED);
SAME(KVI_CU_HANDLE_POSIX_FD, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
SAME(KVI_CU_LOCATION_DEVICE, CU_MEM_LOCATION_TYPE_DEVICE);
SAME(KVI_CU_GRANULARITY_MINIMUM, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
SAME(KVI_CU_ACCESS_READ, CU_MEM_ACCESS_FLAGS_PROT_READ);
SAME(KVI_CU_ACCESS_READ_WRITE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
SAME(KVI_CU_REGISTER_PORTABLE, CU_MEMHOSTREGISTER_PORTABLE);
SAME(KVI_CU_REGISTER_DEVICEMAP, CU_MEMHOSTREGISTER_DEVICEMAP);
SAME(KVI_CU_WAIT_VALUE_GEQ, CU_STREAM_WAIT_VALUE_GEQ);
SAME(KVI_CU_WRITE_VALUE_DEFAULT, CU_STREAM_WRITE_VALUE_DEFAULT);
SAME(KVI_CU_PROC_ADDRESS_LEGACY_STREAM, CU_GET_PROC_ADDRESS_LEGACY_STREAM);

SAME(sizeof(kvi_cu_device), sizeof(CUdevice));
SAME(sizeof(kvi_cu_address), sizeof(CUdeviceptr));
SAME(sizeof(kvi_cu_handle), sizeof(CUmemGenericAllocationHandle));
SAME(sizeof(kvi_cu_context), sizeof(CUcontext));
SAME(sizeof(kvi_cu_stream), sizeof(CUstream));
SAME(sizeof(kvi_cu_module), sizeof(CUmodule));
SAME(sizeof(kvi_cu_function), sizeof(CUfunction));
SAME(sizeof(int), sizeof(CUjit_option));
SAME(sizeof(uint64_t), sizeof(cuuint64_t));
SAME(sizeof(int), sizeof(CUresult));
SAME(sizeof(struct kvi_cu_uuid), sizeof(CUuuid));
SAME(sizeof(struct kvi_cu_location), sizeof(CUmemLocation));
SAME(sizeof(struct kvi_cu_allocation), sizeof(CUmemAllocationProp));
SAME(sizeof(struct kvi_cu_access), sizeof(CUmemAccessDesc));

#define SAME_MEMBER(our_struct, ours, their_type, theirs)                  \
    SAME(offsetof(struct our_struct, ours), offsetof(their_type, theirs)); \
    SAME(sizeof(((struct our_struct *)0)->ours), sizeof(((their_type *)0)->theirs))

SAME_MEMBER(kvi_cu_location, type, CUmemLocation, type);
SAME_MEMBER(kvi_cu_location, id, CUmemLocation, id);
SAME_MEMBER(kvi_cu_allocation, type, CUmemAllocationProp, type);
SAME_MEMBER(kvi_cu_allocation, handle_types, CUmemAllocationProp, requestedHandleTypes);
SAME_MEMBER(kvi_cu_allocation, location, CUmemAllocationProp, location);
SAME_MEMBER(kvi_cu_allocation, win32_metadata, CUmemAllocationProp, win32HandleMetaData);
SAME_MEMBER(kvi_cu_allocation, compression_type, CUmemAllocationProp, allocFlags.compressionType);
SAME_MEMBER(kvi_cu_allocation, gpu_direct_rdma_capable, CUmemAllocationProp,
            allocFlags.gpuDirectRDMACapable);
SAME_MEMBER(kvi_cu_allocation, usage, CUmemAllocationProp, allocFlags.usage);
SAME_MEMBER(kvi_cu_access, location, CUmemAccessDesc, location);
SAME_MEMBER(kvi_cu_access, flags, CUmemAccessDesc, flags);

/* Each function is declared in cuda.h, under its newest name. What their parameters are cannot be
 * compared (they differ in the names of equal types); the GPU tests call every one. */
#define DECLARED(member, name, parameters) SAME(sizeof(&name), sizeof(void *));
KVI_CUDA_CALL_TABLE(DECLARED)

Test(cuda_driver, declarations_are_those_of_cuda_h)
{
    cr_assert(CUDA_VERSION >= 12000);
}

#else

Test(cuda_driver, declarations_are_those_of_cuda_h)
{
    cr_skip_test("there is no cuda.h from 12.0 on here");
}

#endif
