/* SPDX-License-Identifier: Apache-2.0
 *
 * Inside the directory: its records, and what its files call of each other.
 *
 *   kvi_dir ─┬─ clients[]  ── opens ──▶ kvi_dir_open (a space that a client has open: its lease
 *            │                          bits, its request for blocks)
 *            ├─ spaces[]   ── slots[] ─▶ segment numbers
 *            ├─ segments[] ── entries[], a record a block; entry_bits says which are entries
 *            ├─ index      (space, name) ──▶ (segment, block)
 *            └─ pins[]     ──▶ entries
 *
 * A block that is an entry is referenced (leases + pins > 0), or may be evicted and then is on its
 * segment's list, which runs from the oldest to the newest release stamp; stamps are unique.
 * Blocks that are no entries have no state here: they are the owner's, or idle without one.
 *
 * directory.c  create, destroy, dispatch, deadlines     grant.c    who gets memory: the plan
 * client.c     hello, goodbye, end of file, exit        request.c  requests: sending, waiting
 * space.c      open, close                              pin.c      pins and their deadlines
 * segment.c    life of a segment, maps                  report.c   stats and lists
 * entry.c      references, lists, eviction              check.c    every equation
 * prefix.c     lookup, publish, release                 digest.c   digest of the state
 * fence.c      what of an entry is still being written
 */
#ifndef KVI_DIRECTORY_INTERNAL_H
#define KVI_DIRECTORY_INTERNAL_H

#include <assert.h>
#include <stdint.h>
#include <string.h>

#include <kvmem/client.h>
#include <kvmem/prefix.h>
#include <kvmem/space.h>

#include "directory/directory.h"
#include "directory/heap.h"
#include "directory/index.h"
#include "util/geometry.h"

#define KVI_DIR_NONE           UINT32_MAX
#define KVI_DIR_NEVER          UINT64_MAX
#define KVI_DIR_BLOCK_LIMIT    (1u << 24)
#define KVI_DIR_GRANT_SEGMENTS KVI_MESSAGE_FDS
#define KVI_DIR_GRANT_RANGES   4096u
#define KVI_DIR_RECYCLED_LIMIT 16u
#define KVI_DIR_PREFETCH_BATCH 128u
#define KVI_DIR_FENCE_LIMIT    256u /* of a lookup_reply */
#define KVI_VERSION_FENCES     2u   /* protocol version that knows fences and devices */

/* A block's record; valid while its bit in entry_bits is set. One cache line. */
struct kvi_dir_entry {
    uint8_t name[32];
    uint64_t stamp; /* when its last reference ended; orders the list; 0 = not on it */
    uint32_t older; /* neighbours on the list, block numbers in the segment */
    uint32_t newer;
    uint32_t lease_count; /* clients that lease it */
    uint32_t pin_count;
    uint32_t publisher; /* session serial */
    uint32_t tag;       /* of the index */
};

_Static_assert(sizeof(struct kvi_dir_entry) == 64, "a record is one cache line");

struct kvi_dir_segment {
    struct kvi_dir_entry *entries; /* NULL when FREE or DRAINING */
    uint64_t *entry_bits;          /* behind the records, in the same allocation; then fences */
    uint64_t bytes;
    uint32_t block_count;
    uint32_t entry_count;
    uint32_t referenced_count; /* entries with a lease or a pin */
    uint32_t oldest;           /* ends of the list */
    uint32_t newest;
    uint32_t owner; /* client number; OWNED, QUARANTINED, or CREATING with a request behind it */
    uint32_t slot;
    uint16_t space;
    uint8_t state;          /* enum kvi_segment_state */
    uint8_t is_ready : 1;   /* created, not yet told to its owner */
    uint8_t is_tainted : 1; /* HANDED_IN, but its last owner's kernels may still write there */
    uint32_t generation;
    uint32_t fence_count; /* words of kvi_dir_fences() that are not 0 */
    uint64_t mappers[KVI_CLIENT_LIMIT / 64];
    uint32_t mapper_count;
    uint32_t next_ready;
};

struct kvi_dir_slot {
    uint32_t segment; /* number, or KVI_DIR_NONE */
    uint32_t generation;
};

