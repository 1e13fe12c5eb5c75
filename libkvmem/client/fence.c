/* SPDX-License-Identifier: Apache-2.0
 *
 * Recording, ordering, promising, asking; see fence.h.
 */
#include "client/fence.h"

#include <assert.h>
#include <inttypes.h>
#include <sched.h>
#include <time.h>

#include "client/client.h"
#include "client/guard.h"
#include "util/error.h"

#define PROMISE_LANE 0u
#define YIELDS       64u   /* turns of a wait before it sleeps */
#define PAUSE_MIN_NS 20000 /* first sleep */
#define PAUSE_MAX_NS INT64_C(1000000)

static inline uint32_t lane_of(uint32_t timeline)
{
    return timeline % KVI_LANE_COUNT;
}

bool kvi_fence_is_own(const struct kvmem_client *client, uint32_t timeline)
{
    const struct kvi_page *own = &client->fences.own;

    return own->lanes && timeline - own->timeline < KVI_LANE_COUNT;
}

static struct kvi_point own_point(const struct kvi_fences *fences, uint32_t lane, uint64_t value)
{
    return (struct kvi_point){fences->own.timeline + lane, value};
}

static bool is_reached(const struct kvi_fences *fences, uint32_t lane, uint64_t value)
{
    return kvi_backend_fence_poll(&fences->own.lanes[lane].counter, value) == KVI_FENCE_REACHED;
}

/* ---- lanes ---- */

/* The lane's stream changes: that it goes on will say nothing of the old one. */
static void forget_waits(struct kvi_fences *fences, uint32_t lane)
{
    for (uint32_t i = 0; i < fences->producer_count; i++) {
        uint64_t *wait = &fences->producers[i].waits[lane];

        if (*wait && !is_reached(fences, lane, *wait))
            *wait = UINT64_MAX;
    }
}

/* A lane for one more stream: a fresh one, else one whose stream has nothing under way, else
 * any; then the new stream waits for the old one. */
static int steal_lane(struct kvi_fences *fences, struct kvi_backend *backend, uint64_t stream,
                      uint32_t *out)
{
    uint32_t lane = fences->lane_count;
    int code;

    if (lane < KVI_LANE_COUNT) {
        fences->lane_count++;
        *out = lane;
        return 0;
    }
    for (lane = 1; lane < KVI_LANE_COUNT; lane++)
        if (is_reached(fences, lane, fences->lanes[lane].last))
            break;
    if (lane == KVI_LANE_COUNT) {
        lane = 1 + fences->next_steal++ % (KVI_LANE_COUNT - 1);
        code = kvi_backend_fence_wait(backend, &fences->own.lanes[lane].counter,
                                      fences->lanes[lane].last, stream);
        if (code < 0)
            return code;
    }
    forget_waits(fences, lane);
    *out = lane;
    return 0;
}

/* The lane of the stream, taken at first use. */
static int lane_for(struct kvi_fences *fences, struct kvi_backend *backend, uint64_t stream,
                    uint32_t *out)
{
    const struct kvi_lane_use *recent = &fences->lanes[fences->recent];
    uint32_t lane;
    int code;

    if (recent->backend == backend && recent->stream == stream) {
        *out = fences->recent;
        return 0;
    }
    for (lane = 1; lane < fences->lane_count; lane++)
        if (fences->lanes[lane].backend == backend && fences->lanes[lane].stream == stream)
            break;
    if (lane >= fences->lane_count) {
        code = steal_lane(fences, backend, stream, &lane);
        if (code)
            return code;
        fences->lanes[lane].backend = backend;
        fences->lanes[lane].stream = stream;
    }
    fences->recent = lane;
    *out = lane;
    return 0;
}

static int prepare(struct kvmem_client *client, struct kvi_backend *backend, uint64_t stream,
                   uint32_t *lane)
{
    int code = kvi_fence_own_page(client);

    if (!code)
        code = kvi_page_pin(&client->fences.own, backend);
    return code ? code : lane_for(&client->fences, backend, stream, lane);
}

