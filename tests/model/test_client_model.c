/* SPDX-License-Identifier: Apache-2.0
 *
 * The client against a naive twin: random operations through the public API on embedded clients
 * with small pools. The twin keeps, per block index, a count of references and a state, and per
 * sequence its tokens' tags and its table as last seen; each operation is predicted, compared, and
 * followed by kvmem_client_check(). Tags are written into K and V of every token, so that a
 * missing or wrong copy-on-write shows as a wrong byte.
 *
 * What is given up and published comes with promises, fulfilled at random times and in any order:
 * the twin keeps what cools by value, so that it knows which blocks may not be used again yet, and
 * what a look-up has to wait for.
 *
 * A sequence begins with one of 6 prompts, so that sequences meet in names: publications that
 * exist already, lookups that hit. The same seed twice must give the same digest.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <kvmem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEQS         24u
#define TOKENS_MAX   400u
#define BLOCK_TOKENS 4u
#define TABLE_MAX    256u
#define PROMPTS      6u
#define PROMISES     12u /* open at one time */

#ifdef KVI_SANITIZE
#define OPERATIONS 150000u
#else
#define OPERATIONS 1050000u
#endif
#define RARE 1000u
#define ENDS 400u

/* A segment is one block. */
static bool is_single;

enum state {
    NONE,
    PRIVATE,
    PUBLISHING,
    LEASED
};

/* References that wait for a promise. */
struct cooling {
    struct cooling *next;
    uint64_t value;
    uint32_t count;
    int32_t blocks[];
};

struct twin_seq {
    bool is_alive;
    struct kvmem_seq id;
    uint32_t appended;
    uint32_t committed;
    uint32_t prompt; /* tags follow it until the first token that does not */
    uint32_t count;
    uint32_t tags[TOKENS_MAX];
    int32_t blocks[TABLE_MAX];
};

struct model {
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
    struct cooling *cooling;
    uint64_t cooling_blocks;
    struct kvmem_fence promises[PROMISES]; /* kind NONE = none */
    uint32_t timeline;
    uint64_t promised;
    uint64_t reached; /* all promises up to this one are fulfilled */
    uint64_t cooled;
    uint64_t waits;       /* look-ups that hit what is not done */
    uint64_t held_copies; /* that their fence held up */
    uint32_t late;        /* the last answers: to publications whose block nobody references */
    struct twin_seq seqs[SEQS];
};

static uint64_t mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static uint32_t below(struct model *m, uint32_t limit)
{
    m->random = mix(m->random);
    return (uint32_t)((m->random >> 16) % limit);
}

static void note(struct model *m, uint64_t value)
{
    m->digest = mix(m->digest ^ value);
}

static uint32_t prompt_tag(uint32_t prompt, uint32_t position)
{
    return (uint32_t)mix(prompt * 1000003u + position) | 1;
}

