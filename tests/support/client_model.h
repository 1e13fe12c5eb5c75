/* SPDX-License-Identifier: Apache-2.0
 *
 * The client's naive twin, and random operations on both. Per block index it keeps a count of
 * references and a state, per sequence its tokens' tags and its table as last seen, and what cools
 * by the promise that it waits for. Each operation is predicted, done and compared; a difference is
 * death. It is written from the public headers and calls nothing else.
 *
 *   refs[block]  = tables of live sequences + what cools
 *   PUBLISHING     from kvmem_seq_publish until its answer is taken in, referenced or not
 *   NONE           not referenced and not PUBLISHING
 *
 * Answers to publications come with calls that talk to the directory: whoever makes such a call
 * takes them in (kvt_model_take_results) before it compares a count of blocks.
 *
 *   client_model.c         bytes, blocks, promises and what waits for them, answers
 *   client_model_seq.c     create, free, append, commit, truncate, fork, reserve
 *   client_model_prefix.c  publish, look up
 */
#ifndef KVT_CLIENT_MODEL_H
#define KVT_CLIENT_MODEL_H

#include <kvmem.h>
#include <stdbool.h>
#include <stdint.h>

#include "support/assert.h"

#define KVT_MODEL_SEQS         24u
#define KVT_MODEL_TOKENS       400u /* of a sequence, at most */
#define KVT_MODEL_BLOCK_TOKENS 4u
#define KVT_MODEL_TABLE        256u
#define KVT_MODEL_PROMPTS      6u
#define KVT_MODEL_PROMISES     12u /* open at one time */

enum kvt_model_state {
    KVT_MODEL_NONE,
    KVT_MODEL_PRIVATE,
    KVT_MODEL_PUBLISHING,
    KVT_MODEL_LEASED
};

/* References that wait for a promise. */
struct kvt_model_cooling {
    struct kvt_model_cooling *next;
    uint64_t value;
    uint32_t count;
    int32_t blocks[];
};

struct kvt_model_seq {
    bool is_alive;
    struct kvmem_seq id;
    uint32_t appended;
    uint32_t committed;
    uint32_t prompt; /* tags follow it until the first token that does not */
    uint32_t count;
    uint32_t tags[KVT_MODEL_TOKENS];
    int32_t blocks[KVT_MODEL_TABLE];
};

struct kvt_model {
    struct kvmem_client *client;
    struct kvmem_space *space;
    struct kvmem_geometry geometry;
    char *base;       /* where blocks are read, */
    char *write_base; /* and written */
    uint64_t random;
    uint64_t digest;
    uint64_t operations;
    uint64_t copies;
    uint64_t refusals;
    uint64_t hits;
    uint64_t exists;
    uint64_t trims;
    uint32_t live;
    int32_t scratch;
    uint32_t range;
    uint32_t *refs;
    uint8_t *state;
    uint64_t *fences; /* promise that the block was published with, or 0 */
    struct kvt_model_cooling *cooling;
    uint64_t cooling_blocks;
    struct kvmem_fence promises[KVT_MODEL_PROMISES]; /* kind NONE = none */
    uint32_t timeline;
    uint64_t promised;
    uint64_t reached; /* all promises up to this one are fulfilled */
    uint64_t cooled;
    uint64_t waits;       /* look-ups that hit what is not done */
    uint64_t held_copies; /* that their fence held up */
    uint32_t late;        /* the last answers: to publications whose block nobody references */
    struct kvt_model_seq seqs[KVT_MODEL_SEQS];
};

static inline uint64_t kvt_model_mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static inline uint32_t kvt_model_below(struct kvt_model *m, uint32_t limit)
{
    m->random = kvt_model_mix(m->random);
    return (uint32_t)((m->random >> 16) % limit);
}

static inline void kvt_model_note(struct kvt_model *m, uint64_t value)
{
    m->digest = kvt_model_mix(m->digest ^ value);
}

static inline uint32_t kvt_model_blocks_for(uint32_t tokens)
{
    return (tokens + KVT_MODEL_BLOCK_TOKENS - 1) / KVT_MODEL_BLOCK_TOKENS;
}

/* The tag of a prompt's token. */
uint32_t kvt_model_prompt_tag(uint32_t prompt, uint32_t position);

/* ---- bytes: tags in K and V of every token ---- */

uint32_t *kvt_model_tag(const struct kvt_model *m, char *base, int32_t block, uint32_t position,
                        bool v);
/* From token `from` to the last one. */
void kvt_model_write_tags(struct kvt_model *m, const struct kvt_model_seq *s, uint32_t from);
void kvt_model_verify_tags(const struct kvt_model *m, const struct kvt_model_seq *s);

/* ---- blocks ---- */

void kvt_model_unref(struct kvt_model *m, int32_t block);
/* The client gave it for new tokens. */
void kvt_model_fresh(struct kvt_model *m, int32_t block);
/* As the client says. */
uint64_t kvt_model_free_blocks(const struct kvt_model *m);
/* REFILL_PENDING or OUT_OF_BLOCKS. */
bool kvt_model_is_lack(int code);

/* ---- promises, and what waits for them ---- */

/* Is this promise, or one before it, not fulfilled? */
bool kvt_model_is_open(const struct kvt_model *m, uint64_t value);
bool kvt_model_holds(const struct kvt_model *m, struct kvmem_fence fence);
/* Half of the time one that is done, of either kind, else a promise. */
struct kvmem_fence kvt_model_any_fence(struct kvt_model *m);
void kvt_model_fulfil_all(struct kvt_model *m);
void kvt_model_cool(struct kvt_model *m, struct kvmem_fence fence, uint32_t count,
                    const int32_t *blocks);
/* The references go, now or later. */
void kvt_model_give_up(struct kvt_model *m, struct kvmem_fence fence, uint32_t count,
                       const int32_t *blocks);
/* What the client does when it dispatches or lacks blocks. */
void kvt_model_drain(struct kvt_model *m);

/* Answers to publications, as they are known now. */
void kvt_model_take_results(struct kvt_model *m);

/* ---- sequences ---- */

/* One that is alive, or NULL. */
struct kvt_model_seq *kvt_model_any_seq(struct kvt_model *m);
/* A new one of the client's, empty. */
struct kvt_model_seq *kvt_model_born(struct kvt_model *m, struct kvmem_seq id);

/* ---- operations ---- */

void kvt_model_promise(struct kvt_model *m);
void kvt_model_fulfil(struct kvt_model *m);
void kvt_model_create(struct kvt_model *m);
void kvt_model_free(struct kvt_model *m);
void kvt_model_append(struct kvt_model *m);
void kvt_model_commit(struct kvt_model *m);
void kvt_model_truncate(struct kvt_model *m);
void kvt_model_fork(struct kvt_model *m);
void kvt_model_reserve(struct kvt_model *m);
void kvt_model_publish(struct kvt_model *m);
void kvt_model_lookup(struct kvt_model *m);

#endif
