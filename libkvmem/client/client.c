/* SPDX-License-Identifier: Apache-2.0
 *
 * Hello, calls, dispatch, goodbye. What arrives without being waited for: handle.c.
 */
#include "client/client.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "client/refill.h"
#include "client/region.h"
#include "client/space.h"
#include "client/status.h"
#include "util/error.h"

/* How long to look for an answer before sleeping: somewhat longer than a daemon takes that has to
 * be woken for it and makes no driver call (90 µs + 20 on virtual machines, of whose wake-ups ours
 * would be another one). */
#define LOOK_NS INT64_C(200000)

#define DISPATCH_MESSAGES 4096 /* taken in by one dispatch at most: a flood does not hold it */

int64_t kvi_client_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t kvi_client_deadline_ns(int64_t timeout_ns)
{
    int64_t now_ns = kvi_client_now_ns();

    if (timeout_ns <= 0)
        return 0;
    return timeout_ns < INT64_MAX - now_ns ? now_ns + timeout_ns : INT64_MAX;
}

/* ---- being lost ---- */

int kvi_client_is_lost(const struct kvmem_client *client)
{
    if (!client->is_lost)
        return 0;
    return kvi_error_set(KVMEM_E_DAEMON_LOST,
                         "the daemon is gone; mapped memory stays readable until close");
}

int kvi_client_lose(struct kvmem_client *client, int code)
{
    client->is_lost = true;
    return code;
}

int kvi_client_protocol(struct kvmem_client *client, const char *what)
{
    return kvi_client_lose(client, kvi_error_set(KVMEM_E_PROTOCOL, "the daemon sent %s", what));
}

/* ---- descriptors ---- */

int kvi_client_steal_fd(struct kvmem_client *client)
{
    for (uint32_t i = 0; i < client->fd_count; i++) {
        int fd = client->fds[i];

        client->fds[i] = -1;
        if (fd >= 0)
            return fd;
    }
    return -1;
}

static void close_fds(struct kvmem_client *client)
{
    int fd;

    while ((fd = kvi_client_steal_fd(client)) >= 0)
        close(fd);
    client->fd_count = 0;
}

/* ---- messages ---- */

struct kvmem_space *kvi_client_space(const struct kvmem_client *client, uint32_t id)
{
    for (uint32_t i = 0; i < client->space_high; i++)
        if (client->spaces[i] && client->spaces[i]->id == id)
            return client->spaces[i];
    return NULL;
}

void *kvi_client_begin(struct kvmem_client *client, enum kvi_opcode opcode)
{
    kvi_wire_begin(client->ask, opcode, 0);
    return client->ask;
}

int kvi_client_post(struct kvmem_client *client, void *message, int64_t timeout_ns)
{
    struct kvi_header *header = message;
    int code;

    if (client->is_lost)
        return kvi_client_is_lost(client);
    header->fds_received = client->fds_received;
    kvi_wire_finish(message);
    code = client->link->ops->send(client->link, message, timeout_ns);
    if (code && code != KVMEM_E_TIMED_OUT)
        return kvi_client_lose(client, code);
    if (!code) {
        client->messages_sent++;
        client->owes_ack = false;
    }
    return code;
}

/* Every message says how many descriptors have arrived; this one says nothing else. */
static void acknowledge(struct kvmem_client *client)
{
    if (!client->owes_ack || client->is_lost)
        return;
    kvi_wire_begin(client->tx, KVI_OP_ACKNOWLEDGE, ++client->last_serial);
    (void)kvi_client_post(client, client->tx, 0);
}

/* One message into rx. 1, 0, DAEMON_LOST, PROTOCOL. */
static int receive(struct kvmem_client *client, int64_t timeout_ns)
{
    int code;

    close_fds(client);
    if (client->is_lost)
        return kvi_client_is_lost(client);
    code = client->link->ops->receive(client->link, client->rx, KVI_MESSAGE_BYTES, client->fds,
                                      &client->fd_count, timeout_ns);
    if (code < 0)
        return kvi_client_lose(client, code);
    if (code == 0) {
        client->fd_count = 0;
        return 0;
    }
    client->fds_received += client->fd_count;
    client->messages_received++;
    return 1;
}

static int64_t left_ns(int64_t deadline_ns)
{
    int64_t left = deadline_ns ? deadline_ns - kvi_client_now_ns() : 0;

    return left > 0 ? left : 0;
}

/* Sleep until the link or the helper has something, at most until `deadline_ns`. */
static void wait_for_either(struct kvmem_client *client, int64_t deadline_ns)
{
    struct pollfd events[] = {
        {.fd = client->link->ops->poll_fd(client->link), .events = POLLIN},
        {.fd = kvi_mapper_fd(client->mapper), .events = POLLIN},
    };
    int64_t left = left_ns(deadline_ns);
    struct timespec timeout = {left / 1000000000, left % 1000000000};

    (void)ppoll(events, 2, &timeout, NULL); /* an early return is one more look */
}

