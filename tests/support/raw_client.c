/* SPDX-License-Identifier: Apache-2.0 */
#include "support/raw_client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <kvmem/types.h>

#include "client/timeline.h"
#include "support/spawn.h"

#define SENT_FDS_MAX 253u /* the kernel's SCM_MAX_FD */

static int64_t now_ms(void)
{
    return (int64_t)(kvt_now_ns() / 1000000);
}

static bool wait_for(int fd, short events, int timeout_ms)
{
    struct pollfd state = {.fd = fd, .events = events};

    return poll(&state, 1, timeout_ms < 0 ? 0 : timeout_ms) == 1;
}

int kvt_raw_connect(struct kvt_raw *raw, const char *socket_path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    *raw = (struct kvt_raw){.fd = -1, .status_fd = -1};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", socket_path);
    raw->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (raw->fd < 0)
        return -errno;
    if (connect(raw->fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        int error = errno;

        kvt_raw_close(raw);
        return -error;
    }
    return 0;
}

void kvt_raw_close(struct kvt_raw *raw)
{
    if (raw->fd >= 0)
        close(raw->fd);
    if (raw->status_fd >= 0)
        close(raw->status_fd);
    raw->fd = raw->status_fd = -1;
}

void kvt_raw_close_fds(struct kvt_raw_message *message)
{
    for (uint32_t i = 0; i < message->fd_count; i++)
        close(message->fds[i]);
    message->fd_count = 0;
}

/* ---- bytes ---- */

int kvt_raw_send_bytes(struct kvt_raw *raw, const void *bytes, size_t count, const int *fds,
                       uint32_t fd_count)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(SENT_FDS_MAX * sizeof(int))];
    } control = {0};
    struct iovec part = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = count};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

    if (fd_count > 0) {
        control.align.cmsg_level = SOL_SOCKET;
        control.align.cmsg_type = SCM_RIGHTS;
        control.align.cmsg_len = CMSG_LEN(fd_count * sizeof(int));
        memcpy(CMSG_DATA(&control.align), fds, fd_count * sizeof(int));
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
    }
    if (!wait_for(raw->fd, POLLOUT, KVT_RAW_TIMEOUT_MS))
        return -ETIMEDOUT;
    return sendmsg(raw->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

int kvt_raw_send(struct kvt_raw *raw, void *message)
{
    struct kvi_header *header = message;

    header->serial = ++raw->serial;
    header->fds_received = raw->fds_received;
    return kvt_raw_send_bytes(raw, message, kvi_wire_finish(message), NULL, 0);
}

static void take_fds(struct kvt_raw *raw, struct msghdr *message, struct kvt_raw_message *out)
{
    struct cmsghdr *control = CMSG_FIRSTHDR(message);

    if (control == NULL || control->cmsg_type != SCM_RIGHTS)
        return;
    out->fd_count = (uint32_t)((control->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    memcpy(out->fds, CMSG_DATA(control), out->fd_count * sizeof(int));
    raw->fds_received += out->fd_count;
}

enum kvt_raw_result kvt_raw_receive(struct kvt_raw *raw, struct kvt_raw_message *out,
                                    int timeout_ms)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(KVI_MESSAGE_FDS * sizeof(int))];
    } control;
    struct iovec part = {.iov_base = out->as.raw, .iov_len = sizeof(out->as.raw)};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof(control.bytes)};
    ssize_t bytes;

    out->bytes = 0;
    out->fd_count = 0;
    if (!wait_for(raw->fd, POLLIN, timeout_ms))
        return KVT_RAW_TIMEOUT;
    bytes = recvmsg(raw->fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (bytes < 0 && errno == EAGAIN)
        return KVT_RAW_TIMEOUT;
    if (bytes <= 0)
        return KVT_RAW_END;
    out->bytes = (size_t)bytes;
    take_fds(raw, &message, out);
    return KVT_RAW_MESSAGE;
}

/* ---- conversations ---- */

enum kvt_raw_result kvt_raw_call(struct kvt_raw *raw, void *request, struct kvt_raw_message *out)
{
    int64_t deadline_ms = now_ms() + KVT_RAW_TIMEOUT_MS;
    enum kvt_raw_result result;

    if (kvt_raw_send(raw, request) < 0)
        return KVT_RAW_END;
    for (;;) {
        result = kvt_raw_receive(raw, out, (int)(deadline_ms - now_ms()));
        if (result != KVT_RAW_MESSAGE || out->as.header.serial == raw->serial)
            return result;
        kvt_raw_close_fds(out);
    }
}

bool kvt_raw_is_ended(struct kvt_raw *raw, int timeout_ms)
{
    static struct kvt_raw_message dropped;
    int64_t deadline_ms = now_ms() + timeout_ms;

    for (;;) {
        enum kvt_raw_result result = kvt_raw_receive(raw, &dropped, (int)(deadline_ms - now_ms()));

        kvt_raw_close_fds(&dropped);
        if (result != KVT_RAW_MESSAGE)
            return result == KVT_RAW_END;
    }
}

bool kvt_raw_hello(struct kvt_raw *raw, const char *name)
{
    static struct kvt_raw_message reply;
    struct kvi_msg_hello hello;

    kvi_wire_begin(&hello, KVI_OP_HELLO, 0);
    hello.version = KVI_PROTOCOL_VERSION;
    hello.version_min = KVI_PROTOCOL_VERSION_MIN;
    snprintf(hello.name, sizeof(hello.name), "%s", name);
    if (kvt_raw_call(raw, &hello, &reply) != KVT_RAW_MESSAGE ||
        reply.as.header.opcode != KVI_OP_WELCOME || reply.fd_count != 1) {
        kvt_raw_close_fds(&reply);
        return false;
    }
    raw->client = reply.as.welcome.client;
    raw->status_fd = reply.fds[0];
    raw->status_bytes = reply.as.welcome.status_bytes;
    return true;
}

