/* SPDX-License-Identifier: Apache-2.0
 *
 * What a client held comes back, when it is proved that nobody can write it any more, and not
 * before; and nothing else is left of a client.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <kvmem.h>

#include "client/timeline.h"
#include "support/daemon.h"
#include "support/raw_client.h"

#define RECLAIM_NS KVT_MS(100)

static struct kvt_daemon daemon_;
static struct kvt_raw watcher;
static struct kvi_msg_stats_reply stats;
static struct kvt_raw_message message;

static void prepare(void)
{
    static const char *const small[] = {"--device-bytes", "64MiB", NULL};

    kvt_daemon_prepare(&daemon_);
    kvt_daemon_start(&daemon_, small);
    cr_assert(kvt_raw_join(&watcher, daemon_.socket_path, "watcher"));
}

static void end(void)
{
    struct kvi_msg_check check;

    kvi_wire_begin(&check, KVI_OP_CHECK, 0);
    cr_expect_eq(kvt_raw_call(&watcher, &check, &message), KVT_RAW_MESSAGE);
    cr_expect_eq(message.as.check.violations, 0, "%.256s", message.as.check.text);
    kvt_raw_close(&watcher);
    cr_expect_eq(kvt_daemon_stop(&daemon_), 0);
    kvt_daemon_end(&daemon_);
}

TestSuite(daemon_reclaim, .init = prepare, .fini = end, .timeout = 60);

static void look(void)
{
    static char log[16 * 1024];

    if (kvt_raw_stats(&watcher, &stats))
        return;
    kvt_daemon_log(&daemon_, log, sizeof(log));
    cr_assert(false, "the watcher is not answered; the log: %s", log);
}

/* Wait until that many clients were taken back; how long that took, −1 when it did not come. */
static int64_t reclaimed_ns(uint64_t count, int64_t timeout_ns)
{
    uint64_t start_ns = kvt_now_ns();

    for (;;) {
        look();
        if (stats.reclaimed_clients >= count)
            return (int64_t)(kvt_now_ns() - start_ns);
        if (kvt_now_ns() - start_ns > (uint64_t)timeout_ns)
            return -1;
        kvt_sleep_ns(KVT_MS(1));
    }
}

/* ---- a process of its own ---- */

struct holder {
    struct kvt_process process;
    int fd; /* our end of what it takes orders from */
};

static void holder_start(struct holder *holder)
{
    struct kvt_spawn_options options = {.program = "tests/helpers/raw_holder",
                                        .arguments = {daemon_.socket_path}};
    struct timeval timeout = {.tv_sec = 10};
    int pair[2];

    cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    options.gift = pair[1];
    kvt_spawn(&holder->process, &options);
    close(pair[1]);
    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    holder->fd = pair[0];
}

static void order(struct holder *holder, char letter)
{
    char answer = 0;

    cr_assert_eq(send(holder->fd, &letter, 1, MSG_NOSIGNAL), 1);
    cr_assert_eq(recv(holder->fd, &answer, 1, 0), 1);
    cr_assert_eq(answer, letter, "the holder could not '%c'", letter);
}

static void holder_end(struct holder *holder, int signal_number)
{
    if (signal_number != 0)
        kill(holder->process.pid, signal_number);
    else
        send(holder->fd, "x", 1, MSG_NOSIGNAL);
    kvt_reap(&holder->process, KVT_DAEMON_LIMIT);
    close(holder->fd);
}

Test(daemon_reclaim, end_of_file_quarantines_and_exit_reclaims)
{
    struct holder holder;
    int64_t took_ns;

    holder_start(&holder);
    order(&holder, 'j');
    look();
    cr_assert_eq(stats.client_count, 2);
    cr_assert_eq(stats.owned_segments, 1);
    order(&holder, 'c');
    cr_assert(kvt_daemon_logged(&daemon_, "closed by the client, without goodbye", KVT_MS(5000)));
    cr_assert_eq(reclaimed_ns(1, KVT_MS(300)), -1, "taken back while its process lives");
    cr_assert_eq(stats.client_count, 2);
    cr_assert_eq(stats.idle_blocks, 0, "free for others while its process may write");
    holder_end(&holder, 0);
    took_ns = reclaimed_ns(1, KVT_MS(5000));
    cr_assert(took_ns >= 0 && took_ns <= RECLAIM_NS, "%" PRId64 " ns", took_ns);
    cr_assert_eq(stats.client_count, 1);
    cr_assert_eq(stats.owner_blocks, 0);
}

