/* SPDX-License-Identifier: Apache-2.0
 *
 * Fences say when memory may be touched. A call that gives memory away takes the fence of the
 * last work on it; a call that hands memory out returns the fence to wait for.
 *
 *   NONE, HOST   nothing is under way: all work on the memory is done
 *   STREAM       behind what a CUDA stream holds now; the library turns it into a TIMELINE fence
 *                by one write on that stream. Of this process; the host device refuses it
 *   TIMELINE     a value on a timeline: 64-bit counters in a page that producer and consumers, of
 *                several processes, have mapped and pinned. Streams signal it and wait for it
 *
 * A stream must live until the last fence of it has passed, since the driver may give its handle to
 * another one. Fences are not recorded while a stream is being captured: a graph would repeat them.
 * The first record, promise or look-up that needs a timeline asks the daemon for it (codes
 * NOT_SUPPORTED for an older daemon, DAEMON_LOST, TIMED_OUT, PROTOCOL); nothing after that does.
 *
 * A producer may die before it has signalled. Its timeline is then released, so that no stream
 * waits for ever, and its fence is *broken*: kvmem_fence_poll says STALE, what it guarded is a
 * miss for every later look-up, and who has read it computes it again. A consumer asks
 * kvmem_fence_poll once for each fence that a look-up gave it before it lets others see results.
 */
#ifndef KVMEM_FENCE_H
#define KVMEM_FENCE_H

#include <kvmem/types.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum kvmem_fence_kind {
    KVMEM_FENCE_NONE = 0,
    KVMEM_FENCE_HOST = 1,
    KVMEM_FENCE_STREAM = 2,
    KVMEM_FENCE_TIMELINE = 3
};

struct kvmem_fence {
    uint32_t kind;     /* enum kvmem_fence_kind */
    uint32_t timeline; /* TIMELINE: whose, opaque; else 0 */
    uint64_t value;    /* TIMELINE: value to reach, else 0 */
    void *stream;      /* STREAM: the CUstream, NULL for the legacy default stream; else NULL */
};

/* The fence of work that is done. */
static inline struct kvmem_fence kvmem_fence_none(void)
{
    struct kvmem_fence fence = {KVMEM_FENCE_NONE, 0, 0, NULL};
    return fence;
}

/* The fence of all that `stream` (a CUstream of the space's device) holds at the call that takes
 * it. */
static inline struct kvmem_fence kvmem_fence_stream(void *stream)
{
    struct kvmem_fence fence = {KVMEM_FENCE_STREAM, 0, 0, stream};
    return fence;
}

/* A TIMELINE fence for what `stream` holds now, to be used several times: one stream write, 1.3 µs
 * on an H200. NOT_SUPPORTED on the host device, SYSTEM. Does not block but the first time. 63
 * streams have a lane of the timeline each; a further one takes over an idle one, or waits, on the
 * GPU, for what was recorded on the lane before. */
KVMEM_API int kvmem_fence_record(struct kvmem_space *space, void *stream,
                                 struct kvmem_fence *fence);

/* Make what `stream` gets from now on wait for `fence`; nothing when it has passed. A STREAM fence
 * is recorded first. Does not block. INVALID (kind, timeline), NOT_SUPPORTED on the host device for
 * fences that are under way, STALE (broken), SYSTEM. */
KVMEM_API int kvmem_fence_order(struct kvmem_space *space, void *stream,
                                const struct kvmem_fence *fence);

/* A TIMELINE fence for work that no stream holds: a thread of the process or a network card.
 * kvmem_fence_fulfil ends it, in any order, but it passes only with all promises before it; call
 * both from the client's thread. At most 1,023 may follow the oldest open one: LIMIT. INVALID in
 * fulfil: not promised by this client, or fulfilled already. */
KVMEM_API int kvmem_fence_promise(struct kvmem_client *client, struct kvmem_fence *fence);
KVMEM_API int kvmem_fence_fulfil(struct kvmem_client *client, const struct kvmem_fence *fence);

/* 1 when `fence` has passed, 0 when not yet, STALE when it is broken, INVALID for an unknown kind
 * or timeline, NOT_SUPPORTED for STREAM: record it first. Does not block. */
KVMEM_API int kvmem_fence_poll(struct kvmem_client *client, const struct kvmem_fence *fence);

/* Wait until `fence` has passed, at most `timeout_ns` (< 0: without limit). 0, the codes of
 * kvmem_fence_poll, or KVMEM_E_TIMED_OUT. Blocks: looks every millisecond at least. When daemon and
 * producer are both gone nobody breaks the fence: give a limit. */
KVMEM_API int kvmem_fence_wait(struct kvmem_client *client, const struct kvmem_fence *fence,
                               int64_t timeout_ns);

#ifdef __cplusplus
}
#endif
#endif
