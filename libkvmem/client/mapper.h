/* SPDX-License-Identifier: Apache-2.0
 *
 * The mapper: driver calls that map memory, made by a helper thread, or by the caller.
 *
 *   client's thread                             helper thread, or the caller's own in submit
 *   submit ──▶ [ submitted .. | .. finished ] ◀── driver calls, one job after the other
 *   poll   ◀── [ finished .. delivered ] ──▶ done(job), on the client's thread
 *
 *   job       mappings of one segment to make or take out: import + map, unmap + release
 *   alias     a second mapping of the same memory, at write_address: the only writable one. It is
 *             made after the read-only one at address and goes before it; none of the two ever
 *             changes its access, which would fault kernels that read there (driver 580)
 *   order     jobs are carried out in the order of submission
 *
 *   delivered ≤ finished ≤ submitted ≤ delivered + KVI_MAPPER_JOBS: one ring holds them all
 *
 * With a helper no driver call is made in submit. Without one, submit carries the job out at once.
 * done() is always called from poll, drain or await, never from submit.
 *
 * Ownership: a job's descriptor is the mapper's from a successful submit on. What a job names
 * (backend, addresses) stays its owner's and outlives it. Threads: all functions on the
 * client's thread. The helper has all signals blocked, is called kvmem-helper, sleeps on a futex
 * while there is nothing to do, and touches nothing of a client but the jobs.
 */
#ifndef KVI_CLIENT_MAPPER_H
#define KVI_CLIENT_MAPPER_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/backend.h"
#include "util/alloc.h"

#define KVI_MAPPER_JOBS 1024u

struct kvi_mapper;

enum kvi_mapping_kind {
    KVI_MAPPING_MAP,   /* access RO: at address; RW: the alias too */
    KVI_MAPPING_RAISE, /* the alias of what is mapped at address */
    KVI_MAPPING_LOWER, /* the alias goes */
    KVI_MAPPING_UNMAP  /* access RW: the alias is there and goes as well; the handle is released */
};

struct kvi_mapping {
    enum kvi_mapping_kind kind;
    enum kvi_access access; /* MAP, UNMAP */
    struct kvi_backend *backend;
    int fd;               /* MAP: ≥ 0: import it first (consumed); < 0: `phys` is there already */
    struct kvi_phys phys; /* MAP with fd: out, when the code is 0; else what is or will be mapped */
    uint64_t address;     /* as the backend wants them */
    uint64_t write_address; /* of the alias */
    uint64_t bytes;
    void (*done)(const struct kvi_mapping *job); /* when it is over, well or not */
    void *context;
    uint64_t tag;
    int code; /* out: 0 or the backend's code: then all is as it was, `fd` closed, but that after an
                 UNMAP the alias may be gone, or all but a handle that could not be released */
};

struct kvi_mapper_options {
    const struct kvi_alloc *alloc; /* outlives the mapper */
    bool has_helper;
};

struct kvi_mapper_stats {
    uint64_t helper_jobs; /* carried out by the helper */
    uint64_t inline_jobs; /* by the calling thread */
};

/* 0, NO_MEMORY or SYSTEM (no thread, no eventfd). */
int kvi_mapper_create(const struct kvi_mapper_options *options, struct kvi_mapper **out);
/* Drain, end the helper, free. NULL is allowed. */
void kvi_mapper_destroy(struct kvi_mapper *mapper);

/* Hand a job over; it is copied. 0, or BUSY (KVI_MAPPER_JOBS of them are not delivered): then
 * `fd` is still the caller's. */
int kvi_mapper_submit(struct kvi_mapper *mapper, const struct kvi_mapping *job);

/* Carry `job` out now, on this thread; done is not looked at. No job for these addresses is under
 * way. Returns job->code. */
int kvi_mapper_do(struct kvi_mapper *mapper, struct kvi_mapping *job);

/* The calling thread made one driver call of a job's sort itself: it counts as an inline job. */
void kvi_mapper_count(struct kvi_mapper *mapper);

/* Run done() of every job that is over; how many. When job->code is not 0, kvmem_error_detail() is
 * what the failure left on the helper's thread. */
uint32_t kvi_mapper_poll(struct kvi_mapper *mapper);

/* Wait until all jobs are over, running done(). */
void kvi_mapper_drain(struct kvi_mapper *mapper);

/* Wait until a done() has made *pending 0. */
void kvi_mapper_await(struct kvi_mapper *mapper, const uint8_t *pending);

/* Is there a helper? */
bool kvi_mapper_has_helper(const struct kvi_mapper *mapper);

/* Jobs whose done() has not run. */
uint64_t kvi_mapper_pending(const struct kvi_mapper *mapper);

/* Polls readable when a job is over and poll has not been called since (rarely once more for
 * nothing); −1 without a helper. */
int kvi_mapper_fd(const struct kvi_mapper *mapper);

void kvi_mapper_stats(const struct kvi_mapper *mapper, struct kvi_mapper_stats *out);

#endif
