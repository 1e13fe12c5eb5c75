/* SPDX-License-Identifier: Apache-2.0
 *
 * The tests of a GPU without one: gpu.h and kernels.h over the fake driver, on the CPU. The
 * programs of tests/gpu are built a second time with this in the place of CUDA's runtime, as
 * tests/fake_gpu/x, and run in CI: real processes, a real kvmemd, and the library's streams, but
 * no timing, no faults and an eighth of the memory.
 *
 *   stream   one of the fake driver's; what is put there runs on whichever thread calls the driver
 *            next, or on the device thread, which calls it all the time
 */
#ifndef KVT_FAKE_GPU_H
#define KVT_FAKE_GPU_H

#include "support/fake_cuda/fake_cuda.h"
#include "support/gpu/gpu.h"
#include "support/gpu/kernels.h"

/* Put a kernel on a stream; `data` (of that size) is copied. */
void kvt_fake_gpu_launch(void *stream, fake_cuda_kernel kernel, const void *data, size_t bytes);

#endif