struct kvi_dir_space {
    int is_used;
    uint32_t device;     /* that all its segments lie on */
    uint32_t generation; /* in the id */
    char name[64];
    char domain[32];
    uint8_t fingerprint[32];
    uint64_t quota_bytes;
    uint32_t layout;
    uint32_t flags; /* KVI_SPACE_REGIONS or 0 */
    struct kvi_rec_group group;
    struct kvmem_geometry geometry;
    uint32_t segment_limit; /* slots */
    uint32_t slot_hint;     /* no free slot below */
    uint32_t slot_high;     /* no used slot from here on */
    uint32_t segment_count;
    uint32_t client_count;
    uint64_t entry_count;
    struct kvi_dir_slot *slots;
};

enum kvi_dir_request_state {
    KVI_DIR_REQUEST_NONE = 0,
    KVI_DIR_REQUEST_RUNNING = 1, /* segments are being created, or descriptors acknowledged */
    KVI_DIR_REQUEST_WAITING = 2  /* for memory to come back */
};

struct kvi_dir_request {
    uint32_t state;
    uint32_t serial;
    uint32_t flags;
    uint32_t want;
    uint64_t granted;     /* blocks found so far, those being created included */
    uint32_t creating;    /* segments asked of the backend */
    uint32_t ready_count; /* segments created, not yet sent */
    uint32_t ready_first;
    uint32_t ready_last;
    int is_held;     /* until the client acknowledges descriptors */
    int is_pressing; /* owners were asked; deadline_ns runs */
    int create_code; /* of a creation that failed: create no more */
    uint64_t deadline_ns;
};

struct kvi_dir_open {
    struct kvi_dir_open *next;      /* of the client */
    struct kvi_dir_open *wait_next; /* waiting requests, in order of arrival */
    struct kvi_dir_open *wait_previous;
    uint32_t client;
    uint32_t space;
    uint64_t *lease_bits; /* a bit a block index */
    uint64_t lease_count;
    uint32_t owned_segments;
    int is_pressed;
    uint64_t pressed_until_ns;
    struct kvi_dir_request request;
};

enum kvi_dir_client_state {
    KVI_DIR_CLIENT_FREE = 0,
    KVI_DIR_CLIENT_NEW = 1, /* hello awaited */
    KVI_DIR_CLIENT_ALIVE = 2,
    KVI_DIR_CLIENT_GOODBYE = 3, /* reclaimed at its end of file */
    KVI_DIR_CLIENT_GONE = 4     /* end of file seen; reclaimed at its exit */
};

struct kvi_dir_client {
    uint32_t state;
    uint32_t number;
    uint32_t role;
    uint32_t version;        /* of the protocol, agreed on */
    uint32_t session_serial; /* of all sessions since the start; the publisher of an entry */
    struct kvi_dir_peer peer;
    char name[32];
    uint8_t session[16];
    uint64_t connected_ns;
    uint64_t messages;
    uint32_t fds_sent; /* modulo 2^32, as the header counts */
    uint32_t fds_acknowledged;
    uint32_t fds_reserved; /* segments being created or ready: each will send one */
    uint32_t owned_segments;
    uint64_t owned_bytes;
    uint64_t mapped_segments;
    uint64_t lease_count;
    uint64_t pin_count; /* pinned entries, each as often as it is pinned */
    uint64_t pin_objects;
    struct kvi_dir_open *opens;
};

struct kvi_dir_pin_ref {
    uint32_t segment;
    uint32_t block;
};

struct kvi_dir_pin {
    uint64_t id;
    uint64_t deadline_ns; /* KVI_DIR_NEVER: none */
    uint32_t client;
    uint32_t space;
    uint32_t ref_count;
    uint32_t reserved;
    struct kvi_dir_pin_ref refs[];
};

/* A grant message in the making. */
struct kvi_dir_grant {
    uint32_t segment_count;
    uint32_t range_count;
    uint32_t fd_count;
    uint32_t fds[KVI_DIR_GRANT_SEGMENTS]; /* segment numbers */
    struct kvi_rec_segment_grant segments[KVI_DIR_GRANT_SEGMENTS];
    struct kvi_rec_block_range ranges[KVI_DIR_GRANT_RANGES];
};

struct kvi_dir_memory {
    uint64_t free_bytes;
    uint32_t segment_count;
};

struct kvi_dir_recycled {
    struct kvi_dir_recycled *next;
    size_t bytes;
};

