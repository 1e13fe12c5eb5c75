/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA driver, opened at run time: one library runs with and without a GPU, and is built
 * without the toolkit. Types and constants are our own, from the public documentation of the
 * driver API; tests/unit/test_cuda_driver.c holds them against cuda.h where there is one.
 *
 *   libcuda.so.1 ── dlsym ──▶ cuDriverGetVersion, cuGetProcAddress_v2
 *                                                  └─▶ every function as CUDA 12.0 had it
 *
 * cuGetProcAddress picks the newest form of a function that is not newer than the version asked
 * for (cuMemGetInfo_v2, cuStreamWaitValue64_v2, ...), so that a later driver with another
 * signature under the same name still gives us this one. Stream 0 is the legacy default stream.
 *
 * A driver once opened stays open until the process ends: libcuda has threads and exit handlers,
 * and is not made for dlclose. Opening it again, by the same path, gives the same table.
 *
 * Threads: any.
 */
#ifndef KVI_BACKEND_CUDA_DRIVER_H
#define KVI_BACKEND_CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>

#define KVI_CUDA_DRIVER_PATH    "libcuda.so.1"
#define KVI_CUDA_VERSION_LEAST  12000 /* 1000 × major + 10 × minor */
#define KVI_CUDA_NO_DRIVER_HINT "or use the host device"

typedef int kvi_cu_device;
typedef uint64_t kvi_cu_address;
typedef uint64_t kvi_cu_handle;
typedef void *kvi_cu_context;
typedef void *kvi_cu_stream;
typedef void *kvi_cu_module;
typedef void *kvi_cu_function;

/* Results that we tell apart; 0 is success. */
enum {
    KVI_CU_INVALID_VALUE = 1,
    KVI_CU_OUT_OF_MEMORY = 2,
    KVI_CU_NOT_INITIALIZED = 3,
    KVI_CU_DEINITIALIZED = 4,
    KVI_CU_STUB_LIBRARY = 34,
    KVI_CU_NO_DEVICE = 100,
    KVI_CU_INVALID_DEVICE = 101,
    KVI_CU_INVALID_CONTEXT = 201,
    KVI_CU_NO_BINARY_FOR_GPU = 209,
    KVI_CU_ECC_UNCORRECTABLE = 214,
    KVI_CU_INVALID_PTX = 218,
    KVI_CU_NVLINK_UNCORRECTABLE = 220,
    KVI_CU_JIT_COMPILER_NOT_FOUND = 221,
    KVI_CU_UNSUPPORTED_PTX_VERSION = 222,
    KVI_CU_CONTAINED = 226,
    KVI_CU_OPERATING_SYSTEM = 304,
    KVI_CU_INVALID_HANDLE = 400,
    KVI_CU_ILLEGAL_ADDRESS = 700,
    KVI_CU_LAUNCH_TIMEOUT = 702,
    KVI_CU_CONTEXT_IS_DESTROYED = 709,
    KVI_CU_ASSERT = 710,
    KVI_CU_HOST_MEMORY_ALREADY_REGISTERED = 712,
    KVI_CU_HOST_MEMORY_NOT_REGISTERED = 713,
    KVI_CU_HARDWARE_STACK_ERROR = 714,
    KVI_CU_LAUNCH_FAILED = 719,
    KVI_CU_NOT_SUPPORTED = 801,
    KVI_CU_SYSTEM_DRIVER_MISMATCH = 803,
    KVI_CU_COMPAT_NOT_SUPPORTED_ON_DEVICE = 804,
    KVI_CU_MPS_CONNECTION_FAILED = 805,
    KVI_CU_MPS_CLIENT_TERMINATED = 810,
};

enum {
    KVI_CU_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
    KVI_CU_ATTRIBUTE_UNIFIED_ADDRESSING = 41,
    KVI_CU_ATTRIBUTE_CAPABILITY_MAJOR = 75,
    KVI_CU_ATTRIBUTE_CAPABILITY_MINOR = 76,
    KVI_CU_ATTRIBUTE_SHARED_BYTES_PER_SM = 81,
    KVI_CU_ATTRIBUTE_VMM = 102,
    KVI_CU_ATTRIBUTE_POSIX_FD = 103,
    KVI_CU_ATTRIBUTE_RDMA_WITH_VMM = 110,
    KVI_CU_ATTRIBUTE_64_BIT_STREAM_MEM_OPS = 122,
    KVI_CU_ATTRIBUTE_MPS_ENABLED = 133, /* since CUDA 12.1 */
};