int kvi_fence_prepare(struct kvmem_client *client, struct kvi_backend *backend, uint64_t stream)
{
    uint32_t lane;

    return prepare(client, backend, stream, &lane);
}

int kvi_fence_record(struct kvmem_client *client, struct kvi_backend *backend, uint64_t stream,
                     struct kvi_point *point)
{
    struct kvi_fences *fences = &client->fences;
    uint32_t lane;
    int code = prepare(client, backend, stream, &lane);

    if (code)
        return code;
    *point = own_point(fences, lane, fences->lanes[lane].last + 1);
    code =
        kvi_backend_fence_signal(backend, &fences->own.lanes[lane].counter, point->value, stream);
    if (!code)
        fences->lanes[lane].last = point->value;
    return code;
}

/* ---- waiting on a stream ---- */

static int stale(const struct kvi_point *point)
{
    return kvi_error_set(KVMEM_E_STALE,
                         "fence.timeline %" PRIu32 ": its producer died before %" PRIu64
                         " was reached; compute again what it guarded",
                         point->timeline, point->value);
}

/* The stream waits for a producer's page: until its next record has passed, the page stays. */
static int note_wait(struct kvmem_client *client, struct kvi_backend *backend, uint64_t stream,
                     struct kvi_page *page)
{
    struct kvi_fences *fences = &client->fences;
    uint32_t lane;
    int code = prepare(client, backend, stream, &lane);

    if (!code)
        page->waits[lane] = fences->lanes[lane].last + 1;
    return code;
}

static int order_lane(struct kvmem_client *client, struct kvi_backend *backend, uint64_t stream,
                      const struct kvi_point *point)
{
    struct kvi_page *page = kvi_fence_page(client, point->timeline);
    uint32_t lane = lane_of(point->timeline);
    const struct kvi_lane_use *use = &client->fences.lanes[lane];
    bool is_own = page == &client->fences.own;
    enum kvi_lane_state state = kvi_lane_poll(&page->lanes[lane], point->value);
    int code;

    if (state != KVI_LANE_PENDING)
        return state == KVI_LANE_REACHED ? 0 : stale(point);
    if (backend->info.kind == KVI_BACKEND_HOST)
        return kvi_error_set(KVMEM_E_NOT_SUPPORTED,
                             "fence: value %" PRIu64 " is not reached and the host device has no "
                             "stream that could wait; use kvmem_fence_wait",
                             point->value);
    if (is_own && use->backend == backend && use->stream == stream)
        return 0; /* in order already */
    code = kvi_page_pin(page, backend);
    if (!code && !is_own)
        code = note_wait(client, backend, stream, page);
    if (!code)
        code = kvi_backend_fence_wait(backend, &page->lanes[lane].counter, point->value, stream);
    return code < 0 ? code : 0;
}

int kvi_fence_order(struct kvmem_client *client, struct kvi_backend *backend, uint64_t stream,
                    const struct kvi_point *point)
{
    struct kvi_point part;
    int code = 0;

    if (!point->value)
        return 0;
    if (point->timeline != KVI_TIMELINE_JOINT)
        return order_lane(client, backend, stream, point);
    if (kvi_guard_state(client, (uint32_t)point->value) == KVI_LANE_IS_BROKEN)
        return stale(point);
    for (uint32_t i = 0; !code && kvi_guard_part(client, (uint32_t)point->value, i, &part); i++)
        code = order_lane(client, backend, stream, &part);
    return code;
}

/* ---- what has become of it ---- */

enum kvi_lane_state kvi_fence_state(struct kvmem_client *client, const struct kvi_point *point)
{
    const struct kvi_page *page;

    if (!point->value)
        return KVI_LANE_REACHED;
    if (point->timeline == KVI_TIMELINE_JOINT)
        return kvi_guard_state(client, (uint32_t)point->value);
    page = kvi_fence_page(client, point->timeline);
    /* A page goes when its producer is gone: nothing of it is under way any more. */
    return page ? kvi_lane_poll(&page->lanes[lane_of(point->timeline)], point->value)
                : KVI_LANE_IS_BROKEN;
}

