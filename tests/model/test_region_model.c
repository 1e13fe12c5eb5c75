/* SPDX-License-Identifier: Apache-2.0
 *
 * Regions against a naive twin: two clients of one daemon do random things to sequences with and
 * without regions, in one space, token-major. The twin keeps the tag of every token of a sequence;
 * a token's 2,048 bytes are a function of its tag. After every operation both clients are checked;
 * ever again every byte of a view and of the blocks behind the table is compared with the twin's.
 * Tokens are written through the view or through the blocks, by turns: one is the other.
 *
 * The second client maps ahead with a helper thread. Sequences begin with one of 6 prompts, so that
 * the clients meet in names and attach each other's blocks.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <kvmem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/daemon.h"
#include "support/random.h"
#include "support/regions.h"

#define SEQS         12u
#define CLIENTS      2u
#define TOKENS_MAX   160u
#define BLOCK_TOKENS KVT_REGION_BLOCK_TOKENS
#define TOKEN_BYTES  2048u
#define BLOCKS_MAX   (TOKENS_MAX / BLOCK_TOKENS)
#define PROMPTS      6u

#ifdef KVI_SANITIZE
#define OPERATIONS 60000u
#else
#define OPERATIONS 400000u
#endif

struct twin {
    bool is_alive;
    struct kvmem_seq id;
    uint32_t appended;
    uint32_t committed;
    uint32_t attached; /* tokens from a look-up: others' too */
    uint32_t prompt;   /* tags follow it until the first token that does not */
    uint32_t tags[TOKENS_MAX];
    struct kvmem_region *region;
    uint32_t limit; /* of the region, in tokens */
};

struct side {
    struct kvmem_client *client;
    struct kvmem_space *space;
    char *base;       /* where blocks are read, */
    char *write_base; /* and written */
    struct twin seqs[SEQS];
};

struct model {
    struct side sides[CLIENTS];
    struct side *s; /* whose turn it is */
    uint64_t random;
    uint64_t appends;
    uint64_t attaches;
    uint64_t refusals;
    uint64_t limits;
    uint64_t remaps;
    uint64_t waits;
    uint64_t verified;
};

static uint32_t below(struct model *m, uint32_t limit)
{
    return (uint32_t)(kvt_random(&m->random) >> 16) % limit;
}

static uint32_t prompt_tag(uint32_t prompt, uint32_t position)
{
    return (prompt * 1000003u + position) * 2654435761u | 1;
}

/* ---- bytes ---- */

static void write_token(char *at, uint32_t tag)
{
    uint32_t words[TOKEN_BYTES / 4];

    for (uint32_t i = 0; i < TOKEN_BYTES / 4; i++)
        words[i] = tag + i * 0x9e3779b9u;
    memcpy(at, words, sizeof(words));
}

static bool token_is(const char *at, uint32_t tag)
{
    uint32_t words[TOKEN_BYTES / 4];

    memcpy(words, at, sizeof(words));
    for (uint32_t i = 0; i < TOKEN_BYTES / 4; i++)
        if (words[i] != tag + i * 0x9e3779b9u)
            return false;
    return true;
}

/* Where it is written. */
static char *in_view(const struct twin *t, uint32_t token)
{
    struct kvmem_region_info info = kvt_region_info(t->region);

    cr_assert(token < info.mapped_tokens);
    return (char *)info.write_base + token * info.token_stride_bytes;
}

static char *in_block(char *base, const int32_t *table, uint32_t token)
{
    return base + (uint64_t)table[token / BLOCK_TOKENS] * BLOCK_TOKENS * TOKEN_BYTES +
           token % BLOCK_TOKENS * TOKEN_BYTES;
}

static void write_tokens(struct model *m, struct twin *t, uint32_t from)
{
    bool by_view = t->region && below(m, 2);
    const int32_t *table;

    cr_assert(kvmem_table_view(m->s->space, 0, t->id, &table) >= 0);
    for (uint32_t i = from; i < t->appended; i++)
        write_token(by_view ? in_view(t, i) : in_block(m->s->write_base, table, i), t->tags[i]);
}

