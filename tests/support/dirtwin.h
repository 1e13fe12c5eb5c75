/* SPDX-License-Identifier: Apache-2.0
 *
 * The directory's naive twin: flat arrays, linear searches, no lists, heaps, hashes or counters.
 * It is written from the rules (directory.h, protocol.def, the head of grant.c), shares no code
 * with the directory, and predicts every message that comes out, in order.
 */
#ifndef KVT_MODEL_DIRECTORY_TWIN_H
#define KVT_MODEL_DIRECTORY_TWIN_H

#include <stdint.h>

#include "directory/directory.h"

#define KVT_TWIN_CLIENTS  5u
#define KVT_TWIN_SPACES   4u
#define KVT_TWIN_SEGMENTS 64u
#define KVT_TWIN_BLOCKS   8u
#define KVT_TWIN_PINS     64u
#define KVT_TWIN_WANTED   512u
#define KVT_TWIN_LANES    3u
#define KVT_TWIN_DEVICES  2u
#define KVT_TWIN_NO_NAME  UINT32_MAX

/* What is compared of a message. */
struct kvt_twin_message {
    uint32_t client;
    uint32_t opcode;
    uint32_t serial;
    int32_t code;
    uint64_t fields[7];
    uint32_t item_count;
    uint32_t items[64]; /* hits, states, segments: in order */
    uint64_t blocks[KVT_TWIN_SEGMENTS * KVT_TWIN_BLOCKS / 64]; /* of grants: a set */
};

struct kvt_twin_block {
    int is_entry;
    uint32_t name;
    uint32_t leases; /* a bit a client */
    uint32_t pins;
    uint32_t publisher;
    uint32_t lane; /* its fence on the publisher's timeline */
    uint64_t value;
    uint64_t stamp; /* of an entry without references */
};

struct kvt_twin_segment {
    enum kvi_segment_state state;
    uint32_t space;
    uint32_t slot;
    uint32_t generation;
    int owner; /* −1: none */
    int is_ready, is_tainted;
    uint32_t mappers; /* a bit a client */
    struct kvt_twin_block blocks[KVT_TWIN_BLOCKS];
};

struct kvt_twin_space {
    int is_used;
    uint32_t generation;
    uint32_t name;
    uint32_t block_count; /* of a segment */
    uint32_t device, domain;
    uint64_t segment_bytes;
    uint64_t quota_bytes;
    uint32_t slot_generation[KVT_TWIN_SEGMENTS];
};

enum kvt_twin_request_state {
    KVT_TWIN_NONE,
    KVT_TWIN_RUNNING,
    KVT_TWIN_WAITING
};

struct kvt_twin_request {
    enum kvt_twin_request_state state;
    uint32_t serial, flags, want;
    uint64_t granted;
    uint32_t ready[KVT_TWIN_SEGMENTS], ready_count;
    int is_held, is_pressing, create_code;
    uint64_t deadline_ns;
    uint64_t since; /* order of arrival among those that wait */
};

enum kvt_twin_client_state {
    KVT_TWIN_FREE,
    KVT_TWIN_ALIVE,
    KVT_TWIN_GOODBYE,
    KVT_TWIN_GONE
};

struct kvt_twin_client {
    enum kvt_twin_client_state state;
    uint32_t session, version;
    uint64_t reached[KVT_TWIN_LANES];
    uint32_t fds_sent, fds_acknowledged;
    uint64_t opened[KVT_TWIN_SPACES]; /* 0: not open; else when */
    int is_pressed[KVT_TWIN_SPACES];
    uint64_t pressed_until_ns[KVT_TWIN_SPACES];
    struct kvt_twin_request requests[KVT_TWIN_SPACES];
};

struct kvt_twin_pin {
    uint64_t id; /* 0: no pin */
    uint32_t client, space;
    uint64_t deadline_ns;
    uint32_t ref_count;
    struct {
        uint32_t segment, block;
    } refs[8];
};

