/* SPDX-License-Identifier: Apache-2.0
 *
 * The device: a backend, and which of its handles is which segment of the directory.
 *
 *   segment number (the directory's)  ──▶  handle (the backend's)
 *
 *   create(n) ─▶ asked ─▶ next_created: (n, code) ─▶ kvi_dir_segment_created
 *
 * Asking and answering are apart, because the directory is told only after its own call has
 * returned, and because on CUDA creation takes driver time that the loop must not spend: there,
 * a worker thread takes requests out of the queue, creates and exports, and wakes the loop
 * through an eventfd; next_created then drains what it has finished. The host device is fast
 * enough (20 µs) to do it inside next_created.
 *
 * Owns every handle. One thread: the loop's.
 */
#ifndef KVD_DEVICE_H
#define KVD_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/backend.h"
#include "util/alloc.h"

struct kvd_device;

struct kvd_device_options {
    uint64_t device_bytes;
    uint64_t granule_bytes;
};

/* A host device. INVALID, NO_MEMORY. */
int kvd_device_create(const struct kvi_alloc *alloc, const struct kvd_device_options *options,
                      struct kvd_device **out);

/* Drop all handles without emptying the segments: who has them mapped keeps reading what is
 * there, as if we had crashed. NULL is allowed. */
void kvd_device_destroy(struct kvd_device *device);

const struct kvi_backend_info *kvd_device_info(const struct kvd_device *device);

/* The directory's target for a segment's size: 64 MiB, or a 64th of a small device, in whole
 * granules (issue 2, Backends). Geometry may go down to half of it. */
uint64_t kvd_device_target_bytes(const struct kvd_device *device);

/* The most segments there can be at one time, for budgets. */
uint32_t kvd_device_segment_limit(const struct kvd_device *device);

/* Ask for memory for segment number `segment`. */
void kvd_device_segment_create(struct kvd_device *device, uint32_t segment, uint64_t bytes);

/* The next answer: true, the segment, and 0 or a code; false when there is none now. */
bool kvd_device_next_created(struct kvd_device *device, uint32_t *segment, int *code);

/* Its bytes are free when this returns; nothing happens once kvd_device_leave was called. */
void kvd_device_segment_release(struct kvd_device *device, uint32_t segment);

/* A descriptor of the segment, the caller's. INVALID, SYSTEM. */
int kvd_device_segment_export(struct kvd_device *device, uint32_t segment, int *out_fd);

/* The daemon ends: releases are left to kvd_device_destroy. */
void kvd_device_leave(struct kvd_device *device);

#endif
