/* SPDX-License-Identifier: Apache-2.0
 *
 * Fences, the client's side: its own timeline, the pages of other producers, and what has become
 * of a fence.
 *
 *   own page    asked for at the first promise or record. Lane 0 is for promises; the others belong
 *               to a stream each, from its first record on. When all are taken, a further stream
 *               waits for what the lane was last promised, and takes it over.
 *   producer    a page of another client, by session: mapped when a look-up names it, pinned when a
 *               stream is to wait for it, dropped for another's when its producer is gone, no guard
 *               names it and the streams that waited for it have passed
 *   point       (timeline, value): a TIMELINE fence inside; value 0 = nothing to wait for
 *   joint       timeline KVI_TIMELINE_JOINT: value is the number of a guard (guard.h)
 *
 *   counter of a lane ≤ last of that lane, for own lanes
 *   promises: fulfilled ones up to the counter of lane 0, then a window of KVI_PROMISE_LIMIT bits
 *
 * The first use of a page is a message, a mapping or a pin; after that nothing here makes a system
 * call, allocates or sends, but kvi_fence_wait, which sleeps.
 */
#ifndef KVI_CLIENT_FENCE_H
#define KVI_CLIENT_FENCE_H

#include <kvmem/fence.h>
#include <stdbool.h>

#include "backend/backend.h"
#include "client/timeline.h"

#define KVI_PROMISE_LIMIT  1024u
#define KVI_PRODUCER_LIMIT 512u /* pages; twice the clients that live at one time */

/* No session has this timeline: the first one's serial is 1. */
#define KVI_TIMELINE_JOINT 0u

struct kvmem_client;
struct kvi_guards;

struct kvi_point {
    uint32_t timeline;
    uint64_t value;
};

struct kvi_page {
    struct kvi_lane *lanes; /* NULL = none */
    uint32_t timeline;      /* of lane 0 */
    uint32_t guard_parts;   /* that name it */
    uint32_t pin_count;
    bool is_writable;
    struct kvi_backend *pins[KVI_DEVICE_LIMIT]; /* where it is pinned */
    uint64_t waits[KVI_LANE_COUNT]; /* own lane i at this value: its stream has passed its waits for
                                       this page; 0 = it never waited */
};

struct kvi_lane_use {
    struct kvi_backend *backend; /* and stream: whose lane it is */
    uint64_t stream;
    uint64_t last; /* value that was promised or recorded last */
};

struct kvi_fences {
    struct kvi_page own;
    struct kvi_lane_use lanes[KVI_LANE_COUNT];
    uint32_t lane_count; /* lanes from here on never had a stream */
    uint32_t recent;     /* lane of the last stream */
    uint32_t next_steal;
    uint64_t promises[KVI_PROMISE_LIMIT / 64]; /* fulfilled before an older one, by value */
    struct kvi_page *producers;                /* [KVI_PRODUCER_LIMIT]; NULL before the first */
    uint32_t producer_count;
    struct kvi_guards *guards; /* NULL before the first */
};

/* ---- pages (fence_page.c) ---- */

/* The own page is there. 0, NOT_SUPPORTED (an older daemon), or what asking for it or mapping it
 * said. */
int kvi_fence_own_page(struct kvmem_client *client);

/* The page of `timeline`: own or a producer's, NULL when it is not here. */
struct kvi_page *kvi_fence_page(struct kvmem_client *client, uint32_t timeline);

/* Ask for a producer's page unless it is here. 0, NOT_FOUND (the producer is gone), LIMIT, codes
 * of a call. Blocks for a round trip. */
int kvi_fence_producer_page(struct kvmem_client *client, uint32_t timeline);

/* Let `backend`'s device use the page. Codes of kvi_backend_host_pin. */
int kvi_page_pin(struct kvi_page *page, struct kvi_backend *backend);

/* Unpin and unmap all. */
void kvi_fences_fini(struct kvmem_client *client);

/* ---- streams (fence.c) ---- */

/* Everything that the first record on `stream` needs is there. Codes of kvi_fence_own_page and of
 * the backend. */
int kvi_fence_prepare(struct kvmem_client *client, struct kvi_backend *backend, uint64_t stream);

/* A point behind what `stream` holds now. On a failure *point is what the next record on this
 * stream will reach. Codes of kvi_fence_prepare. */
int kvi_fence_record(struct kvmem_client *client, struct kvi_backend *backend, uint64_t stream,
                     struct kvi_point *point);

/* Make `stream` wait for `point`. NOT_SUPPORTED (on the host, when it is under way), STALE, codes
 * of the backend. */
int kvi_fence_order(struct kvmem_client *client, struct kvi_backend *backend, uint64_t stream,
                    const struct kvi_point *point);

/* What has become of it; the page of a point that was checked is here. */
enum kvi_lane_state kvi_fence_state(struct kvmem_client *client, const struct kvi_point *point);

/* ---- fences of callers (fence.c) ---- */

/* 0, INVALID (kind, timeline, value) or NOT_SUPPORTED (STREAM, on the host). */
int kvi_fence_check(struct kvmem_client *client, const struct kvi_backend *backend,
                    const struct kvmem_fence *fence);

/* The same for a fence of kind STREAM or TIMELINE. */
bool kvi_fence_is_under_way(struct kvmem_client *client, const struct kvmem_fence *fence);

/* Is there something to wait for? Of a checked fence. */
static inline bool kvi_fence_is_pending(struct kvmem_client *client,
                                        const struct kvmem_fence *fence)
{
    return fence->kind > KVMEM_FENCE_HOST && kvi_fence_is_under_way(client, fence);
}

/* The point of a checked fence; a STREAM fence is recorded. Codes of kvi_fence_record. */
int kvi_fence_take(struct kvmem_client *client, struct kvi_backend *backend,
                   const struct kvmem_fence *fence, struct kvi_point *point);

/* The public form of a point. */
struct kvmem_fence kvi_fence_of(const struct kvi_point *point);

/* Is it of the client's own timeline? */
bool kvi_fence_is_own(const struct kvmem_client *client, uint32_t timeline);

int kvi_fence_promise(struct kvmem_client *client, struct kvmem_fence *fence);
int kvi_fence_fulfil(struct kvmem_client *client, const struct kvmem_fence *fence);

/* kvmem_fence_poll and kvmem_fence_wait. */
int kvi_fence_poll(struct kvmem_client *client, const struct kvmem_fence *fence);
int kvi_fence_wait(struct kvmem_client *client, const struct kvmem_fence *fence,
                   int64_t timeout_ns);

/* Until every stream has reached what was recorded on it, at most until `deadline_ns` (0: do not
 * wait). False: not reached. */
bool kvi_fence_settle(struct kvmem_client *client, int64_t deadline_ns);

/* Sleep a little, longer each time. `turn` begins with 0. */
void kvi_fence_pause(uint32_t *turn);

#endif
