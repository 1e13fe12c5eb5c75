/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening a device: host memory pretending to be one, or a GPU. What the operator did not say is
 * decided here: how much of a GPU is taken, and whether MPS stands before it.
 *
 * MPS: one process holds the GPU for all its clients, so that the exit of a client does not prove
 * that its kernels have ended. A wrong "no" lets two write the same memory, a wrong "yes" costs a
 * creation a killed segment: so with KVD_MPS_AUTO either sign is enough, the driver's word or the
 * control pipe of an MPS daemon.
 *
 * The anchor: one granule of a GPU, created and exported before anything else, whose descriptor
 * stays open as long as the device. It is never handed out. While no exported descriptor of the
 * process is open, driver 580 takes 0.59 to 0.70 ms for an export, and 0.5 ms for the close of the
 * last one; while one is, 0.05. What is free is asked for behind it, so it is no part of what the
 * device offers. On a device that is full there is none when the operator says a size.
 */
#ifndef KVD_DEVICE_OPEN_H
#define KVD_DEVICE_OPEN_H

#include "backend/backend.h"
#include "directory/directory.h"
#include "options.h"
#include "util/alloc.h"

#define KVD_FREE_PERCENT 90u /* of what is free on a GPU, when the operator does not say */

struct kvd_device_options {
    enum kvd_device_kind kind;
    uint32_t ordinal;       /* of a GPU, as the driver counts */
    uint64_t device_bytes;  /* 0: 1 GiB of the host, KVD_FREE_PERCENT of a GPU less the anchor */
    uint64_t granule_bytes; /* of the host; 0: 64 KiB. The driver has its own */
    enum kvd_mps mps;
};

/* The backend holds the anchor's handle and nothing else. Without an anchor: NULL and −1. */
struct kvd_anchor {
    struct kvi_backend *backend;
    int fd;
};

/* After everything else of the device: close the descriptor, give the granule back. */
void kvd_anchor_close(struct kvd_anchor *anchor);

/* A backend that creates, and what the directory is to know of it. NOT_SUPPORTED without a driver
 * or a GPU that can do it (the detail names the remedy), INVALID naming the option, DEVICE_FULL
 * when next to nothing is free and no size is said, NO_MEMORY, SYSTEM. Takes as long as the driver
 * takes. */
int kvd_device_open(const struct kvi_alloc *alloc, const struct kvd_device_options *options,
                    struct kvi_backend **out, struct kvd_anchor *anchor,
                    struct kvi_dir_device *about);

#endif