enum {
    KVI_CU_ALLOCATION_PINNED = 1,
    KVI_CU_HANDLE_POSIX_FD = 1,
    KVI_CU_LOCATION_DEVICE = 1,
    KVI_CU_GRANULARITY_MINIMUM = 0,
    KVI_CU_ACCESS_READ = 1,
    KVI_CU_ACCESS_READ_WRITE = 3,
    KVI_CU_REGISTER_PORTABLE = 1,
    KVI_CU_REGISTER_DEVICEMAP = 2,
    KVI_CU_WAIT_VALUE_GEQ = 0, /* cyclic: (int64_t)(*address − value) >= 0 */
    KVI_CU_WRITE_VALUE_DEFAULT = 0,
    KVI_CU_PROC_ADDRESS_LEGACY_STREAM = 1,
    KVI_CU_FUNCTION_DYNAMIC_SHARED_BYTES_MAX = 8,
};

struct kvi_cu_location {
    int type;
    int id;
};

struct kvi_cu_allocation {
    int type;
    int handle_types;
    struct kvi_cu_location location;
    void *win32_metadata;
    unsigned char compression_type;
    unsigned char gpu_direct_rdma_capable;
    unsigned short usage;
    unsigned char reserved[4];
};

struct kvi_cu_uuid {
    unsigned char bytes[16];
};

struct kvi_cu_access {
    struct kvi_cu_location location;
    int flags;
};

/* X(member, name in cuda.h, parameters) */
#define KVI_CUDA_CALL_TABLE(X)                                                                  \
    X(init, cuInit, (unsigned flags))                                                           \
    X(error_name, cuGetErrorName, (int result, const char **out_name))                          \
    X(device_count, cuDeviceGetCount, (int *out_count))                                         \
    X(device_get, cuDeviceGet, (kvi_cu_device * out, int ordinal))                              \
    X(device_name, cuDeviceGetName, (char *name, int name_bytes, kvi_cu_device device))         \
    X(device_uuid, cuDeviceGetUuid, (struct kvi_cu_uuid * out, kvi_cu_device device))           \
    X(device_total, cuDeviceTotalMem, (size_t * out_bytes, kvi_cu_device device))               \
    X(device_attribute, cuDeviceGetAttribute,                                                   \
      (int *out_value, int attribute, kvi_cu_device device))                                    \
    X(context_retain, cuDevicePrimaryCtxRetain, (kvi_cu_context * out, kvi_cu_device device))   \
    X(context_release, cuDevicePrimaryCtxRelease, (kvi_cu_device device))                       \
    X(context_push, cuCtxPushCurrent, (kvi_cu_context context))                                 \
    X(context_pop, cuCtxPopCurrent, (kvi_cu_context * out))                                     \
    X(memory_info, cuMemGetInfo, (size_t * out_free, size_t * out_total))                       \
    X(memory_granularity, cuMemGetAllocationGranularity,                                        \
      (size_t * out_bytes, const struct kvi_cu_allocation *allocation, int option))             \
    X(memory_create, cuMemCreate,                                                               \
      (kvi_cu_handle * out, size_t bytes, const struct kvi_cu_allocation *allocation,           \
       unsigned long long flags))                                                               \
    X(memory_release, cuMemRelease, (kvi_cu_handle handle))                                     \
    X(memory_export, cuMemExportToShareableHandle,                                              \
      (void *out, kvi_cu_handle handle, int type, unsigned long long flags))                    \
    X(memory_import, cuMemImportFromShareableHandle,                                            \
      (kvi_cu_handle * out, void *shareable, int type))                                         \
    X(memory_properties, cuMemGetAllocationPropertiesFromHandle,                                \
      (struct kvi_cu_allocation * out, kvi_cu_handle handle))                                   \
    X(memory_retain, cuMemRetainAllocationHandle, (kvi_cu_handle * out, void *address))         \
    X(address_reserve, cuMemAddressReserve,                                                     \
      (kvi_cu_address * out, size_t bytes, size_t alignment, kvi_cu_address hint,               \
       unsigned long long flags))                                                               \
    X(address_free, cuMemAddressFree, (kvi_cu_address address, size_t bytes))                   \
    X(map, cuMemMap,                                                                            \
      (kvi_cu_address address, size_t bytes, size_t offset, kvi_cu_handle handle,               \
       unsigned long long flags))                                                               \
    X(unmap, cuMemUnmap, (kvi_cu_address address, size_t bytes))                                \
    X(set_access, cuMemSetAccess,                                                               \
      (kvi_cu_address address, size_t bytes, const struct kvi_cu_access *access, size_t count)) \
    X(copy_device, cuMemcpyDtoDAsync,                                                           \
      (kvi_cu_address to, kvi_cu_address from, size_t bytes, kvi_cu_stream stream))             \
    X(copy_in, cuMemcpyHtoDAsync,                                                               \
      (kvi_cu_address to, const void *from, size_t bytes, kvi_cu_stream stream))                \
    X(copy_out, cuMemcpyDtoHAsync,                                                              \
      (void *to, kvi_cu_address from, size_t bytes, kvi_cu_stream stream))                      \
    X(fill_8, cuMemsetD8Async,                                                                  \
      (kvi_cu_address to, unsigned char value, size_t bytes, kvi_cu_stream stream))             \
    X(fill_32, cuMemsetD32Async,                                                                \
      (kvi_cu_address to, unsigned value, size_t count, kvi_cu_stream stream))                  \
    X(device_alloc, cuMemAlloc, (kvi_cu_address * out, size_t bytes))                           \
    X(device_free, cuMemFree, (kvi_cu_address address))                                         \
    X(host_register, cuMemHostRegister, (void *memory, size_t bytes, unsigned flags))           \
    X(host_unregister, cuMemHostUnregister, (void *memory))                                     \
    X(host_address, cuMemHostGetDevicePointer,                                                  \
      (kvi_cu_address * out, void *memory, unsigned flags))                                     \
    X(stream_write_64, cuStreamWriteValue64,                                                    \
      (kvi_cu_stream stream, kvi_cu_address address, uint64_t value, unsigned flags))           \
    X(stream_wait_64, cuStreamWaitValue64,                                                      \
      (kvi_cu_stream stream, kvi_cu_address address, uint64_t value, unsigned flags))           \
    X(module_load, cuModuleLoadDataEx,                                                          \
      (kvi_cu_module * out, const void *image, unsigned option_count, int *options,             \
       void **values))                                                                          \
    X(module_unload, cuModuleUnload, (kvi_cu_module module))                                    \
    X(module_function, cuModuleGetFunction,                                                     \
      (kvi_cu_function * out, kvi_cu_module module, const char *name))                          \
    X(function_attribute, cuFuncSetAttribute,                                                   \
      (kvi_cu_function function, int attribute, int value))                                     \
    X(launch, cuLaunchKernel,                                                                   \
      (kvi_cu_function function, unsigned grid_x, unsigned grid_y, unsigned grid_z,             \
       unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,             \
       kvi_cu_stream stream, void **parameters, void **extra))

