/* SPDX-License-Identifier: Apache-2.0
 *
 * The directory: which segment belongs to whom, who maps what, which blocks are entries, who
 * leases them, what may be evicted. A deterministic state machine (DESIGN rule 13): messages and
 * completions in, actions out through `struct kvi_dir_env`; no socket, no clock, no allocation
 * but through tables, no thread. The same code serves kvmemd, an embedded client and the tests.
 *
 *   client ──requests──▶ directory ──send──▶ client        (wire/protocol.def)
 *                            │ ▲
 *            segment_create  ▼ │  kvi_dir_segment_created
 *            segment_release   backend
 *
 * A segment is FREE → CREATING → OWNED ⇄ HANDED_IN → (DRAINING →) FREE; a dead owner's segment
 * is QUARANTINED from the end of file to its process' exit, then HANDED_IN with its entries.
 *
 * Under exit_proves_nothing such segments are tainted: their entries are found still, their memory
 * is given to nobody before it was released and created afresh.
 *
 * Equations (kvi_dir_check verifies them all):
 *   a device's bytes       = its free bytes + Σ bytes of its segments
 *   blocks of a segment    = entries + others (the owner's when OWNED, idle when HANDED_IN)
 *   entries                = leased or pinned + on their segment's list of evictable ones
 *   leases of an entry     = Σ over clients of their lease bit + its pins
 *   a client's charges     = what the walk over segments, leases, pins and fds adds up to
 *   index                  = exactly the entries
 */
#ifndef KVI_DIRECTORY_H
#define KVI_DIRECTORY_H

#include <stddef.h>
#include <stdint.h>

#include "util/alloc.h"
#include "wire/protocol.h"

struct kvi_dir;

/* What the owner's status page says of a segment: advisory, clamped by the directory. */
struct kvi_dir_usage {
    uint32_t used_blocks;
    uint64_t used_tokens;
    uint8_t cells[64]; /* used blocks in each 64th of the segment, 255 = all */
};

/* The world. Callbacks must not call back into the directory, except kvi_dir_segment_created,
 * which the host calls after the kvi_dir_ call that asked has returned. */
struct kvi_dir_env {
    uint32_t version; /* KVI_DIR_ENV_VERSION */
    uint32_t size;    /* sizeof(struct kvi_dir_env) */
    void *context;
    struct kvi_alloc alloc;
    uint64_t (*now_ns)(void *context); /* monotonic */
    void (*random)(void *context, void *bytes, size_t count);
    /* Queue a datagram for `client`, with the descriptors of `segments` (numbers) in order, of
     * the client's status page for welcome, or of the timeline page of the client that timeline_fd
     * names. Never fails: a full queue is answered later with kvi_dir_client_eof. */
    void (*send)(void *context, uint32_t client, const void *datagram, size_t bytes,
                 const uint32_t *segments, uint32_t segment_count);
    /* Ask for memory of a device; answered with kvi_dir_segment_created. */
    void (*segment_create)(void *context, uint32_t segment, uint32_t device, uint64_t bytes);
    /* Drop the handle: its bytes are there for every segment_create from now on. */
    void (*segment_release)(void *context, uint32_t segment);
    /* End the connection: the client broke the protocol (code, text) or said goodbye (0). */
    void (*client_close)(void *context, uint32_t client, int code, const char *text);
    /* Read the client's status page for a segment; 0 = nothing known. May be NULL. */
    int (*usage)(void *context, uint32_t client, uint32_t space, uint32_t slot, uint32_t generation,
                 uint32_t block_count, struct kvi_dir_usage *out);
    /* Has this lane of the client's timeline reached `value`? 1, or 0: not yet, or never asked for
     * its timeline. Asked for a client until the call that reclaims it (kvi_dir_client_exited, or
     * kvi_dir_client_eof after goodbye) has returned: release its timeline to waiters after that.
     * NULL: there are no timelines, and publications that name one are refused. */
    int (*timeline_reached)(void *context, uint32_t client, uint32_t lane, uint64_t value);
    /* What a device is doing now, for devices_reply: 1 = it does not answer. May be NULL. */
    int (*device_is_stuck)(void *context, uint32_t device);
};