Test(daemon_reclaim, a_kill_reclaims_within_100_ms)
{
    for (uint64_t round = 1; round <= 10; round++) {
        struct holder holder;
        int64_t took_ns;

        holder_start(&holder);
        order(&holder, 'j');
        holder_end(&holder, SIGKILL);
        took_ns = reclaimed_ns(round, KVT_MS(5000));
        cr_assert(took_ns >= 0 && took_ns <= RECLAIM_NS, "%" PRId64 " ns", took_ns);
        cr_assert_eq(stats.owned_segments, 0);
        cr_assert_eq(stats.owner_blocks, 0);
        cr_assert_eq(stats.leaked_blocks, 0);
    }
}

/* ---- timelines ---- */

/* A holder with a timeline, and that page as the test sees it, whose client is next in number. */
static struct kvi_lane *holder_lanes(struct holder *holder, struct kvt_raw *reader)
{
    struct kvi_lane *lanes;
    uint32_t space;
    uint32_t own;

    holder_start(holder);
    order(holder, 'j');
    order(holder, 't');
    cr_assert(kvt_raw_join(reader, daemon_.socket_path, "reader"));
    cr_assert_null(kvt_raw_timeline(reader, 2 * KVI_LANE_COUNT, &message));
    cr_assert_eq(message.as.error.code, KVMEM_E_PERMISSION, "it shares nothing with the holder");
    cr_assert(kvt_raw_space_open(reader, "held", &space));
    lanes = kvt_raw_timeline(reader, UINT32_MAX, &message);
    cr_assert_not_null(lanes);
    munmap(lanes, KVI_TIMELINE_BYTES);
    own = message.as.timeline_fd.timeline;
    cr_assert(own % KVI_LANE_COUNT == 0 && message.as.timeline_fd.client == reader->client);
    lanes = kvt_raw_timeline(reader, own - KVI_LANE_COUNT + 5, &message);
    cr_assert_not_null(lanes);
    cr_assert_eq(message.as.timeline_fd.timeline, own - KVI_LANE_COUNT);
    cr_assert_eq(kvi_lane_poll(&lanes[3], 7), KVI_LANE_REACHED);
    cr_assert_eq(kvi_lane_poll(&lanes[3], 8), KVI_LANE_PENDING);
    return lanes;
}

static void is_broken(const struct kvi_lane *lanes)
{
    uint64_t end_ns = kvt_now_ns() + (uint64_t)KVT_DAEMON_LIMIT;

    while (kvi_lane_poll(&lanes[63], 1) == KVI_LANE_PENDING && kvt_now_ns() < end_ns)
        kvt_sleep_ns(KVT_MS(1));
    cr_assert_eq(kvi_lane_poll(&lanes[3], 7), KVI_LANE_REACHED, "that much was reached");
    cr_assert_eq(kvi_lane_poll(&lanes[3], 8), KVI_LANE_IS_BROKEN);
    cr_assert_eq(kvi_lane_poll(&lanes[63], 1), KVI_LANE_IS_BROKEN);
}

Test(daemon_reclaim, lanes_are_broken_when_the_producer_is_gone)
{
    int fds_before = kvt_process_fd_count(daemon_.process.pid);
    struct kvt_raw reader;
    struct holder holder;
    struct kvi_lane *lanes = holder_lanes(&holder, &reader);

    order(&holder, 'c');
    cr_assert(kvt_daemon_logged(&daemon_, "closed by the client, without goodbye", KVT_MS(5000)));
    cr_assert_eq(kvi_lane_poll(&lanes[3], 8), KVI_LANE_PENDING, "its process lives");
    holder_end(&holder, SIGKILL);
    is_broken(lanes);
    cr_assert_null(kvt_raw_timeline(&reader, KVI_LANE_COUNT * 2, &message));
    cr_assert_eq(message.as.error.code, KVMEM_E_NOT_FOUND);
    cr_assert(kvt_raw_goodbye(&reader));
    kvt_raw_close(&reader);
    cr_assert_geq(reclaimed_ns(2, KVT_MS(5000)), 0);
    cr_assert_eq(kvi_lane_poll(&lanes[3], 8), KVI_LANE_IS_BROKEN, "who has it mapped keeps it");
    munmap(lanes, KVI_TIMELINE_BYTES);
    cr_assert_leq(kvt_process_fd_count(daemon_.process.pid), fds_before + 2, "a segment is left");
}