/* Where the daemon has a processor of its own, or may have. */
static bool may_look(void)
{
    cpu_set_t ours;

    return !sched_getaffinity(0, sizeof(ours), &ours) && CPU_COUNT(&ours) > 1;
}

/* Look again and again for LOOK_NS, then sleep. */
static int receive_looking(struct kvmem_client *client, int64_t deadline_ns)
{
    int64_t end_ns = kvi_client_now_ns() + LOOK_NS;
    int code = 0;

    if (end_ns > deadline_ns)
        end_ns = deadline_ns;
    while (!code && kvi_client_now_ns() < end_ns)
        code = receive(client, 0);
    return code ? code : receive(client, left_ns(deadline_ns));
}

int kvi_client_pump(struct kvmem_client *client, int64_t deadline_ns)
{
    int code;

    if (kvi_mapper_poll(client->mapper))
        deadline_ns = 0; /* the caller may have got what it waits for */
    if (deadline_ns && kvi_mapper_has_helper(client->mapper) &&
        kvi_mapper_pending(client->mapper)) {
        wait_for_either(client, deadline_ns);
        kvi_mapper_poll(client->mapper);
        deadline_ns = 0;
    }
    code = deadline_ns && client->is_waiting && may_look() ? receive_looking(client, deadline_ns)
                                                           : receive(client, left_ns(deadline_ns));
    if (code <= 0)
        return code;
    code = kvi_client_handle(client);
    close_fds(client);
    acknowledge(client);
    return code ? code : 1;
}

/* A code that the daemon sent, as one of ours. */
static int code_of(const struct kvi_msg_error *error)
{
    int code = error->code;

    if (code < KVMEM_E_SYSTEM || code >= 0)
        code = KVMEM_E_PROTOCOL;
    return kvi_error_set(code, "%s", error->text);
}

/* An error for the call; a daemon without a place refuses before it has read the hello, so that
 * its error has no serial. */
static bool is_refusal(const struct kvi_msg_error *error, uint32_t serial, enum kvi_opcode expected)
{
    return error->header.opcode == KVI_OP_ERROR &&
           (error->header.serial == serial ||
            (expected == KVI_OP_WELCOME && error->opcode == KVI_OP_HELLO));
}

/* Wait for the answer with `serial`, acting on whatever else comes. */
static int await(struct kvmem_client *client, uint32_t serial, enum kvi_opcode expected,
                 int64_t deadline_ns, const void **reply)
{
    const struct kvi_header *header = client->rx;

    for (;;) {
        int code = receive(client, left_ns(deadline_ns));

        if (code < 0)
            return code;
        if (code == 0) {
            if (left_ns(deadline_ns) > 0)
                continue;
            client->late_serial = serial;
            return kvi_error_set(KVMEM_E_TIMED_OUT, "no answer within %" PRId64 " ms",
                                 client->timeout_ns / 1000000);
        }
        if (is_refusal(client->rx, serial, expected))
            return code_of(client->rx);
        if (header->serial == serial && header->opcode == (uint32_t)expected) {
            *reply = client->rx;
            return 0;
        }
        code = kvi_client_handle(client);
        if (code)
            return code;
        acknowledge(client);
    }
}

/* Until the late answer is there and everything is sent. */
static int settle(struct kvmem_client *client, int64_t deadline_ns)
{
    while (client->late_serial && !client->is_lost) {
        int code = kvi_client_pump(client, deadline_ns);

        if (code < 0)
            return code;
        if (!code && !left_ns(deadline_ns))
            return kvi_error_set(KVMEM_E_TIMED_OUT, "an earlier call is not answered yet");
    }
    return kvi_outbox_flush(client, deadline_ns);
}

int kvi_client_call(struct kvmem_client *client, enum kvi_opcode expected, const void **reply)
{
    int64_t deadline_ns = kvi_client_deadline_ns(client->timeout_ns);
    struct kvi_header *header = client->ask;
    int code = settle(client, deadline_ns);

    if (code)
        return code;
    header->serial = ++client->last_serial;
    if (!header->serial)
        header->serial = ++client->last_serial;
    code = kvi_client_post(client, client->ask, left_ns(deadline_ns));
    if (code == KVMEM_E_DAEMON_LOST && expected == KVI_OP_WELCOME) {
        client->is_lost = false; /* closed before the hello: the reason is there to be read */
        code = 0;
    }
    if (code)
        return code;
    return await(client, header->serial, expected, deadline_ns, reply);
}