#define KVI_DIR_ENV_VERSION 2u

struct kvi_dir_device {
    uint32_t kind;               /* as devices_reply says it: 1 host, 2 CUDA */
    uint64_t device_bytes;       /* > 0, a multiple of granule_bytes */
    uint64_t granule_bytes;      /* power of two */
    int releases_reclaim_mapped; /* 1: bytes come back while others still map (host) */
    int exit_proves_nothing;     /* 1: a dead process' kernels may still write (MPS) */
    uint8_t uuid[16];            /* of a GPU */
    char name[48];
};

struct kvi_dir_options {
    struct kvi_dir_device devices[KVI_DEVICE_LIMIT];
    uint32_t device_count;     /* 1 .. KVI_DEVICE_LIMIT */
    uint64_t status_bytes;     /* told to clients in welcome */
    uint64_t pressure_ns;      /* deadline of a pressure request; 0 = 50 ms */
    uint32_t client_limit;     /* 1 .. KVI_CLIENT_LIMIT; 0 = KVI_CLIENT_LIMIT */
    uint32_t space_limit;      /* 1 .. KVI_SPACE_LIMIT; 0 = KVI_SPACE_LIMIT */
    uint32_t unacked_fd_limit; /* descriptors in flight a client; 0 = 64 */
    uint32_t pin_limit;        /* pinned entries a client; 0 = 65,536 */
};

/* Who connected. */
struct kvi_dir_peer {
    uint32_t pid; /* 0 = in another pid namespace */
    uint32_t uid;
    uint32_t gid;
};

/* 0, KVMEM_E_INVALID (names the option) or KVMEM_E_NO_MEMORY. */
int kvi_dir_create(const struct kvi_dir_options *options, const struct kvi_dir_env *env,
                   struct kvi_dir **out);
/* Releases every segment through env. NULL is allowed. */
void kvi_dir_destroy(struct kvi_dir *dir);

/* A connection was accepted. 0 and its number, or KVMEM_E_LIMIT. */
int kvi_dir_client_add(struct kvi_dir *dir, const struct kvi_dir_peer *peer, uint32_t *client);

/* A datagram came from `client`; copied, checked, carried out. Never fails: what is wrong with it
 * goes back to the client or ends its connection. `fd_count`: descriptors that came along (a
 * violation; the host has closed them). */
void kvi_dir_message(struct kvi_dir *dir, uint32_t client, const void *datagram, size_t bytes,
                     uint32_t fd_count);

/* The connection is gone, the process may still write: its segments are quarantined, waiting
 * requests are dropped. After a goodbye this also reclaims. */
void kvi_dir_client_eof(struct kvi_dir *dir, uint32_t client);

/* All processes of the client are gone: leases, pins and mappings end, its segments keep their
 * entries and are handed in, unpublished blocks are free. The number is free afterwards. */
void kvi_dir_client_exited(struct kvi_dir *dir, uint32_t client);

/* Answer to env.segment_create: 0 or a negative code (then the segment is FREE again). */
void kvi_dir_segment_created(struct kvi_dir *dir, uint32_t segment, int code);

/* Deadlines: when the next one falls (UINT64_MAX = none), and let those that have passed fire. */
uint64_t kvi_dir_next_deadline_ns(const struct kvi_dir *dir);
void kvi_dir_tick(struct kvi_dir *dir);

/* Tell every client that the daemon ends in `deadline_ns`; refuse new clients and spaces. */
void kvi_dir_drain(struct kvi_dir *dir, uint64_t deadline_ns);

/* Verify every equation. 0, or KVMEM_E_CORRUPT with the first violation in `text`. */
int kvi_dir_check(const struct kvi_dir *dir, char *text, size_t text_bytes);

/* A digest of the whole state: equal inputs from equal starts give equal digests. */
uint64_t kvi_dir_digest(const struct kvi_dir *dir);

/* The counters as stats_reply sends them (header untouched). */
void kvi_dir_stats(const struct kvi_dir *dir, struct kvi_msg_stats_reply *out);

#endif
