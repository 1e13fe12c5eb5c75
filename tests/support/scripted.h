/* SPDX-License-Identifier: Apache-2.0
 *
 * A daemon that a test plays: a link whose other end is a script, so that a client can be told
 * anything at any time. By itself it answers hello, space_open, space_close, goodbye and unpin as
 * a daemon would, acknowledges publications in order, hands out timeline pages that the test has
 * made and the client's own, and keeps everything else for the test.
 *
 * Also an allocator that counts and fails on order.
 */
#ifndef KVT_SCRIPTED_H
#define KVT_SCRIPTED_H

#include <kvmem.h>
#include <stdbool.h>

#include "backend/backend.h"
#include "client/client.h"
#include "client/link.h"
#include "client/timeline.h"
#include "util/alloc.h"

#define KVT_SCRIPT_MESSAGES 256u

struct kvt_script_message {
    void *bytes;
    size_t byte_count;
    int fds[KVI_MESSAGE_FDS];
    uint32_t fd_count;
};

/* The page of a producer. */
struct kvt_script_timeline {
    struct kvt_script_timeline *next;
    uint32_t timeline;
    int fd;
    struct kvi_lane *lanes;
};

#define KVT_SCRIPT_OWN (64u * 9) /* the client's own timeline */

struct kvt_script {
    struct kvi_link base;
    struct kvi_backend *backend; /* where segments come from */
    uint64_t device_bytes;
    uint64_t granule_bytes;
    struct kvt_script_message in[KVT_SCRIPT_MESSAGES]; /* to the client */
    uint32_t in_head;
    uint32_t in_tail;
    struct kvt_script_message out[KVT_SCRIPT_MESSAGES]; /* from it, unanswered ones */
    uint32_t out_head;
    uint32_t out_tail;
    bool is_mute;           /* answers nothing by itself */
    uint32_t publish_state; /* what publications become */
    bool holds_publish;     /* publications are left to the test */
    /* Asked first, may be NULL: true when it has answered or taken notice. */
    bool (*answer)(struct kvt_script *script, const void *message);
    int send_code;    /* what send returns, 0 = it works */
    int receive_code; /* what receive returns when nothing is there */
    uint32_t welcome_version;
    const char *welcome_device;
    uint32_t welcome_devices; /* how many there are */
    uint32_t opens_on;        /* device of a space that names none */
    bool is_closed;
    uint32_t last_fds_received;
    struct kvt_script_timeline *timelines;
    uint32_t timelines_sent;
    uint32_t spaces; /* opened so far: 7, 8, ... are their ids; grants are for 7 */
};

/* A script on a device of `device_bytes`; its link is script->base. Aborts on failure. */
struct kvt_script *kvt_script_create(uint64_t device_bytes, uint64_t granule_bytes);
/* After the client is closed. */
void kvt_script_destroy(struct kvt_script *script);

/* A client of the script with a time limit of 20 ms; aborts on failure. */
struct kvmem_client *kvt_script_client(struct kvt_script *script);

/* Queue a message for the client, as it is; `fds` go with it. */
void kvt_script_push(struct kvt_script *script, void *message, const int *fds, uint32_t fd_count);
/* The same for bytes that are no message. */
void kvt_script_push_bytes(struct kvt_script *script, const void *bytes, size_t byte_count);

/* The oldest message from the client that was not answered, or NULL; valid until the next. */
const void *kvt_script_next(struct kvt_script *script);
/* Skip to the oldest of that kind; NULL when there is none. */
const void *kvt_script_find(struct kvt_script *script, enum kvi_opcode opcode);

/* A grant: `count` new segments from `slot` on, all blocks free, answering `serial`. */
void kvt_script_grant(struct kvt_script *script, const struct kvmem_geometry *geometry,
                      uint32_t serial, uint32_t slot, uint32_t count, uint32_t flags);
/* A descriptor of a new segment. */
int kvt_script_segment_fd(struct kvt_script *script, uint64_t bytes);
void kvt_script_error(struct kvt_script *script, uint32_t serial, uint32_t opcode, int code);

/* The page of this timeline, made now: what a timeline_map for it gets. Without one it gets
 * NOT_FOUND, but for KVT_SCRIPT_OWN, which is made when it is asked for. */
struct kvi_lane *kvt_script_timeline(struct kvt_script *script, uint32_t timeline);

/* Options of a small space: 4 tokens a block, 1 KiB a block, 4 blocks a segment of 4 KiB. */
struct kvmem_space_options kvt_small_space(const char *name);

/* ---- memory ---- */

struct kvt_memory {
    struct kvi_alloc alloc; /* to be given to the code under test */
    uint64_t live;
    uint64_t calls;
    uint64_t fail_at; /* the n-th call from now on fails, 1 = the next; 0 = none */
    uint64_t failed;
};

void kvt_memory_init(struct kvt_memory *memory);

/* Open descriptors of this process. */
uint32_t kvt_open_fds(void);

#endif
