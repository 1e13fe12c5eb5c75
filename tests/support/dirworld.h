/* SPDX-License-Identifier: Apache-2.0
 *
 * A world for a directory under test: a clock that stands still, seeded randomness, an allocator
 * that counts and fails on order, a backend that creates segments when it is told to, and every
 * message that was sent, in order.
 *
 * Segments of the geometries on a device with a granule of 4 KiB:
 *   KVT_SMALL  4 blocks of 1 KiB     a segment is 4 KiB
 *   KVT_TINY   8 blocks of 512 B     a segment is 4 KiB
 *   KVT_LARGE  8 blocks of 1.5 KiB   a segment is 12 KiB
 *   KVT_SINGLE 1 block of 4 KiB      a segment is 4 KiB: a space with regions, token-major
 */
#ifndef KVT_SUPPORT_DIRWORLD_H
#define KVT_SUPPORT_DIRWORLD_H

#include <stdint.h>

#include <kvmem/client.h>
#include <kvmem/prefix.h>

#include "directory/directory.h"
#include "support/random.h"

#define KVT_GRANULE_BYTES 4096u
#define KVT_BLOCK_TOKENS  4u
#define KVT_SENT_LIMIT    512u
#define KVT_CREATED_LIMIT 256u

enum kvt_geometry {
    KVT_SMALL = 0,
    KVT_LARGE = 1,
    KVT_TINY = 2,
    KVT_SINGLE = 3
};

struct kvt_sent {
    uint32_t client;
    uint32_t segment_count; /* descriptors that came along */
    uint32_t segments[KVI_MESSAGE_FDS];
    void *message; /* owned by the world */
};

struct kvt_closed {
    uint32_t client;
    int code;
    char text[160];
};

struct kvt_world {
    struct kvi_dir *dir;
    uint64_t now_ns;
    uint64_t random;
    /* allocator */
    int64_t fail_at; /* the n-th allocation from now on fails, 1 = the next; 0 = none */
    uint64_t failed;
    uint64_t live_allocations;
    uint64_t live_bytes;
    /* backend */
    uint32_t creating[KVT_CREATED_LIMIT];
    uint32_t creating_count;
    uint64_t created_bytes; /* of segments that exist or are being created */
    uint64_t segment_bytes[65536];
    uint8_t segment_device[65536];
    uint64_t device_bytes[KVI_DEVICE_LIMIT]; /* created_bytes, a device */
    /* clients */
    uint32_t fds_received[KVI_CLIENT_LIMIT];
    int is_silent[KVI_CLIENT_LIMIT]; /* 1: does not acknowledge descriptors any more */
    uint32_t fds_told[KVI_CLIENT_LIMIT];
    uint64_t lanes[KVI_CLIENT_LIMIT][KVI_LANE_COUNT]; /* what their timelines have reached */
    /* what came out */
    struct kvt_sent sent[KVT_SENT_LIMIT];
    uint32_t sent_count;
    uint32_t taken; /* of sent[], by kvt_take */
    struct kvt_closed closed[64];
    uint32_t closed_count;
    /* the owner's word, given to env.usage when not NULL */
    const struct kvi_dir_usage *usage;
    uint32_t serial;
};

/* Options for a device of `granules` granules, a place for `clients` clients. */
struct kvi_dir_options kvt_dir_options(uint32_t granules, uint32_t clients);
/* One more device of as many granules. */
void kvt_add_device(struct kvi_dir_options *options, uint32_t granules);
struct kvi_dir_env kvt_dir_env(struct kvt_world *world);
/* A world with its directory; aborts when it cannot be made. */
struct kvt_world *kvt_world_create(const struct kvi_dir_options *options);
/* Destroys the directory; 1 when segments and allocations were all given back. */
int kvt_world_destroy(struct kvt_world *world);
/* Every invariant of the directory holds, or the test ends with the name of the first that does
 * not. */
void kvt_world_check(const struct kvt_world *world);
/* What most tests begin and end with: a world with two leaders; check and destroy, with nothing
 * left (NULL is nothing at all). */
struct kvt_world *kvt_world_of_two(const struct kvi_dir_options *options, uint32_t *first,
                                   uint32_t *second);
void kvt_world_end(struct kvt_world *world);

/* Forget all messages so far. */
void kvt_forget(struct kvt_world *world);
/* What the grants of one request add up to. */
struct kvt_granted {
    uint32_t messages;
    uint32_t is_last; /* the last one came */
    uint32_t segment_count;
    uint32_t fd_count;
    uint32_t adopted_count;
    uint32_t block_count;
    uint64_t obtainable_blocks;
    struct kvi_rec_segment_grant segments[64];
    uint32_t blocks[512]; /* in the order of the ranges */
};
/* Take all grants for the client that come next. */
struct kvt_granted kvt_take_grants(struct kvt_world *world, uint32_t client);
/* The next ones ask and take the answer; messages for the client that were not taken before are
 * passed over. Request, create what is to be created, take the grants. */
