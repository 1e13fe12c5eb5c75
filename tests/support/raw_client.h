/* SPDX-License-Identifier: Apache-2.0
 *
 * A client without the library, for tests that send what the library never would. Everything has
 * a time limit; failures are answers, not aborts, since a hostile client expects them.
 *
 * One thread. Owns its socket, its status page's descriptor, and nothing it has handed out.
 */
#ifndef KVT_RAW_CLIENT_H
#define KVT_RAW_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire/protocol.h"

#define KVT_RAW_TIMEOUT_MS 5000

struct kvt_raw {
    int fd;
    int status_fd; /* −1 before welcome */
    uint32_t client;
    uint32_t serial;
    uint32_t fds_received; /* acknowledged in each message's header */
    uint64_t status_bytes;
};

/* A received message. */
struct kvt_raw_message {
    size_t bytes;
    uint32_t fd_count;
    int fds[KVI_MESSAGE_FDS];
    union {
        struct kvi_header header;
        struct kvi_msg_error error;
        struct kvi_msg_welcome welcome;
        struct kvi_msg_space_opened space_opened;
        struct kvi_msg_grant grant;
        struct kvi_msg_lookup_reply lookup_reply;
        struct kvi_msg_publish_reply publish_reply;
        struct kvi_msg_stats_reply stats;
        struct kvi_msg_check_reply check;
        struct kvi_msg_draining draining;
        struct kvi_msg_timeline_fd timeline_fd;
        struct kvi_msg_devices_reply devices;
        uint64_t align;
        unsigned char raw[KVI_MESSAGE_BYTES];
    } as;
};

/* What receiving came to. */
enum kvt_raw_result {
    KVT_RAW_MESSAGE,
    KVT_RAW_TIMEOUT,
    KVT_RAW_END
};

/* Connect; no hello yet. 0 or −errno. */
int kvt_raw_connect(struct kvt_raw *raw, const char *socket_path);
/* NULL fields and closed ones are fine. */
void kvt_raw_close(struct kvt_raw *raw);

/* Send bytes as they are, with descriptors (NULL, 0 for none). 0 or −errno; waits for room at
 * most KVT_RAW_TIMEOUT_MS. */
int kvt_raw_send_bytes(struct kvt_raw *raw, const void *bytes, size_t count, const int *fds,
                       uint32_t fd_count);

/* Give a begun message its serial, acknowledgement and length, and send it. Same result. */
int kvt_raw_send(struct kvt_raw *raw, void *message);

/* One message; its descriptors are the caller's. */
enum kvt_raw_result kvt_raw_receive(struct kvt_raw *raw, struct kvt_raw_message *out,
                                    int timeout_ms);

/* Send a request and wait for the reply with its serial, passing over events. */
enum kvt_raw_result kvt_raw_call(struct kvt_raw *raw, void *request, struct kvt_raw_message *out);

/* Does the daemon end this connection in time? Takes in and drops what comes before. */
bool kvt_raw_is_ended(struct kvt_raw *raw, int timeout_ms);

/* Hello as a leader of that name. True when welcomed. */
bool kvt_raw_hello(struct kvt_raw *raw, const char *name);

/* Connect and hello. */
bool kvt_raw_join(struct kvt_raw *raw, const char *socket_path, const char *name);

/* Open a space of blocks of 16 KiB (2 layers, 2 heads of 32 bf16, 16 tokens). Its id, 0 when
 * refused. */
bool kvt_raw_space_open(struct kvt_raw *raw, const char *name, uint32_t *space);

/* The same on a device of the daemon's; `name` may be DOMAIN/NAME. */
bool kvt_raw_space_open_on(struct kvt_raw *raw, const char *name, uint32_t device, uint32_t *space);

/* Ask for blocks. True when some were granted; closes descriptors that came. */
bool kvt_raw_blocks(struct kvt_raw *raw, uint32_t space, uint32_t block_count,
                    struct kvt_raw_message *grant);

/* The daemon's counters. */
bool kvt_raw_stats(struct kvt_raw *raw, struct kvi_msg_stats_reply *out);

/* Map the client's own timeline page (`timeline` UINT32_MAX), or that of a producer; the answer is
 * in `reply`. NULL when refused. The caller unmaps KVI_TIMELINE_BYTES. */
void *kvt_raw_timeline(struct kvt_raw *raw, uint32_t timeline, struct kvt_raw_message *reply);

/* The record of a device, false when it is not listed. */
bool kvt_raw_device(struct kvt_raw *raw, uint32_t index, struct kvi_rec_device_info *out);

/* Goodbye, answered. */
bool kvt_raw_goodbye(struct kvt_raw *raw);

void kvt_raw_close_fds(struct kvt_raw_message *message);

#endif
