/* SPDX-License-Identifier: Apache-2.0
 *
 * Sequences: two marks and a block table each, in a fixed array of places.
 *
 *   blocks:  [ full ][ full ][ tail, part full ][ reserved ][ reserved ]
 *                            |<- fill ->|<room>|
 *   whole blocks of appended = full; held tokens lie in the first ceil(appended ÷ block_tokens)
 *
 *   tail_room > 0  ⇒  the tail is PRIVATE, referenced once (what cools aside), part full or just
 *                     opened, and
 *                     appended may grow by tail_room without a look at it; its fill[] then says
 *                     block_tokens, of which tail_room are not taken yet:
 *                     tokens of a segment = Σ fill[used] − Σ tail_room of the tails in it
 *   tail_room = 0  ⇒  nothing is known: at the next append the tail is looked at
 *
 * A part-full tail that is shared or sealed is copied before the first token goes in, to the last
 * reserved block or a new one. fork shares what holds tokens; reserved blocks stay the parent's.
 * truncate drops reserved blocks too.
 *
 * What is given up with a fence that is not reached cools (cooling.h): a freed table as it is, the
 * end of a truncated one, tails that were replaced by copies.
 *
 * An id is valid when its generation is odd and the place's. Places are recycled last in, first
 * out. All functions check ids; sizes and pointers were checked above (api/).
 */
#ifndef KVI_CLIENT_SEQ_H
#define KVI_CLIENT_SEQ_H

#include "client/space.h"

struct kvi_seq {
    uint32_t generation; /* odd = alive */
    uint32_t tail_room;
    uint64_t *tail_tokens; /* the counter of the tail's segment; valid while tail_room > 0 */
    uint64_t appended;
    uint64_t committed;
    uint64_t stamp; /* of the last batch that named it */
    int32_t *blocks;
    uint32_t block_count; /* reserved ones included; of a free place: the next free one */
    uint32_t table_class : 8;
    uint32_t has_region : 1;     /* client/region.h */
    uint32_t table_version : 23; /* see kvi_seq_table_changed */
    int32_t copy_block;          /* being made: its tail's copy (region_append.c); else NONE */
    uint32_t guard;              /* what its attached blocks wait for (guard.h), forks included */
};

_Static_assert(sizeof(struct kvi_seq) == 64, "one cache line");

static inline struct kvi_seq *kvi_seq_find(const struct kvmem_space *space, struct kvmem_seq id)
{
    struct kvi_seq *seq;

    if (id.index >= space->seq_limit || !(id.generation & 1))
        return NULL;
    seq = &space->seqs[id.index];
    return seq->generation == id.generation ? seq : NULL;
}

/* A new sequence, for which there is a place, and its id. */
static inline struct kvi_seq *kvi_seq_open(struct kvmem_space *space, struct kvmem_seq *id)
{
    uint32_t place = space->first_free_seq;
    struct kvi_seq *seq;

    if (place == UINT32_MAX) {
        place = space->fresh_seqs++;
        seq = &space->seqs[place];
    } else {
        seq = &space->seqs[place];
        space->first_free_seq = seq->block_count;
    }
    *seq = (struct kvi_seq){.generation = seq->generation + 1,
                            .copy_block = KVMEM_BLOCK_NONE,
                            .table_class = KVI_TABLE_NONE};
    space->live_seqs++;
    *id = (struct kvmem_seq){.index = place, .generation = seq->generation};
    return seq;
}

#define KVI_SEQ_VERSION_UNKNOWN 0x7fffffu /* changed too often to be counted */

/* A block that holds tokens was replaced or given up: who has a copy of the table must look at all
 * of it again. Blocks that come at the end are no change of this sort. */
static inline void kvi_seq_table_changed(struct kvi_seq *seq)
{
    if (seq->table_version < KVI_SEQ_VERSION_UNKNOWN)
        seq->table_version++;
}

/* STALE, naming the id. */
int kvi_seq_stale(struct kvmem_seq id);