struct kvi_dir {
    struct kvi_dir_options options;
    struct kvi_dir_env env;
    uint64_t started_ns;
    struct kvi_dir_memory memory[KVI_DEVICE_LIMIT];
    uint32_t tainted_count; /* segments */
    uint64_t stamp;
    uint32_t session_serial;
    uint32_t segment_limit;
    uint32_t segment_hint; /* no free number below */
    uint32_t segment_high; /* no used number from here on */
    int is_draining;
    int memory_came_back;    /* since waiting requests were last tried */
    uint64_t check_after_ns; /* another check is answered BUSY until then */
    uint32_t pressed_count;
    uint64_t next_tick_ns; /* no pin or pressed owner is due earlier */
    struct kvi_dir_segment *segments;
    struct kvi_dir_space *spaces;
    struct kvi_dir_client *clients;
    struct kvi_dir_pin **pins;
    uint64_t pin_capacity;
    uint64_t pin_serial;
    uint64_t pin_hint;  /* no free place below */
    uint64_t pin_slots; /* no pin from here on */
    struct kvi_index index;
    struct kvi_dir_recycled *recycled;
    uint32_t recycled_count;
    struct kvi_heap foreign; /* of the plan; segment_limit items each */
    struct kvi_heap whole;
    struct kvi_heap blocks;
    struct kvi_dir_open *wait_first;
    struct kvi_dir_open *wait_last;
    uint64_t ignored_releases;
    uint64_t moved_segments;           /* from one space to another */
    struct kvi_msg_stats_reply totals; /* the counters that only grow */
    struct kvi_dir_grant grant;
    _Alignas(64) uint64_t in[KVI_MESSAGE_BYTES / 8];
    _Alignas(64) uint64_t out[KVI_MESSAGE_BYTES / 8];
};

/* ---- directory.c ---- */

/* Finish the message and send it, without descriptors. */
void kvi_dir_reply(struct kvi_dir *dir, const struct kvi_dir_client *client, void *message);
/* Answer a request with error. */
void kvi_dir_refuse(struct kvi_dir *dir, const struct kvi_dir_client *client, uint32_t opcode,
                    uint32_t serial, int code, const char *format, ...)
    __attribute__((format(printf, 6, 7)));
void kvi_dir_done(struct kvi_dir *dir, const struct kvi_dir_client *client,
                  const struct kvi_header *header);
uint64_t kvi_dir_now_ns(const struct kvi_dir *dir);
/* A pin or pressed owner is due then. */
void kvi_dir_tick_at(struct kvi_dir *dir, uint64_t when_ns);

/* ---- client.c ---- */

void kvi_dir_client_hello(struct kvi_dir *dir, struct kvi_dir_client *client,
                          const struct kvi_msg_hello *hello);
void kvi_dir_client_goodbye(struct kvi_dir *dir, struct kvi_dir_client *client,
                            const struct kvi_msg_goodbye *goodbye);
void kvi_dir_client_timeline(struct kvi_dir *dir, struct kvi_dir_client *client,
                             const struct kvi_msg_timeline_map *message);
/* The client broke the protocol: end its connection. */
void kvi_dir_client_expel(struct kvi_dir *dir, struct kvi_dir_client *client, int code,
                          const char *text);
/* Take in header.fds_received. 0, or KVMEM_E_PROTOCOL when it cannot be. */
int kvi_dir_client_acknowledge(struct kvi_dir_client *client, uint32_t fds_received);
/* Descriptors that may still be sent before the client acknowledges some. */
uint32_t kvi_dir_client_fd_room(const struct kvi_dir *dir, const struct kvi_dir_client *client);
int kvi_dir_client_is_reachable(const struct kvi_dir_client *client);
/* The client of that session, until it is reclaimed; NULL when it was. */
const struct kvi_dir_client *kvi_dir_client_of_session(const struct kvi_dir *dir,
                                                       uint32_t session_serial);

/* ---- space.c ---- */

uint32_t kvi_dir_space_id(const struct kvi_dir *dir, const struct kvi_dir_space *space);
/* The space with that id as the client has it open, or NULL. */
struct kvi_dir_open *kvi_dir_open_find(struct kvi_dir *dir, const struct kvi_dir_client *client,
                                       uint32_t space_id);
/* The same, refusing the request when there is none. */
struct kvi_dir_open *kvi_dir_open_need(struct kvi_dir *dir, const struct kvi_dir_client *client,
                                       const struct kvi_header *header, uint32_t space_id);
void kvi_dir_space_open(struct kvi_dir *dir, struct kvi_dir_client *client,
                        const struct kvi_msg_space_open *open);
void kvi_dir_space_close(struct kvi_dir *dir, struct kvi_dir_client *client,
                         const struct kvi_msg_space_close *close);