/* ---- dispatch ---- */

static int give_and_ask(struct kvmem_client *client)
{
    int code;

    for (uint32_t i = 0; i < client->space_high; i++)
        if (client->spaces[i])
            kvi_cooling_drain(client->spaces[i]);
    code = kvi_outbox_flush(client, 0);
    acknowledge(client);
    for (uint32_t i = 0; !code && i < client->space_high; i++)
        if (client->spaces[i])
            kvi_refill_hand_in(client->spaces[i], false);
    if (!code)
        code = kvi_outbox_flush(client, 0);
    for (uint32_t i = 0; !code && i < client->space_high; i++)
        if (client->spaces[i])
            code = kvi_refill_ask(client->spaces[i]);
    /* No room in the socket, or a late answer: at the next dispatch, then. */
    return code == KVMEM_E_TIMED_OUT ? 0 : code;
}

static void map_ahead(struct kvmem_client *client)
{
    for (uint32_t i = 0; i < client->space_high; i++)
        if (client->spaces[i] && client->spaces[i]->regions)
            kvi_regions_dispatch(client->spaces[i]);
}

int kvi_client_dispatch(struct kvmem_client *client, int64_t timeout_ns)
{
    int64_t deadline_ns = kvi_client_deadline_ns(timeout_ns);
    uint64_t pressure_requests = client->pressure_requests;
    int code;
    int count = 0;

    if (kvi_mapper_poll(client->mapper)) /* even if lost: what was granted is ours */
        deadline_ns = 0;
    code = kvi_client_is_lost(client);
    if (code)
        return code;
    client->dispatches++;
    code = give_and_ask(client);
    while (!code && count < DISPATCH_MESSAGES) {
        code = kvi_client_pump(client, count ? 0 : deadline_ns);
        if (code <= 0)
            break;
        count++;
        code = 0;
    }
    /* Pressure has a deadline, and a release must not wait for a step that may never come. */
    if (!code && (pressure_requests != client->pressure_requests ||
                  client->outbox.sent != client->outbox.head))
        code = give_and_ask(client);
    map_ahead(client);
    return code ? code : count;
}

int kvi_client_poll_fd(struct kvmem_client *client)
{
    int fds[] = {client->link->ops->poll_fd(client->link), kvi_mapper_fd(client->mapper)};
    struct epoll_event event = {.events = EPOLLIN};
    int fd;

    if (!kvi_mapper_has_helper(client->mapper))
        return fds[0];
    if (client->epoll_fd >= 0)
        return client->epoll_fd;
    fd = epoll_create1(EPOLL_CLOEXEC);
    if (fd < 0)
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "epoll_create1");
    for (uint32_t i = 0; i < 2; i++) {
        if (epoll_ctl(fd, EPOLL_CTL_ADD, fds[i], &event)) {
            int code = kvi_error_sys(KVMEM_E_SYSTEM, errno, "epoll_ctl");

            close(fd);
            return code;
        }
    }
    client->epoll_fd = fd;
    return fd;
}

/* ---- beginning and end ---- */

/* The page is for looking at: without it the client works all the same. */
static void map_status(struct kvmem_client *client)
{
    int fd = kvi_client_steal_fd(client);
    size_t bytes = client->welcome.status_bytes;
    struct stat info;
    void *page;

    if (fd < 0)
        return;
    if (bytes && !fstat(fd, &info) && info.st_size >= 0 && (uint64_t)info.st_size >= bytes) {
        page = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (page != MAP_FAILED && kvi_status_init(page, bytes)) {
            client->status_page = page;
            client->status_bytes = bytes;
        } else if (page != MAP_FAILED) {
            munmap(page, bytes);
        }
    }
    close(fd);
}

static int say_hello(struct kvmem_client *client, const struct kvi_client_options *options)
{
    struct kvi_msg_hello *message = kvi_client_begin(client, KVI_OP_HELLO);
    const void *reply;
    int code;

    message->version = KVI_PROTOCOL_VERSION;
    message->version_min = KVI_PROTOCOL_VERSION_MIN;
    message->role = options->role;
    if (options->session)
        memcpy(message->session, options->session->bytes, sizeof(message->session));
    if (options->name)
        strncpy(message->name, options->name, sizeof(message->name) - 1);
    code = kvi_client_call(client, KVI_OP_WELCOME, &reply);
    if (code)
        return code;
    client->welcome = *(const struct kvi_msg_welcome *)reply;
    if (client->welcome.version < KVI_PROTOCOL_VERSION_MIN ||
        client->welcome.version > KVI_PROTOCOL_VERSION)
        return kvi_error_set(
            KVMEM_E_VERSION, "the library speaks versions %u..%u, the daemon chose %" PRIu32,
            KVI_PROTOCOL_VERSION_MIN, KVI_PROTOCOL_VERSION, client->welcome.version);
    map_status(client);
    return 0;
}