/* A view is read where it cannot be written; what others have cannot be written at all. */
static void verify_rights(const struct model *m, const struct twin *t)
{
    struct kvmem_region_info info = kvt_region_info(t->region);
    uint64_t token = m->verified % t->appended;
    const char *rights;

    cr_assert_str_eq(kvt_rights_at((char *)info.base + token * TOKEN_BYTES), "r--s");
    rights = kvt_rights_at((char *)info.write_base + token * TOKEN_BYTES);
    if (token < t->attached || !strcmp(rights, "---p"))
        cr_assert_str_eq(rights, "---p", "token %" PRIu64, token);
    else
        cr_assert_str_eq(rights, "rw-s", "token %" PRIu64, token);
}

static void verify(struct model *m, const struct side *s, const struct twin *t)
{
    const int32_t *table;
    struct kvmem_region_info info;

    cr_assert(kvmem_table_view(s->space, 0, t->id, &table) >= 0);
    for (uint32_t i = 0; i < t->appended; i++)
        cr_assert(token_is(in_block(s->base, table, i), t->tags[i]), "token %u in its block", i);
    m->verified++;
    if (!t->region)
        return;
    info = kvt_region_info(t->region);
    cr_assert(info.token_stride_bytes == TOKEN_BYTES &&
              info.block_bytes == BLOCK_TOKENS * TOKEN_BYTES);
    cr_assert(info.mapped_tokens >= t->appended, "%" PRIu64 " of %u tokens are mapped",
              info.mapped_tokens, t->appended);
    for (uint32_t i = 0; i < t->appended; i++)
        cr_assert(token_is((const char *)info.base + i * TOKEN_BYTES, t->tags[i]),
                  "token %u in the view", i);
}

/* ---- operations ---- */

static bool is_lack(int code)
{
    return code == KVMEM_E_REFILL_PENDING || code == KVMEM_E_OUT_OF_BLOCKS;
}

static struct twin *any(struct model *m, bool has_region)
{
    uint32_t start = below(m, SEQS);

    for (uint32_t i = 0; i < SEQS; i++) {
        struct twin *t = &m->s->seqs[(start + i) % SEQS];

        if (t->is_alive && (!has_region || t->region))
            return t;
    }
    return NULL;
}

static struct twin *place(struct model *m)
{
    for (uint32_t i = 0; i < SEQS; i++)
        if (!m->s->seqs[i].is_alive)
            return &m->s->seqs[i];
    return NULL;
}

static struct twin *born(struct model *m, struct kvmem_seq id)
{
    struct twin *t = place(m);

    memset(t, 0, sizeof(*t));
    t->is_alive = true;
    t->id = id;
    t->prompt = below(m, PROMPTS);
    return t;
}

static void end_region(struct model *m, struct twin *t)
{
    struct kvmem_region_info info;

    if (!t->region)
        return;
    info = kvt_region_info(t->region);
    m->waits += info.waits;
    m->remaps += info.remaps;
    t->region = NULL;
}

static void do_create(struct model *m)
{
    struct kvmem_seq id;

    if (!place(m))
        return;
    cr_assert_eq(kvmem_seq_create(m->s->space, &id), 0);
    born(m, id);
}

static void do_open(struct model *m)
{
    struct twin *t = any(m, false);
    struct kvmem_region_options options = {.size = sizeof(options), .ahead_blocks = below(m, 4)};
    struct kvmem_region *region = NULL;
    int code;

    if (!t)
        return;
    options.token_limit = TOKENS_MAX;
    if (below(m, 4) == 0)
        options.token_limit =
            below(m, 2) ? t->appended + 1 + below(m, 8) : 1 + below(m, TOKENS_MAX);
    code = kvmem_region_open(m->s->space, t->id, &options, &region);
    if (t->region) {
        cr_assert_eq(code, KVMEM_E_EXISTS);
    } else if (t->appended > options.token_limit) {
        cr_assert_eq(code, KVMEM_E_LIMIT);
    } else {
        cr_assert(code == 0 || is_lack(code), "open: %s", kvmem_error_detail()->text);
        t->region = region;
        t->limit = (uint32_t)(options.token_limit + BLOCK_TOKENS - 1) / BLOCK_TOKENS * BLOCK_TOKENS;
    }
    m->refusals += is_lack(code);
}

