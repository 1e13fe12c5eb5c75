/* SPDX-License-Identifier: Apache-2.0
 *
 * Clients that break the protocol, send descriptors, flood, or do not read: each is dropped
 * alone. A good client goes on beside them, each of its calls answered within a second, and the
 * daemon ends up with the descriptors it had before.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <kvmem/error.h>

#include "support/daemon.h"
#include "support/raw_client.h"

#define CALL_NS KVT_MS(1000)

static struct kvt_daemon daemon_;
static struct kvt_raw good;
static struct kvt_raw bad;
static struct kvi_msg_stats_reply stats;
static struct kvt_raw_message message;
static int fd_count;
static uint64_t slowest_ns;

/* A call of the good client. */
static void call(void)
{
    uint64_t start_ns = kvt_now_ns();

    cr_assert(kvt_raw_stats(&good, &stats), "the good client suffers");
    if (kvt_now_ns() - start_ns > slowest_ns)
        slowest_ns = kvt_now_ns() - start_ns;
    cr_assert_lt(slowest_ns, (uint64_t)CALL_NS);
}

static void prepare(void)
{
    static const char *const small[] = {"--device-bytes", "64MiB", NULL};

    kvt_daemon_prepare(&daemon_);
    kvt_daemon_start(&daemon_, small);
    cr_assert(kvt_raw_join(&good, daemon_.socket_path, "good"));
    call();
    fd_count = kvt_process_fd_count(daemon_.process.pid);
    bad.fd = bad.status_fd = -1;
}

static void end(void)
{
    kvt_raw_close(&bad);
    for (int i = 0; i < 500 && kvt_process_fd_count(daemon_.process.pid) != fd_count; i++)
        kvt_sleep_ns(KVT_MS(2));
    cr_expect_eq(kvt_process_fd_count(daemon_.process.pid), fd_count);
    call();
    cr_expect_eq(stats.client_count, 1);
    cr_expect(kvt_raw_goodbye(&good));
    kvt_raw_close(&good);
    cr_expect_eq(kvt_daemon_stop(&daemon_), 0);
    kvt_daemon_end(&daemon_);
}

TestSuite(daemon_hostile, .init = prepare, .fini = end, .timeout = 60);

static void join_bad(void)
{
    cr_assert(kvt_raw_join(&bad, daemon_.socket_path, "bad"));
}

/* It is dropped, that is counted, and the good client goes on. */
static void is_dropped(void)
{
    uint64_t errors;

    cr_assert(kvt_raw_is_ended(&bad, 2000), "it was not dropped");
    errors = stats.protocol_errors;
    call();
    cr_assert_eq(stats.protocol_errors, errors + 1);
    kvt_raw_close(&bad);
}

static void send_and_be_dropped(const void *bytes, size_t count, const int *fds, uint32_t fds_count)
{
    call();
    join_bad();
    cr_assert_eq(kvt_raw_send_bytes(&bad, bytes, count, fds, fds_count), 0);
    is_dropped();
}

static struct kvi_msg_stats stats_request(void)
{
    struct kvi_msg_stats request;

    kvi_wire_begin(&request, KVI_OP_STATS, 7);
    request.header.fds_received = 1; /* the status page */
    kvi_wire_finish(&request);
    return request;
}

Test(daemon_hostile, garbage)
{
    static unsigned char bytes[KVI_MESSAGE_BYTES];
    uint32_t state = 12345;

    for (size_t count = 1; count <= sizeof(bytes); count *= 4) {
        for (size_t i = 0; i < count; i++)
            bytes[i] = (unsigned char)((state = state * 1664525u + 1013904223u) >> 24);
        send_and_be_dropped(bytes, count, NULL, 0);
    }
}

Test(daemon_hostile, an_empty_datagram)
{
    send_and_be_dropped("", 0, NULL, 0);
}

Test(daemon_hostile, truncated_messages)
{
    struct kvi_msg_stats request = stats_request();

    for (size_t count = 1; count < sizeof(request); count++)
        send_and_be_dropped(&request, count, NULL, 0);
}

Test(daemon_hostile, a_length_that_lies)
{
    struct kvi_msg_stats request = stats_request();

    request.header.length_bytes += 8;
    send_and_be_dropped(&request, sizeof(request), NULL, 0);
    request.header.length_bytes = UINT32_MAX;
    send_and_be_dropped(&request, sizeof(request), NULL, 0);
}

Test(daemon_hostile, oversize_datagrams)
{
    static unsigned char bytes[200000];
    struct kvi_msg_stats request = stats_request();

    memcpy(bytes, &request, sizeof(request));
    send_and_be_dropped(bytes, KVI_MESSAGE_BYTES + 1, NULL, 0);
    send_and_be_dropped(bytes, KVI_MESSAGE_BYTES + 63, NULL, 0);
    send_and_be_dropped(bytes, KVI_MESSAGE_BYTES + 64, NULL, 0);
    send_and_be_dropped(bytes, KVI_MESSAGE_BYTES + 65, NULL, 0);
    send_and_be_dropped(bytes, sizeof(bytes), NULL, 0);
}

Test(daemon_hostile, messages_of_the_wrong_direction_or_order)
{
    struct kvi_msg_done done;
    struct kvi_msg_hello hello;
    struct kvi_msg_stats request = stats_request();

    kvi_wire_begin(&done, KVI_OP_DONE, 1);
    kvi_wire_finish(&done);
    send_and_be_dropped(&done, sizeof(done), NULL, 0);
    kvi_wire_begin(&hello, KVI_OP_HELLO, 1);
    hello.version = hello.version_min = 1;
    kvi_wire_finish(&hello);
    send_and_be_dropped(&hello, sizeof(hello), NULL, 0); /* a second one */
    call();
    cr_assert_eq(kvt_raw_connect(&bad, daemon_.socket_path), 0);
    cr_assert_eq(kvt_raw_send_bytes(&bad, &request, sizeof(request), NULL, 0), 0);
    is_dropped(); /* it did not say hello */
}

