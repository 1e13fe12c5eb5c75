/* SPDX-License-Identifier: Apache-2.0
 *
 * A space as this client has it open: the pool, the references, the sequences, the mappings.
 *
 *   references of a block = times in tables of sequences + held (looked up, not yet attached)
 *                         + 1 if it is the scratch block + in cooling entries (cooling.h)
 *   a block has references        ⇒ it is PRIVATE, PUBLISHING or LEASED
 *   PRIVATE or LEASED             ⇒ it has references
 *   FREE, PRIVATE, PUBLISHING     ⇒ its segment is owned and has its alias, and no job of the
 *                                   helper is under way there
 *   ARRIVING                      ⇒ its segment is owned, and one is
 *   LEASED                        ⇒ its segment is mapped
 *
 * All arrays span the index range, are allocated at open and cost memory where touched.
 * Ownership: the space has them, its two reservations of address space and its mappings; the
 * client has the space.
 */
#ifndef KVI_CLIENT_SPACE_H
#define KVI_CLIENT_SPACE_H

#include <kvmem/prefix.h>
#include <kvmem/space.h>
#include <kvmem/stats.h>
#include <kvmem/table.h>
#include <stdbool.h>

#include "client/client.h"
#include "client/cooling.h"
#include "client/pool.h"
#include "client/table_memory.h"

#define KVI_SPACE_RESULTS      4096u
#define KVI_SPACE_SEQS         4096u
#define KVI_SPACE_LOW_MIN      16u
#define KVI_SPACE_LOW_MAX      1024u
#define KVI_SPACE_MAP_SEGMENTS 16u

struct kvi_seq;
struct kvi_regions;

struct kvmem_space {
    /* the hot path's, together */
    struct kvi_pool pool;
    uint32_t *refs;       /* [index_range] */
    struct kvi_seq *seqs; /* [seq_limit] */
    uint32_t seq_limit;
    uint32_t block_tokens;
    uint32_t block_shift; /* block_tokens = 1 << it, or UINT32_MAX */
    uint64_t batch_stamp; /* of the last batch: finds sequences that are named twice */
    uint64_t appended_tokens;
    struct kvi_regions *regions; /* client/region.h; NULL without KVMEM_SPACE_REGIONS */
    bool is_refused; /* the last request got nothing, and nothing was given back since */

    uint32_t first_free_seq; /* free places, linked; UINT32_MAX = none */
    uint32_t fresh_seqs;     /* places from here on were never used */
    uint32_t live_seqs;
    struct kvi_table_memory tables;
    uint32_t *held;   /* [index_range] references of lookups */
    uint32_t *guards; /* [index_range] guard (guard.h) of the last lookup that found it */
    uint32_t *marks;  /* [index_range] stamp of the last kvmem_blocks_ call that named it */
    int32_t scratch;
    uint32_t mark_stamp;
    struct kvi_cooling cooling;
    uint32_t
        *copy_seqs; /* [seq_limit] each: the tail copies of a batch, by place of the sequence */
    int32_t *copy_from;
    int32_t *copy_to;

    struct kvmem_client *client;
    struct kvi_backend *backend; /* of the device that it lies on */
    uint32_t id;                 /* as the daemon calls it */
    uint32_t place;              /* in client->spaces */
    uint64_t base;               /* where segments are mapped read-only, */
    uint64_t write_base;   /* and owned ones once more, read-write; the same arithmetic in both */
    uint32_t mapped_first; /* list of mapped segments */
    uint64_t mapped_segments;
    struct kvmem_geometry geometry;
    struct kvmem_space_options options; /* name and domain point to the copies below */
    char name[64];
    char domain[32];

    /* refill and hand-in */
    uint32_t low_water;
    uint32_t refill;
    uint32_t request_serial;  /* of the blocks_request without an answer, or 0 */
    uint64_t request_got;     /* blocks that its grants brought so far */
    int refusal;              /* its error, if it got one */
    uint64_t lacking;         /* free blocks that a refused call needed; 0 = none was refused */
    uint64_t reserved_blocks; /* free ones kept for the caller of kvmem_space_reserve */
    uint64_t obtainable;
    uint32_t pressure;        /* segments that the daemon asked for and has not got */
    int64_t pressure_end_ns;  /* the deadline of that */
    int64_t pressed_until_ns; /* until then nothing is asked for ahead of need */

    struct kvmem_publish_result *results; /* ring [KVI_SPACE_RESULTS] */
    uint64_t results_head;
    uint64_t results_tail;
    struct kvmem_space_stats stats; /* the counters; the rest is filled on request */
};

/* kvmem_space_open with checked options. */
int kvi_space_open(struct kvmem_client *client, const struct kvmem_space_options *options,
                   struct kvmem_space **out);
/* kvmem_space_close, waiting at most until `deadline_ns` for fences and answers. When fences are
 * not reached by then, mappings and reservation stay, the daemon is told nothing, and the client
 * is abandoned: its memory comes back when the process is gone. */
void kvi_space_close(struct kvmem_space *space, int64_t deadline_ns);

/* The last reference to `block` is gone. */
void kvi_space_drop(struct kvmem_space *space, uint32_t block);

static inline void kvi_space_unref(struct kvmem_space *space, uint32_t block)
{
    if (--space->refs[block] == 0)
        kvi_space_drop(space, block);
}

/* Is there room for `records` releases? 0 or OUTBOX_FULL. When the outbox could never hold them
 * it is emptied first, and the call that asks sends as it goes. */
int kvi_space_room(struct kvmem_space *space, uint64_t records);

/* A call lacks blocks: `needed` free ones would do. DAEMON_LOST, OUT_OF_BLOCKS or
 * REFILL_PENDING. */
int kvi_space_lack(struct kvmem_space *space, uint64_t needed);

/* The answer to a publication of `block`. */
void kvi_space_published(struct kvmem_space *space, uint32_t block, uint32_t state);

/* Index of the scratch block, taken at first use. */
int32_t kvi_space_scratch(struct kvmem_space *space);

/* Verify the equations (check.c). */
int kvi_space_check(const struct kvmem_space *space);

/* tokens ÷ block_tokens, and the rest. */
static inline uint64_t kvi_space_whole_blocks(const struct kvmem_space *space, uint64_t tokens)
{
    if (space->block_shift != UINT32_MAX)
        return tokens >> space->block_shift;
    return tokens / space->block_tokens;
}

static inline uint32_t kvi_space_fill(const struct kvmem_space *space, uint64_t tokens)
{
    if (space->block_shift != UINT32_MAX)
        return (uint32_t)tokens & (space->block_tokens - 1);
    return (uint32_t)(tokens % space->block_tokens);
}

/* Where the space's memory is. */
static inline struct kvi_backend *kvi_space_backend(const struct kvmem_space *space)
{
    return space->backend;
}

#endif
