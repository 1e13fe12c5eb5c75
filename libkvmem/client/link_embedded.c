/* SPDX-License-Identifier: Apache-2.0
 *
 * A link to a directory in the same process: messages go in by a function call, replies wait in a
 * queue in memory, segments come from a backend of its own, the host's or a GPU's. The client above
 * cannot tell it from a daemon: the same messages, descriptors to import, a status page, a timeline
 * page once it is asked for.
 *
 *   send ──▶ kvi_dir_message ──env.send──▶ queue ──▶ receive
 *                 │ ▲
 *   env.segment_create, kept in a list; carried out when the directory's call has returned
 *
 * Who owns what: the backend the segments; a queued message its descriptors, until receive hands
 * them out; the link everything else. close() destroys all of it.
 *
 * When somebody polls. The descriptor to poll is a timer, because a deadline of the directory
 * (pressure, a pin's end) must wake a poller too: it is set to now while messages are queued, to
 * the deadline else. Setting it is a system call, so it is done
 *   - not at all until poll_fd() was called for the first time;
 *   - then, when it would fire later than it must, but not when it is merely early: a message that
 *     is sent and answered finds it early from the time before and leaves it;
 *   - and exactly, when receive has found nothing: a poller that woke up for nothing calls receive
 *     once, and sleeps.
 * So it is readable whenever receive would return 1, and readable for nothing at most once.
 *
 * What cannot be told to the directory (no memory for a reply, no descriptor left for a segment)
 * ends the link as a daemon's end would: `failure` says why.
 *
 * One thread at a time. Sleeps only in receive, with a time limit, when nothing is queued.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "backend/backend_cuda.h"
#include "backend/backend_host.h"
#include "client/link.h"
#include "client/status.h"
#include "client/timeline.h"
#include "directory/directory.h"
#include "util/alloc.h"
#include "util/error.h"
#include "util/geometry.h"
#include "wire/socket.h"

#define STATUS_BYTES (UINT64_C(2) << 20) /* 1,927 slots; untouched ones cost nothing */
#define QUEUE_BYTES  (UINT64_C(128) << 10)
#define NEVER        UINT64_MAX
#define NS_A_SECOND  UINT64_C(1000000000)

/* A message in the queue; its bytes follow, rounded up to 8. */
struct queued {
    uint32_t bytes;
    uint32_t fd_count;
    int fds[KVI_MESSAGE_FDS];
};

struct segment {
    struct kvi_phys phys;
    uint64_t wanted_bytes; /* of a segment that is to be created */
    uint32_t next_wanted;  /* in the list; KVI_SEGMENT_LIMIT = last */
};

struct link_embedded {
    struct kvi_link base;
    struct kvi_backend *backend;
    struct kvi_dir *dir;
    uint32_t client;
    bool is_closed;  /* the directory has ended the connection */
    bool has_failed; /* see failure */
    bool is_polled;  /* somebody has asked for timer_fd */
    int timer_fd;
    uint64_t timer_ns; /* when it fires; NEVER = it does not */
    int status_fd;
    void *status_page;
    int timeline_fd; /* −1 until the client asks for its timeline */
    struct kvi_lane *timeline;
    uint8_t *queue; /* [queue_bytes]; messages in queue_head .. queue_tail */
    size_t queue_bytes;
    size_t queue_head;
    size_t queue_tail;
    uint32_t first_wanted; /* KVI_SEGMENT_LIMIT = none */
    uint32_t last_wanted;
    struct segment *segments; /* [KVI_SEGMENT_LIMIT] */
    char failure[160];
};

static struct link_embedded *of(struct kvi_link *link)
{
    return (struct link_embedded *)link;
}

static void fail(struct link_embedded *link, const char *what)
{
    if (link->has_failed)
        return;
    link->has_failed = true;
    snprintf(link->failure, sizeof(link->failure), "%s: %.100s", what, kvmem_error_detail()->text);
}

/* ---- the queue ---- */

static size_t queued_bytes(size_t bytes)
{
    return sizeof(struct queued) + ((bytes + 7) & ~(size_t)7);
}

/* Make room for `bytes` at the tail. */
static bool make_room(struct link_embedded *link, size_t bytes)
{
    size_t used = link->queue_tail - link->queue_head;
    size_t wanted = link->queue_bytes;
    uint8_t *grown = link->queue;

    if (link->queue_tail + bytes <= link->queue_bytes)
        return true;
    while (wanted < used + bytes)
        wanted *= 2;
    if (wanted != link->queue_bytes) {
        grown = kvi_allocate(&kvi_alloc_libc, wanted);
        if (!grown)
            return false;
    }
    memmove(grown, link->queue + link->queue_head, used);
    if (grown != link->queue)
        kvi_release(&kvi_alloc_libc, link->queue, link->queue_bytes);
    link->queue = grown;
    link->queue_bytes = wanted;
    link->queue_head = 0;
    link->queue_tail = used;
    return true;
}

