/* SPDX-License-Identifier: Apache-2.0
 *
 * Parts of kvmemd by themselves, where a whole daemon cannot be brought to it: the loop on
 * either engine, the bounds and order of an output queue, an arena's charges, and who a peer is on
 * a kernel without SO_PEERPIDFD.
 */
#include <criterion/criterion.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <kvmem/error.h>

#include "arena.h"
#include "clock.h"
#include "loop.h"
#include "output.h"
#include "reclaim.h"
#include "support/raw_client.h"

TestSuite(daemon_parts, .timeout = 30);

/* ---- loop ---- */

struct reader {
    struct kvd_watch watch;
    struct kvd_loop *loop;
    struct reader *victim; /* disarmed by ready() */
    int fired;
};

static void reader_ready(struct kvd_watch *watch, uint32_t events)
{
    struct reader *reader = (void *)watch;

    cr_expect_eq(events & POLLIN, POLLIN);
    reader->fired++;
    if (reader->victim != NULL)
        kvd_loop_disarm(reader->loop, &reader->victim->watch);
}

static void reader_init(struct reader *reader, struct kvd_loop *loop, int pipe_fds[2])
{
    cr_assert_eq(pipe(pipe_fds), 0);
    *reader = (struct reader){.watch = {.fd = pipe_fds[0], .ready = reader_ready}, .loop = loop};
    kvd_loop_arm(loop, &reader->watch, POLLIN);
}

Test(daemon_parts, a_watch_fires_once_and_again_when_armed_while_ready)
{
    struct kvd_loop *loop;
    struct reader reader;
    int fds[2];

    cr_assert_eq(kvd_loop_create(&kvi_alloc_libc, 4, &loop), 0);
    reader_init(&reader, loop, fds);
    cr_assert_eq(kvd_loop_turn(loop, KVD_MILLISECOND_NS), 0);
    cr_assert_eq(reader.fired, 0);
    cr_assert_eq(write(fds[1], "xy", 2), 2);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(kvd_loop_turn(loop, KVD_MILLISECOND_NS), 0);
    cr_assert_eq(reader.fired, 1);
    kvd_loop_arm(loop, &reader.watch, POLLIN);
    cr_assert_eq(kvd_loop_turn(loop, KVD_NEVER_NS), 0);
    cr_assert_eq(reader.fired, 2, "it is level-triggered");
    kvd_loop_destroy(loop);
}

Test(daemon_parts, a_disarmed_watch_does_not_fire)
{
    struct kvd_loop *loop;
    struct reader readers[2];
    int fds[2][2];

    cr_assert_eq(kvd_loop_create(&kvi_alloc_libc, 4, &loop), 0);
    for (int i = 0; i < 2; i++)
        reader_init(&readers[i], loop, fds[i]);
    readers[0].victim = &readers[1];
    readers[1].victim = &readers[0];
    for (int i = 0; i < 2; i++)
        cr_assert_eq(write(fds[i][1], "x", 1), 1);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(kvd_loop_turn(loop, KVD_MILLISECOND_NS), 0);
    cr_assert_eq(readers[0].fired + readers[1].fired, 1, "both were ready in the same turn");
    kvd_loop_destroy(loop);
}

Test(daemon_parts, slots_are_reused_for_ever)
{
    struct kvd_loop *loop;
    struct reader reader;
    int fds[2];

    cr_assert_eq(kvd_loop_create(&kvi_alloc_libc, 2, &loop), 0);
    reader_init(&reader, loop, fds);
    for (int i = 0; i < 5000; i++) {
        kvd_loop_disarm(loop, &reader.watch);
        kvd_loop_arm(loop, &reader.watch, i % 2 == 0 ? POLLIN : POLLIN | POLLRDHUP);
    }
    cr_assert_eq(write(fds[1], "x", 1), 1);
    for (int i = 0; i < 1000 && reader.fired == 0; i++) /* past what became of the removals */
        cr_assert_eq(kvd_loop_turn(loop, KVD_SECOND_NS), 0);
    cr_assert_eq(reader.fired, 1);
    kvd_loop_destroy(loop);
}

/* ---- output ---- */

