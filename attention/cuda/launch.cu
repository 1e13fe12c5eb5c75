/* SPDX-License-Identifier: Apache-2.0
 *
 * Devices, streams, errors.
 */
#include "launch.cuh"

#include <mutex>
#include <set>
#include <utility>

#define DEVICE_LIMIT 64

static std::mutex lock; /* orders accesses to known devices and prepared kernels */
static struct kva_cuda_device known[DEVICE_LIMIT];

int kva_cuda_result(cudaError_t result, const char *doing)
{
    if (result == cudaSuccess)
        return 0;
    (void)cudaGetLastError(); /* ours, which the caller's next question is not about */
    return kva_error_set(KVMEM_E_SYSTEM, "%s: %s (%s)", doing, cudaGetErrorName(result),
                         cudaGetErrorString(result));
}

static cudaError_t ask(int ordinal, struct kva_cuda_device *out)
{
    const struct {
        enum cudaDeviceAttr name;
        int *to;
    } asked[] = {{cudaDevAttrMultiProcessorCount, &out->sm_count},
                 {cudaDevAttrMaxSharedMemoryPerBlockOptin, &out->shared_bytes},
                 {cudaDevAttrMaxSharedMemoryPerMultiprocessor, &out->sm_shared_bytes}};
    int major = 0, minor = 0;
    cudaError_t result = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal);

    if (result == cudaSuccess)
        result = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal);
    for (const auto &one : asked)
        if (result == cudaSuccess)
            result = cudaDeviceGetAttribute(one.to, one.name, ordinal);
    out->ordinal = ordinal;
    out->capability = major * 10 + minor;
    return result;
}

static bool recall(int ordinal, struct kva_cuda_device *out)
{
    std::lock_guard<std::mutex> guard(lock);

    if (ordinal >= DEVICE_LIMIT || !known[ordinal].capability)
        return false;
    *out = known[ordinal];
    return true;
}

int kva_cuda_device(struct kva_cuda_device *out)
{
    int ordinal = 0;
    cudaError_t result = cudaGetDevice(&ordinal);

    if (result == cudaSuccess && recall(ordinal, out))
        return 0;
    if (result == cudaSuccess)
        result = ask(ordinal, out);
    if (result != cudaSuccess)
        return kva_cuda_result(result, "device");
    if (out->capability < 80)
        return kva_error_set(KVMEM_E_NOT_SUPPORTED,
                             "device: compute capability %d.%d, kernels need 8.0 or more",
                             out->capability / 10, out->capability % 10);
    if (ordinal < DEVICE_LIMIT) {
        std::lock_guard<std::mutex> guard(lock);

        known[ordinal] = *out;
    }
    return 0;
}

int kva_cuda_check_stream(const struct kva_cuda_device *device, cudaStream_t stream)
{
    enum cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    int ordinal = device->ordinal;
    cudaError_t result;

    if (!stream || stream == cudaStreamLegacy || stream == cudaStreamPerThread)
        return 0;
    result = cudaStreamIsCapturing(stream, &capture);
    if (result == cudaSuccess && capture == cudaStreamCaptureStatusNone)
        result = cudaStreamGetDevice(stream, &ordinal);
    if (result != cudaSuccess)
        return kva_cuda_result(result, "stream");
    if (ordinal == device->ordinal)
        return 0;
    return kva_error_set(KVMEM_E_INVALID,
                         "stream: is of device %d, the calling thread's is %d (remedy: "
                         "cudaSetDevice, or another stream)",
                         ordinal, device->ordinal);
}

int kva_cuda_prepare(const void *kernel, int shared_bytes)
{
    static std::set<std::pair<const void *, int>> prepared; /* kernels and devices */
    std::lock_guard<std::mutex> guard(lock);
    struct cudaFuncAttributes attributes;
    int ordinal = 0;
    cudaError_t result = cudaGetDevice(&ordinal);

    if (result == cudaSuccess && prepared.count({kernel, ordinal}))
        return 0;
    if (result == cudaSuccess)
        result = cudaFuncGetAttributes(&attributes, kernel);
    if (result == cudaSuccess && shared_bytes > 48 * 1024)
        result =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (result != cudaSuccess)
        return kva_cuda_result(result, "a kernel for this device");
    prepared.insert({kernel, ordinal});
    return 0;
}
