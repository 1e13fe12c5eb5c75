/* SPDX-License-Identifier: Apache-2.0
 *
 * Sockets and links: descriptors that travel, are cut off or must not come, ends of connections,
 * waits that signals interrupt, the default path; and the embedded link, from hello to goodbye.
 * Every test compares the open descriptors before and after.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <kvmem/error.h>
#include <kvmem/types.h>
#include <poll.h>
#include <signal.h>
#include <stdalign.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "client/link.h"
#include "wire/socket.h"

#define WANT(...) cr_assert(__VA_ARGS__)
#define MS        INT64_C(1000000)

static alignas(8) uint8_t buffer[KVI_MESSAGE_BYTES];
static int fds[KVI_MESSAGE_FDS];
static uint32_t fd_count;

static int count_open(void)
{
    int count = 0;

    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* A test that must leave as many descriptors open as it found. (Not in a .fini: Criterion does not
 * fail a test for what is asserted there.) */
#define LINK_TEST(suite, name)                                                           \
    static void suite##_##name(void);                                                    \
    Test(suite, name)                                                                    \
    {                                                                                    \
        int before = count_open();                                                       \
                                                                                         \
        suite##_##name();                                                                \
        WANT(count_open() == before, "%d descriptors, %d before", count_open(), before); \
    }                                                                                    \
    static void suite##_##name(void)

static void want_detail(const char *part)
{
    WANT(strstr(kvmem_error_detail()->text, part), "%s", kvmem_error_detail()->text);
}

static void make_pair(int pair[2])
{
    WANT(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
}

static int make_memfd(char content)
{
    int fd = memfd_create("kvt", MFD_CLOEXEC);

    WANT(fd >= 0 && write(fd, &content, 1) == 1);
    return fd;
}

/* ---- datagrams ---- */

TestSuite(socket, .timeout = 20);

LINK_TEST(socket, descriptors_travel_with_their_datagram)
{
    struct kvi_datagram got;
    int own[KVI_MESSAGE_FDS];
    int pair[2];
    unsigned cases = 0;

    make_pair(pair);
    for (uint32_t n = 0; n <= KVI_MESSAGE_FDS; n++, cases++) {
        for (uint32_t i = 0; i < n; i++)
            own[i] = make_memfd((char)('a' + i));
        WANT(kvi_socket_send_dup(pair[0], "hello", 5, own, n) == 0);
        kvi_socket_close_fds(own, n);
        WANT(kvi_socket_receive(pair[1], buffer, sizeof(buffer), &got) == 0);
        WANT(got.bytes == 5 && got.fd_count == n && memcmp(buffer, "hello", 5) == 0);
        for (uint32_t i = 0; i < n; i++) {
            char content = 0;

            WANT(pread(got.fds[i], &content, 1, 0) == 1 && content == (char)('a' + i));
            WANT(fcntl(got.fds[i], F_GETFD) & FD_CLOEXEC);
        }
        kvi_socket_close_fds(got.fds, got.fd_count);
        WANT(n == 0 || got.fds[0] == -1);
    }
    WANT(kvi_socket_send_dup(pair[0], "x", 1, own, KVI_MESSAGE_FDS + 1) == KVMEM_E_INVALID);
    WANT(kvi_socket_receive(pair[1], buffer, sizeof(buffer), &got) == KVI_SOCKET_AGAIN);
    kvi_socket_close_fds(pair, 2);
    WANT(cases == KVI_MESSAGE_FDS + 1);
}

/* More descriptors than kvi_socket_send_dup would send. */
static void send_raw(int socket, int fd, uint32_t n)
{
    alignas(struct cmsghdr) char control[CMSG_SPACE(64 * sizeof(int))] = {0};
    struct iovec iov = {.iov_base = buffer, .iov_len = 8};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = CMSG_SPACE(n * sizeof(int))};
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);

    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(n * sizeof(int));
    for (uint32_t i = 0; i < n; i++)
        memcpy(CMSG_DATA(c) + i * sizeof(int), &fd, sizeof(fd));
    WANT(sendmsg(socket, &message, 0) == 8);
}