/* End what the client holds in the space: request, pins, leases, maps, segments. */
void kvi_dir_open_close(struct kvi_dir *dir, struct kvi_dir_open *open);
/* Its memory; nothing else. */
void kvi_dir_open_free(struct kvi_dir *dir, struct kvi_dir_open *open);
/* Without clients and entries a space gives its segments back; without segments it ends. */
void kvi_dir_space_settle(struct kvi_dir *dir, struct kvi_dir_space *space);
void kvi_dir_space_fini(struct kvi_dir *dir, struct kvi_dir_space *space);
int kvi_dir_space_quota_allows(const struct kvi_dir_space *space);

/* ---- segment.c ---- */

/* Number, slot and records for a new segment of the space: everything that can fail. The segment
 * is FREE still. 0, KVMEM_E_NO_MEMORY, or KVMEM_E_LIMIT when no number or slot is left. */
int kvi_dir_segment_prepare(struct kvi_dir *dir, struct kvi_dir_space *space, uint32_t *number);
/* Undo the above. */
void kvi_dir_segment_abandon(struct kvi_dir *dir, uint32_t number);
/* Ask the backend for its memory, for the request of `open`. The bytes are free. */
void kvi_dir_segment_start(struct kvi_dir *dir, uint32_t number, struct kvi_dir_open *open);
/* HANDED_IN → OWNED by the client of `open`. */
void kvi_dir_segment_adopt(struct kvi_dir *dir, uint32_t number, struct kvi_dir_open *open);
/* HANDED_IN without references, in another space → OWNED by the client of `open`, in its space,
 * with the same memory: what is in it is evicted, its mappers are told and forgotten. The space
 * has the same device, domain and segment bytes. 0, or the codes of kvi_dir_segment_prepare, which
 * change nothing. */
int kvi_dir_segment_move(struct kvi_dir *dir, uint32_t number, struct kvi_dir_open *open);
/* OWNED, QUARANTINED or just created → HANDED_IN. */
void kvi_dir_segment_disown(struct kvi_dir *dir, struct kvi_dir_segment *segment);
/* The request behind a CREATING segment is gone: it will be handed in when it comes. */
void kvi_dir_segment_forsake(struct kvi_dir *dir, struct kvi_dir_segment *segment);
/* The client was not proved dead: nothing of what it owns on devices where that matters is given
 * to anybody again. To be called before its segments are disowned. */
void kvi_dir_segment_taint(struct kvi_dir *dir, uint32_t client);
/* Drop tainted segments that no entry is left in. */
void kvi_dir_segment_sweep(struct kvi_dir *dir);
/* Evict what is in it, tell its mappers, release it. HANDED_IN without references. */
void kvi_dir_segment_drop(struct kvi_dir *dir, uint32_t number);
/* A client maps it, or does not any more. */
void kvi_dir_segment_add_mapper(struct kvi_dir *dir, struct kvi_dir_segment *segment,
                                uint32_t client);
void kvi_dir_segment_remove_mapper(struct kvi_dir *dir, uint32_t number, uint32_t client);
int kvi_dir_segment_is_mapped_by(const struct kvi_dir_segment *segment, uint32_t client);
/* The space's segment in that slot and generation, or KVI_DIR_NONE. */
uint32_t kvi_dir_segment_at(const struct kvi_dir_space *space, uint32_t slot, uint32_t generation);
void kvi_dir_segment_hand_in(struct kvi_dir *dir, struct kvi_dir_client *client,
                             const struct kvi_msg_segment_hand_in *message);
void kvi_dir_segment_map(struct kvi_dir *dir, struct kvi_dir_client *client,
                         const struct kvi_msg_segment_map *message);
void kvi_dir_segment_unmapped(struct kvi_dir *dir, struct kvi_dir_client *client,
                              const struct kvi_msg_segment_unmapped *message);
size_t kvi_dir_records_bytes(uint32_t block_count);
void kvi_dir_recycle_fini(struct kvi_dir *dir);

static inline uint32_t kvi_dir_segment_idle(const struct kvi_dir_segment *segment)
{
    return segment->block_count - segment->entry_count;
}

static inline int kvi_dir_is_entry(const struct kvi_dir_segment *segment, uint32_t block)
{
    return (int)(segment->entry_bits[block / 64] >> block % 64 & 1);
}

/* The memory that a space, or an existing segment, lies in. */
static inline struct kvi_dir_memory *kvi_dir_memory_of(struct kvi_dir *dir,
                                                       const struct kvi_dir_space *space)
{
    return &dir->memory[space->device];
}

