/* SPDX-License-Identifier: Apache-2.0
 *
 * The host device: device memory is anonymous shared memory, one memfd a segment. See
 * backend_host.c for how, and backend.h for the contract.
 */
#ifndef KVI_BACKEND_BACKEND_HOST_H
#define KVI_BACKEND_BACKEND_HOST_H

#include "backend/backend.h"
#include "util/alloc.h"

#define KVI_BACKEND_HOST_GRANULE_DEFAULT (UINT64_C(64) << 10)
#define KVI_BACKEND_HOST_GRANULE_MAX     (UINT64_C(1) << 30)

/* Zeroes are defaults; set options_bytes to sizeof. */
struct kvi_backend_host_options {
    uint32_t options_bytes;
    uint32_t reserved;             /* 0 */
    uint64_t device_bytes;         /* 0: only imports; else a multiple of the granule */
    uint64_t granule_bytes;        /* 0: 64 KiB; a power of two, OS page … 1 GiB */
    const struct kvi_alloc *alloc; /* NULL: libc's; must outlive the backend */
};

/* Create a host device with `options`, the caller's to kvi_backend_destroy(). INVALID naming
 * the option and its range, NO_MEMORY. */
int kvi_backend_host_create(const struct kvi_backend_host_options *options,
                            struct kvi_backend **out);

/* Walk all tables. 0, or CORRUPT with the first violated equation in the detail. INVALID when
 * `b` is no host backend. */
int kvi_backend_host_check(struct kvi_backend *b);

#endif