Test(daemon_reclaim, lanes_are_broken_by_goodbye_and_not_by_the_daemons_end)
{
    struct kvt_raw reader;
    struct holder holder;
    struct kvi_lane *lanes = holder_lanes(&holder, &reader);

    order(&holder, 'g');
    is_broken(lanes);
    munmap(lanes, KVI_TIMELINE_BYTES);
    holder_end(&holder, 0);
    lanes = kvt_raw_timeline(&reader, UINT32_MAX, &message);
    cr_assert_not_null(lanes);
    cr_assert_eq(kvt_daemon_stop(&daemon_), 0);
    cr_assert_eq(kvi_lane_poll(&lanes[0], 1), KVI_LANE_PENDING, "this process lives on");
    munmap(lanes, KVI_TIMELINE_BYTES);
    kvt_raw_close(&reader);
    kvt_raw_close(&watcher);
    kvt_daemon_start(&daemon_, NULL);
    cr_assert(kvt_raw_join(&watcher, daemon_.socket_path, "watcher"));
}

Test(daemon_reclaim, a_stopped_process_keeps_what_it_has)
{
    struct holder holder;

    holder_start(&holder);
    order(&holder, 'j');
    kill(holder.process.pid, SIGSTOP);
    cr_assert_eq(reclaimed_ns(1, KVT_MS(300)), -1);
    cr_assert_eq(stats.owned_segments, 1);
    holder_end(&holder, SIGKILL);
    cr_assert_geq(reclaimed_ns(1, KVT_MS(5000)), 0);
}

Test(daemon_reclaim, a_socket_handed_on_dies_with_its_process)
{
    struct kvt_raw handed = {.fd = -1, .status_fd = -1};
    struct kvt_raw from_holder = {.status_fd = -1};
    struct kvi_msg_stats_reply theirs;
    struct holder holder;

    holder_start(&holder);
    order(&holder, 'j');
    cr_assert_eq(send(holder.fd, "p", 1, MSG_NOSIGNAL), 1);
    from_holder.fd = holder.fd;
    cr_assert_eq(kvt_raw_receive(&from_holder, &message, 5000), KVT_RAW_MESSAGE);
    cr_assert_eq(message.fd_count, 1);
    handed.fd = message.fds[0];
    handed.fds_received = 1; /* at most what was sent; the holder's serials are its own */
    handed.serial = 1000;
    cr_assert(kvt_raw_stats(&handed, &theirs), "it works while the process lives");
    holder_end(&holder, 0);
    cr_assert(kvt_raw_is_ended(&handed, 1000), "it outlived its process");
    cr_assert_geq(reclaimed_ns(1, KVT_MS(5000)), 0);
    kvt_raw_close(&handed);
}

/* ---- connections of this process ---- */

Test(daemon_reclaim, goodbye_reclaims_at_once)
{
    struct kvt_raw client;
    uint32_t space;

    cr_assert(kvt_raw_join(&client, daemon_.socket_path, "polite"));
    cr_assert(kvt_raw_space_open(&client, "one", &space));
    cr_assert(kvt_raw_blocks(&client, space, 64, &message));
    look();
    cr_assert_eq(stats.owned_segments, 1);
    cr_assert(kvt_raw_goodbye(&client));
    cr_assert(kvt_raw_is_ended(&client, 1000));
    look();
    cr_assert_eq(stats.client_count, 1, "we live on, and it is gone all the same");
    cr_assert_eq(stats.owned_segments, 0);
    kvt_raw_close(&client);
}

/* Connect and leave, with goodbye and without. */
static void come_and_go(int rounds)
{
    for (int i = 0; i < rounds; i++) {
        struct kvt_raw client;

        cr_assert(kvt_raw_join(&client, daemon_.socket_path, "fly"), "round %d", i);
        if (i % 2 == 0)
            cr_assert(kvt_raw_goodbye(&client));
        kvt_raw_close(&client);
    }
}

/* When the daemon has seen the last of them. */
static int settled_fd_count(void)
{
    uint64_t deadline_ns = kvt_now_ns() + (uint64_t)KVT_MS(5000);

    do
        look();
    while (stats.client_count > 1 && kvt_now_ns() < deadline_ns);
    return kvt_process_fd_count(daemon_.process.pid);
}

Test(daemon_reclaim, a_thousand_connections_leave_nothing)
{
    int64_t more_bytes;
    int fd_count;

    come_and_go(200);
    fd_count = settled_fd_count();
    more_bytes = -kvt_process_resident_bytes(daemon_.process.pid);
    come_and_go(1000);
    cr_assert_eq(settled_fd_count(), fd_count);
    more_bytes += kvt_process_resident_bytes(daemon_.process.pid);
#ifdef KVI_SANITIZE
    cr_log_info("%" PRId64 " bytes more; the sanitizer keeps what is freed", more_bytes);
#else
    cr_assert_leq(more_bytes, 256 * 1024, "%" PRId64 " bytes more", more_bytes);
#endif
}

