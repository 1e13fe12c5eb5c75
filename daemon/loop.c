/* SPDX-License-Identifier: Apache-2.0
 *
 * Two engines behind one table of slots. A slot's generation grows whenever its watch is
 * disarmed or has fired; it travels with the request (user_data), so that what comes late from
 * the kernel for a watch that was disarmed, or freed, finds nobody.
 *
 *   user_data = generation << 32 | slot + 1;   0: removals, nobody asks what became of them
 *   armed watches + free slots = limit
 */
#include "loop.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>

#include "clock.h"
#include "log.h"
#include "util/error.h"

#define SUBMISSIONS 256u
#define BATCH       64u

struct slot {
    struct kvd_watch *watch; /* NULL: free */
    uint32_t generation;
    uint32_t next_free; /* index + 1 */
};

struct kvd_loop {
    const struct kvi_alloc *alloc;
    struct slot *slots;
    struct pollfd *polled;   /* the poll engine's: one of each armed slot */
    uint64_t *polled_tokens; /* and which */
    uint32_t limit;
    uint32_t free; /* head of the free list, index + 1 */
    bool has_ring;
    struct io_uring ring;
};

/* ---- slots ---- */

static uint64_t token_of(const struct kvd_loop *loop, uint32_t slot)
{
    return (uint64_t)loop->slots[slot - 1].generation << 32 | slot;
}

static void slot_free(struct kvd_loop *loop, uint32_t slot)
{
    loop->slots[slot - 1].watch->slot = 0;
    loop->slots[slot - 1].watch = NULL;
    loop->slots[slot - 1].generation++;
    loop->slots[slot - 1].next_free = loop->free;
    loop->free = slot;
}

static void dispatch(struct kvd_loop *loop, uint64_t token, uint32_t events)
{
    uint32_t slot = (uint32_t)token;
    struct kvd_watch *watch;

    if (slot == 0 || token != token_of(loop, slot) || loop->slots[slot - 1].watch == NULL)
        return;
    watch = loop->slots[slot - 1].watch;
    slot_free(loop, slot);
    watch->ready(watch, events);
}

/* ---- io_uring ---- */

static struct io_uring_sqe *submission(struct kvd_loop *loop)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&loop->ring);

    while (sqe == NULL) { /* the queue is full: let the kernel take it */
        io_uring_submit(&loop->ring);
        sqe = io_uring_get_sqe(&loop->ring);
    }
    return sqe;
}

static void ring_add(struct kvd_loop *loop, const struct kvd_watch *watch)
{
    struct io_uring_sqe *sqe = submission(loop);

    io_uring_prep_poll_add(sqe, watch->fd, watch->events);
    io_uring_sqe_set_data64(sqe, token_of(loop, watch->slot));
}

static void ring_remove(struct kvd_loop *loop, const struct kvd_watch *watch)
{
    struct io_uring_sqe *sqe = submission(loop);

    io_uring_prep_poll_remove(sqe, token_of(loop, watch->slot));
    io_uring_sqe_set_data64(sqe, 0);
}

static int ring_turn(struct kvd_loop *loop, uint64_t timeout_ns)
{
    struct __kernel_timespec timeout = {.tv_sec = (int64_t)(timeout_ns / KVD_SECOND_NS),
                                        .tv_nsec = (long long)(timeout_ns % KVD_SECOND_NS)};
    struct io_uring_cqe *cqes[BATCH];
    uint64_t tokens[BATCH];
    uint32_t events[BATCH];
    unsigned count;
    int rc = io_uring_submit_and_wait_timeout(&loop->ring, cqes, 1,
                                              timeout_ns == KVD_NEVER_NS ? NULL : &timeout, NULL);

    /* EBUSY and EAGAIN: completions or memory are short; taking what is there helps. */
    if (rc < 0 && rc != -ETIME && rc != -EINTR && rc != -EBUSY && rc != -EAGAIN)
        return kvi_error_sys(KVMEM_E_SYSTEM, -rc, "io_uring_enter");
    count = io_uring_peek_batch_cqe(&loop->ring, cqes, BATCH);
    for (unsigned i = 0; i < count; i++) {
        tokens[i] = io_uring_cqe_get_data64(cqes[i]);
        events[i] = cqes[i]->res < 0 ? POLLERR : (uint32_t)cqes[i]->res;
    }
    io_uring_cq_advance(&loop->ring, count);
    for (unsigned i = 0; i < count; i++)
        dispatch(loop, tokens[i], events[i]);
    return 0;
}