static void free_client(struct kvmem_client *client)
{
    struct kvi_alloc alloc = client->alloc;

    close_fds(client);
    kvi_mapper_destroy(client->mapper);
    if (client->epoll_fd >= 0)
        close(client->epoll_fd);
    if (client->status_page)
        munmap(client->status_page, client->status_bytes);
    client->link->ops->close(client->link);
    kvi_guards_fini(client);
    kvi_fences_fini(client);
    kvi_devices_fini(client);
    kvi_outbox_fini(&client->outbox, &alloc);
    kvi_release(&alloc, client->hits, KVI_CLIENT_LOOKUP_NAMES * sizeof(*client->hits));
    kvi_release(&alloc, client->rx, KVI_MESSAGE_BYTES);
    kvi_release(&alloc, client->tx, KVI_MESSAGE_BYTES);
    kvi_release(&alloc, client->ask, KVI_MESSAGE_BYTES);
    kvi_release(&alloc, client, sizeof(*client));
}

static int make_arrays(struct kvmem_client *client, uint32_t outbox_records)
{
    const struct kvi_alloc *alloc = &client->alloc;

    client->ask = kvi_allocate(alloc, KVI_MESSAGE_BYTES);
    client->tx = kvi_allocate(alloc, KVI_MESSAGE_BYTES);
    client->rx = kvi_allocate(alloc, KVI_MESSAGE_BYTES);
    client->hits = kvi_allocate(alloc, KVI_CLIENT_LOOKUP_NAMES * sizeof(*client->hits));
    if (!client->ask || !client->tx || !client->rx || !client->hits)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "no memory for a client");
    return kvi_outbox_init(&client->outbox, alloc,
                           outbox_records ? outbox_records : KVI_CLIENT_OUTBOX_RECORDS);
}

static int make_mapper(struct kvmem_client *client, bool has_helper)
{
    struct kvi_mapper_options options = {.alloc = &client->alloc, .has_helper = has_helper};

    return kvi_mapper_create(&options, &client->mapper);
}

int kvi_client_create(struct kvi_link *link, const struct kvi_alloc *alloc,
                      const struct kvi_client_options *options, struct kvmem_client **out)
{
    struct kvmem_client *client = kvi_allocate(alloc, sizeof(*client));
    int code;

    if (!client) {
        link->ops->close(link);
        return kvi_error_set(KVMEM_E_NO_MEMORY, "no memory for a client");
    }
    client->alloc = *alloc;
    client->link = link;
    client->devices.given = options->backend;
    client->epoll_fd = -1;
    client->is_observer = options->role == KVMEM_ROLE_OBSERVER;
    client->timeout_ns = options->timeout_ns ? options->timeout_ns : KVI_CLIENT_TIMEOUT_NS;
    code = make_arrays(client, options->outbox_records);
    if (!code)
        code = make_mapper(client, options->has_helper);
    if (!code)
        code = say_hello(client, options);
    if (!code && !client->is_observer)
        code = kvi_devices_learn(client);
    if (code) {
        free_client(client);
        return code;
    }
    *out = client;
    return 0;
}

/* Streams of this process may still use what is mapped: it stays as it is, and the daemon sees
 * the connection end without a goodbye, so that it waits for the process' exit. */
static void abandon(struct kvmem_client *client)
{
    static struct kvmem_client *abandoned; /* all of them, so that nothing looks lost */

    close_fds(client);
    kvi_mapper_destroy(client->mapper);
    if (client->epoll_fd >= 0)
        close(client->epoll_fd);
    client->link->ops->close(client->link);
    client->next_abandoned = __atomic_load_n(&abandoned, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(&abandoned, &client->next_abandoned, client, false,
                                        __ATOMIC_RELEASE, __ATOMIC_RELAXED))
        continue;
}

void kvi_client_destroy(struct kvmem_client *client)
{
    int64_t deadline_ns = kvi_client_deadline_ns(client->timeout_ns);
    const void *reply;

    for (uint32_t i = 0; i < client->space_high; i++)
        if (client->spaces[i])
            kvi_space_close(client->spaces[i], deadline_ns);
    if (!kvi_fence_settle(client, deadline_ns) || client->is_abandoned) {
        abandon(client);
        return;
    }
    if (!client->is_lost) {
        kvi_client_begin(client, KVI_OP_GOODBYE);
        (void)kvi_client_call(client, KVI_OP_DONE, &reply);
    }
    free_client(client);
}