struct kvt_twin {
    uint64_t device_bytes[KVT_TWIN_DEVICES], now_ns, pressure_ns;
    uint32_t device_count;
    int exit_proves_nothing[KVT_TWIN_DEVICES];
    uint32_t segment_limit, fd_limit, pin_limit;
    uint64_t stamp, opens, arrivals;
    uint32_t sessions;
    int memory_came_back;
    struct kvt_twin_client clients[KVT_TWIN_CLIENTS];
    struct kvt_twin_space spaces[KVT_TWIN_SPACES];
    struct kvt_twin_segment segments[KVT_TWIN_SEGMENTS];
    struct kvt_twin_pin pins[KVT_TWIN_PINS];
    uint32_t new_pin; /* place of the pin whose id the reply will tell */
    struct kvi_msg_stats_reply totals;
    struct kvt_twin_message wanted[KVT_TWIN_WANTED];
    uint32_t wanted_count;
    struct kvt_twin_message grant; /* in the making */
    uint32_t grant_segments;
    struct {
        uint64_t listed, cut, dropped, renamed;
    } fences;                /* how often it came to that */
    uint64_t moved, tainted; /* segments */
    uint64_t on_second;      /* spaces opened on the second device */
};

/* For a directory with these options, which has that many numbers for segments. */
void kvt_twin_init(struct kvt_twin *twin, const struct kvi_dir_options *options,
                   uint32_t segment_limit, uint64_t now_ns);
uint32_t kvt_twin_space_id(const struct kvt_twin *twin, uint32_t space);
uint32_t kvt_twin_index(const struct kvt_twin *twin, const struct kvt_twin_segment *segment,
                        uint32_t block);

/* Free bytes of a device. */
uint64_t kvt_twin_free_bytes(const struct kvt_twin *twin, uint32_t device);

/* What happens to it, as to the directory. `acknowledged`: header.fds_received; `device`: as in
 * space_open.flags, 1 + its index, 0 for any. */
uint32_t kvt_twin_join(struct kvt_twin *twin, uint32_t version);
void kvt_twin_open(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged, uint32_t serial,
                   uint32_t name, uint32_t domain, uint32_t block_count, uint64_t segment_bytes,
                   uint64_t quota_bytes, uint32_t device);
void kvt_twin_close(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged, uint32_t serial,
                    uint32_t space_id);
void kvt_twin_request(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged,
                      uint32_t serial, uint32_t space_id, uint32_t want, uint32_t flags);
void kvt_twin_hand_in(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged,
                      uint32_t serial, uint32_t space_id, uint32_t slot, uint32_t generation);
void kvt_twin_map(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged, uint32_t serial,
                  uint32_t space_id, uint32_t slot, uint32_t generation);
void kvt_twin_unmapped(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged,
                       uint32_t space_id, uint32_t slot, uint32_t generation);
void kvt_twin_lookup(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged, uint32_t serial,
                     uint32_t space_id, uint32_t count, const uint32_t *names, uint32_t flags);
void kvt_twin_publish(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged,
                      uint32_t serial, uint32_t space_id, uint32_t count, const uint32_t *names,
                      const uint32_t *indices, const uint32_t *lanes, const uint64_t *values);
void kvt_twin_release(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged,
                      uint32_t serial, uint32_t space_id, uint32_t count, const uint32_t *indices);
void kvt_twin_pin(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged, uint32_t serial,
                  uint32_t space_id, uint32_t count, const uint32_t *names, uint64_t lifetime_ns);
void kvt_twin_unpin(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged, uint32_t serial,
                    uint64_t id);
void kvt_twin_goodbye(struct kvt_twin *twin, uint32_t client, uint32_t acknowledged,
                      uint32_t serial);
void kvt_twin_eof(struct kvt_twin *twin, uint32_t client);
void kvt_twin_exited(struct kvt_twin *twin, uint32_t client);
void kvt_twin_created(struct kvt_twin *twin, uint32_t segment, int code);
void kvt_twin_tick(struct kvt_twin *twin);

/* What kvi_dir_stats should say; only fields about state and counts of events. */
void kvt_twin_stats(const struct kvt_twin *twin, struct kvi_msg_stats_reply *out);

#endif