static void do_close(struct model *m)
{
    struct twin *t = any(m, true);
    struct kvmem_region *region;

    if (!t)
        return;
    region = t->region;
    end_region(m, t);
    cr_assert_eq(kvmem_region_close(region, kvmem_fence_none()), 0);
}

static void do_free(struct model *m)
{
    struct twin *t = any(m, false);

    if (!t)
        return;
    end_region(m, t);
    cr_assert_eq(kvmem_seq_free(m->s->space, t->id, kvmem_fence_none()), 0);
    t->is_alive = false;
}

static uint32_t pick(struct model *m, struct twin **picked, uint32_t *counts)
{
    uint32_t start = below(m, SEQS), most = 1 + below(m, 5), n = 0;

    for (uint32_t i = 0; i < SEQS && n < most; i++) {
        struct twin *t = &m->s->seqs[(start + i) % SEQS];

        if (!t->is_alive)
            continue;
        counts[n] = below(m, 4) ? below(m, 3) : below(m, 14);
        if (t->appended + counts[n] <= TOKENS_MAX)
            picked[n++] = t;
    }
    return n;
}

/* Which code a batch gets when it is beyond a region's limit. */
static bool is_beyond(const struct twin *t, uint32_t count)
{
    return t->region && t->appended + count > t->limit;
}

static void do_append(struct model *m)
{
    struct twin *picked[8];
    struct kvmem_seq ids[8];
    uint32_t counts[8];
    uint32_t n = pick(m, picked, counts);
    bool beyond = false;
    int can, code;

    for (uint32_t i = 0; i < n; i++) {
        ids[i] = picked[i]->id;
        beyond |= is_beyond(picked[i], counts[i]);
    }
    can = kvmem_space_can_append(m->s->space, n, ids, counts);
    code = kvmem_seqs_append(m->s->space, n, ids, counts, kvmem_fence_none());
    cr_assert((can == 1) == (code == 0), "can_append says %d, append %s", can,
              kvmem_error_name(code));
    cr_assert(beyond ? code == KVMEM_E_LIMIT : code == 0 || is_lack(code), "append: %s",
              kvmem_error_detail()->text);
    m->refusals += is_lack(code);
    m->limits += beyond;
    for (uint32_t i = 0; !code && i < n; i++) {
        struct twin *t = picked[i];
        uint32_t from = t->appended;

        for (uint32_t k = 0; k < counts[i]; k++, t->appended++)
            t->tags[t->appended] =
                t->prompt < PROMPTS ? prompt_tag(t->prompt, t->appended) : below(m, UINT32_MAX);
        write_tokens(m, t, from);
        m->appends++;
    }
}

static void do_commit(struct model *m)
{
    struct twin *t = any(m, false);

    if (!t)
        return;
    cr_assert_eq(kvmem_seq_commit(m->s->space, t->id, t->appended - t->committed), 0);
    t->committed = t->appended;
}

static void do_truncate(struct model *m)
{
    struct twin *t = any(m, below(m, 2));
    uint32_t tokens;

    if (!t)
        return;
    tokens = below(m, 3) && t->appended > 6 ? t->appended - below(m, 7) : below(m, t->appended + 1);
    cr_assert_eq(kvmem_seq_truncate(m->s->space, t->id, tokens, kvmem_fence_none()), 0);
    t->appended = tokens;
    t->committed = t->committed < tokens ? t->committed : tokens;
    t->attached = t->attached < tokens ? t->attached : tokens / BLOCK_TOKENS * BLOCK_TOKENS;
    if (below(m, 2))
        t->prompt = PROMPTS;
}

static void do_fork(struct model *m)
{
    struct twin *t = any(m, false);
    struct twin *child;
    struct kvmem_seq id;

    if (!t || !place(m))
        return;
    cr_assert_eq(kvmem_seq_fork(m->s->space, t->id, &id), 0);
    child = place(m);
    *child = *t;
    child->id = id;
    child->region = NULL;
    if (below(m, 2))
        child->prompt = PROMPTS;
}

static void do_reserve(struct model *m)
{
    struct twin *t = any(m, false);
    uint32_t tokens = below(m, 16);
    int code;

    if (!t || t->appended + tokens > TOKENS_MAX)
        return;
    code = kvmem_seq_reserve(m->s->space, t->id, tokens);
    cr_assert(is_beyond(t, tokens) ? code == KVMEM_E_LIMIT : code == 0 || is_lack(code),
              "reserve: %s", kvmem_error_detail()->text);
}