Test(daemon_reclaim, the_last_place_is_answered_and_comes_free)
{
    static struct kvt_raw clients[KVI_CLIENT_LIMIT];
    struct kvt_raw extra;

    for (uint32_t i = 1; i < KVI_CLIENT_LIMIT; i++)
        cr_assert(kvt_raw_join(&clients[i], daemon_.socket_path, "crowd"), "client %u", i);
    cr_assert_eq(kvt_raw_connect(&extra, daemon_.socket_path), 0);
    cr_assert_eq(kvt_raw_receive(&extra, &message, 1000), KVT_RAW_MESSAGE);
    cr_assert_eq(message.as.header.opcode, KVI_OP_ERROR);
    cr_assert_eq(message.as.error.code, KVMEM_E_LIMIT);
    cr_assert(strstr(message.as.error.text, "256") != NULL, "%s", message.as.error.text);
    cr_assert(kvt_raw_is_ended(&extra, 1000));
    kvt_raw_close(&extra);
    for (int i = 0; i < 50; i++) { /* the library, too, says why, whoever is faster */
        struct kvmem_connect_options options = {.size = sizeof(options),
                                                .socket_path = daemon_.socket_path};
        struct kvmem_client *client = NULL;

        cr_assert_eq(kvmem_client_connect(&options, &client), KVMEM_E_LIMIT, "%d: %s", i,
                     kvmem_error_detail()->text);
    }
    cr_assert(kvt_raw_goodbye(&clients[7]));
    cr_assert(kvt_raw_join(&extra, daemon_.socket_path, "extra"), "the place did not come free");
    kvt_raw_close(&extra);
    for (uint32_t i = 1; i < KVI_CLIENT_LIMIT; i++)
        kvt_raw_close(&clients[i]);
}

/* The daemon may open `count` descriptors more. */
static void allow_descriptors(int count, struct rlimit *before)
{
    struct rlimit limit;
    char path[64];
    int lowest = 0;

    look(); /* what it sent to us is closed on its side by now */
    do
        snprintf(path, sizeof(path), "/proc/%d/fd/%d", daemon_.process.pid, lowest++);
    while (faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0);
    cr_assert_eq(prlimit(daemon_.process.pid, RLIMIT_NOFILE, NULL, before), 0);
    limit = *before;
    limit.rlim_cur = (rlim_t)(lowest - 1 + count);
    cr_assert_eq(prlimit(daemon_.process.pid, RLIMIT_NOFILE, &limit, NULL), 0);
}

Test(daemon_reclaim, out_of_descriptors_waits_without_spinning)
{
    struct rlimit before;
    struct kvt_raw waiting;
    int64_t cpu_ms;

    allow_descriptors(0, &before);
    cr_assert_eq(kvt_raw_connect(&waiting, daemon_.socket_path), 0);
    cpu_ms = kvt_process_cpu_ms(daemon_.process.pid);
    kvt_sleep_ns(KVT_MS(500));
    look();
    cr_assert_leq(kvt_process_cpu_ms(daemon_.process.pid) - cpu_ms, 100, "it spins");
    cr_assert_eq(stats.client_count, 1);
    cr_assert_eq(prlimit(daemon_.process.pid, RLIMIT_NOFILE, &before, NULL), 0);
    look(); /* shows the log when it fails */
    cr_assert(kvt_raw_hello(&waiting, "waited"), "it was forgotten");
    look();
    kvt_raw_close(&waiting);
}

Test(daemon_reclaim, a_connection_that_lacks_descriptors_is_told)
{
    for (int count = 1; count <= 2; count++) { /* socket and pidfd, but no status page */
        struct rlimit before;
        struct kvt_raw client;

        allow_descriptors(count, &before);
        cr_assert_eq(kvt_raw_connect(&client, daemon_.socket_path), 0);
        cr_assert_eq(kvt_raw_receive(&client, &message, 1000), KVT_RAW_MESSAGE);
        cr_assert_eq(message.as.header.opcode, KVI_OP_ERROR);
        cr_assert_eq(message.as.error.code, KVMEM_E_LIMIT, "%s", message.as.error.text);
        cr_assert(kvt_raw_is_ended(&client, 1000));
        kvt_raw_close(&client);
        look();
        cr_assert_eq(stats.client_count, 1);
        cr_assert_eq(prlimit(daemon_.process.pid, RLIMIT_NOFILE, &before, NULL), 0);
    }
}
