/* SPDX-License-Identifier: Apache-2.0
 *
 * One device: a backend, and which of its handles is which segment of the directory.
 *
 *   segment number (the directory's)  ──▶  handle (the backend's), descriptor
 *
 *   loop    create(n) ─▶ [wanted: create n, release m, ...]        [created: (n, code)] ─▶
 * next_created worker                     └──▶ create, export / release ──▶ ──────┘ └──▶ wake_fd
 *
 * Asking and answering are apart, because the directory is told only after its own call has
 * returned, and because on CUDA creation takes driver time that the loop must not spend: there a
 * worker thread takes requests in their order, creates and exports, and wakes the loop through an
 * eventfd. The host device is fast enough (20 µs) to do it on the loop's thread.
 *
 * Asking cannot fail for want of memory: requests wait in lists through the table of segments. A
 * number is in them at most once to be created and once to be released: it is given out again only
 * after its release was asked for, and what was asked for later is done later.
 *
 * The spare: on a GPU the worker keeps one created and exported segment of the size that was wanted
 * last, made when it has nothing else to do. A creation of that size is then answered at once, by
 * the loop's own thread, without a driver call or a wake-up. The spare belongs to no domain and was
 * never mapped. It counts as free: a creation that finds the device full has it released first. It
 * goes when it was not used for spare_ns.
 *
 *   memory of the device in use = segments + spare (0 or 1) + anchor
 *
 * The watchdog: a driver call that takes longer than stuck_ns makes the device stuck. What waits
 * for creation there is answered TIMED_OUT, as is what is asked for from then on; releases wait.
 * The device is well again when the call returns. A segment that was created by it then has been
 * given up, and is released; a spare one stays.
 *
 * Threads: the loop's calls everything. The worker's own: handles, descriptors, driver calls. One
 * lock guards lists and states; nobody holds it during a driver call, and the worker never logs.
 */
#ifndef KVD_DEVICE_H
#define KVD_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "device_open.h"

#define KVD_STUCK_NS (2 * UINT64_C(1000000000))
#define KVD_SPARE_NS (10 * UINT64_C(1000000000))

struct kvd_device;

struct kvd_device_times {
    uint64_t stuck_ns; /* how long a driver call may take */
    uint64_t spare_ns; /* how long a spare segment is kept unused; 0: there is none */
};

/* Open it (device_open.h), with a worker where it is a GPU. `wake_fd`: an eventfd, stays the
 * caller's. The codes of kvd_device_open; NO_MEMORY, SYSTEM. */
int kvd_device_create(const struct kvi_alloc *alloc, const struct kvd_device_options *options,
                      int wake_fd, const struct kvd_device_times *times, struct kvd_device **out);

/* Drop all handles without emptying the segments: who has them mapped keeps reading what is
 * there, as if we had crashed. False when a driver call has not returned at `deadline_ns`: then
 * everything of the device is left as it is, and the process must end without the driver's exit
 * handlers (_exit). NULL is allowed. */
bool kvd_device_destroy(struct kvd_device *device, uint64_t deadline_ns);

/* What the directory is told of it. */
const struct kvi_dir_device *kvd_device_about(const struct kvd_device *device);

/* The directory's target for a segment's size: 64 MiB, or a 64th of a small device, in whole
 * granules (issue 2, Backends). Geometry may go down to half of it. */
uint64_t kvd_device_target_bytes(const struct kvd_device *device);

/* The most segments there can be at one time, for budgets. */
uint32_t kvd_device_segment_limit(const struct kvd_device *device);

/* Ask for memory for segment number `segment`. */
void kvd_device_segment_create(struct kvd_device *device, uint32_t segment, uint64_t bytes);

/* The next answer: true, the segment, and 0 or a code; false when there is none now. */
bool kvd_device_next_created(struct kvd_device *device, uint32_t *segment, int *code);

/* Every creation that is asked for from now on finds its bytes free. Nothing happens once
 * kvd_device_leave was called. */
void kvd_device_segment_release(struct kvd_device *device, uint32_t segment);

/* A descriptor of the segment, the caller's. INVALID, SYSTEM. */
int kvd_device_segment_export(struct kvd_device *device, uint32_t segment, int *out_fd);

/* ---- the watchdog ---- */

/* When to call kvd_device_look, for watchdog and spare; UINT64_MAX: no need. Also after wake_fd was
 * written. */
uint64_t kvd_device_deadline_ns(struct kvd_device *device);

/* Find out whether it is stuck; log that, its end, and what the worker could not do. Tell the
 * worker when it is time for the spare. */
void kvd_device_look(struct kvd_device *device);

bool kvd_device_is_stuck(struct kvd_device *device);

/* The daemon ends: releases are left to kvd_device_destroy, the worker takes nothing any more. */
void kvd_device_leave(struct kvd_device *device);

#endif