Test(daemon_parts, output_keeps_order_and_bound)
{
    static unsigned char datagram[1024];
    static struct kvd_arena_pool pool;
    static struct kvt_raw_message message;
    struct kvt_raw peer = {.status_fd = -1};
    struct kvd_output output = {0};
    struct kvd_arena *arena;
    uint32_t sent = 0;
    uint32_t got = 0;
    int pair[2];
    int rc;

    cr_assert_eq(kvd_arena_acquire(&pool, &arena), 0);
    output.alloc = &arena->alloc;
    cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    peer.fd = pair[1];
    do {
        int fd = dup(pair[0]);

        memcpy(datagram, &sent, sizeof(sent));
        rc = kvd_output_send_consume(&output, pair[0], datagram, sizeof(datagram), &fd, 1);
        sent += rc == 0;
    } while (rc == 0);
    cr_assert_eq(rc, KVMEM_E_LIMIT);
    cr_assert_eq(output.message_count, KVD_OUTPUT_MESSAGES);
    while (got < sent) {
        cr_assert_eq(kvt_raw_receive(&peer, &message, 1000), KVT_RAW_MESSAGE);
        cr_assert_eq(memcmp(message.as.raw, &got, sizeof(got)), 0, "message %u", got);
        cr_assert_eq(message.fd_count, 1);
        kvt_raw_close_fds(&message);
        got++;
        cr_assert_eq(kvd_output_flush(&output, pair[0]), 0);
    }
    cr_assert_not(kvd_output_is_waiting(&output));
    cr_assert_eq(output.message_bytes, 0);
    kvd_arena_release(&pool, arena);
    cr_assert_eq(close(pair[0]), 0);
    cr_assert_eq(kvt_raw_receive(&peer, &message, 1000), KVT_RAW_END, "a descriptor was kept");
    kvt_raw_close(&peer);
}

/* ---- arenas ---- */

Test(daemon_parts, arenas_are_reused_and_counted)
{
    static struct kvd_arena_pool pool;
    struct kvd_arena *arenas[KVI_CLIENT_LIMIT];
    struct kvd_arena *extra;
    void *memory;

    for (uint32_t i = 0; i < KVI_CLIENT_LIMIT; i++)
        cr_assert_eq(kvd_arena_acquire(&pool, &arenas[i]), 0);
    cr_assert_eq(kvd_arena_acquire(&pool, &extra), KVMEM_E_LIMIT);
    memory = kvi_allocate(&arenas[3]->alloc, 1000);
    cr_assert(memory != NULL && ((uintptr_t)memory & 63) == 0);
    for (size_t i = 0; i < 1000; i++)
        cr_assert_eq(((unsigned char *)memory)[i], 0);
    cr_assert_eq(arenas[3]->charged_bytes, 1000);
    kvi_release(&arenas[3]->alloc, memory, 1000);
    kvd_arena_release(&pool, arenas[3]);
    cr_assert_eq(kvd_arena_acquire(&pool, &extra), 0);
    cr_assert_eq(extra, arenas[3]);
    cr_assert_eq(pool.made_count, KVI_CLIENT_LIMIT);
}

Test(daemon_parts, an_arena_that_is_charged_is_not_released, .signal = SIGABRT)
{
    static struct kvd_arena_pool pool;
    struct kvd_arena *arena;

    cr_assert_eq(kvd_arena_acquire(&pool, &arena), 0);
    cr_assert(kvi_allocate(&arena->alloc, 1) != NULL);
    kvd_arena_release(&pool, arena);
}

/* ---- peers ---- */

Test(daemon_parts, a_peer_by_number)
{
    struct kvi_dir_peer identity = {
        .pid = (uint32_t)getpid(), .uid = (uint32_t)getuid(), .gid = (uint32_t)getgid()};
    struct kvi_dir_peer other = identity;
    struct pollfd state = {.events = POLLIN};
    int pair[2];

    cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    cr_assert_eq(kvd_peer_pidfd_by_number(pair[0], &identity, &state.fd), 0);
    cr_assert_eq(poll(&state, 1, 0), 0, "we are alive");
    close(state.fd);
    other.pid = 0; /* in another namespace */
    cr_assert_eq(kvd_peer_pidfd_by_number(pair[0], &other, &state.fd), KVMEM_E_PERMISSION);
    other.pid = 1; /* not who connected */
    cr_assert_eq(kvd_peer_pidfd_by_number(pair[0], &other, &state.fd), KVMEM_E_DAEMON_LOST);
    close(pair[1]); /* it left meanwhile: its number may be another's */
    cr_assert_eq(kvd_peer_pidfd_by_number(pair[0], &identity, &state.fd), KVMEM_E_DAEMON_LOST);
    close(pair[0]);
}