static uint32_t blocks_for(uint32_t tokens)
{
    return (tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
}

/* ---- bytes ---- */

static uint32_t *tag_at(const struct model *m, char *base, int32_t block, uint32_t position, bool v)
{
    const struct kvmem_geometry *g = &m->geometry;
    char *at = base + (uint64_t)block * g->index_stride_bytes;

    at += v ? g->v_offset_bytes + position * g->v_token_stride_bytes
            : position * g->k_token_stride_bytes;
    return (uint32_t *)(void *)at;
}

static void write_tags(struct model *m, const struct twin_seq *s, uint32_t from)
{
    for (uint32_t t = from; t < s->appended; t++) {
        *tag_at(m, m->write_base, s->blocks[t / BLOCK_TOKENS], t % BLOCK_TOKENS, false) =
            s->tags[t];
        *tag_at(m, m->write_base, s->blocks[t / BLOCK_TOKENS], t % BLOCK_TOKENS, true) =
            ~s->tags[t];
    }
}

static void verify_tags(const struct model *m, const struct twin_seq *s)
{
    for (uint32_t t = 0; t < s->appended; t++) {
        uint32_t k = *tag_at(m, m->base, s->blocks[t / BLOCK_TOKENS], t % BLOCK_TOKENS, false);
        uint32_t v = *tag_at(m, m->base, s->blocks[t / BLOCK_TOKENS], t % BLOCK_TOKENS, true);

        cr_assert(k == s->tags[t] && v == ~s->tags[t],
                  "token %u of a sequence of %u in block %d: %08x %08x, expected %08x", t,
                  s->appended, s->blocks[t / BLOCK_TOKENS], k, v, s->tags[t]);
    }
}

/* ---- the twin's blocks ---- */

static void unref(struct model *m, int32_t block)
{
    cr_assert(m->refs[block] > 0);
    if (--m->refs[block] == 0 && m->state[block] != PUBLISHING)
        m->state[block] = NONE;
}

static void fresh(struct model *m, int32_t block)
{
    cr_assert(block >= 0 && (uint32_t)block < m->range && m->state[block] == NONE &&
                  block != m->scratch,
              "block %d was given in state %u", block, m->state[block]);
    m->refs[block] = 1;
    m->state[block] = PRIVATE;
    m->fences[block] = 0;
}

/* ---- promises, and what waits for them ---- */

static bool is_open(const struct model *m, uint64_t value)
{
    return value > m->reached;
}

static void do_promise(struct model *m)
{
    uint32_t at = below(m, PROMISES);

    if (m->promises[at].kind)
        return;
    cr_assert(kvmem_fence_promise(m->client, &m->promises[at]) == 0);
    cr_assert(m->promises[at].value == ++m->promised);
    m->timeline = m->promises[at].timeline;
}

static void fulfil(struct model *m, uint32_t at)
{
    uint64_t value = m->promises[at].value;

    cr_assert(kvmem_fence_fulfil(m->client, &m->promises[at]) == 0);
    cr_assert(kvmem_fence_fulfil(m->client, &m->promises[at]) == KVMEM_E_INVALID);
    m->promises[at] = kvmem_fence_none();
    m->reached = m->promised;
    for (uint32_t i = 0; i < PROMISES; i++)
        if (m->promises[i].kind && m->promises[i].value <= m->reached)
            m->reached = m->promises[i].value - 1;
    note(m, value);
}

static void do_fulfil(struct model *m)
{
    uint32_t at = below(m, PROMISES);
    struct kvmem_fence some = {KVMEM_FENCE_TIMELINE, m->timeline, 0, NULL};

    if (m->promises[at].kind)
        fulfil(m, at);
    if (!m->promised)
        return;
    some.value = 1 + below(m, (uint32_t)m->promised);
    cr_assert(kvmem_fence_poll(m->client, &some) == !is_open(m, some.value));
}

static void fulfil_all(struct model *m)
{
    for (uint32_t at = 0; at < PROMISES; at++)
        if (m->promises[at].kind)
            fulfil(m, at);
    cr_assert(m->reached == m->promised);
}

/* Half of the time one that is done, of either kind, else a promise. */
static struct kvmem_fence any_fence(struct model *m)
{
    struct kvmem_fence fence = m->promises[below(m, PROMISES)];

    if (below(m, 2) == 0)
        fence.kind = KVMEM_FENCE_NONE;
    if (fence.kind == KVMEM_FENCE_NONE && m->reached && below(m, 2))
        return (struct kvmem_fence){KVMEM_FENCE_TIMELINE, m->timeline, m->reached, NULL};
    return fence.kind ? fence : kvmem_fence_none();
}

static bool holds(const struct model *m, struct kvmem_fence fence)
{
    return fence.kind == KVMEM_FENCE_TIMELINE && is_open(m, fence.value);
}

static void cool(struct model *m, struct kvmem_fence fence, uint32_t count, const int32_t *blocks)
{
    struct cooling *entry;

    if (!count)
        return;
    entry = malloc(sizeof(*entry) + count * sizeof(*blocks));
    entry->value = fence.value;
    entry->count = count;
    memcpy(entry->blocks, blocks, count * sizeof(*blocks));
    entry->next = m->cooling;
    m->cooling = entry;
    m->cooling_blocks += count;
    m->cooled++;
}

/* The references go, now or later. */
static void give_up(struct model *m, struct kvmem_fence fence, uint32_t count,
                    const int32_t *blocks)
{
    if (holds(m, fence)) {
        cool(m, fence, count, blocks);
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        unref(m, blocks[i]);
}

/* What the client does when it dispatches or lacks blocks. */
static void drain(struct model *m)
{
    struct cooling **at = &m->cooling;

    while (*at) {
        struct cooling *entry = *at;

        if (is_open(m, entry->value)) {
            at = &entry->next;
            continue;
        }
        for (uint32_t i = 0; i < entry->count; i++)
            unref(m, entry->blocks[i]);
        m->cooling_blocks -= entry->count;
        *at = entry->next;
        free(entry);
    }
}

/* Answers to publications, as they are known now. */
static void take_results(struct model *m)
{
    struct kvmem_publish_result results[64];
    int count;

    while ((count = kvmem_publish_results(m->space, 64, results)) > 0) {
        for (int i = 0; i < count; i++) {
            int32_t block = results[i].block;

            cr_assert(m->state[block] == PUBLISHING);
            m->state[block] = results[i].state == KVMEM_PUBLISHED ? LEASED : PRIVATE;
            if (results[i].state != KVMEM_PUBLISHED)
                m->fences[block] = 0;
            if (!m->refs[block])
                m->state[block] = NONE;
            m->late += !m->refs[block];
            m->exists += results[i].state == KVMEM_PUBLISH_EXISTS;
            cr_assert(results[i].state != KVMEM_PUBLISH_REFUSED);
        }
    }
}

static bool copy_due(const struct model *m, const struct twin_seq *s, uint32_t tokens)
{
    int32_t tail = s->blocks[s->appended / BLOCK_TOKENS];

    return tokens && s->appended % BLOCK_TOKENS && (m->state[tail] != PRIVATE || m->refs[tail] > 1);
}

static uint32_t blocks_due(const struct twin_seq *s, uint32_t tokens, bool copy)
{
    uint32_t used = blocks_for(s->appended);
    uint32_t wanted = blocks_for(s->appended + tokens) - used + copy;

    return wanted > s->count - used ? wanted - (s->count - used) : 0;
}

static uint64_t free_blocks(const struct model *m)
{
    struct kvmem_capacity capacity = {.size = sizeof(capacity)};

    cr_assert(kvmem_space_capacity(m->space, &capacity) == 0);
    return capacity.free_blocks;
}

static bool is_lack(int code)
{
    return code == KVMEM_E_REFILL_PENDING || code == KVMEM_E_OUT_OF_BLOCKS;
}

/* The table as it is now against the one before and what must have become of it. */
static void follow_append(struct model *m, struct twin_seq *s, uint32_t tokens, bool copy)
{
    uint32_t used = blocks_for(s->appended);
    uint32_t count = s->count;
    uint32_t after = blocks_for(s->appended + tokens);
    const int32_t *view;
    int seen = kvmem_table_view(m->space, 0, s->id, &view);

    if (copy) {
        int32_t old = s->blocks[used - 1];

        if (count > used)
            s->blocks[used - 1] = s->blocks[--count];
        else
            fresh(m, s->blocks[used - 1] = view[used - 1]);
        unref(m, old);
        m->copies++;
    }
    for (; count < after; count++)
        fresh(m, s->blocks[count] = view[count]);
    s->count = count;
    cr_assert(seen == (int)count, "a table of %d blocks, expected %u", seen, count);
    cr_assert(!count || !memcmp(view, s->blocks, count * sizeof(*view)));
    note(m, count ? (uint64_t)view[count - 1] : 0);
}

static void push_tokens(struct model *m, struct twin_seq *s, uint32_t tokens)
{
    uint32_t from = s->appended;

    for (uint32_t i = 0; i < tokens; i++, s->appended++)
        s->tags[s->appended] =
            s->prompt < PROMPTS ? prompt_tag(s->prompt, s->appended) : below(m, UINT32_MAX);
    write_tags(m, s, from);
    if (s->appended > 60)
        s->prompt = PROMPTS;
}

/* ---- operations ---- */

static struct twin_seq *any_seq(struct model *m)
{
    uint32_t start = below(m, SEQS);

    for (uint32_t i = 0; i < SEQS; i++)
        if (m->seqs[(start + i) % SEQS].is_alive)
            return &m->seqs[(start + i) % SEQS];
    return NULL;
}

static struct twin_seq *place(struct model *m)
{
    for (uint32_t i = 0; i < SEQS; i++)
        if (!m->seqs[i].is_alive)
            return &m->seqs[i];
    return NULL;
}

static void born(struct model *m, struct kvmem_seq id)
{
    struct twin_seq *s = place(m);

    memset(s, 0, sizeof(*s));
    s->is_alive = true;
    s->id = id;
    s->prompt = below(m, PROMPTS);
    m->live++;
}

static void do_create(struct model *m)
{
    struct kvmem_seq ids[3];
    uint32_t n = 1 + below(m, 3);
    int code = kvmem_seqs_create(m->space, n, ids);

    cr_assert(code == (m->live + n > SEQS ? KVMEM_E_LIMIT : 0));
    for (uint32_t i = 0; !code && i < n; i++)
        born(m, ids[i]);
}

static void do_free(struct model *m)
{
    struct twin_seq *s = any_seq(m);
    struct kvmem_fence fence = any_fence(m);
    struct kvmem_seq twice[2];

    if (!s)
        return;
    twice[0] = twice[1] = s->id;
    if (below(m, 8) == 0)
        cr_assert(kvmem_seqs_free(m->space, 2, twice, kvmem_fence_none()) == KVMEM_E_INVALID);
    cr_assert(kvmem_seq_free(m->space, s->id, fence) == 0);
    give_up(m, fence, s->count, s->blocks);
    s->is_alive = false;
    m->live--;
    cr_assert(kvmem_seq_free(m->space, s->id, kvmem_fence_none()) == KVMEM_E_STALE);
}

/* Some sequences, none twice. */
static uint32_t pick(struct model *m, struct twin_seq **picked, uint32_t *counts, uint32_t limit)
{
    uint32_t start = below(m, SEQS);
    uint32_t n = 0;

    for (uint32_t i = 0; i < SEQS && n < limit; i++) {
        struct twin_seq *s = &m->seqs[(start + i) % SEQS];
        uint32_t count = below(m, 5) == 0 ? below(m, 20) : below(m, 3);

        if (!s->is_alive || s->appended + count + 1 > TOKENS_MAX)
            continue;
        counts[n] = count;
        picked[n++] = s;
    }
    return n;
}

/* What the batch takes when all who share a tail copy it: above that the client looks at what
 * cools. */
static uint64_t batch_bound(const struct model *m, uint32_t n, struct twin_seq **picked,
                            const uint32_t *counts)
{
    uint64_t due = 0;

    for (uint32_t i = 0; i < n; i++)
        due += blocks_due(picked[i], counts[i], copy_due(m, picked[i], counts[i]));
    return due;
}

static uint64_t batch_due(struct model *m, uint32_t n, struct twin_seq **picked,
                          const uint32_t *counts, bool *copies)
{
    uint64_t due = 0;

    for (uint32_t i = 0; i < n; i++) {
        copies[i] = copy_due(m, picked[i], counts[i]);
        due += blocks_due(picked[i], counts[i], copies[i]);
        if (copies[i])
            m->refs[picked[i]->blocks[picked[i]->appended / BLOCK_TOKENS]]--;
    }
    for (uint32_t i = 0; i < n; i++)
        if (copies[i])
            m->refs[picked[i]->blocks[picked[i]->appended / BLOCK_TOKENS]]++;
    return due;
}

static void do_append(struct model *m)
{
    struct twin_seq *picked[8];
    struct kvmem_seq ids[9];
    uint32_t counts[8];
    bool copies[8];
    bool ones = below(m, 2);
    uint32_t n = pick(m, picked, counts, 1 + below(m, 8));
    struct kvmem_fence fence = any_fence(m);
    bool is_held = false;
    uint64_t due;
    int code, can;

    for (uint32_t i = 0; i < n; i++) {
        ids[i] = picked[i]->id;
        if (ones)
            counts[i] = 1;
    }
    if (batch_bound(m, n, picked, counts) > free_blocks(m))
        drain(m);
    due = batch_due(m, n, picked, counts, copies);
    can = kvmem_space_can_append(m->space, n, ids, ones ? NULL : counts);
    cr_assert(can == (due <= free_blocks(m)),
              "can_append says %d: %" PRIu64 " due, %" PRIu64 " free", can, due, free_blocks(m));
    if (n && below(m, 16) == 0) {
        ids[n] = ids[below(m, n)];
        cr_assert(kvmem_seqs_append(m->space, n + 1, ids, NULL, kvmem_fence_none()) ==
                  KVMEM_E_INVALID);
    }
    code = kvmem_seqs_append(m->space, n, ids, ones ? NULL : counts, fence);
    note(m, (uint64_t)code);
    for (uint32_t i = 0; can && i < n; i++)
        is_held |= copies[i] && holds(m, fence);
    if (is_held)
        cr_assert(code == KVMEM_E_BUSY, "append: %s", kvmem_error_name(code));
    else
        cr_assert(can ? code == 0 : is_lack(code), "append: %s", kvmem_error_name(code));
    m->held_copies += is_held;
    m->refusals += is_lack(code);
    for (uint32_t i = 0; !code && i < n; i++) {
        follow_append(m, picked[i], counts[i], copies[i]);
        push_tokens(m, picked[i], counts[i]);
    }
}

static void do_commit(struct model *m)
{
    struct twin_seq *s = any_seq(m);
    uint32_t tokens;

    if (!s)
        return;
    tokens = s->appended - s->committed;
    cr_assert(kvmem_seq_commit(m->space, s->id, tokens + 1) == KVMEM_E_INVALID);
    tokens = below(m, 3) ? tokens : below(m, tokens + 1);
    cr_assert(kvmem_seq_commit(m->space, s->id, tokens) == 0);
    s->committed += tokens;
}

static void do_truncate(struct model *m)
{
    struct twin_seq *s = any_seq(m);
    struct kvmem_fence fence = any_fence(m);
    uint32_t tokens, keep;

    if (!s)
        return;
    cr_assert(kvmem_seq_truncate(m->space, s->id, s->appended + 1, fence) == KVMEM_E_INVALID);
    tokens = below(m, 3) && s->appended > 6 ? s->appended - below(m, 7) : below(m, s->appended + 1);
    cr_assert(kvmem_seq_truncate(m->space, s->id, tokens, fence) == 0);
    keep = blocks_for(tokens);
    if (s->count > keep) {
        give_up(m, fence, s->count - keep, s->blocks + keep);
        s->count = keep;
    }
    s->appended = tokens;
    s->committed = s->committed < tokens ? s->committed : tokens;
    if (below(m, 2))
        s->prompt = PROMPTS;
}

static void do_fork(struct model *m)
{
    struct twin_seq *s = any_seq(m);
    struct kvmem_seq ids[3];
    uint32_t n = 1 + below(m, 3);
    int code;

    if (!s)
        return;
    code = kvmem_seqs_fork(m->space, s->id, n, ids);
    cr_assert(code == (m->live + n > SEQS ? KVMEM_E_LIMIT : 0));
    for (uint32_t i = 0; !code && i < n; i++) {
        struct twin_seq *child = place(m);

        *child = *s;
        child->id = ids[i];
        child->count = blocks_for(s->appended);
        if (below(m, 2))
            child->prompt = PROMPTS;
        for (uint32_t b = 0; b < child->count; b++)
            m->refs[child->blocks[b]]++;
        m->live++;
    }
}

static void do_reserve(struct model *m)
{
    struct twin_seq *s = any_seq(m);
    uint32_t tokens = below(m, 24);
    const int32_t *view;
    uint32_t due;
    int code;

    if (!s || s->appended + tokens > TOKENS_MAX)
        return;
    due = tokens ? blocks_due(s, tokens, copy_due(m, s, tokens)) : 0;
    if (due > free_blocks(m)) {
        drain(m);
        due = blocks_due(s, tokens, copy_due(m, s, tokens));
    }
    code = kvmem_seq_reserve(m->space, s->id, tokens);
    cr_assert(code == 0 || (is_lack(code) && due > free_blocks(m)), "reserve: %s, %u due",
              kvmem_error_name(code), due);
    m->refusals += code != 0;
    if (code)
        return;
    cr_assert(kvmem_table_view(m->space, 0, s->id, &view) == (int)(s->count + due));
    for (; due; due--, s->count++)
        fresh(m, s->blocks[s->count] = view[s->count]);
}

/* ---- names ---- */

static void name_of(const uint32_t *tags, uint32_t blocks, struct kvmem_name *names)
{
    uint64_t chain = 1;

    for (uint32_t b = 0; b < blocks; b++) {
        for (uint32_t t = 0; t < BLOCK_TOKENS; t++)
            chain = mix(chain ^ tags[b * BLOCK_TOKENS + t]);
        for (uint32_t w = 0; w < 4; w++) {
            uint64_t word = mix(chain + w);

            memcpy(names[b].bytes + w * 8, &word, 8);
        }
    }
}

static void do_publish(struct model *m)
{
    struct twin_seq *s = any_seq(m);
    struct kvmem_fence fence = any_fence(m);
    struct kvmem_name names[TABLE_MAX];
    int32_t sealed[TABLE_MAX];
    uint32_t full, first, count, sealed_count = 0;

    if (!s)
        return;
    full = s->committed / BLOCK_TOKENS;
    name_of(s->tags, full, names);
    cr_assert(kvmem_seq_publish(m->space, s->id, 0, full + 1, names, fence) == KVMEM_E_INVALID);
    first = below(m, 2) ? 0 : below(m, full + 1);
    count = full - first;
    cr_assert(kvmem_seq_publish(m->space, s->id, first, count, names + first, fence) == 0);
    for (uint32_t i = first; i < full; i++) {
        if (m->state[s->blocks[i]] != PRIVATE)
            continue;
        m->state[s->blocks[i]] = PUBLISHING;
        if (!holds(m, fence))
            continue;
        m->fences[s->blocks[i]] = fence.value;
        m->refs[s->blocks[i]]++;
        sealed[sealed_count++] = s->blocks[i];
    }
    cool(m, fence, sealed_count, sealed);
}

/* What the hits wait for, and what the look-up says of it: one fence, the last promise. */
static bool check_ready(struct model *m, uint32_t hits, const int32_t *blocks,
                        struct kvmem_fence ready)
{
    uint64_t value = 0;

    for (uint32_t i = 0; i < hits; i++)
        if (is_open(m, m->fences[blocks[i]]) && m->fences[blocks[i]] > value)
            value = m->fences[blocks[i]];
    cr_assert(value ? ready.kind == KVMEM_FENCE_TIMELINE && ready.timeline == m->timeline &&
                          ready.value == value
                    : ready.kind == KVMEM_FENCE_NONE,
              "ready: kind %u, value %" PRIu64 ", expected %" PRIu64, ready.kind, ready.value,
              value);
    return value != 0;
}

static void do_lookup(struct model *m)
{
    struct kvmem_name names[16];
    uint32_t tags[16 * BLOCK_TOKENS];
    int32_t blocks[16];
    struct kvmem_seq id;
    uint32_t prompt = below(m, PROMPTS);
    uint32_t count = 1 + below(m, 15);
    struct kvmem_fence ready, fence = any_fence(m);
    int hits, peek;

    for (uint32_t t = 0; t < count * BLOCK_TOKENS; t++)
        tags[t] = prompt_tag(prompt, t);
    name_of(tags, count, names);
    peek = kvmem_prefix_peek(m->space, count, names);
    hits = kvmem_prefix_lookup(m->space, count, names, blocks, &ready);
    take_results(m);
    cr_assert(hits >= 0 && hits <= (int)count && peek == hits, "%d hits, peek said %d", hits, peek);
    note(m, (uint64_t)hits);
    m->hits += (uint32_t)hits;
    m->waits += check_ready(m, (uint32_t)hits, blocks, ready);
    for (int i = 0; i < hits; i++) {
        cr_assert(m->state[blocks[i]] == NONE || m->state[blocks[i]] == LEASED);
        m->state[blocks[i]] = LEASED;
        m->refs[blocks[i]]++;
        for (uint32_t t = 0; t < BLOCK_TOKENS; t++)
            cr_assert(*tag_at(m, m->base, blocks[i], t, false) ==
                      tags[(uint32_t)i * BLOCK_TOKENS + t]);
    }
    if (hits && m->live < SEQS && below(m, 4)) {
        cr_assert(kvmem_seq_create(m->space, &id) == 0);
        cr_assert(kvmem_seq_attach(m->space, id, (uint32_t)hits, blocks) == 0);
        struct twin_seq *s = place(m);
        born(m, id);
        s->prompt = below(m, 2) ? prompt : PROMPTS;
        s->appended = s->committed = (uint32_t)hits * BLOCK_TOKENS;
        s->count = (uint32_t)hits;
        memcpy(s->tags, tags, s->appended * sizeof(*tags));
        memcpy(s->blocks, blocks, s->count * sizeof(*blocks));
        cr_assert(kvmem_seq_attach(m->space, id, 1, blocks) == KVMEM_E_INVALID);
    } else {
        if (below(m, 2))
            fence = ready;
        cr_assert(kvmem_prefix_release(m->space, (uint32_t)hits, blocks, fence) == 0);
        give_up(m, fence, (uint32_t)hits, blocks);
        if (hits)
            cr_assert(kvmem_prefix_release(m->space, 1, blocks, kvmem_fence_none()) ==
                      KVMEM_E_INVALID);
    }
}

/* ---- looking ---- */

static void do_verify(struct model *m)
{
    struct twin_seq *s = any_seq(m);
    struct kvmem_seq_info info = {.size = sizeof(info)};
    int32_t row[TABLE_MAX + 1], indptr[2], csr[TABLE_MAX], last, length;
    int64_t slots[TOKENS_MAX];
    uint32_t shared = 0, used, tokens;

    if (!s)
        return;
    verify_tags(m, s);
    used = blocks_for(s->appended);
    cr_assert(kvmem_seq_info(m->space, s->id, &info) == 0);
    for (uint32_t i = 0; i < s->count; i++)
        shared += m->refs[s->blocks[i]] > 1;
    cr_assert(info.block_count == s->count && info.appended_tokens == s->appended &&
              info.committed_tokens == s->committed && info.shared_blocks == shared);
    cr_assert(kvmem_table_padded(m->space, 0, 1, &s->id, used + 1, row, &length) == 0);
    cr_assert(row[used] == KVMEM_BLOCK_NONE && length == (int32_t)s->appended);
    cr_assert(!used || !memcmp(row, s->blocks, used * sizeof(*row)));
    cr_assert(kvmem_table_csr(m->space, 0, 1, &s->id, TABLE_MAX, indptr, csr, &last) == (int)used);
    cr_assert(indptr[1] == (int)used && (!used || !memcmp(csr, s->blocks, used * sizeof(*csr))));
    cr_assert(last == (int)(used ? s->appended - (used - 1) * BLOCK_TOKENS : 0));
    tokens = below(m, s->appended + 1);
    cr_assert(kvmem_table_slots(m->space, 0, 1, &s->id, &tokens, tokens, slots) == (int)tokens);
    for (uint32_t i = 0; i < tokens; i++) {
        uint32_t t = s->appended - tokens + i;

        cr_assert(slots[i] ==
                  (int64_t)s->blocks[t / BLOCK_TOKENS] * BLOCK_TOKENS + t % BLOCK_TOKENS);
    }
}

static void do_counts(struct model *m)
{
    struct kvmem_capacity capacity = {.size = sizeof(capacity)};
    uint64_t used = 0;

    for (uint32_t i = 0; i < m->range; i++)
        used += m->state[i] != NONE;
    cr_assert(kvmem_space_capacity(m->space, &capacity) == 0);
    cr_assert(capacity.used_blocks == used, "%" PRIu64 " blocks used, expected %" PRIu64,
              capacity.used_blocks, used);
    note(m, capacity.free_blocks);
}

/* What cools goes in the calls in which the twin drains, and in no other. */
static void check_cooling(const struct model *m)
{
    struct kvmem_space_stats stats = {.size = sizeof(stats)};

    cr_assert(kvmem_space_stats(m->space, &stats) == 0);
    cr_assert(stats.cooling_blocks == m->cooling_blocks,
              "operation %" PRIu64 ": %" PRIu64 " references cool, expected %" PRIu64,
              m->operations, stats.cooling_blocks, m->cooling_blocks);
}

static void do_dispatch(struct model *m)
{
    int code = kvmem_client_dispatch(m->client, 0);

    drain(m);
    cr_assert(code >= 0, "dispatch: %s", kvmem_error_detail()->text);
    note(m, (uint64_t)code);
}

static void do_trim(struct model *m)
{
    int code;

    fulfil_all(m);
    drain(m);
    code = kvmem_space_trim(m->space);
    cr_assert(code >= 0, "trim: %s", kvmem_error_detail()->text);
    note(m, (uint64_t)code);
    m->trims += (uint32_t)code;
}

static void do_space_reserve(struct model *m)
{
    uint32_t blocks = below(m, m->range / 2);
    int code;

    if (blocks > free_blocks(m))
        drain(m);
    code = kvmem_space_reserve(m->space, blocks, 0);
    note(m, (uint64_t)code);
    cr_assert(code == 0 || is_lack(code) || code == KVMEM_E_QUOTA, "reserve: %s",
              kvmem_error_detail()->text);
}

static void do_scratch(struct model *m)
{
    int32_t scratch;

    if (m->scratch < 0 && !free_blocks(m))
        drain(m);
    scratch = kvmem_space_scratch(m->space, 0);
    if (m->scratch >= 0) {
        cr_assert(scratch == m->scratch);
    } else if (scratch >= 0) {
        cr_assert(m->state[scratch] == NONE);
        m->scratch = scratch;
    } else {
        cr_assert(is_lack(scratch));
    }
}

static void step(struct model *m)
{
    static void (*const operations[])(struct model *) = {
        do_append,   do_append,  do_append,   do_append,   do_append, do_append, do_commit,
        do_commit,   do_fork,    do_truncate, do_truncate, do_create, do_free,   do_free,
        do_publish,  do_lookup,  do_lookup,   do_reserve,  do_verify, do_counts, do_dispatch,
        do_dispatch, do_promise, do_promise,  do_fulfil};
    uint32_t rare = below(m, 300);

    if (rare == 0)
        do_trim(m);
    else if (rare == 1)
        do_space_reserve(m);
    else if (rare == 2)
        do_scratch(m);
    else
        operations[below(m, sizeof(operations) / sizeof(operations[0]))](m);
    take_results(m);
    check_cooling(m);
    m->operations++;
}

/* ---- a run ---- */

static void begin(struct model *m, uint64_t device_bytes, uint64_t seed, uint32_t flags)
{
    struct kvmem_embed_options embed = {.size = sizeof(embed),
                                        .device_bytes = device_bytes,
                                        .granule_bytes = 4096,
                                        .outbox_records = 1024,
                                        .flags = flags};
    struct kvmem_space_options options = {.size = sizeof(options),
                                          .name = "model",
                                          .block_tokens = BLOCK_TOKENS,
                                          .group_count = 1,
                                          .shard_count = 1,
                                          .seq_limit = SEQS,
                                          .low_water_blocks = 4,
                                          .refill_blocks = 8};

    options.groups[0] = (struct kvmem_group_options){.layer_count = 1,
                                                     .kv_head_count = 1,
                                                     .head_dim_k = is_single ? 256 : 64,
                                                     .head_dim_v = is_single ? 256 : 64,
                                                     .dtype_k = KVMEM_DTYPE_BF16,
                                                     .dtype_v = KVMEM_DTYPE_BF16};
    options.flags = is_single ? KVMEM_SPACE_REGIONS : 0;
    memset(m, 0, sizeof(*m));
    m->random = seed;
    m->scratch = KVMEM_BLOCK_NONE;
    m->geometry.size = sizeof(m->geometry);
    cr_assert(kvmem_client_embed(&embed, &m->client) == 0, "%s", kvmem_error_detail()->text);
    cr_assert(kvmem_space_open(m->client, &options, &m->space) == 0, "%s",
              kvmem_error_detail()->text);
    cr_assert(kvmem_space_geometry(m->space, 0, &m->geometry) == 0);
    m->base = kvmem_space_base(m->space, 0, 0);
    m->write_base = kvmem_space_write_base(m->space, 0, 0);
    m->range = m->geometry.blocks_per_segment * m->geometry.segment_limit;
    m->refs = calloc(m->range, sizeof(*m->refs));
    m->state = calloc(m->range, 1);
    m->fences = calloc(m->range, sizeof(*m->fences));
}

/* A long run must have seen enough of what is rare. Every entry beyond the pool's blocks was
 * evicted before. */
static void assert_rare_ones(const struct model *m)
{
    struct kvmem_space_stats stats = {.size = sizeof(stats)};

    cr_assert(kvmem_space_stats(m->space, &stats) == 0);
    printf("client model: %" PRIu64 " published, %" PRIu64 " adoptions\n", stats.published_blocks,
           stats.adopted_segments);
    cr_assert(stats.published_blocks >= m->range + RARE, "evictions");
    cr_assert(stats.adopted_segments >= RARE, "adoptions");
    cr_assert(m->refusals >= RARE, "refusals");
    cr_assert(m->cooled >= RARE && m->waits >= RARE && m->held_copies >= RARE, "fences");
}

/* Who made them: one thread or the other. (Look-ups alone map on this one, and find all mapped.) */
static void assert_driver_calls(const struct model *m, bool has_helper)
{
    struct kvmem_client_stats stats = {.size = sizeof(stats)};

    cr_assert(kvmem_client_stats(m->client, &stats) == 0);
    printf("client model: %" PRIu64 " mappings by the helper, %" PRIu64 " inline\n",
           stats.helper_jobs, stats.driver_calls_inline);
    cr_assert(has_helper ? stats.helper_jobs >= RARE / 20 : !stats.helper_jobs);
    cr_assert(has_helper ? !stats.driver_calls_inline : stats.driver_calls_inline >= RARE / 10);
}

/* The client is checked after every operation. */
static void walk(struct model *m, uint64_t operations)
{
    for (uint64_t i = 0; i < operations; i++) {
        step(m);
        cr_assert(kvmem_client_check(m->client) == 0, "operation %" PRIu64 ": %s", i,
                  kvmem_error_detail()->text);
    }
    cr_assert(m->operations == operations);
}

/* All promises are kept: nothing cools any more, and no byte is wrong. */
static void finish(struct model *m)
{
    for (uint32_t i = 0; i < SEQS; i++)
        if (m->seqs[i].is_alive)
            verify_tags(m, &m->seqs[i]);
    fulfil_all(m);
    do_dispatch(m);
    m->late = 0;
    take_results(m);
    do_counts(m);
    check_cooling(m);
    cr_assert(!m->cooling);
}

static void end(struct model *m)
{
    kvmem_space_close(m->space);
    kvmem_client_close(m->client);
    free(m->refs);
    free(m->state);
    free(m->fences);
    free(m);
}

static void assert_enough(const struct model *m)
{
    printf("client model: %" PRIu64 " promises, %" PRIu64 " cooled, %" PRIu64 " waits, %" PRIu64
           " copies held up\n",
           m->promised, m->cooled, m->waits, m->held_copies);
    printf("client model: %u blocks, %" PRIu64 " operations, %" PRIu64 " copies, %" PRIu64
           " refusals, %" PRIu64 " hits, %" PRIu64 " exist, %" PRIu64 " trimmed\n",
           m->range, m->operations, m->copies, m->refusals, m->hits, m->exists, m->trims);
    cr_assert(m->copies >= m->operations / 1000 && m->hits >= m->operations / 1000 && m->exists &&
              m->refusals >= m->operations / 10000 && m->trims);
    cr_assert(m->cooled >= m->operations / 1000 && m->waits && m->held_copies);
    if (m->operations >= 1000 * RARE)
        assert_rare_ones(m);
}

static uint64_t run_with(uint32_t flags, uint64_t device_bytes, uint64_t seed, uint64_t operations)
{
    struct model *m = malloc(sizeof(*m));
    uint64_t digest;

    printf("client model: seed %" PRIu64 ", device %" PRIu64 "\n", seed, device_bytes);
    fflush(stdout);
    begin(m, device_bytes, seed, flags);
    walk(m, operations);
    finish(m);
    assert_enough(m);
    assert_driver_calls(m, flags & KVMEM_CLIENT_HELPER);
    digest = m->digest;
    end(m);
    return digest;
}

static uint64_t run(uint64_t device_bytes, uint64_t seed, uint64_t operations)
{
    return run_with(0, device_bytes, seed, operations);
}

Test(client_model, tiny_pool, .timeout = 600)
{
    run(64 * 1024, 1, OPERATIONS);
}

Test(client_model, small_pool, .timeout = 600)
{
    run(256 * 1024, 2, OPERATIONS);
}

Test(client_model, other_seeds, .timeout = 600)
{
    for (uint64_t seed = 10; seed < 20; seed++)
        run(64 * 1024 + (seed % 4) * 32 * 1024, seed, OPERATIONS / 10);
}

Test(client_model, one_block_a_segment, .timeout = 600)
{
    is_single = true;
    run(128 * 1024, 5, OPERATIONS / 10);
    run(256 * 1024, 6, OPERATIONS / 10);
}

Test(client_model, same_seed_same_digest, .timeout = 600)
{
    uint64_t first = run(128 * 1024, 77, OPERATIONS / 20);

    cr_assert(first == run(128 * 1024, 77, OPERATIONS / 20));
}

/* What comes when is the helper's choice: no digest, but every operation is predicted all the same.
 */
Test(client_model, with_a_helper, .timeout = 600)
{
    for (uint64_t seed = 30; seed < 36; seed++)
        run_with(KVMEM_CLIENT_HELPER, 64 * 1024 + (seed % 4) * 64 * 1024, seed, OPERATIONS / 10);
}

/* Many ends, each behind publications whose sequences are freed before they are answered: the last
 * dispatch alone brings the answers, and the blocks go with them. */
static uint32_t run_to_many_ends(uint32_t flags)
{
    uint32_t late = 0;

    for (uint64_t seed = 1; seed <= ENDS; seed++) {
        struct model *m = malloc(sizeof(*m));

        begin(m, 64 * 1024, seed, flags);
        walk(m, 100 + seed);
        for (int i = 0; i < 4; i++)
            do_publish(m);
        for (int i = 0; i < 8; i++)
            do_free(m);
        finish(m);
        late += m->late;
        end(m);
    }
    return late;
}

Test(client_model, many_ends, .timeout = 600)
{
    uint32_t alone = run_to_many_ends(0);
    uint32_t helped = run_to_many_ends(KVMEM_CLIENT_HELPER);

    printf("client model: %u late answers without a helper, %u with one\n", alone, helped);
    cr_assert(alone >= ENDS / 4 && helped >= 1);
}