LINK_TEST(socket, too_many_descriptors_are_found_out_and_closed)
{
    struct kvi_datagram got;
    int pair[2];
    int fd = make_memfd('x');
    unsigned cases = 0;

    make_pair(pair);
    for (uint32_t n = KVI_MESSAGE_FDS + 1; n <= 64; n++, cases++) {
        int before = count_open();

        send_raw(pair[0], fd, n);
        WANT(kvi_socket_receive(pair[1], buffer, sizeof(buffer), &got) == KVMEM_E_PROTOCOL);
        WANT(got.bytes == 0 && got.fd_count == 0);
        want_detail("more descriptors than 16");
        WANT(count_open() == before);
    }
    close(fd);
    kvi_socket_close_fds(pair, 2);
    WANT(cases == 48);
}

LINK_TEST(socket, descriptors_that_this_process_may_not_open)
{
    struct kvi_datagram got;
    struct rlimit limit;
    struct rlimit few;
    int pair[2];
    int fd = make_memfd('x');
    int before;

    make_pair(pair);
    before = count_open();
    WANT(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    send_raw(pair[0], fd, 16);
    few = limit;
    few.rlim_cur = (rlim_t)before + 4; /* some of them still fit */
    WANT(setrlimit(RLIMIT_NOFILE, &few) == 0);
    WANT(kvi_socket_receive(pair[1], buffer, sizeof(buffer), &got) == KVMEM_E_PROTOCOL);
    WANT(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    WANT(count_open() == before);
    close(fd);
    kvi_socket_close_fds(pair, 2);
}

LINK_TEST(socket, a_datagram_that_is_too_long_is_found_out)
{
    struct kvi_datagram got;
    int pair[2];
    int fd = make_memfd('x');
    int before;

    make_pair(pair);
    before = count_open();
    WANT(kvi_socket_send_dup(pair[0], buffer, 101, &fd, 1) == 0);
    WANT(kvi_socket_receive(pair[1], buffer, 100, &got) == KVMEM_E_PROTOCOL);
    want_detail("more than 100 bytes");
    WANT(got.fd_count == 0 && count_open() == before);
    WANT(kvi_socket_send_dup(pair[0], buffer, 100, &fd, 1) == 0);
    WANT(kvi_socket_receive(pair[1], buffer, 100, &got) == 0 && got.fd_count == 1);
    kvi_socket_close_fds(got.fds, 1);
    close(fd);
    kvi_socket_close_fds(pair, 2);
}

LINK_TEST(socket, ends_of_connections)
{
    struct kvi_datagram got;
    int pair[2];

    make_pair(pair);
    WANT(kvi_socket_receive(pair[1], buffer, sizeof(buffer), &got) == KVI_SOCKET_AGAIN);
    WANT(kvi_socket_send_dup(pair[0], "last", 4, NULL, 0) == 0);
    close(pair[0]);
    WANT(kvi_socket_receive(pair[1], buffer, sizeof(buffer), &got) == 0 && got.bytes == 4);
    WANT(kvi_socket_receive(pair[1], buffer, sizeof(buffer), &got) == KVI_SOCKET_END);
    WANT(kvi_socket_send_dup(pair[1], "x", 1, NULL, 0) == KVI_SOCKET_END); /* and no SIGPIPE */
    close(pair[1]);

    make_pair(pair); /* the peer leaves something unread behind, and had said why */
    WANT(kvi_socket_send_dup(pair[1], "unread", 6, NULL, 0) == 0);
    WANT(kvi_socket_send_dup(pair[0], "reason", 6, NULL, 0) == 0);
    close(pair[0]);
    WANT(kvi_socket_receive(pair[1], buffer, sizeof(buffer), &got) == 0 && got.bytes == 6);
    WANT(kvi_socket_receive(pair[1], buffer, sizeof(buffer), &got) == KVI_SOCKET_END);
    close(pair[1]);
}

/* ---- waiting ---- */

static volatile sig_atomic_t alarms;

static void on_alarm(int signal)
{
    (void)signal;
    alarms = alarms + 1;
}

static void set_alarm_every_ms(int ms)
{
    struct itimerval every = {.it_interval = {0, ms * 1000}, .it_value = {0, ms * 1000}};
    struct sigaction action = {.sa_handler = on_alarm}; /* no SA_RESTART: poll is interrupted */

    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &every, NULL);
}

LINK_TEST(socket, waits_keep_their_deadline_under_signals)
{
    int pair[2];
    uint64_t begin;
    uint64_t took;

    make_pair(pair);
    set_alarm_every_ms(2);
    begin = kvi_socket_now_ns();
    WANT(kvi_socket_wait(pair[0], POLLIN, kvi_socket_deadline_ns(60 * MS)) == KVI_SOCKET_AGAIN);
    took = kvi_socket_now_ns() - begin;
    set_alarm_every_ms(0);
    WANT(took >= 60 * MS, "%llu", (unsigned long long)took);
    WANT(alarms >= 5, "%d", (int)alarms);
    WANT(kvi_socket_wait(pair[0], POLLOUT, 0) == 0);
    WANT(kvi_socket_wait(pair[0], POLLIN, 0) == KVI_SOCKET_AGAIN);
    WANT(kvi_socket_deadline_ns(INT64_MAX) > kvi_socket_now_ns());
    WANT(kvi_socket_deadline_ns(-5) <= kvi_socket_now_ns());
    close(pair[1]);
    WANT(kvi_socket_wait(pair[0], POLLIN, UINT64_MAX) == 0); /* the end wakes, too */
    close(pair[0]);
}

/* ---- connecting ---- */

static char folder[64];

static const char *path_in_folder(const char *name)
{
    static char path[128];

    if (!folder[0]) {
        strcpy(folder, "/tmp/kvt-link-XXXXXX");
        WANT(mkdtemp(folder));
    }
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

static void remove_folder(const char *name)
{
    unlink(path_in_folder(name));
    rmdir(folder);
    folder[0] = '\0';
}

static int listen_at(const char *path, int type, int backlog)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

    WANT(strlen(path) < sizeof(address.sun_path));
    memcpy(address.sun_path, path, strlen(path));
    WANT(fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
    WANT(listen(fd, backlog) == 0);
    return fd;
}

LINK_TEST(socket, connecting_to_nobody)
{
    char longest[120];
    struct kvi_link *link = NULL;
    int listener;

    memset(longest, 'x', sizeof(longest));
    longest[108] = '\0';
    WANT(kvi_link_connect("", MS, &link) == KVMEM_E_INVALID);
    WANT(kvi_link_connect(longest, MS, &link) == KVMEM_E_INVALID);
    want_detail("expected 1..107");
    WANT(kvi_link_connect(path_in_folder("s"), MS, &link) == KVMEM_E_DAEMON_LOST);
    want_detail(path_in_folder("s"));
    close(listen_at(path_in_folder("s"), SOCK_SEQPACKET, 1)); /* as a killed daemon leaves it */
    WANT(kvi_link_connect(path_in_folder("s"), MS, &link) == KVMEM_E_DAEMON_LOST);
    unlink(path_in_folder("s"));
    listener = listen_at(path_in_folder("s"), SOCK_STREAM, 1);
    WANT(kvi_link_connect(path_in_folder("s"), MS, &link) == KVMEM_E_DAEMON_LOST);
    close(listener);
    remove_folder("s");
    WANT(link == NULL);
}

LINK_TEST(socket, connecting_to_somebody_busy)
{
    struct kvi_link *links[8];
    int listener = listen_at(path_in_folder("s"), SOCK_SEQPACKET, 1);
    uint64_t begin = kvi_socket_now_ns();
    int count = 0;
    int rc = 0;

    while (count < 8 && rc == 0) {
        rc = kvi_link_connect(path_in_folder("s"), 20 * MS, &links[count]);
        count += rc == 0;
    }
    WANT(rc == KVMEM_E_TIMED_OUT && count >= 1 && count < 8, "%d after %d", rc, count);
    WANT(kvi_socket_now_ns() - begin >= 20 * MS);
    for (int i = 0; i < count; i++)
        links[i]->ops->close(links[i]);
    close(listener);
    remove_folder("s");
}

/* ---- a link over a socket ---- */

static struct kvi_link *make_link(int *peer)
{
    struct kvi_link *link;
    int pair[2];

    make_pair(pair);
    WANT(kvi_link_from_socket_consume(pair[0], &link) == 0);
    *peer = pair[1];
    return link;
}

static int receive(struct kvi_link *link, int64_t timeout_ns)
{
    return link->ops->receive(link, buffer, sizeof(buffer), fds, &fd_count, timeout_ns);
}

static struct kvi_msg_done make_done(void)
{
    struct kvi_msg_done done;

    kvi_wire_begin(&done, KVI_OP_DONE, 7);
    done.opcode = KVI_OP_UNPIN;
    kvi_wire_finish(&done);
    return done;
}

LINK_TEST(socket, a_link_receives_what_keeps_to_the_protocol)
{
    struct kvi_msg_welcome welcome;
    struct kvi_msg_done done = make_done();
    int peer;
    struct kvi_link *link = make_link(&peer);
    struct pollfd readable = {.fd = link->ops->poll_fd(link), .events = POLLIN};
    int page = make_memfd('p');

    WANT(receive(link, 0) == 0 && fd_count == 0);
    WANT(receive(link, 2 * MS) == 0);
    WANT(poll(&readable, 1, 0) == 0);
    kvi_wire_begin(&welcome, KVI_OP_WELCOME, 1);
    welcome.version = welcome.version_min = welcome.device_count = 1;
    welcome.device_bytes = welcome.granule_bytes = 65536;
    welcome.header.fds_received = 1;
    kvi_wire_finish(&welcome);
    WANT(kvi_socket_send_dup(peer, &welcome, sizeof(welcome), &page, 1) == 0);
    WANT(kvi_socket_send_dup(peer, &done, sizeof(done), NULL, 0) == 0);
    WANT(poll(&readable, 1, 0) == 1);
    WANT(receive(link, 0) == 1 && fd_count == 1 && memcmp(buffer, &welcome, sizeof(welcome)) == 0);
    kvi_socket_close_fds(fds, fd_count);
    WANT(receive(link, MS) == 1 && fd_count == 0 && memcmp(buffer, &done, sizeof(done)) == 0);
    close(peer);
    close(page);
    WANT(receive(link, 1000 * MS) == KVMEM_E_DAEMON_LOST);
    WANT(receive(link, 0) == KVMEM_E_DAEMON_LOST);
    link->ops->close(link);
}

/* Each kind of wrong datagram ends the link and leaves no descriptor behind. */
LINK_TEST(socket, a_link_ends_at_what_does_not)
{
    unsigned cases = 0;
    int fd = make_memfd('x');

    for (int kind = 0; kind < 6; kind++, cases++) {
        struct kvi_msg_done done = make_done();
        size_t bytes = sizeof(done);
        uint32_t sent = 0;
        int peer;
        struct kvi_link *link = make_link(&peer);
        struct pollfd readable = {.fd = link->ops->poll_fd(link), .events = POLLIN};

        done.header.opcode = kind == 0 ? 255 : kind == 1 ? KVI_OP_UNPIN : KVI_OP_DONE;
        done.reserved[0] = kind == 2;
        bytes -= kind == 3 ? 1 : 0;
        sent = kind == 4;                     /* a descriptor that may not come */
        done.header.fds_received = kind == 5; /* one that was promised */
        WANT(kvi_socket_send_dup(peer, &done, bytes, &fd, sent) == 0);
        done = make_done();
        WANT(kvi_socket_send_dup(peer, &done, sizeof(done), NULL, 0) == 0);
        WANT(receive(link, MS) == KVMEM_E_PROTOCOL && fd_count == 0, "kind %d", kind);
        want_detail("kvmemd sent ");
        WANT(receive(link, MS) == KVMEM_E_DAEMON_LOST);
        WANT(link->ops->send(link, &done, 0) == KVMEM_E_DAEMON_LOST);
        WANT(poll(&readable, 1, 0) == 1);
        link->ops->close(link);
        close(peer);
    }
    close(fd);
    WANT(cases == 6);
}

LINK_TEST(socket, a_daemon_that_does_not_read)
{
    struct kvi_msg_unpin unpin;
    struct kvi_datagram got;
    int peer;
    struct kvi_link *link = make_link(&peer);
    unsigned sent = 0;
    uint64_t begin;
    int rc;

    kvi_wire_begin(&unpin, KVI_OP_UNPIN, 1);
    unpin.pin = 1;
    kvi_wire_finish(&unpin);
    while ((rc = link->ops->send(link, &unpin, 0)) == 0)
        sent++;
    WANT(rc == KVMEM_E_TIMED_OUT && sent > 0);
    begin = kvi_socket_now_ns();
    WANT(link->ops->send(link, &unpin, 30 * MS) == KVMEM_E_TIMED_OUT);
    want_detail("unpin");
    WANT(kvi_socket_now_ns() - begin >= 30 * MS);
    while (kvi_socket_receive(peer, buffer, sizeof(buffer), &got) == 0)
        sent--;
    WANT(sent == 0, "a refused message was sent all the same");
    WANT(link->ops->send(link, &unpin, 30 * MS) == 0);
    close(peer);
    WANT(link->ops->send(link, &unpin, 30 * MS) == KVMEM_E_DAEMON_LOST);
    link->ops->close(link);
}

/* ---- the default path ---- */

LINK_TEST(socket, the_default_path)
{
    char longest[120];
    char expected[64];
    char path[108];

    memset(longest, 'x', sizeof(longest));
    longest[108] = '\0';
    setenv("KVMEM_SOCKET", "/a/b", 1);
    setenv("XDG_RUNTIME_DIR", "/run/there", 1);
    WANT(kvi_socket_path("/c", path, sizeof(path)) == 0 && strcmp(path, "/c") == 0);
    WANT(kvi_socket_path(NULL, path, sizeof(path)) == 0 && strcmp(path, "/a/b") == 0);
    unsetenv("KVMEM_SOCKET");
    WANT(kvi_socket_path(NULL, path, sizeof(path)) == 0);
    WANT(strcmp(path, "/run/there/kvmem/kvmemd.sock") == 0);
    setenv("XDG_RUNTIME_DIR", "", 1);
    snprintf(expected, sizeof(expected), "/run/user/%u/kvmem/kvmemd.sock", (unsigned)geteuid());
    WANT(kvi_socket_path(NULL, path, sizeof(path)) == 0);
    WANT(strcmp(path, geteuid() ? expected : "/run/kvmem/kvmemd.sock") == 0, "%s", path);
    WANT(kvi_socket_path("", path, sizeof(path)) == KVMEM_E_INVALID);
    WANT(kvi_socket_path(longest, path, sizeof(path)) == KVMEM_E_INVALID);
    WANT(kvi_socket_path("/12345", path, 6) == KVMEM_E_INVALID);
    WANT(kvi_socket_path(longest + 1, path, sizeof(path)) == 0 && strlen(path) == 107);
}

/* ---- the embedded link ---- */

TestSuite(embedded, .timeout = 20);

static struct kvi_link *embed(void)
{
    struct kvi_link *link = NULL;

    WANT(kvi_link_embed(4u << 20, 0, &link) == 0, "%s", kvmem_error_detail()->text);
    return link;
}

static void say_hello(struct kvi_link *link)
{
    struct kvi_msg_hello hello;

    kvi_wire_begin(&hello, KVI_OP_HELLO, 42);
    hello.version = KVI_PROTOCOL_VERSION;
    hello.version_min = KVI_PROTOCOL_VERSION_MIN;
    strcpy(hello.name, "embedded");
    kvi_wire_finish(&hello);
    WANT(link->ops->send(link, &hello, 0) == 0);
}

static struct kvi_link *embed_and_say_hello(void)
{
    struct kvi_link *link = embed();

    say_hello(link);
    WANT(receive(link, 0) == 1 && fd_count == 1);
    kvi_socket_close_fds(fds, fd_count);
    return link;
}

static void send_goodbye(struct kvi_link *link)
{
    struct kvi_msg_goodbye goodbye;

    kvi_wire_begin(&goodbye, KVI_OP_GOODBYE, 43);
    goodbye.header.fds_received = 1;
    kvi_wire_finish(&goodbye);
    WANT(link->ops->send(link, &goodbye, 0) == 0);
}

LINK_TEST(embedded, hello_and_welcome)
{
    const struct kvi_msg_welcome *welcome = (const struct kvi_msg_welcome *)(void *)buffer;
    struct kvi_link *link = embed();
    struct stat status;

    WANT(receive(link, 0) == 0);
    say_hello(link);
    WANT(receive(link, 0) == 1 && fd_count == 1);
    WANT(welcome->header.opcode == KVI_OP_WELCOME && welcome->header.serial == 42);
    WANT(welcome->header.fds_received == 1);
    WANT(welcome->device_bytes == 4u << 20 && welcome->granule_bytes == 65536);
    WANT(strcmp(welcome->device, "host") == 0);
    WANT(fstat(fds[0], &status) == 0 && (uint64_t)status.st_size == welcome->status_bytes);
    WANT(fcntl(fds[0], F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
    WANT(fcntl(fds[0], F_GETFD) & FD_CLOEXEC);
    kvi_socket_close_fds(fds, fd_count);
    WANT(receive(link, 0) == 0 && receive(link, 5 * MS) == 0);
    send_goodbye(link);
    WANT(receive(link, 0) == 1 && ((struct kvi_header *)(void *)buffer)->opcode == KVI_OP_DONE);
    WANT(receive(link, 0) == KVMEM_E_DAEMON_LOST);
    WANT(link->ops->send(link, buffer, 0) == KVMEM_E_DAEMON_LOST);
    link->ops->close(link);
}

static struct kvi_msg_space_opened open_space(struct kvi_link *link)
{
    alignas(8) uint8_t message[sizeof(struct kvi_msg_space_open) + sizeof(struct kvi_rec_group)];
    struct kvi_msg_space_open *open = (struct kvi_msg_space_open *)(void *)message;
    struct kvi_rec_group group = {.layer_count = 2,
                                  .kv_head_count = 2,
                                  .head_dim_k = 16,
                                  .head_dim_v = 16,
                                  .dtype_k = KVMEM_DTYPE_BF16,
                                  .dtype_v = KVMEM_DTYPE_BF16};
    struct kvi_msg_space_opened opened;

    kvi_wire_begin(open, KVI_OP_SPACE_OPEN, 50);
    open->header.fds_received = 1;
    strcpy(open->name, "space");
    strcpy(open->domain, "default");
    open->layout = KVMEM_LAYOUT_PAGE_HEAD_TOKEN;
    open->block_tokens = 16;
    open->shard_count = open->group_count = 1;
    kvi_wire_finish(open);
    memcpy(kvi_wire_tail(open, 0), &group, sizeof(group));
    WANT(link->ops->send(link, open, 0) == 0);
    WANT(receive(link, 0) == 1);
    memcpy(&opened, buffer, sizeof(opened));
    WANT(opened.header.opcode == KVI_OP_SPACE_OPENED, "%s",
         ((struct kvi_msg_error *)(void *)buffer)->text);
    return opened;
}

static void ask_for_blocks(struct kvi_link *link, uint32_t space, uint32_t count)
{
    struct kvi_msg_blocks_request request;

    kvi_wire_begin(&request, KVI_OP_BLOCKS_REQUEST, 51);
    request.header.fds_received = 1;
    request.space = space;
    request.block_count = count;
    kvi_wire_finish(&request);
    WANT(link->ops->send(link, &request, 0) == 0);
}

/* A segment comes as a descriptor of its size; the grant is there without waiting. */
LINK_TEST(embedded, blocks_come_with_descriptors)
{
    struct kvi_link *link = embed_and_say_hello();
    struct kvi_msg_space_opened opened = open_space(link);
    const struct kvi_msg_grant *grant = (const struct kvi_msg_grant *)(void *)buffer;
    struct stat status;

    WANT(opened.segment_bytes == 65536 && opened.blocks_per_segment == 16);
    ask_for_blocks(link, opened.space, 20);
    WANT(receive(link, 0) == 1);
    WANT(grant->header.opcode == KVI_OP_GRANT && grant->segment_count == 2 && fd_count == 2);
    for (uint32_t i = 0; i < fd_count; i++)
        WANT(fstat(fds[i], &status) == 0 && (uint64_t)status.st_size == opened.segment_bytes);
    kvi_socket_close_fds(fds, fd_count);
    link->ops->close(link); /* owner and segments go with it */
}

/* Queued descriptors that nobody took are closed with the link. */
LINK_TEST(embedded, closing_with_messages_queued)
{
    struct kvi_link *link = embed_and_say_hello();
    struct kvi_msg_space_opened opened = open_space(link);

    for (int i = 0; i < 3; i++)
        ask_for_blocks(link, opened.space, 16);
    link->ops->close(link);
}

static int is_readable(int fd, int timeout_ms)
{
    struct pollfd readable = {.fd = fd, .events = POLLIN};

    return poll(&readable, 1, timeout_ms);
}

static void ask_for_stats(struct kvi_link *link)
{
    struct kvi_msg_stats stats;

    kvi_wire_begin(&stats, KVI_OP_STATS, 60);
    stats.header.fds_received = 1;
    kvi_wire_finish(&stats);
    WANT(link->ops->send(link, &stats, 0) == 0);
}

/* Readable whenever a message waits; once receive has said that there is none, not any more. */
LINK_TEST(embedded, whoever_polls_is_woken)
{
    struct kvi_link *link = embed_and_say_hello();
    int fd;
    unsigned cases = 0;

    ask_for_stats(link);
    fd = link->ops->poll_fd(link);
    WANT(is_readable(fd, 100) == 1); /* queued before it was asked for */
    for (int i = 0; i < 50; i++, cases++) {
        WANT(receive(link, 0) == 1);
        if (i % 3 == 0) {
            WANT(receive(link, 0) == 0);
            WANT(is_readable(fd, i == 0 ? 5 : 0) == 0);
        }
        ask_for_stats(link);
        if (i % 2)
            ask_for_stats(link);
        WANT(is_readable(fd, 100) == 1, "round %d", i);
        if (i % 2)
            WANT(receive(link, 0) == 1);
    }
    WANT(receive(link, 0) == 1 && receive(link, 0) == 0 && is_readable(fd, 5) == 0);
    send_goodbye(link);
    WANT(receive(link, 0) == 1 && is_readable(fd, 0) == 1); /* the end can be read, too */
    WANT(receive(link, 0) == KVMEM_E_DAEMON_LOST && is_readable(fd, 0) == 1);
    link->ops->close(link);
    WANT(cases == 50);
}

/* Many replies wait: the queue grows, keeps their order and shrinks to nothing. */
LINK_TEST(embedded, a_long_queue_keeps_its_order)
{
    struct kvi_link *link = embed_and_say_hello();
    struct kvi_msg_stats stats;
    uint32_t sent = 0;
    uint32_t taken = 0;

    for (int round = 0; round < 200; round++) {
        for (int i = 0; i < 40; i++) {
            kvi_wire_begin(&stats, KVI_OP_STATS, ++sent);
            stats.header.fds_received = 1;
            kvi_wire_finish(&stats);
            WANT(link->ops->send(link, &stats, 0) == 0);
        }
        for (int i = 0; i < 25 + round % 20; i++)
            if (receive(link, 0) == 1)
                WANT(((struct kvi_header *)(void *)buffer)->serial == ++taken);
    }
    while (receive(link, 0) == 1)
        WANT(((struct kvi_header *)(void *)buffer)->serial == ++taken);
    WANT(taken == sent && sent == 8000);
    link->ops->close(link);
}

LINK_TEST(embedded, what_breaks_the_protocol_ends_the_session)
{
    struct kvi_link *link = embed_and_say_hello();
    struct kvi_msg_stats stats;

    kvi_wire_begin(&stats, KVI_OP_STATS, 1);
    kvi_wire_finish(&stats);
    stats.reserved[0] = 1;
    WANT(link->ops->send(link, &stats, 0) == 0);
    while (receive(link, 0) == 1)
        continue;
    WANT(receive(link, 0) == KVMEM_E_DAEMON_LOST);
    want_detail("stats.reserved");
    link->ops->close(link);
}

LINK_TEST(embedded, options_are_checked)
{
    static const uint64_t bad[][2] = {{0, 65536},     {65536 + 1, 65536}, {65536, 4097},
                                      {1u << 20, 12}, {UINT64_MAX, 0},    {2048, 0}};
    struct kvi_link *link = NULL;
    unsigned cases = 0;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++, cases++) {
        WANT(kvi_link_embed(bad[i][0], bad[i][1], &link) == KVMEM_E_INVALID, "case %zu", i);
        WANT(link == NULL);
    }
    WANT(cases == 6);
}