static bool is_queue_empty(const struct link_embedded *link)
{
    return link->queue_head == link->queue_tail;
}

/* Take the oldest message out; the caller gets its descriptors. The bytes stay where they are
 * until the next message is queued. */
static const uint8_t *queue_pop(struct link_embedded *link, struct queued *out)
{
    const uint8_t *at = link->queue + link->queue_head;

    memcpy(out, at, sizeof(*out));
    link->queue_head += queued_bytes(out->bytes);
    if (is_queue_empty(link))
        link->queue_head = link->queue_tail = 0;
    return at + sizeof(*out);
}

/* ---- the directory's world ---- */

static uint64_t env_now_ns(void *context)
{
    (void)context;
    return kvi_socket_now_ns();
}

static void env_random(void *context, void *bytes, size_t count)
{
    uint8_t *at = bytes;
    ssize_t got;

    (void)context;
    while (count) {
        got = getrandom(at, count, 0);
        if (got < 0 && errno != EINTR)
            return; /* a kernel without it; nothing here is a secret to anybody else */
        if (got > 0) {
            at += got;
            count -= (size_t)got;
        }
    }
}

static size_t timeline_bytes(void)
{
    size_t os_page = (size_t)sysconf(_SC_PAGESIZE);

    return os_page > KVI_TIMELINE_BYTES ? os_page : KVI_TIMELINE_BYTES;
}

static int make_timeline(struct link_embedded *link)
{
    void *page = MAP_FAILED;
    int fd;

    if (link->timeline)
        return 0;
    fd = memfd_create("kvmem-timeline", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd >= 0 && !ftruncate(fd, (off_t)timeline_bytes()) &&
        !fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        page = mmap(NULL, timeline_bytes(), PROT_READ, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED) {
        int code = kvi_error_sys(KVMEM_E_SYSTEM, errno, "timeline page");

        if (fd >= 0)
            close(fd);
        return code;
    }
    link->timeline_fd = fd;
    link->timeline = page;
    return 0;
}

/* A descriptor that the message names by its kind. */
static int take_page(int page_fd, const char *name, struct queued *out)
{
    out->fds[0] = fcntl(page_fd, F_DUPFD_CLOEXEC, 0);
    if (out->fds[0] < 0)
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "no descriptor for the %s page", name);
    out->fd_count = 1;
    return 0;
}

/* Descriptors for a message: of segments, of the status page or of the timeline page. */
static int take_fds(struct link_embedded *link, uint32_t opcode, const uint32_t *segments,
                    uint32_t segment_count, struct queued *out)
{
    int rc = 0;

    if (opcode == KVI_OP_WELCOME)
        rc = take_page(link->status_fd, "status", out);
    if (opcode == KVI_OP_TIMELINE_FD)
        rc = make_timeline(link);
    if (rc == 0 && opcode == KVI_OP_TIMELINE_FD)
        rc = take_page(link->timeline_fd, "timeline", out);
    for (uint32_t i = 0; i < segment_count && rc == 0; i++) {
        rc = kvi_backend_segment_export(link->backend, link->segments[segments[i]].phys,
                                        &out->fds[out->fd_count]);
        out->fd_count += rc == 0;
    }
    if (rc)
        kvi_socket_close_fds(out->fds, out->fd_count);
    return rc;
}

static void env_send(void *context, uint32_t client, const void *datagram, size_t bytes,
                     const uint32_t *segments, uint32_t segment_count)
{
    struct link_embedded *link = context;
    struct queued queued = {.bytes = (uint32_t)bytes};
    struct kvi_header header;

    (void)client;
    memcpy(&header, datagram, sizeof(header));
    if (link->has_failed)
        return;
    if (!make_room(link, queued_bytes(bytes))) {
        kvi_error_set(KVMEM_E_NO_MEMORY, "no memory for %zu bytes", bytes);
        fail(link, "a reply of the embedded directory was lost");
        return;
    }
    if (take_fds(link, header.opcode, segments, segment_count, &queued)) {
        fail(link, "a descriptor of the embedded directory was lost");
        return;
    }
    memcpy(link->queue + link->queue_tail, &queued, sizeof(queued));
    memcpy(link->queue + link->queue_tail + sizeof(queued), datagram, bytes);
    link->queue_tail += queued_bytes(bytes);
}