bool kvt_raw_join(struct kvt_raw *raw, const char *socket_path, const char *name)
{
    return kvt_raw_connect(raw, socket_path) == 0 && kvt_raw_hello(raw, name);
}

bool kvt_raw_space_open_on(struct kvt_raw *raw, const char *name, uint32_t device, uint32_t *space)
{
    static struct kvt_raw_message reply;
    struct {
        struct kvi_msg_space_open message;
        struct kvi_rec_group group[2]; /* one, and room for the tail's alignment */
    } request;
    const char *slash = strchr(name, '/');
    struct kvi_rec_group *group;

    memset(&request, 0, sizeof(request));
    kvi_wire_begin(&request.message, KVI_OP_SPACE_OPEN, 0);
    snprintf(request.message.name, sizeof(request.message.name), "%s",
             slash != NULL ? slash + 1 : name);
    snprintf(request.message.domain, sizeof(request.message.domain), "%.*s",
             slash != NULL ? (int)(slash - name) : 5, slash != NULL ? name : "tests");
    request.message.flags = (device + 1) << 8;
    request.message.layout = KVMEM_LAYOUT_PAGE_HEAD_TOKEN;
    request.message.block_tokens = 16;
    request.message.shard_count = 1;
    request.message.group_count = 1;
    group = kvi_wire_tail(&request.message, 0);
    *group = (struct kvi_rec_group){.layer_count = 4,
                                    .kv_head_count = 2,
                                    .head_dim_k = 32,
                                    .head_dim_v = 32,
                                    .dtype_k = KVMEM_DTYPE_BF16,
                                    .dtype_v = KVMEM_DTYPE_BF16};
    if (kvt_raw_call(raw, &request.message, &reply) != KVT_RAW_MESSAGE ||
        reply.as.header.opcode != KVI_OP_SPACE_OPENED)
        return false;
    *space = reply.as.space_opened.space;
    return true;
}

bool kvt_raw_space_open(struct kvt_raw *raw, const char *name, uint32_t *space)
{
    return kvt_raw_space_open_on(raw, name, 0, space);
}

bool kvt_raw_blocks(struct kvt_raw *raw, uint32_t space, uint32_t block_count,
                    struct kvt_raw_message *grant)
{
    struct kvi_msg_blocks_request request;

    kvi_wire_begin(&request, KVI_OP_BLOCKS_REQUEST, 0);
    request.space = space;
    request.block_count = block_count;
    if (kvt_raw_call(raw, &request, grant) != KVT_RAW_MESSAGE)
        return false;
    kvt_raw_close_fds(grant);
    return grant->as.header.opcode == KVI_OP_GRANT && grant->as.grant.range_count > 0;
}

bool kvt_raw_stats(struct kvt_raw *raw, struct kvi_msg_stats_reply *out)
{
    static struct kvt_raw_message reply;
    struct kvi_msg_stats request;

    kvi_wire_begin(&request, KVI_OP_STATS, 0);
    if (kvt_raw_call(raw, &request, &reply) != KVT_RAW_MESSAGE ||
        reply.as.header.opcode != KVI_OP_STATS_REPLY)
        return false;
    *out = reply.as.stats;
    return true;
}

void *kvt_raw_timeline(struct kvt_raw *raw, uint32_t timeline, struct kvt_raw_message *reply)
{
    struct kvi_msg_timeline_map request;
    void *page;

    kvi_wire_begin(&request, KVI_OP_TIMELINE_MAP, 0);
    request.is_own = timeline == UINT32_MAX;
    request.timeline = request.is_own ? 0 : timeline;
    if (kvt_raw_call(raw, &request, reply) != KVT_RAW_MESSAGE ||
        reply->as.header.opcode != KVI_OP_TIMELINE_FD || reply->fd_count != 1) {
        kvt_raw_close_fds(reply);
        return NULL;
    }
    page = mmap(NULL, KVI_TIMELINE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, reply->fds[0], 0);
    kvt_raw_close_fds(reply);
    return page != MAP_FAILED ? page : NULL;
}

bool kvt_raw_device(struct kvt_raw *raw, uint32_t index, struct kvi_rec_device_info *out)
{
    static struct kvt_raw_message reply;
    const struct kvi_rec_device_info *rows;
    struct kvi_msg_devices request;

    kvi_wire_begin(&request, KVI_OP_DEVICES, 0);
    if (kvt_raw_call(raw, &request, &reply) != KVT_RAW_MESSAGE ||
        reply.as.header.opcode != KVI_OP_DEVICES_REPLY || index >= reply.as.devices.device_count)
        return false;
    rows = kvi_wire_tail(&reply.as.devices, 0);
    *out = rows[index];
    return true;
}

bool kvt_raw_goodbye(struct kvt_raw *raw)
{
    static struct kvt_raw_message reply;
    struct kvi_msg_goodbye request;

    kvi_wire_begin(&request, KVI_OP_GOODBYE, 0);
    return kvt_raw_call(raw, &request, &reply) == KVT_RAW_MESSAGE &&
           reply.as.header.opcode == KVI_OP_DONE;
}