/* ---- names ---- */

static void name_of(const uint32_t *tags, uint32_t blocks, struct kvmem_name *names)
{
    uint64_t chain = 1;

    for (uint32_t b = 0; b < blocks; b++) {
        for (uint32_t i = 0; i < BLOCK_TOKENS; i++) {
            chain ^= tags[b * BLOCK_TOKENS + i];
            chain = kvt_random(&chain);
        }
        for (uint32_t w = 0; w < 4; w++) {
            uint64_t state = chain + w, word = kvt_random(&state);

            memcpy(names[b].bytes + w * 8, &word, 8);
        }
    }
}

static void do_publish(struct model *m)
{
    struct twin *t = any(m, false);
    struct kvmem_name names[BLOCKS_MAX];
    uint32_t full;

    if (!t)
        return;
    full = t->committed / BLOCK_TOKENS;
    name_of(t->tags, full, names);
    cr_assert_eq(kvmem_seq_publish(m->s->space, t->id, 0, full, names, kvmem_fence_none()), 0);
}

static void do_attach(struct model *m)
{
    struct kvmem_region_options options = {.size = sizeof(options), .token_limit = TOKENS_MAX};
    struct kvmem_region *region = NULL;
    struct kvmem_name names[12];
    uint32_t tags[12 * BLOCK_TOKENS];
    uint32_t prompt = below(m, PROMPTS), count = 1 + below(m, 12);
    struct kvmem_seq id;
    struct twin *t;
    int32_t blocks[12];
    int hits;

    if (!place(m))
        return;
    for (uint32_t i = 0; i < count * BLOCK_TOKENS; i++)
        tags[i] = prompt_tag(prompt, i);
    name_of(tags, count, names);
    hits = kvmem_prefix_lookup(m->s->space, count, names, blocks, NULL);
    cr_assert(hits >= 0, "lookup: %s", kvmem_error_detail()->text);
    cr_assert_eq(kvmem_seq_create(m->s->space, &id), 0);
    if (below(m, 2) && kvmem_region_open(m->s->space, id, &options, &region))
        region = NULL;
    cr_assert_eq(kvmem_seq_attach(m->s->space, id, (uint32_t)hits, blocks), 0);
    t = born(m, id);
    t->region = region;
    t->limit = TOKENS_MAX;
    t->prompt = below(m, 2) ? prompt : PROMPTS;
    t->appended = t->committed = t->attached = (uint32_t)hits * BLOCK_TOKENS;
    memcpy(t->tags, tags, t->appended * sizeof(*tags));
    verify(m, m->s, t);
    m->attaches += hits > 0;
}

static void do_verify(struct model *m)
{
    struct twin *t = any(m, below(m, 2));

    if (!t)
        return;
    verify(m, m->s, t);
    if (t->region && t->appended && m->verified % 8 == 0)
        verify_rights(m, t);
}

static void do_dispatch(struct model *m)
{
    struct kvmem_publish_result results[64];
    int code = kvmem_client_dispatch(m->s->client, 0);

    cr_assert(code >= 0, "dispatch: %s", kvmem_error_detail()->text);
    while (kvmem_publish_results(m->s->space, 64, results) > 0)
        ;
}

static void do_trim(struct model *m)
{
    int code = below(m, 8) ? 0 : kvmem_space_trim(m->s->space);

    cr_assert(code >= 0, "trim: %s", kvmem_error_detail()->text);
}

static void step(struct model *m)
{
    static void (*const operations[])(struct model *) = {
        do_append, do_append,   do_append,   do_append,   do_append,   do_append,
        do_append, do_commit,   do_commit,   do_fork,     do_fork,     do_create,
        do_free,   do_free,     do_truncate, do_truncate, do_reserve,  do_open,
        do_open,   do_open,     do_close,    do_publish,  do_publish,  do_attach,
        do_verify, do_dispatch, do_dispatch, do_dispatch, do_dispatch, do_trim};

    m->s = &m->sides[below(m, CLIENTS)];
    operations[below(m, sizeof(operations) / sizeof(operations[0]))](m);
}

/* ---- a run ---- */

