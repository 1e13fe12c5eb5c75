/* SPDX-License-Identifier: Apache-2.0
 *
 * One connection, one question at a time.
 */
#include "support/wire.h"

#include <kvmem/error.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "support/spawn.h"

#define ANSWER_LIMIT_NS (KVT_SLOWDOWN * KVT_MS(10000))

/* ---- the connection ---- */

static void must(int result, const char *what)
{
    if (result < 0)
        kvt_die("%s: %s: %s", what, kvmem_error_name(result), kvmem_error_detail()->text);
}

void kvt_wire_send(struct kvt_wire *wire, void *message)
{
    struct kvi_header *header = message;

    header->serial = ++wire->serial;
    header->fds_received = wire->fds_received;
    kvi_wire_finish(message);
    must(wire->link->ops->send(wire->link, message, ANSWER_LIMIT_NS), "send");
}

const void *kvt_wire_ask(struct kvt_wire *wire, void *message, enum kvi_opcode reply)
{
    const struct kvi_header *header = (const void *)wire->buffer;
    int fds[KVI_MESSAGE_FDS];
    uint32_t fd_count;

    kvt_wire_send(wire, message);
    do {
        int result = wire->link->ops->receive(wire->link, wire->buffer, sizeof(wire->buffer), fds,
                                              &fd_count, ANSWER_LIMIT_NS);

        must(result, "receive");
        if (result == 0)
            kvt_die("kvmemd did not answer in time");
        wire->fds_received += fd_count;
        for (uint32_t i = 0; i < fd_count; i++)
            close(fds[i]);
    } while (header->serial != wire->serial);
    if (header->opcode == KVI_OP_ERROR)
        kvt_die("kvmemd: %s", ((const struct kvi_msg_error *)(const void *)header)->text);
    if (header->opcode != reply)
        kvt_die("kvmemd answered %s", kvi_wire_name(header->opcode));
    return wire->buffer;
}

void kvt_wire_open(struct kvt_wire *wire, const char *socket_path, uint32_t role, const char *name)
{
    struct kvi_msg_hello hello;
    const struct kvi_msg_welcome *welcome;

    memset(wire, 0, sizeof(*wire));
    must(kvi_link_connect(socket_path, ANSWER_LIMIT_NS, &wire->link), "connect");
    kvi_wire_begin(&hello, KVI_OP_HELLO, 0);
    hello.version = KVI_PROTOCOL_VERSION;
    hello.version_min = KVI_PROTOCOL_VERSION_MIN;
    hello.role = role;
    snprintf(hello.name, sizeof(hello.name), "%s", name);
    welcome = kvt_wire_ask(wire, &hello, KVI_OP_WELCOME);
    wire->client = welcome->client;
}

void kvt_wire_close(struct kvt_wire *wire)
{
    struct kvi_msg_goodbye goodbye;

    kvi_wire_begin(&goodbye, KVI_OP_GOODBYE, 0);
    kvt_wire_ask(wire, &goodbye, KVI_OP_DONE);
    wire->link->ops->close(wire->link);
    wire->link = NULL;
}

/* ---- what an observer asks ---- */

void kvt_wire_stats(struct kvt_wire *wire, struct kvi_msg_stats_reply *out)
{
    struct kvi_msg_stats stats;

    kvi_wire_begin(&stats, KVI_OP_STATS, 0);
    memcpy(out, kvt_wire_ask(wire, &stats, KVI_OP_STATS_REPLY), sizeof(*out));
}

void kvt_wire_wait(struct kvt_wire *wire, int (*condition)(const struct kvi_msg_stats_reply *stats),
                   const char *what, int64_t timeout_ns)
{
    uint64_t deadline = kvt_now_ns() + (uint64_t)timeout_ns;
    struct kvi_msg_stats_reply stats;

    while (kvt_wire_stats(wire, &stats), !condition(&stats)) {
        if (kvt_now_ns() > deadline)
            kvt_die("waited %lld ms for %s", (long long)(timeout_ns / 1000000), what);
        kvt_sleep_ns(KVT_MS(1));
    }
}

bool kvt_wire_is_clean(struct kvt_wire *wire)
{
    const struct kvi_msg_check_reply *reply;
    struct kvi_msg_check check;

    kvi_wire_begin(&check, KVI_OP_CHECK, 0);
    reply = kvt_wire_ask(wire, &check, KVI_OP_CHECK_REPLY);
    if (reply->violations)
        fprintf(stderr, "kvmemd check: %s\n", reply->text);
    return reply->violations == 0;
}

bool kvt_wire_client(struct kvt_wire *wire, uint32_t client, struct kvi_rec_client_info *out)
{
    const struct kvi_msg_clients_reply *reply;
    const struct kvi_rec_client_info *first;
    struct kvi_msg_clients clients;

    kvi_wire_begin(&clients, KVI_OP_CLIENTS, 0);
    clients.first = client;
    reply = kvt_wire_ask(wire, &clients, KVI_OP_CLIENTS_REPLY);
    first = kvi_wire_tail_const(reply, 0);
    if (reply->client_count == 0 || first->client != client)
        return false;
    *out = *first;
    return true;
}

uint32_t kvt_wire_owned_by(struct kvt_wire *wire, uint32_t client)
{
    uint32_t next = 0, owned = 0;

    do {
        const struct kvi_msg_segments_reply *reply;
        const struct kvi_rec_segment_info *segment;
        struct kvi_msg_segments segments;

        kvi_wire_begin(&segments, KVI_OP_SEGMENTS, 0);
        segments.first = next;
        reply = kvt_wire_ask(wire, &segments, KVI_OP_SEGMENTS_REPLY);
        segment = kvi_wire_tail_const(reply, 0);
        for (uint32_t i = 0; i < reply->segment_count; i++)
            owned += segment[i].owner == client;
        next = reply->next;
    } while (next);
    return owned;
}

struct kvt_wire_sums kvt_wire_sums(struct kvt_wire *wire)
{
    struct kvt_wire_sums sums = {0, 0, 0, 0};
    uint32_t next = 0;

    do {
        const struct kvi_msg_clients_reply *reply;
        const struct kvi_rec_client_info *client;
        struct kvi_msg_clients clients;

        kvi_wire_begin(&clients, KVI_OP_CLIENTS, 0);
        clients.first = next;
        reply = kvt_wire_ask(wire, &clients, KVI_OP_CLIENTS_REPLY);
        client = kvi_wire_tail_const(reply, 0);
        sums.clients += reply->client_count;
        for (uint32_t i = 0; i < reply->client_count; i++) {
            sums.leases += client[i].lease_count;
            sums.fds_in_flight += client[i].fds_in_flight;
            sums.owned_segments += client[i].owned_segments;
        }
        next = reply->next;
    } while (next);
    return sums;
}
