/* SPDX-License-Identifier: Apache-2.0
 *
 * The daemon's devices, in the order of the directory's indices, and on which of them each of the
 * directory's segments lies:
 *
 *   segment number ──▶ device index ──▶ device.h
 *
 *   kvd_devices_fd() is readable when a worker has something to say: kvd_devices_look(), then
 *   kvd_devices_next_created() until there is nothing
 *
 * Threads: the loop's only.
 */
#ifndef KVD_DEVICES_H
#define KVD_DEVICES_H

#include "device.h"

struct kvd_devices;

/* Open those of `options`, `count` of them (1 … KVI_DEVICE_LIMIT). For tests, $KVMEM_STUCK_MS is
 * the watchdog's time and $KVMEM_SPARE_MS how long a spare segment stays. The codes of
 * kvd_device_create; nothing stays open on failure. */
int kvd_devices_create(const struct kvi_alloc *alloc, const struct kvd_device_options *options,
                       uint32_t count, struct kvd_devices **out);

/* As kvd_device_destroy, for all, within a second. NULL is allowed. */
bool kvd_devices_destroy(struct kvd_devices *devices);

uint32_t kvd_devices_count(const struct kvd_devices *devices);
struct kvd_device *kvd_devices_at(const struct kvd_devices *devices, uint32_t index);
int kvd_devices_fd(const struct kvd_devices *devices);

/* Segments on all devices, at most; and descriptors that they take here. */
uint32_t kvd_devices_segment_limit(const struct kvd_devices *devices);
uint32_t kvd_devices_fd_limit(const struct kvd_devices *devices);

/* The calls of device.h, by number. */
void kvd_devices_segment_create(struct kvd_devices *devices, uint32_t segment, uint32_t device,
                                uint64_t bytes);
bool kvd_devices_next_created(struct kvd_devices *devices, uint32_t *segment, int *code);
void kvd_devices_segment_release(struct kvd_devices *devices, uint32_t segment);
int kvd_devices_segment_export(struct kvd_devices *devices, uint32_t segment, int *out_fd);

uint64_t kvd_devices_deadline_ns(struct kvd_devices *devices);
void kvd_devices_look(struct kvd_devices *devices);
void kvd_devices_leave(struct kvd_devices *devices);

#endif