static struct kvi_point point_of(const struct kvmem_fence *fence)
{
    return (struct kvi_point){fence->timeline, fence->value};
}

struct kvmem_fence kvi_fence_of(const struct kvi_point *point)
{
    if (!point->value)
        return kvmem_fence_none();
    return (struct kvmem_fence){KVMEM_FENCE_TIMELINE, point->timeline, point->value, NULL};
}

static int check_timeline(struct kvmem_client *client, const struct kvmem_fence *fence)
{
    const struct kvi_lane_use *use;

    if (fence->timeline == KVI_TIMELINE_JOINT) {
        if (kvi_guard_is_known(client, fence->value))
            return 0;
        return kvi_error_set(KVMEM_E_INVALID,
                             "fence.value: %" PRIu64 " is of no look-up of this "
                             "client",
                             fence->value);
    }
    if (!kvi_fence_page(client, fence->timeline))
        return kvi_error_set(KVMEM_E_INVALID,
                             "fence.timeline: %" PRIu32 " is neither this client's nor of a "
                             "look-up that it made",
                             fence->timeline);
    if (!kvi_fence_is_own(client, fence->timeline))
        return 0;
    use = &client->fences.lanes[lane_of(fence->timeline)];
    if (fence->value <= use->last)
        return 0;
    return kvi_error_set(KVMEM_E_INVALID,
                         "fence.value: %" PRIu64 " is outside 0..%" PRIu64
                         " (recorded or promised) of timeline %" PRIu32,
                         fence->value, use->last, fence->timeline);
}

int kvi_fence_check(struct kvmem_client *client, const struct kvi_backend *backend,
                    const struct kvmem_fence *fence)
{
    switch (fence->kind) {
    case KVMEM_FENCE_NONE:
    case KVMEM_FENCE_HOST: return 0;
    case KVMEM_FENCE_TIMELINE: return check_timeline(client, fence);
    case KVMEM_FENCE_STREAM:
        if (backend && backend->info.kind != KVI_BACKEND_HOST)
            return 0;
        return kvi_error_set(KVMEM_E_NOT_SUPPORTED,
                             backend ? "fence.kind: 2 (STREAM) needs a GPU; the host device has "
                                       "0 (NONE), 1 (HOST) and 3 (TIMELINE)"
                                     : "fence.kind: 2 (STREAM) has no value to ask for; record it "
                                       "first (kvmem_fence_record)");
    default:
        return kvi_error_set(KVMEM_E_INVALID, "fence.kind: %" PRIu32 " is outside 0..3",
                             fence->kind);
    }
}

bool kvi_fence_is_under_way(struct kvmem_client *client, const struct kvmem_fence *fence)
{
    struct kvi_point point = point_of(fence);

    return fence->kind == KVMEM_FENCE_STREAM || kvi_fence_state(client, &point) == KVI_LANE_PENDING;
}

int kvi_fence_take(struct kvmem_client *client, struct kvi_backend *backend,
                   const struct kvmem_fence *fence, struct kvi_point *point)
{
    *point = (struct kvi_point){0, 0};
    if (fence->kind == KVMEM_FENCE_STREAM)
        return kvi_fence_record(client, backend, (uint64_t)(uintptr_t)fence->stream, point);
    if (fence->kind == KVMEM_FENCE_TIMELINE)
        *point = point_of(fence);
    return 0;
}

/* ---- promises ---- */

static uint64_t *promise_word(struct kvi_fences *fences, uint64_t value, uint64_t *mask)
{
    *mask = UINT64_C(1) << (value % 64);
    return &fences->promises[value % KVI_PROMISE_LIMIT / 64];
}