static inline uint32_t kvi_dir_device_of(const struct kvi_dir *dir,
                                         const struct kvi_dir_segment *segment)
{
    return dir->spaces[segment->space].device;
}

/* A word a block, for its fence (fence.c). */
static inline uint64_t *kvi_dir_fences(const struct kvi_dir_segment *segment)
{
    return segment->entry_bits + (segment->block_count + 63) / 64;
}

static inline int kvi_dir_is_referenced(const struct kvi_dir_entry *entry)
{
    return entry->lease_count + entry->pin_count > 0;
}

/* ---- entry.c ---- */

/* A block becomes an entry, with one lease by `open`. */
void kvi_dir_entry_add(struct kvi_dir *dir, uint32_t number, uint32_t block, const uint8_t *name,
                       uint32_t tag, struct kvi_dir_open *open);
/* Give `open` a lease, unless it has one. */
void kvi_dir_entry_lease(struct kvi_dir *dir, struct kvi_dir_segment *segment, uint32_t block,
                         struct kvi_dir_open *open);
/* End the lease of `open`. 1, or 0 when it has none. */
int kvi_dir_entry_unlease(struct kvi_dir *dir, struct kvi_dir_segment *segment, uint32_t block,
                          struct kvi_dir_open *open);
void kvi_dir_entry_pin(struct kvi_dir_segment *segment, uint32_t block);
void kvi_dir_entry_unpin(struct kvi_dir *dir, struct kvi_dir_segment *segment, uint32_t block);
/* Evict the `count` oldest of the segment's list; blocks[] receives them. */
void kvi_dir_entry_evict_oldest(struct kvi_dir *dir, uint32_t number, const uint32_t *blocks,
                                uint32_t count);
/* Evict all; none is referenced. */
void kvi_dir_entry_evict_all(struct kvi_dir *dir, uint32_t number);
/* What it names was never written: evict it; or rename it to nobody's name where it is referenced,
 * or its segment has an owner, who would not know of another free block. */
void kvi_dir_entry_break(struct kvi_dir *dir, uint32_t number, uint32_t block);
/* End all leases of `open`, the highest index first. */
void kvi_dir_entry_unlease_all(struct kvi_dir *dir, struct kvi_dir_open *open);

/* Take referenced entries off the old end of the list; the stamp of the oldest one that may be
 * evicted, UINT64_MAX when there is none. */
uint64_t kvi_dir_trim(struct kvi_dir_segment *segment);

/* Stamp of the newest one that may be evicted, of a segment without references; 0: no entries. */
static inline uint64_t kvi_dir_newest_stamp(const struct kvi_dir_segment *segment)
{
    return segment->newest == KVI_DIR_NONE ? 0 : segment->entries[segment->newest].stamp;
}

/* ---- fence.c ---- */

/* What a look-up does with entries that are not ready. */
enum kvi_dir_fence_use {
    KVI_DIR_FENCES_MISSED, /* the client does not know fences */
    KVI_DIR_FENCES_COUNTED,
    KVI_DIR_FENCES_LISTED
};

struct kvi_dir_fence_list {
    enum kvi_dir_fence_use use;
    uint32_t count;
    const struct kvi_dir_client *producer; /* of the last one */
    struct kvi_rec_fence fences[KVI_DIR_FENCE_LIMIT];
};

/* The publication's fence is one that this client may name. */
int kvi_dir_fence_is_valid(const struct kvi_dir *dir, const struct kvi_dir_client *client,
                           const struct kvi_rec_publication *publication);
/* Keep the fence of a new entry, unless it is reached. */
void kvi_dir_fence_set(struct kvi_dir *dir, struct kvi_dir_segment *segment, uint32_t block,
                       const struct kvi_dir_client *client,
                       const struct kvi_rec_publication *publication);
void kvi_dir_fence_clear(struct kvi_dir_segment *segment, uint32_t block);
/* 1: the entry is a hit, its fence is reached or taken care of. Of a segment with fences. */
int kvi_dir_fence_admit(struct kvi_dir *dir, struct kvi_dir_segment *segment, uint32_t block,
                        struct kvi_dir_fence_list *list);
/* The client is gone and holds nothing any more: forget what it has reached, break the rest. */
void kvi_dir_fence_break(struct kvi_dir *dir, const struct kvi_dir_client *client);

/* ---- prefix.c ---- */