/* Blocks that hold appended tokens. */
static inline uint32_t kvi_seq_used_blocks(const struct kvmem_space *space,
                                           const struct kvi_seq *seq)
{
    return (uint32_t)kvi_space_whole_blocks(space, seq->appended + space->block_tokens - 1);
}

/* The block that the next token goes to, when the tail is part full. */
static inline uint32_t kvi_seq_tail(const struct kvmem_space *space, const struct kvi_seq *seq)
{
    return (uint32_t)seq->blocks[kvi_space_whole_blocks(space, seq->appended)];
}

/* May tokens be put into this block of a sequence? */
static inline bool kvi_seq_is_writable(const struct kvmem_space *space, uint32_t block)
{
    return space->pool.state[block] == KVI_BLOCK_PRIVATE && space->refs[block] <= 1;
}

/* May the next token not go where it belongs? */
static inline bool kvi_seq_needs_copy(const struct kvmem_space *space, const struct kvi_seq *seq)
{
    return !seq->tail_room && kvi_space_fill(space, seq->appended) &&
           !kvi_seq_is_writable(space, kvi_seq_tail(space, seq));
}

/* Blocks of the table after `tokens` more. */
static inline uint64_t kvi_seq_blocks_after(const struct kvmem_space *space,
                                            const struct kvi_seq *seq, uint64_t tokens)
{
    return kvi_space_whole_blocks(space, seq->appended + tokens + space->block_tokens - 1);
}

/* Blocks that `tokens` more, at least one, take from the pool. */
static inline uint64_t kvi_seq_blocks_lacking(const struct kvmem_space *space,
                                              const struct kvi_seq *seq, uint64_t tokens, bool copy)
{
    uint32_t used = kvi_seq_used_blocks(space, seq);
    uint64_t wanted = kvi_seq_blocks_after(space, seq, tokens) - used + copy;
    uint32_t reserved = seq->block_count - used;

    return wanted > reserved ? wanted - reserved : 0;
}

/* `count` free blocks, which are there, to the end of the table, which has room. */
void kvi_seq_take_reserved(struct kvmem_space *space, struct kvi_seq *seq, uint64_t count);

/* Room for `entries` in the table. 0 or NO_MEMORY; what is in it stays. */
int kvi_seq_table_grow(struct kvmem_space *space, struct kvi_seq *seq, uint64_t entries);

/* Give up the knowledge that tail_room stands for. */
void kvi_seq_settle(struct kvmem_space *space, struct kvi_seq *seq);

/* Drop the blocks from `keep` on, the last first. */
void kvi_seq_drop_blocks(struct kvmem_space *space, struct kvi_seq *seq, uint32_t keep);

/* LEASED blocks from `from` on: at most so many releases follow when they are dropped. */
uint64_t kvi_seq_leased_blocks(const struct kvmem_space *space, const struct kvi_seq *seq,
                               uint32_t from);

/* Are there places for n more? 0 or LIMIT. */
int kvi_seqs_room(const struct kvmem_space *space, uint32_t n);
int kvi_seqs_create(struct kvmem_space *space, uint32_t n, struct kvmem_seq *seqs);
int kvi_seqs_free(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                  const struct kvmem_fence *fence);
int kvi_seqs_fork(struct kvmem_space *space, struct kvmem_seq parent, uint32_t n,
                  struct kvmem_seq *children);
int kvi_seq_reserve(struct kvmem_space *space, struct kvmem_seq id, uint32_t tokens);
int kvi_seqs_append(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                    const uint32_t *counts, const struct kvmem_fence *fence);
/* 1, 0, or STALE, INVALID (named twice), LIMIT. */
int kvi_seqs_can_append(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                        const uint32_t *counts);
int kvi_seqs_commit(struct kvmem_space *space, uint32_t n, const struct kvmem_seq *seqs,
                    const uint32_t *counts);
int kvi_seq_truncate(struct kvmem_space *space, struct kvmem_seq id, uint64_t tokens,
                     const struct kvmem_fence *fence);
int kvi_seq_info(const struct kvmem_space *space, struct kvmem_seq id, struct kvmem_seq_info *out);

#endif