/* 0 or a negative errno. */
static int ring_init(struct kvd_loop *loop)
{
    struct io_uring_params params = {
        .flags = IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE | IORING_SETUP_SINGLE_ISSUER |
                 IORING_SETUP_DEFER_TASKRUN,
        .cq_entries = 2048,
    };
    int rc = io_uring_queue_init_params(SUBMISSIONS, &loop->ring, &params);

    if (rc == -EINVAL) { /* Linux before 6.1 */
        params = (struct io_uring_params){.flags = IORING_SETUP_CLAMP};
        rc = io_uring_queue_init_params(SUBMISSIONS, &loop->ring, &params);
    }
    if (rc < 0)
        return rc;
    if ((params.features & IORING_FEAT_EXT_ARG) == 0 ||
        (params.features & IORING_FEAT_NODROP) == 0) {
        io_uring_queue_exit(&loop->ring); /* Linux before 5.11: no timeout with the wait */
        return -EOPNOTSUPP;
    }
    return 0;
}

/* ---- poll(2) ---- */

static int poll_turn(struct kvd_loop *loop, uint64_t timeout_ns)
{
    struct timespec timeout = {.tv_sec = (time_t)(timeout_ns / KVD_SECOND_NS),
                               .tv_nsec = (long)(timeout_ns % KVD_SECOND_NS)};
    nfds_t count = 0;

    for (uint32_t slot = 1; slot <= loop->limit; slot++) {
        const struct kvd_watch *watch = loop->slots[slot - 1].watch;

        if (watch == NULL)
            continue;
        loop->polled[count] = (struct pollfd){.fd = watch->fd, .events = (short)watch->events};
        loop->polled_tokens[count++] = token_of(loop, slot);
    }
    if (ppoll(loop->polled, count, timeout_ns == KVD_NEVER_NS ? NULL : &timeout, NULL) < 0) {
        if (errno == EINTR || errno == EAGAIN || errno == ENOMEM)
            return 0;
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "ppoll");
    }
    for (nfds_t i = 0; i < count; i++)
        if (loop->polled[i].revents != 0)
            dispatch(loop, loop->polled_tokens[i], (uint32_t)loop->polled[i].revents);
    return 0;
}

/* ---- either ---- */

int kvd_loop_create(const struct kvi_alloc *alloc, uint32_t watch_limit, struct kvd_loop **out)
{
    struct kvd_loop *loop = kvi_allocate(alloc, sizeof(*loop));
    int rc;

    if (loop == NULL)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "event loop");
    loop->alloc = alloc;
    loop->limit = watch_limit;
    loop->slots = kvi_allocate(alloc, watch_limit * sizeof(*loop->slots));
    loop->polled = kvi_allocate(alloc, watch_limit * sizeof(*loop->polled));
    loop->polled_tokens = kvi_allocate(alloc, watch_limit * sizeof(*loop->polled_tokens));
    if (loop->slots == NULL || loop->polled == NULL || loop->polled_tokens == NULL) {
        kvd_loop_destroy(loop);
        return kvi_error_set(KVMEM_E_NO_MEMORY, "event loop of %u watches", watch_limit);
    }
    for (uint32_t slot = 1; slot <= watch_limit; slot++)
        loop->slots[slot - 1].next_free = slot < watch_limit ? slot + 1 : 0;
    loop->free = 1;
    rc = ring_init(loop);
    loop->has_ring = rc == 0;
    if (rc < 0)
        kvd_log_always("io_uring is not available (%s): using poll(2). Causes: a seccomp filter "
                       "(containers), the sysctl kernel.io_uring_disabled, Linux before 5.11",
                       strerror(-rc));
    *out = loop;
    return 0;
}

void kvd_loop_destroy(struct kvd_loop *loop)
{
    if (loop == NULL)
        return;
    if (loop->has_ring)
        io_uring_queue_exit(&loop->ring);
    kvi_release(loop->alloc, loop->slots, loop->limit * sizeof(*loop->slots));
    kvi_release(loop->alloc, loop->polled, loop->limit * sizeof(*loop->polled));
    kvi_release(loop->alloc, loop->polled_tokens, loop->limit * sizeof(*loop->polled_tokens));
    kvi_release(loop->alloc, loop, sizeof(*loop));
}

void kvd_loop_arm(struct kvd_loop *loop, struct kvd_watch *watch, uint32_t events)
{
    if (watch->slot != 0 && watch->events == events)
        return;
    kvd_loop_disarm(loop, watch);
    assert(loop->free != 0); /* the owner of the loop counts its watches */
    watch->slot = loop->free;
    watch->events = events;
    loop->free = loop->slots[watch->slot - 1].next_free;
    loop->slots[watch->slot - 1].watch = watch;
    if (loop->has_ring)
        ring_add(loop, watch);
}

void kvd_loop_disarm(struct kvd_loop *loop, struct kvd_watch *watch)
{
    if (watch->slot == 0)
        return;
    if (loop->has_ring)
        ring_remove(loop, watch);
    slot_free(loop, watch->slot);
}

int kvd_loop_turn(struct kvd_loop *loop, uint64_t timeout_ns)
{
    return loop->has_ring ? ring_turn(loop, timeout_ns) : poll_turn(loop, timeout_ns);
}

const char *kvd_loop_engine(const struct kvd_loop *loop)
{
    return loop->has_ring ? "io_uring" : "poll";
}