static void env_segment_create(void *context, uint32_t segment, uint32_t device, uint64_t bytes)
{
    struct link_embedded *link = context;

    (void)device;
    link->segments[segment].wanted_bytes = bytes;
    link->segments[segment].next_wanted = KVI_SEGMENT_LIMIT;
    if (link->first_wanted == KVI_SEGMENT_LIMIT)
        link->first_wanted = segment;
    else
        link->segments[link->last_wanted].next_wanted = segment;
    link->last_wanted = segment;
}

static void env_segment_release(void *context, uint32_t segment)
{
    struct link_embedded *link = context;

    if (kvi_backend_segment_release(link->backend, link->segments[segment].phys))
        fail(link, "a segment of the embedded device was not released");
    link->segments[segment].phys.id = 0;
}

static void env_client_close(void *context, uint32_t client, int code, const char *text)
{
    struct link_embedded *link = context;

    (void)client;
    link->is_closed = true;
    if (code && !link->has_failed) {
        link->has_failed = true;
        snprintf(link->failure, sizeof(link->failure), "%s: %.120s", kvmem_error_name(code), text);
    }
}

static int env_usage(void *context, uint32_t client, uint32_t space, uint32_t slot,
                     uint32_t generation, uint32_t block_count, struct kvi_dir_usage *out)
{
    const struct link_embedded *link = context;

    (void)client;
    return kvi_status_read(link->status_page, STATUS_BYTES, space, slot, generation, block_count,
                           out);
}

static int env_timeline_reached(void *context, uint32_t client, uint32_t lane, uint64_t value)
{
    const struct link_embedded *link = context;

    (void)client;
    return link->timeline && kvi_lane_poll(&link->timeline[lane], value) == KVI_LANE_REACHED;
}

/* ---- after each call of the directory ---- */

static void carry_out_creations(struct link_embedded *link)
{
    while (link->first_wanted != KVI_SEGMENT_LIMIT) {
        uint32_t number = link->first_wanted;
        struct segment *segment = &link->segments[number];
        int rc;

        link->first_wanted = segment->next_wanted;
        rc = kvi_backend_segment_create(link->backend, segment->wanted_bytes, &segment->phys);
        kvi_dir_segment_created(link->dir, number, rc);
    }
}

static void set_timer(struct link_embedded *link, uint64_t fires_ns)
{
    struct itimerspec when = {
        .it_value = {(time_t)(fires_ns / NS_A_SECOND), (long)(fires_ns % NS_A_SECOND)}};

    if (fires_ns == NEVER)
        when.it_value = (struct timespec){0, 0};
    else if (fires_ns == 0)
        when.it_value.tv_nsec = 1; /* long ago; zero would mean never */
    timerfd_settime(link->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
    link->timer_ns = fires_ns;
}

static uint64_t wanted_timer(const struct link_embedded *link)
{
    bool is_over = link->has_failed || link->is_closed;

    return !is_queue_empty(link) || is_over ? 0 : kvi_dir_next_deadline_ns(link->dir);
}

/* The directory has been called: do what it asked for, and wake a poller where needed. */
static void settle(struct link_embedded *link)
{
    carry_out_creations(link);
    if (link->is_polled && wanted_timer(link) < link->timer_ns)
        set_timer(link, wanted_timer(link));
}

/* ---- operations ---- */

static int lost(const struct link_embedded *link)
{
    return kvi_error_set(KVMEM_E_DAEMON_LOST, "the embedded directory has ended the session%s%s",
                         link->has_failed ? ": " : "", link->failure);
}

static int embedded_send(struct kvi_link *base, const void *message, int64_t timeout_ns)
{
    struct link_embedded *link = of(base);
    const struct kvi_header *header = message;

    (void)timeout_ns;
    if (link->has_failed || link->is_closed)
        return lost(link);
    kvi_dir_message(link->dir, link->client, message, header->length_bytes, 0);
    settle(link);
    return 0;
}

/* Hand out the oldest message. 1, or PROTOCOL: our own directory is wrong. */
static int take_message(struct link_embedded *link, void *buffer, size_t limit, int *fds,
                        uint32_t *fd_count)
{
    char text[160] = "more than fits the buffer";
    struct queued queued;
    const uint8_t *bytes = queue_pop(link, &queued);

    if (queued.bytes > limit ||
        kvi_wire_check(bytes, queued.bytes, queued.fd_count, KVI_TO_CLIENT, text, sizeof(text))) {
        kvi_socket_close_fds(queued.fds, queued.fd_count);
        link->has_failed = true;
        return kvi_error_set(KVMEM_E_PROTOCOL, "the embedded directory sent %s", text);
    }
    memcpy(buffer, bytes, queued.bytes);
    memcpy(fds, queued.fds, queued.fd_count * sizeof(*fds));
    *fd_count = queued.fd_count;
    return 1;
}

/* Nothing is queued: sleep until `deadline_ns` or the directory's own next deadline. */
static void sleep_until(struct link_embedded *link, uint64_t deadline_ns)
{
    uint64_t next = kvi_dir_next_deadline_ns(link->dir);
    uint64_t wake = next < deadline_ns ? next : deadline_ns;
    struct timespec when = {(time_t)(wake / NS_A_SECOND), (long)(wake % NS_A_SECOND)};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL) == EINTR)
        continue;
}

