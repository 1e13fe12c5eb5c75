/* SPDX-License-Identifier: Apache-2.0
 *
 * The event loop: tells when a file descriptor is ready, once each time it is armed.
 *
 *      arm ──▶ armed ──▶ ready() ──▶ idle ──arm──▶ ...
 *                └──disarm──▶ idle
 *
 * One kind of operation, the one-shot poll, serves listener, connections, pidfds and signals. It
 * is level-triggered (an fd that is still ready when armed again fires at once), so that whoever
 * has used up a turn's budget just arms again and stands in line behind the others; it needs no
 * buffer that a peer could fill while it waits; and poll(2) can do the same where containers
 * block io_uring. Arming costs no system call: the requests of a turn go to the kernel with the
 * call that waits for the next.
 *
 * One thread. Watches are the caller's storage; an idle one may be freed, also inside ready().
 */
#ifndef KVD_LOOP_H
#define KVD_LOOP_H

#include <stdint.h>

#include "util/alloc.h"

struct kvd_loop;

struct kvd_watch {
    int fd; /* the owner's; set before arming, open while armed */
    /* `events` as poll(2) says them; POLLERR when the kernel could not watch the fd. */
    void (*ready)(struct kvd_watch *watch, uint32_t events);
    uint32_t events; /* the loop's: what it is armed for */
    uint32_t slot;   /* the loop's: index + 1 while armed, 0 while idle */
};

/* A loop for at most `watch_limit` armed watches: on io_uring, or on poll(2) where the kernel or
 * a seccomp filter refuses that (logged with the cause). 0, NO_MEMORY. */
int kvd_loop_create(const struct kvi_alloc *alloc, uint32_t watch_limit, struct kvd_loop **out);
/* NULL is allowed. */
void kvd_loop_destroy(struct kvd_loop *loop);

/* Call watch->ready once, when one of `events` comes. Armed already: for these instead. */
void kvd_loop_arm(struct kvd_loop *loop, struct kvd_watch *watch, uint32_t events);

/* ready() is not called any more. Idle watches are fine. Before the fd is closed. */
void kvd_loop_disarm(struct kvd_loop *loop, struct kvd_watch *watch);

/* Wait until something is ready, at most `timeout_ns` (KVD_NEVER_NS: for ever), and call the
 * ready() of all that is. 0, or SYSTEM when the kernel does not let us wait any more. */
int kvd_loop_turn(struct kvd_loop *loop, uint64_t timeout_ns);

/* "io_uring" or "poll". */
const char *kvd_loop_engine(const struct kvd_loop *loop);

#endif
