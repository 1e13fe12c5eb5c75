/* SPDX-License-Identifier: Apache-2.0
 *
 * A CUDA driver without a GPU: tests/fake_cuda/libcuda.so.1 in the build folder, for the tests of
 * the CUDA backend where there is no device, and for failing any driver call on order.
 *
 *   device memory   memfds; an fd exported here can be imported by the fake in another process
 *   addresses       mmap(); a mapping without access is PROT_NONE
 *   contexts        counters, and a stack a thread, as the driver has them
 *   streams         a queue: what follows a wait that is not over is held back
 *   kernels         the library's own, by name, on the CPU, in the queue
 *
 * It is stricter than the driver: a call without the right current context, a copy outside
 * mapped and accessible memory, an address that is not its own, a second cuMemSetAccess of one
 * mapping (driver 580: kernels that read there fault), count as misuse.
 *
 * Tests open the library by its path (dlopen gives the one that is open already) and find
 * `fake_cuda_control` with dlsym. Other processes are told by the environment:
 *   KVMEM_FAKE_CUDA="devices=2 version=12000 granule=65536 bytes=67108864 fail=cuMemMap:3:2"
 *                    "init=100 off=102 mps=1 hang=cuMemCreate:3:5000"
 */
#ifndef KVT_FAKE_CUDA_H
#define KVT_FAKE_CUDA_H

#include <stdbool.h>
#include <stdint.h>

#define FAKE_CUDA_CONTROL "fake_cuda_control"

/* A test's own kernel, behind what the stream holds: asked again and again, under the driver's
 * lock, until it says true. `data` is freed then. */
#define FAKE_CUDA_LAUNCH "fake_cuda_launch"
typedef bool (*fake_cuda_kernel)(void *data);
typedef void fake_cuda_launch_function(void *stream, fake_cuda_kernel kernel, void *data);

struct fake_cuda_control {
    /* What it is. To be set before it is opened by the library under test. */
    int version;
    int device_count;
    int init_result;
    int attribute_off;      /* reported as 0 */
    int mps_enabled;        /* as that attribute says it; below 0: a driver without it */
    uint64_t granule_bytes; /* a power of two, OS page or more */
    uint64_t device_bytes;  /* of each device */
    const char *missing;    /* function that the driver does not have */
    bool ignores_alignment; /* of a reservation: gives the worst there is */

    /* The fail_nth call from now on of fail_name gives fail_result, then nothing is armed; with
     * fail_always also every later one. "*" is any function but cuCtxPopCurrent. */
    const char *fail_name;
    uint64_t fail_nth; /* 0 nothing is armed */
    int fail_result;
    bool fail_always;
    uint64_t failed; /* calls that did */
    /* The hang_nth call from now on of hang_name begins hang_ms late; other calls go on. */
    const char *hang_name;
    uint64_t hang_nth; /* 0 nothing is armed */
    uint64_t hang_ms;

    uint64_t misuse;
    char misused[64]; /* the first one's function */

    /* What is live. */
    uint64_t context_refs;
    uint64_t handle_refs;
    uint64_t objects; /* with a handle or a mapping */
    uint64_t reservations;
    uint64_t mappings;
    uint64_t allocations; /* of cuMemAlloc */
    uint64_t registrations;
    uint64_t modules;
    uint64_t launches; /* since it was opened */
    uint64_t used_bytes;
    uint64_t queued; /* stream operations that are held back */
};

#endif