void kvi_dir_lookup(struct kvi_dir *dir, struct kvi_dir_client *client,
                    const struct kvi_msg_lookup *lookup);
void kvi_dir_publish(struct kvi_dir *dir, struct kvi_dir_client *client,
                     const struct kvi_msg_publish *publish);
void kvi_dir_release(struct kvi_dir *dir, struct kvi_dir_client *client,
                     const struct kvi_msg_release *release);
/* One name; 1 and where, or 0. */
int kvi_dir_find(const struct kvi_dir *dir, uint32_t space, const uint8_t *name, uint32_t *segment,
                 uint32_t *block);

/* ---- grant.c ---- */

/* What a plan came to. */
enum kvi_dir_plan {
    KVI_DIR_PLAN_ENDED, /* nothing more can be found, or all was */
    KVI_DIR_PLAN_CREATING,
    KVI_DIR_PLAN_HELD, /* the client must acknowledge descriptors first */
    KVI_DIR_PLAN_NO_MEMORY
};
/* Find what the request of `open` still lacks; what is found is put into dir->grant. */
enum kvi_dir_plan kvi_dir_plan(struct kvi_dir *dir, struct kvi_dir_open *open);
uint64_t kvi_dir_obtainable_blocks(const struct kvi_dir *dir, const struct kvi_dir_open *open);

/* ---- request.c ---- */

void kvi_dir_blocks_request(struct kvi_dir *dir, struct kvi_dir_client *client,
                            const struct kvi_msg_blocks_request *message);
/* Add to the grant that is being made, sending it when it is full. */
void kvi_dir_grant_segment(struct kvi_dir *dir, struct kvi_dir_open *open, uint32_t number,
                           uint32_t flags);
void kvi_dir_grant_blocks(struct kvi_dir *dir, struct kvi_dir_open *open,
                          const struct kvi_dir_segment *segment, uint32_t first, uint32_t count);
/* A segment of the request was created, or failed with `code`. */
void kvi_dir_request_created(struct kvi_dir *dir, struct kvi_dir_open *open, uint32_t number,
                             int code);
/* The client has acknowledged descriptors. */
void kvi_dir_request_resume(struct kvi_dir *dir, struct kvi_dir_client *client);
/* Forget it; segments under way lose their owner. */
void kvi_dir_request_drop(struct kvi_dir *dir, struct kvi_dir_open *open);
/* Try waiting requests again when memory came back. Constant time when none waits. */
void kvi_dir_request_retry(struct kvi_dir *dir);
/* Refuse those whose deadline has passed. */
void kvi_dir_request_expire(struct kvi_dir *dir, uint64_t now_ns);
uint64_t kvi_dir_request_next_deadline(const struct kvi_dir *dir);
/* The owner has done as it was asked, or is excused. */
void kvi_dir_pressure_end(struct kvi_dir *dir, struct kvi_dir_open *open);
void kvi_dir_pressure_expire(struct kvi_dir *dir, uint64_t now_ns);

/* ---- pin.c ---- */

void kvi_dir_pin_add(struct kvi_dir *dir, struct kvi_dir_client *client,
                     const struct kvi_msg_pin *message);
void kvi_dir_pin_remove(struct kvi_dir *dir, struct kvi_dir_client *client,
                        const struct kvi_msg_unpin *message);
/* Those of a client in a space. */
void kvi_dir_pin_drop(struct kvi_dir *dir, uint32_t client, uint32_t space);
void kvi_dir_pin_expire(struct kvi_dir *dir, uint64_t now_ns);
void kvi_dir_pin_fini(struct kvi_dir *dir);

/* ---- report.c ---- */

void kvi_dir_report_stats(struct kvi_dir *dir, struct kvi_dir_client *client,
                          const struct kvi_msg_stats *message);
void kvi_dir_report_clients(struct kvi_dir *dir, struct kvi_dir_client *client,
                            const struct kvi_msg_clients *message);
void kvi_dir_report_spaces(struct kvi_dir *dir, struct kvi_dir_client *client,
                           const struct kvi_msg_spaces *message);
void kvi_dir_report_segments(struct kvi_dir *dir, struct kvi_dir_client *client,
                             const struct kvi_msg_segments *message);
void kvi_dir_report_check(struct kvi_dir *dir, struct kvi_dir_client *client,
                          const struct kvi_msg_check *message);
void kvi_dir_report_devices(struct kvi_dir *dir, struct kvi_dir_client *client,
                            const struct kvi_msg_devices *message);

#endif
