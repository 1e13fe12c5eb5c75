/* SPDX-License-Identifier: Apache-2.0
 *
 * Compliance factories for the CUDA backend, on whichever driver: the real one (tests/gpu) or the
 * fake one (tests/unit). A test sets kvt_cuda, and `fail` of the factories, then runs cases.
 */
#ifndef KVT_CUDA_DEVICE_H
#define KVT_CUDA_DEVICE_H

#include "backend/backend_cuda.h"
#include "support/backend_compliance.h"

struct kvt_cuda {
    const char *driver_path; /* NULL: the machine's */
    uint32_t device_index;
};
extern struct kvt_cuda kvt_cuda;

extern struct kvt_backend_factory kvt_cuda_factory;
extern struct kvt_backend_factory kvt_cuda_fault_factory; /* a fault backend around it */

/* An instance of kvt_cuda that may create `bytes`. */
int kvt_cuda_open(uint64_t bytes, struct kvi_backend **out);
int kvt_cuda_query(struct kvi_backend_cuda_device *out);

/* The CUDA backend inside one that kvt_cuda_fault_factory made. */
struct kvi_backend *kvt_cuda_fault_inner(const struct kvi_backend *fault);

/* All cases of the suite, in its order; the last name is NULL. */
struct kvt_cuda_case {
    const char *name;
    kvt_backend_case test_case;
};
extern const struct kvt_cuda_case kvt_cuda_cases[];

#endif