struct kvi_cuda_driver {
    char *path;
    void *library;
    int version; /* of the driver's API: 13000 for 13.0 */
    int (*proc_address)(const char *name, void **out, int version, uint64_t flags, int *out_status);
#define KVI_CUDA_CALL_MEMBER(member, name, parameters) int(*member) parameters;
    KVI_CUDA_CALL_TABLE(KVI_CUDA_CALL_MEMBER)
#undef KVI_CUDA_CALL_MEMBER
    struct kvi_cuda_driver *next;
};

/* Open the driver library at `path` (NULL: KVI_CUDA_DRIVER_PATH) and initialise it.
 * NOT_SUPPORTED without the library, with a driver before 12.0, with a stub, without a device;
 * NO_MEMORY; SYSTEM when the driver does not start. */
int kvi_cuda_driver_open(const char *path, const struct kvi_cuda_driver **out);

/* Another function of the driver, as CUDA 12.0 had it; NULL if there is none such. */
void *kvi_cuda_driver_symbol(const struct kvi_cuda_driver *driver, const char *name);

/* "CUDA_ERROR_OUT_OF_MEMORY"; never NULL. */
const char *kvi_cuda_result_name(const struct kvi_cuda_driver *driver, int result);

/* Does this result say that the context, or the device, is beyond repair for this process? */
int kvi_cuda_result_is_fatal(int result);

/* The code for a failed driver call: `full_code` for the driver's out of memory, else SYSTEM.
 * Sets the detail; `operation` is ours, `call` the driver's. Returns the code. */
int kvi_cuda_failed(const struct kvi_cuda_driver *driver, int result, int full_code,
                    const char *operation, const char *call);

#endif