struct kvt_granted kvt_get(struct kvt_world *world, uint32_t client, uint32_t space,
                           uint32_t blocks);
/* kvt_open, returning the id of the space. A name is "space" or "space@domain". */
uint32_t kvt_space(struct kvt_world *world, uint32_t client, const char *name,
                   enum kvt_geometry geometry, uint64_t quota_bytes);
/* Publish blocks[i] as name first_name + i; all must become entries. */
void kvt_publish_all(struct kvt_world *world, uint32_t client, uint32_t space, uint32_t first_name,
                     uint32_t count, const uint32_t *blocks);
/* Hits of a look-up (a peek) of these names. */
uint32_t kvt_peek(struct kvt_world *world, uint32_t client, uint32_t space, uint32_t first_name,
                  uint32_t count);
/* Nothing is left to be taken by anybody. */
int kvt_is_quiet(const struct kvt_world *world);
struct kvi_msg_stats_reply kvt_stats(struct kvt_world *world);

/* Fill in fds_received and length, and deliver; nothing is forgotten. */
void kvt_deliver(struct kvt_world *world, uint32_t client, void *message);
/* The next message for the client that was not taken yet, or NULL. */
const struct kvt_sent *kvt_take(struct kvt_world *world, uint32_t client);
/* The same, which must have that opcode; NULL otherwise. */
const void *kvt_take_as(struct kvt_world *world, uint32_t client, uint32_t opcode);
/* Code of the error that comes next for the client; 0 when something else comes. */
int kvt_take_error(struct kvt_world *world, uint32_t client, const char *word);
/* Answer the creation at that place of creating[]; which segment it was. */
uint32_t kvt_create_one(struct kvt_world *world, uint32_t at, int code);
/* Answer all creations that are under way. */
void kvt_create_all(struct kvt_world *world, int code);

/* A connection that has said hello; its welcome was taken. */
uint32_t kvt_join(struct kvt_world *world, uint32_t role);
/* The same of a client that speaks no newer version of the protocol. */
uint32_t kvt_join_old(struct kvt_world *world, uint32_t role, uint32_t version);
/* Requests; each returns its serial and leaves the answers to be taken. */
uint32_t kvt_open(struct kvt_world *world, uint32_t client, const char *name,
                  enum kvt_geometry geometry, uint64_t quota_bytes);
/* The same with space_open.flags. */
uint32_t kvt_open_with(struct kvt_world *world, uint32_t client, const char *name,
                       enum kvt_geometry geometry, uint64_t quota_bytes, uint32_t flags);
#define KVT_ON_DEVICE(index) ((1u + (index)) << 8)
uint32_t kvt_close(struct kvt_world *world, uint32_t client, uint32_t space);
uint32_t kvt_request(struct kvt_world *world, uint32_t client, uint32_t space, uint32_t blocks,
                     uint32_t flags);
uint32_t kvt_hand_in(struct kvt_world *world, uint32_t client, uint32_t space, uint32_t slot,
                     uint32_t generation);
/* Hand in a segment of a grant, and check. */
void kvt_hand_in_granted(struct kvt_world *world, uint32_t client, uint32_t space,
                         const struct kvi_rec_segment_grant *segment);
uint32_t kvt_map(struct kvt_world *world, uint32_t client, uint32_t space, uint32_t count,
                 const struct kvi_rec_segment_ref *segments);
uint32_t kvt_unmapped(struct kvt_world *world, uint32_t client, uint32_t space, uint32_t slot,
                      uint32_t generation);
/* Names are numbers here. */
void kvt_name(uint32_t number, uint8_t name[32]);
uint32_t kvt_lookup(struct kvt_world *world, uint32_t client, uint32_t space, uint32_t count,
                    const uint32_t *names, uint32_t flags);
uint32_t kvt_publish(struct kvt_world *world, uint32_t client, uint32_t space, uint32_t count,
                     const uint32_t *names, const uint32_t *indices);
/* The same with a fence each; value 0: none. */
struct kvt_fence {
    uint32_t lane;
    uint64_t value;
};
uint32_t kvt_publish_fenced(struct kvt_world *world, uint32_t client, uint32_t space,
                            uint32_t count, const uint32_t *names, const uint32_t *indices,
                            const struct kvt_fence *fences);
uint32_t kvt_timeline(struct kvt_world *world, uint32_t client, uint32_t timeline, uint32_t is_own);
uint32_t kvt_release(struct kvt_world *world, uint32_t client, uint32_t space, uint32_t count,
                     const uint32_t *indices);
uint32_t kvt_pin(struct kvt_world *world, uint32_t client, uint32_t space, uint32_t count,
                 const uint32_t *names, uint64_t lifetime_ns);
uint32_t kvt_unpin(struct kvt_world *world, uint32_t client, uint64_t pin);
/* stats, check, goodbye: messages of a header and 8 bytes of fields. */
uint32_t kvt_plain(struct kvt_world *world, uint32_t client, enum kvi_opcode opcode,
                   uint32_t first);

#endif