static struct kvt_daemon daemon_;

static void begin(struct model *m, uint64_t quota_bytes, uint64_t seed)
{
    struct kvmem_connect_options connect = {.size = sizeof(connect),
                                            .socket_path = daemon_.socket_path};
    struct kvmem_space_options options = kvt_region_space("regions");

    options.quota_bytes = quota_bytes;
    options.seq_limit = SEQS;
    options.low_water_blocks = 8;
    options.refill_blocks = 12;
    options.groups[0].layer_count *= TOKEN_BYTES / KVT_REGION_TOKEN_BYTES;
    memset(m, 0, sizeof(*m));
    m->random = seed;
    for (uint32_t i = 0; i < CLIENTS; i++) {
        struct side *s = &m->sides[i];

        connect.flags = i ? KVMEM_CLIENT_HELPER : 0;
        cr_assert_eq(kvmem_client_connect(&connect, &s->client), 0, "%s",
                     kvmem_error_detail()->text);
        cr_assert_eq(kvmem_space_open(s->client, &options, &s->space), 0, "%s",
                     kvmem_error_detail()->text);
        s->base = kvmem_space_base(s->space, 0, 0);
        s->write_base = kvmem_space_write_base(s->space, 0, 0);
    }
}

static void check(const struct model *m, uint64_t operation)
{
    for (uint32_t i = 0; i < CLIENTS; i++)
        cr_assert_eq(kvmem_client_check(m->sides[i].client), 0, "operation %" PRIu64 ": %s",
                     operation, kvmem_error_detail()->text);
}

/* libc keeps the stack and the arena of a thread that ended for the next one. */
static void have_had_a_helper(void)
{
    struct kvmem_embed_options embed = {.size = sizeof(embed),
                                        .flags = KVMEM_CLIENT_HELPER,
                                        .device_bytes = 1 << 20,
                                        .granule_bytes = 4096};
    struct kvmem_space_options options = kvt_region_space("first");
    struct kvmem_client *client;
    struct kvmem_space *space;
    int code;

    cr_assert_eq(kvmem_client_embed(&embed, &client), 0);
    cr_assert_eq(kvmem_space_open(client, &options, &space), 0);
    do /* without a time limit the helper maps */
        code = kvmem_space_reserve(space, 8, 0);
    while (code == KVMEM_E_REFILL_PENDING);
    cr_assert_eq(code, 0);
    kvmem_client_close(client);
}

static void run(uint32_t blocks, uint64_t seed, uint32_t operations)
{
    struct model *m = malloc(sizeof(*m));
    struct kvt_self before;

    have_had_a_helper();
    before = kvt_self_count();
    printf("region model: seed %" PRIu64 ", %u blocks\n", seed, blocks);
    fflush(stdout);
    kvt_daemon_start_observed(&daemon_, "1MiB", "4KiB");
    begin(m, (uint64_t)blocks * BLOCK_TOKENS * TOKEN_BYTES, seed);
    for (uint32_t i = 0; i < operations; i++) {
        step(m);
        check(m, i);
    }
    for (uint32_t c = 0; c < CLIENTS; c++) {
        for (uint32_t i = 0; i < SEQS; i++)
            if (m->sides[c].seqs[i].is_alive)
                verify(m, &m->sides[c], &m->sides[c].seqs[i]);
        kvmem_client_close(m->sides[c].client);
    }
    printf("region model: %" PRIu64 " appends, %" PRIu64 " refused, %" PRIu64
           " beyond a limit, %" PRIu64 " attached, %" PRIu64 " remaps, %" PRIu64 " waits\n",
           m->appends, m->refusals, m->limits, m->attaches, m->remaps, m->waits);
    cr_assert(m->appends >= operations / 10 && m->refusals >= operations / 1000 && m->limits &&
              m->attaches >= operations / 1000 && m->remaps >= operations / 1000 && m->waits);
    kvt_daemon_end_observed(&daemon_);
    cr_assert(kvt_self_is(&before));
    free(m);
}

Test(region_model, two_clients, .timeout = 600)
{
    run(128, 1, OPERATIONS / 2);
}

Test(region_model, little_memory, .timeout = 600)
{
    run(48, 2, OPERATIONS / 4);
    run(72, 3, OPERATIONS / 4);
}
