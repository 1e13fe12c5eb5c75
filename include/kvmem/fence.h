/* SPDX-License-Identifier: Apache-2.0
 *
 * Fences say when memory may be touched. A call that gives memory away takes the fence of the
 * last work on it; a call that hands memory out returns the fence to wait for.
 *
 * On the host device bytes are written by the calling thread itself: NONE and HOST are the
 * kinds that work there. STREAM and TIMELINE are for GPUs; a host space refuses them with
 * KVMEM_E_NOT_SUPPORTED naming fence.kind.
 */
#ifndef KVMEM_FENCE_H
#define KVMEM_FENCE_H

#include <kvmem/types.h>

#ifdef __cplusplus
extern "C" {
#endif

enum kvmem_fence_kind {
    KVMEM_FENCE_NONE = 0,    /* nothing is under way: the memory is ready now */
    KVMEM_FENCE_HOST = 1,    /* the calling thread did the work, in program order */
    KVMEM_FENCE_STREAM = 2,  /* ordered behind what `stream` holds now (a CUstream) */
    KVMEM_FENCE_TIMELINE = 3 /* when timeline `timeline` has reached `value` */
};

struct kvmem_fence {
    uint32_t kind;     /* enum kvmem_fence_kind */
    uint32_t timeline; /* TIMELINE: the producing client's number, else 0 */
    uint64_t value;    /* TIMELINE: value to reach, else 0 */
    void *stream;      /* STREAM: the CUstream, else NULL */
};

/* The fence of work that is done: what every host-device caller passes. */
static inline struct kvmem_fence kvmem_fence_none(void)
{
    struct kvmem_fence fence = {KVMEM_FENCE_NONE, 0, 0, NULL};
    return fence;
}

/* 1 when `fence` has passed, 0 when not yet, KVMEM_E_INVALID for an unknown kind,
 * KVMEM_E_NOT_SUPPORTED for a kind that the client's device does not have. Does not block. */
KVMEM_API int kvmem_fence_poll(struct kvmem_client *client, const struct kvmem_fence *fence);

/* Wait until `fence` has passed, at most `timeout_ns` (< 0: without limit). 0, the codes of
 * kvmem_fence_poll, or KVMEM_E_TIMED_OUT. Blocks. */
KVMEM_API int kvmem_fence_wait(struct kvmem_client *client, const struct kvmem_fence *fence,
                               int64_t timeout_ns);

#ifdef __cplusplus
}
#endif
#endif