Test(daemon_hostile, descriptors)
{
    struct kvi_msg_stats request = stats_request();
    int fds[253];

    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        fds[i] = daemon_.process.pid > 0 ? good.status_fd : -1;
    send_and_be_dropped(&request, sizeof(request), fds, 1);
    send_and_be_dropped(&request, sizeof(request), fds, 16);
    send_and_be_dropped(&request, sizeof(request), fds, 253);
    send_and_be_dropped("", 0, fds, 253);
}

Test(daemon_hostile, a_bad_field_is_answered_and_forgiven)
{
    struct kvi_msg_stats request = stats_request();

    join_bad();
    request.flags = 1;
    cr_assert_eq(kvt_raw_call(&bad, &request, &message), KVT_RAW_MESSAGE);
    cr_assert_eq(message.as.header.opcode, KVI_OP_ERROR);
    cr_assert_eq(message.as.error.code, KVMEM_E_INVALID);
    cr_assert(strstr(message.as.error.text, "stats.flags") != NULL, "%s", message.as.error.text);
    cr_assert(kvt_raw_stats(&bad, &stats));
}

Test(daemon_hostile, silence_instead_of_hello)
{
    uint64_t start_ns = kvt_now_ns();
    int64_t took_ns;

    cr_assert_eq(kvt_raw_connect(&bad, daemon_.socket_path), 0);
    cr_assert(kvt_raw_is_ended(&bad, 5000));
    took_ns = (int64_t)(kvt_now_ns() - start_ns);
    cr_assert(took_ns >= KVT_MS(990) && took_ns < KVT_MS(1500), "%" PRId64 " ns", took_ns);
    cr_assert(kvt_daemon_logged(&daemon_, "no hello within a second", KVT_MS(1000)));
}

Test(daemon_hostile, no_version_in_common)
{
    struct kvi_msg_hello hello;

    cr_assert_eq(kvt_raw_connect(&bad, daemon_.socket_path), 0);
    kvi_wire_begin(&hello, KVI_OP_HELLO, 0);
    hello.version = 99;
    hello.version_min = 77;
    cr_assert_eq(kvt_raw_call(&bad, &hello, &message), KVT_RAW_MESSAGE);
    cr_assert_eq(message.as.header.opcode, KVI_OP_ERROR);
    cr_assert_eq(message.as.error.code, KVMEM_E_VERSION);
    cr_assert(strstr(message.as.error.text, "77..99") != NULL &&
                  strstr(message.as.error.text, "1..2") != NULL,
              "%s", message.as.error.text);
    cr_assert(kvt_raw_is_ended(&bad, 1000));
}

Test(daemon_hostile, one_that_does_not_read)
{
    struct kvi_msg_stats request = stats_request();
    int rc = 0;
    int sent = 0;

    join_bad();
    while (rc == 0 && sent < 1000000) {
        rc = kvt_raw_send_bytes(&bad, &request, sizeof(request), NULL, 0);
        if (++sent % 256 == 0)
            call();
    }
    cr_assert(rc == -EPIPE || rc == -ECONNRESET, "%d after %d messages", rc, sent);
    call();
    cr_assert(kvt_daemon_logged(&daemon_, "it does not read", KVT_MS(1000)));
}

/* ---- floods ---- */

static atomic_bool is_over;
static atomic_ulong answered;

/* Asks as fast as it can and reads the answers: allowed, and no reason for others to wait. */
static void *flood(void *unused)
{
    static _Thread_local struct kvt_raw_message reply;
    struct kvi_msg_stats request = stats_request();
    struct kvt_raw client;

    (void)unused;
    if (!kvt_raw_join(&client, daemon_.socket_path, "flood"))
        return NULL;
    while (!is_over) {
        for (int i = 0; i < 64; i++)
            kvt_raw_send_bytes(&client, &request, sizeof(request), NULL, 0);
        for (int i = 0; i < 64 && kvt_raw_receive(&client, &reply, 1000) == KVT_RAW_MESSAGE; i++)
            answered++;
    }
    kvt_raw_goodbye(&client);
    kvt_raw_close(&client);
    return NULL;
}

Test(daemon_hostile, floods_do_not_starve_others)
{
    pthread_t threads[4];

    for (int i = 0; i < 4; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, flood, NULL), 0);
    /* The flood may be late; the test's limit ends it. */
    for (int i = 0; i < 300 || answered < 10000; i++)
        call();
    is_over = true;
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
}

Test(daemon_hostile, a_flood_of_connections)
{
    static struct kvt_raw crowd[400];
    int refused = 0;

    for (int i = 0; i < 400; i++) {
        cr_assert_eq(kvt_raw_connect(&crowd[i], daemon_.socket_path), 0);
        if (i % 16 == 0)
            call();
    }
    for (int i = 0; i < 400; i++) {
        if (kvt_raw_receive(&crowd[i], &message, 0) == KVT_RAW_MESSAGE)
            refused += message.as.error.code == KVMEM_E_LIMIT;
        cr_expect(kvt_raw_is_ended(&crowd[i], 3000), "%d", i);
        kvt_raw_close(&crowd[i]);
    }
    cr_assert_geq(refused, 1, "400 were let in");
    call();
}