int kvi_fence_promise(struct kvmem_client *client, struct kvmem_fence *fence)
{
    struct kvi_fences *fences = &client->fences;
    struct kvi_lane_use *use = &fences->lanes[PROMISE_LANE];
    struct kvi_point point;
    int code = kvi_fence_own_page(client);

    if (code)
        return code;
    if (use->last - fences->own.lanes[PROMISE_LANE].counter >= KVI_PROMISE_LIMIT)
        return kvi_error_set(KVMEM_E_LIMIT,
                             "promise %" PRIu64 " is open and %u came after it; fulfil it first",
                             fences->own.lanes[PROMISE_LANE].counter + 1, KVI_PROMISE_LIMIT - 1);
    point = own_point(fences, PROMISE_LANE, ++use->last);
    *fence = kvi_fence_of(&point);
    return 0;
}

int kvi_fence_fulfil(struct kvmem_client *client, const struct kvmem_fence *fence)
{
    struct kvi_fences *fences = &client->fences;
    struct kvi_lane *lane = fences->own.lanes + PROMISE_LANE;
    uint64_t reached, mask, *word;

    if (fence->kind != KVMEM_FENCE_TIMELINE || !fences->own.lanes ||
        fence->timeline != fences->own.timeline + PROMISE_LANE)
        return kvi_error_set(KVMEM_E_INVALID, "fence: was not promised by this client");
    reached = lane->counter; /* this thread alone writes it */
    word = promise_word(fences, fence->value, &mask);
    if (fence->value <= reached || fence->value > fences->lanes[PROMISE_LANE].last ||
        (*word & mask))
        return kvi_error_set(KVMEM_E_INVALID,
                             "fence.value: %" PRIu64 " is not open; %" PRIu64 "..%" PRIu64
                             " were promised and not all are fulfilled",
                             fence->value, reached + 1, fences->lanes[PROMISE_LANE].last);
    *word |= mask;
    while (*(word = promise_word(fences, reached + 1, &mask)) & mask) {
        *word &= ~mask;
        reached++;
    }
    if (reached != lane->counter)
        kvi_lane_reach(lane, reached);
    return 0;
}

/* ---- asking and waiting ---- */

int kvi_fence_poll(struct kvmem_client *client, const struct kvmem_fence *fence)
{
    struct kvi_point point = point_of(fence);
    int code = kvi_fence_check(client, NULL, fence);

    if (code)
        return code;
    if (fence->kind != KVMEM_FENCE_TIMELINE)
        return 1;
    switch (kvi_fence_state(client, &point)) {
    case KVI_LANE_PENDING: return 0;
    case KVI_LANE_REACHED: return 1;
    default: return stale(&point);
    }
}

void kvi_fence_pause(uint32_t *turn)
{
    struct timespec pause = {0, PAUSE_MIN_NS};

    if (++*turn <= YIELDS) {
        sched_yield();
        return;
    }
    pause.tv_nsec += (long)(*turn - YIELDS) * PAUSE_MIN_NS;
    if (pause.tv_nsec > PAUSE_MAX_NS)
        pause.tv_nsec = PAUSE_MAX_NS;
    nanosleep(&pause, NULL);
}

int kvi_fence_wait(struct kvmem_client *client, const struct kvmem_fence *fence, int64_t timeout_ns)
{
    int64_t deadline_ns = timeout_ns < 0 ? INT64_MAX : kvi_client_deadline_ns(timeout_ns);
    uint32_t turn = 0;

    for (;;) {
        int code = kvi_fence_poll(client, fence);

        if (code)
            return code < 0 ? code : 0;
        if (!deadline_ns || kvi_client_now_ns() >= deadline_ns)
            return kvi_error_set(KVMEM_E_TIMED_OUT,
                                 "fence: value %" PRIu64 " of timeline %" PRIu32
                                 " was not reached in time",
                                 fence->value, fence->timeline);
        kvi_fence_pause(&turn);
    }
}

bool kvi_fence_settle(struct kvmem_client *client, int64_t deadline_ns)
{
    const struct kvi_fences *fences = &client->fences;
    uint32_t turn = 0;

    for (uint32_t lane = PROMISE_LANE + 1; lane < fences->lane_count; lane++)
        while (!is_reached(fences, lane, fences->lanes[lane].last)) {
            if (!deadline_ns || kvi_client_now_ns() >= deadline_ns)
                return false;
            kvi_fence_pause(&turn);
        }
    return true;
}