static int embedded_receive(struct kvi_link *base, void *buffer, size_t limit, int *fds,
                            uint32_t *fd_count, int64_t timeout_ns)
{
    struct link_embedded *link = of(base);
    uint64_t deadline = 0;

    *fd_count = 0;
    for (;;) {
        if (!is_queue_empty(link))
            return take_message(link, buffer, limit, fds, fd_count);
        if (link->has_failed || link->is_closed)
            return lost(link);
        if (kvi_dir_next_deadline_ns(link->dir) <= kvi_socket_now_ns()) {
            kvi_dir_tick(link->dir);
            settle(link);
            if (!is_queue_empty(link))
                continue;
        }
        if (deadline == 0)
            deadline = kvi_socket_deadline_ns(timeout_ns);
        if (timeout_ns <= 0 || deadline <= kvi_socket_now_ns())
            break;
        sleep_until(link, deadline);
    }
    if (link->is_polled && link->timer_ns != wanted_timer(link))
        set_timer(link, wanted_timer(link));
    return 0;
}

static int embedded_poll_fd(const struct kvi_link *base)
{
    struct link_embedded *link = of((struct kvi_link *)(uintptr_t)base);

    if (!link->is_polled) {
        link->is_polled = true;
        set_timer(link, wanted_timer(link));
    }
    return link->timer_fd;
}

/* ---- life ---- */

static void drop_queue(struct link_embedded *link)
{
    struct queued queued;

    while (!is_queue_empty(link)) {
        queue_pop(link, &queued);
        kvi_socket_close_fds(queued.fds, queued.fd_count);
    }
    kvi_release(&kvi_alloc_libc, link->queue, link->queue_bytes);
}

static void destroy(struct link_embedded *link)
{
    if (!link)
        return;
    if (link->dir) {
        kvi_dir_client_eof(link->dir, link->client);
        kvi_dir_client_exited(link->dir, link->client);
        carry_out_creations(link);
        kvi_dir_destroy(link->dir);
    }
    drop_queue(link);
    if (link->backend)
        kvi_backend_destroy(link->backend);
    if (link->status_page)
        munmap(link->status_page, STATUS_BYTES);
    if (link->status_fd >= 0)
        close(link->status_fd);
    if (link->timeline)
        munmap(link->timeline, timeline_bytes());
    if (link->timeline_fd >= 0)
        close(link->timeline_fd);
    if (link->timer_fd >= 0)
        close(link->timer_fd);
    kvi_release(&kvi_alloc_libc, link->segments, KVI_SEGMENT_LIMIT * sizeof(*link->segments));
    kvi_release(&kvi_alloc_libc, link, sizeof(*link));
}

static void embedded_close(struct kvi_link *base)
{
    destroy(of(base));
}

static const struct kvi_link_ops embedded_ops = {embedded_send, embedded_receive, embedded_poll_fd,
                                                 embedded_close};

