/* SPDX-License-Identifier: Apache-2.0
 *
 * Fetching the daemon's lists, message by message.
 */
#include "pool.h"

#include <kvmem/error.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/error.h"

/* A list and the messages that carry it. All list requests and replies have the same shape:
 * request {first}, reply {count, next, records}. */
struct list {
    enum kvi_opcode request;
    enum kvi_opcode reply;
    size_t record_bytes;
};

struct list_request {
    struct kvi_header header;
    uint32_t first;
    uint8_t reserved[4];
};

struct list_reply {
    struct kvi_header header;
    uint32_t count;
    uint32_t next;
};

#define CHECK_REQUEST(message)                                                        \
    _Static_assert(sizeof(struct kvi_msg_##message) == sizeof(struct list_request) && \
                       offsetof(struct kvi_msg_##message, first) ==                   \
                           offsetof(struct list_request, first),                      \
                   #message " has the shape of a list request")
#define CHECK_REPLY(message, count_field)                                                        \
    _Static_assert(                                                                              \
        offsetof(struct kvi_msg_##message, count_field) == offsetof(struct list_reply, count) && \
            offsetof(struct kvi_msg_##message, next) == offsetof(struct list_reply, next),       \
        #message " has the shape of a list reply")
CHECK_REQUEST(clients);
CHECK_REQUEST(spaces);
CHECK_REQUEST(segments);
CHECK_REPLY(clients_reply, client_count);
CHECK_REPLY(spaces_reply, space_count);
CHECK_REPLY(segments_reply, segment_count);

static int fail(struct kvctl_session *session, int code, const char *asked, const char *text)
{
    session->failure = (struct kvctl_failure){.code = code,
                                              .is_connected = true,
                                              .asked = asked,
                                              .path = session->path,
                                              .timeout_ns = session->timeout_ns};
    snprintf(session->failure.detail, sizeof(session->failure.detail), "%s", text);
    return code;
}

/* Append `count` records of a reply to the array. 0 or NO_MEMORY. */
static int append(const struct list *list, const void *reply, size_t count, void **records,
                  size_t *used)
{
    void *grown = realloc(*records, (*used + count + 1) * list->record_bytes);

    if (!grown)
        return KVMEM_E_NO_MEMORY;
    *records = grown;
    if (count)
        memcpy((char *)grown + *used * list->record_bytes, kvi_wire_tail_const(reply, 0),
               count * list->record_bytes);
    *used += count;
    return 0;
}

static int fetch_list(struct kvctl_session *session, const struct list *list, void **records,
                      size_t *count)
{
    const char *asked = kvi_wire_name(list->request);
    uint32_t first = 0;

    do {
        struct list_request request;
        const struct list_reply *reply;
        const void *message;
        int rc;

        kvi_wire_begin(&request, list->request, 0);
        request.first = first;
        rc = kvctl_ask(session, &request, list->reply, &message);
        if (rc < 0)
            return rc;
        reply = message;
        if (append(list, reply, reply->count, records, count) < 0)
            return fail(session, KVMEM_E_NO_MEMORY, asked, "kvmemctl has no memory left");
        if (reply->next && reply->next <= first)
            return fail(session, KVMEM_E_PROTOCOL, asked, "its list goes in circles");
        first = reply->next;
    } while (first);
    return 0;
}

static int fetch_stats(struct kvctl_session *session, struct kvi_msg_stats_reply *out)
{
    struct kvi_msg_stats request;
    const void *reply;
    int rc;

    kvi_wire_begin(&request, KVI_OP_STATS, 0);
    rc = kvctl_ask(session, &request, KVI_OP_STATS_REPLY, &reply);
    if (rc == 0)
        memcpy(out, reply, sizeof(*out));
    return rc;
}

int kvctl_pool_fetch(struct kvctl_session *session, unsigned parts, struct kvctl_pool *out)
{
    static const struct list clients = {KVI_OP_CLIENTS, KVI_OP_CLIENTS_REPLY,
                                        sizeof(struct kvi_rec_client_info)};
    static const struct list spaces = {KVI_OP_SPACES, KVI_OP_SPACES_REPLY,
                                       sizeof(struct kvi_rec_space_info)};
    static const struct list segments = {KVI_OP_SEGMENTS, KVI_OP_SEGMENTS_REPLY,
                                         sizeof(struct kvi_rec_segment_info)};
    void *records[3] = {NULL, NULL, NULL};
    int rc = 0;

    memset(out, 0, sizeof(*out));
    if (parts & KVCTL_POOL_STATS)
        rc = fetch_stats(session, &out->stats);
    if (rc == 0 && parts & KVCTL_POOL_CLIENTS)
        rc = fetch_list(session, &clients, &records[0], &out->client_count);
    if (rc == 0 && parts & KVCTL_POOL_SPACES)
        rc = fetch_list(session, &spaces, &records[1], &out->space_count);
    if (rc == 0 && parts & KVCTL_POOL_SEGMENTS)
        rc = fetch_list(session, &segments, &records[2], &out->segment_count);
    out->clients = records[0];
    out->spaces = records[1];
    out->segments = records[2];
    return rc;
}