static int make_status_page(struct link_embedded *link)
{
    void *page;

    link->status_fd = memfd_create("kvmem-status", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (link->status_fd < 0 || ftruncate(link->status_fd, STATUS_BYTES) ||
        fcntl(link->status_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "status page");
    page = mmap(NULL, STATUS_BYTES, PROT_READ, MAP_SHARED, link->status_fd, 0);
    if (page == MAP_FAILED)
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "mapping the status page");
    link->status_page = page;
    return 0;
}

/* The device as the directory shows it. */
static struct kvi_dir_device describe(const struct link_embedded *link, const uint8_t *uuid)
{
    const struct kvi_backend_info *info = &link->backend->info;
    struct kvi_dir_device device = {.kind = info->kind,
                                    .device_bytes = info->device_bytes,
                                    .granule_bytes = info->granule_bytes,
                                    .releases_reclaim_mapped =
                                        (info->flags & KVI_BACKEND_RECLAIMS_MAPPED) != 0,
                                    .name = "host"};

    if (info->kind == KVI_BACKEND_CUDA) {
        memcpy(device.uuid, uuid, sizeof(device.uuid));
        memcpy(device.name, info->name, sizeof(device.name));
    }
    return device;
}

static int make_directory(struct link_embedded *link, const uint8_t *uuid)
{
    struct kvi_dir_options options = {
        .devices = {describe(link, uuid)},
        .device_count = 1,
        .status_bytes = STATUS_BYTES,
        .client_limit = 1,
    };
    struct kvi_dir_env env = {
        .version = KVI_DIR_ENV_VERSION,
        .size = sizeof(env),
        .context = link,
        .alloc = kvi_alloc_libc,
        .now_ns = env_now_ns,
        .random = env_random,
        .send = env_send,
        .segment_create = env_segment_create,
        .segment_release = env_segment_release,
        .client_close = env_client_close,
        .usage = env_usage,
        .timeline_reached = env_timeline_reached,
    };
    struct kvi_dir_peer self = {(uint32_t)getpid(), geteuid(), getegid()};
    int rc = kvi_dir_create(&options, &env, &link->dir);

    return rc ? rc : kvi_dir_client_add(link->dir, &self, &link->client);
}

static int make_host(struct link_embedded *link, uint64_t device_bytes, uint64_t granule_bytes)
{
    struct kvi_backend_host_options host = {.options_bytes = sizeof(host),
                                            .device_bytes = device_bytes,
                                            .granule_bytes = granule_bytes};

    return kvi_backend_host_create(&host, &link->backend);
}

static int make_cuda(struct link_embedded *link, uint64_t device_bytes, uint32_t ordinal,
                     uint8_t *uuid)
{
    struct kvi_backend_cuda_options cuda = {
        .options_bytes = sizeof(cuda), .device_index = ordinal, .device_bytes = device_bytes};
    struct kvi_backend_cuda_device what;
    int rc = kvi_backend_cuda_query(&cuda, &what);

    if (rc)
        return rc;
    memcpy(uuid, what.uuid, sizeof(what.uuid));
    return kvi_backend_cuda_create(&cuda, &link->backend);
}

/* Everything but the backend and the directory. */
static int fill(struct link_embedded *link)
{
    link->segments = kvi_allocate(&kvi_alloc_libc, KVI_SEGMENT_LIMIT * sizeof(*link->segments));
    link->queue = kvi_allocate(&kvi_alloc_libc, QUEUE_BYTES);
    link->queue_bytes = link->queue ? QUEUE_BYTES : 0;
    if (!link->segments || !link->queue)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "no memory for an embedded directory");
    link->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (link->timer_fd < 0)
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "timerfd_create");
    return make_status_page(link);
}

/* A link without a device. What *out has become is to be destroyed after a failure. */
static int start(uint64_t device_bytes, struct link_embedded **out)
{
    struct link_embedded *link;

    if (device_bytes == 0)
        return kvi_error_set(KVMEM_E_INVALID, "device_bytes: 0, expected a multiple of "
                                              "granule_bytes above it");
    link = kvi_allocate(&kvi_alloc_libc, sizeof(*link));
    if (!link)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "no memory for an embedded directory");
    link->base.ops = &embedded_ops;
    link->timer_fd = -1;
    link->status_fd = -1;
    link->timeline_fd = -1;
    link->timer_ns = NEVER;
    link->first_wanted = KVI_SEGMENT_LIMIT;
    *out = link;
    return fill(link);
}

int kvi_link_embed(uint64_t device_bytes, uint64_t granule_bytes, struct kvi_link **out)
{
    struct link_embedded *link = NULL;
    int rc = start(device_bytes, &link);

    if (rc == 0)
        rc = make_host(link, device_bytes, granule_bytes);
    if (rc == 0)
        rc = make_directory(link, NULL);
    if (rc == 0)
        *out = &link->base;
    else
        destroy(link);
    return rc;
}

int kvi_link_embed_cuda(uint64_t device_bytes, uint32_t ordinal, struct kvi_link **out)
{
    struct link_embedded *link = NULL;
    uint8_t uuid[16];
    int rc = start(device_bytes, &link);

    if (rc == 0)
        rc = make_cuda(link, device_bytes, ordinal, uuid);
    if (rc == 0)
        rc = make_directory(link, uuid);
    if (rc == 0)
        *out = &link->base;
    else
        destroy(link);
    return rc;
}
