/* SPDX-License-Identifier: Apache-2.0
 *
 * Tables on the device against kvmem_table_padded: random appends, forks, frees, truncates,
 * publications and attaches on a small pool, random changes of the batch, and after each an
 * update; then every cell and length must be what the naive table says, and rows beyond the batch
 * must be empty. On the host device, and on the fake CUDA device with a stream that is held back
 * now and then: there updates pile up until one is BUSY, which must change nothing.
 *
 * The seed is printed; KVMEM_SEED repeats one.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <kvmem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client/device_table.h"
#include "client/seq.h"
#include "support/cuda_fake.h"
#include "support/random.h"
#include "support/scripted.h"

#define SEQS   24u
#define ROWS   12u
#define BLOCKS 20u
#define TAGS   6u
#define NAMES  8u

#ifdef KVI_SANITIZE
#define OPERATIONS 30000u
#else
#define OPERATIONS 120000u
#endif

struct model {
    struct kvmem_client *client;
    struct kvmem_space *space;
    struct kvmem_device_table *table;
    uint64_t random;

    struct kvmem_seq seqs[SEQS];
    uint32_t live;
    struct kvmem_seq batch[ROWS];
    uint32_t rows;

    /* What the device must hold once it has caught up. */
    int32_t tables[ROWS][BLOCKS];
    int32_t lengths[ROWS];

    /* A stream that waits, on CUDA. */
    struct kvi_backend *cuda;
    kvi_cu_stream stream;
    uint64_t *counter;
    uint64_t held; /* the counter's value that lets it go; 0: it runs */

    uint64_t updates;
    uint64_t busy;
    uint64_t hits;
    uint64_t copies;
};

static uint32_t below(struct model *m, uint32_t limit)
{
    return (uint32_t)(kvt_random(&m->random) >> 16) % limit;
}

/* ---- operations on sequences ---- */

/* 0, or a code that a small pool gives; it is emptied of a sequence then. */
static bool worked(int code)
{
    cr_assert(code >= 0 || code == KVMEM_E_OUT_OF_BLOCKS || code == KVMEM_E_REFILL_PENDING, "%s",
              kvmem_error_detail()->text);
    return code >= 0;
}

static bool in_batch(const struct model *m, struct kvmem_seq seq)
{
    for (uint32_t i = 0; i < m->rows; i++)
        if (m->batch[i].index == seq.index && m->batch[i].generation == seq.generation)
            return true;
    return false;
}

static void leave_batch(struct model *m, struct kvmem_seq seq)
{
    for (uint32_t i = m->rows; i-- > 0;)
        if (m->batch[i].index == seq.index && m->batch[i].generation == seq.generation)
            memmove(&m->batch[i], &m->batch[i + 1], (--m->rows - i) * sizeof(seq));
}

static void seq_end(struct model *m, uint32_t at)
{
    leave_batch(m, m->seqs[at]);
    cr_assert(kvmem_seq_free(m->space, m->seqs[at], kvmem_fence_none()) == 0);
    m->seqs[at] = m->seqs[--m->live];
}

static uint32_t tokens_of(const struct model *m, struct kvmem_seq seq)
{
    struct kvmem_seq_info info = {.size = sizeof(info)};

    cr_assert(kvmem_seq_info(m->space, seq, &info) == 0);
    return (uint32_t)info.appended_tokens;
}

static void step_append(struct model *m)
{
    uint32_t counts[ROWS];

    for (uint32_t i = 0; i < m->rows; i++)
        counts[i] = tokens_of(m, m->batch[i]) > 4 * BLOCKS - 8 ? 0 : below(m, 3);
    if (!worked(kvmem_seqs_append(m->space, m->rows, m->batch, counts, kvmem_fence_none())) &&
        m->live > 0)
        seq_end(m, below(m, m->live));
}

static void step_create(struct model *m)
{
    uint32_t tokens = below(m, 30);

    if (m->live == SEQS)
        seq_end(m, below(m, m->live));
    cr_assert(kvmem_seq_create(m->space, &m->seqs[m->live++]) == 0);
    if (!worked(kvmem_seq_append(m->space, m->seqs[m->live - 1], tokens, kvmem_fence_none())))
        seq_end(m, m->live - 1);
}

static void step_fork(struct model *m)
{
    struct kvmem_seq parent;

    if (m->live == 0)
        return;
    parent = m->seqs[below(m, m->live)];
    if (m->live == SEQS)
        return;
    cr_assert(kvmem_seq_fork(m->space, parent, &m->seqs[m->live]) == 0);
    m->live++;
}

static void step_truncate(struct model *m)
{
    struct kvmem_seq seq;

    if (m->live == 0)
        return;
    seq = m->seqs[below(m, m->live)];
    cr_assert(kvmem_seq_truncate(m->space, seq, below(m, tokens_of(m, seq) + 1),
                                 kvmem_fence_none()) == 0);
    (void)worked(kvmem_seq_append(m->space, seq, below(m, 6), kvmem_fence_none()));
}

/* Names of a conversation that several sequences may have. */
static void names_of(uint32_t tag, struct kvmem_name *names)
{
    memset(names, 0, NAMES * sizeof(*names));
    for (uint32_t i = 0; i < NAMES; i++) {
        names[i].bytes[0] = (uint8_t)(tag + 1);
        names[i].bytes[1] = (uint8_t)i;
    }
}

static void step_publish(struct model *m)
{
    struct kvmem_publish_result results[64];
    struct kvmem_name names[NAMES];
    struct kvmem_seq_info info = {.size = sizeof(info)};
    struct kvmem_seq seq;
    uint32_t full;

    if (m->live == 0)
        return;
    seq = m->seqs[below(m, m->live)];
    names_of(below(m, TAGS), names);
    cr_assert(kvmem_seq_info(m->space, seq, &info) == 0);
    cr_assert(kvmem_seq_commit(m->space, seq,
                               (uint32_t)(info.appended_tokens - info.committed_tokens)) == 0);
    full = (uint32_t)info.appended_tokens / 4;
    cr_assert(kvmem_seq_publish(m->space, seq, 0, full < NAMES ? full : NAMES, names,
                                kvmem_fence_none()) == 0);
    cr_assert(kvmem_client_dispatch(m->client, 0) >= 0);
    while (kvmem_publish_results(m->space, 64, results) > 0)
        continue;
}

static void step_attach(struct model *m)
{
    struct kvmem_name names[NAMES];
    int32_t blocks[NAMES];
    int hits;

    if (m->live == SEQS)
        return;
    names_of(below(m, TAGS), names);
    hits = kvmem_prefix_lookup(m->space, NAMES, names, blocks, NULL);
    cr_assert(hits >= 0);
    cr_assert(kvmem_seq_create(m->space, &m->seqs[m->live++]) == 0);
    cr_assert(kvmem_seq_attach(m->space, m->seqs[m->live - 1], (uint32_t)hits, blocks) == 0);
    m->hits += (uint64_t)hits;
}

/* ---- the batch ---- */

static void step_batch(struct model *m)
{
    struct kvmem_seq seq;
    uint32_t at;

    switch (below(m, 6)) {
    case 0:
    case 1:
    case 2: /* one more */
        if (m->rows == ROWS || m->live == 0)
            return;
        seq = m->seqs[below(m, m->live)];
        if (!in_batch(m, seq))
            m->batch[m->rows++] = seq;
        return;
    case 3: /* one less, the last takes its row */
        if (m->rows > 0) {
            at = below(m, m->rows);
            m->batch[at] = m->batch[--m->rows];
        }
        return;
    case 4: /* two change places */
        if (m->rows > 1) {
            at = below(m, m->rows - 1);
            seq = m->batch[at];
            m->batch[at] = m->batch[at + 1];
            m->batch[at + 1] = seq;
        }
        return;
    default: /* nobody, rarely */
        if (below(m, 50) == 0)
            m->rows = 0;
        return;
    }
}

/* ---- the table ---- */

static void device_check(const struct model *m)
{
    struct kvmem_device_table_info info = {.size = sizeof(info)};

    cr_assert(kvmem_device_table_info(m->table, &info) == 0);
    for (uint32_t i = 0; i < ROWS; i++) {
        cr_assert(info.lengths[i] == m->lengths[i],
                  "update %" PRIu64 ": row %u has length %d, not %d", m->updates, i,
                  info.lengths[i], m->lengths[i]);
        for (uint32_t j = 0; j < BLOCKS; j++)
            cr_assert(info.tables[i * BLOCKS + j] == m->tables[i][j],
                      "update %" PRIu64 ": cell %u of row %u is %d, not %d", m->updates, j, i,
                      info.tables[i * BLOCKS + j], m->tables[i][j]);
    }
}

static void naive_update(struct model *m)
{
    memset(m->tables, 0xff, sizeof(m->tables));
    memset(m->lengths, 0, sizeof(m->lengths));
    cr_assert(
        kvmem_table_padded(m->space, 0, m->rows, m->batch, BLOCKS, m->tables[0], m->lengths) == 0);
    m->updates++;
}

static void stream_release(struct model *m)
{
    struct kvi_backend_memory memory;

    if (m->held == 0)
        return;
    __atomic_store_n(m->counter, m->held, __ATOMIC_RELEASE);
    m->held = 0;
    cr_assert(kvi_backend_memory(m->cuda, &memory) == 0); /* the fake looks at its queue */
    device_check(m);
}

static void stream_hold(struct model *m)
{
    m->held = *m->counter + 1;
    cr_assert(kvi_backend_fence_wait(m->cuda, m->counter, m->held, (uintptr_t)m->stream) ==
              KVI_FENCE_REACHED);
}

static void step_update(struct model *m)
{
    int code = kvmem_device_table_update(m->table, m->rows, m->batch, m->stream);

    if (code == KVMEM_E_BUSY) {
        cr_assert(m->held != 0);
        m->busy++;
        stream_release(m); /* what was sent arrives, and nothing of this one */
        code = kvmem_device_table_update(m->table, m->rows, m->batch, m->stream);
    }
    cr_assert(code >= 0, "%s", kvmem_error_detail()->text);
    naive_update(m);
    if (m->held == 0)
        device_check(m);
}

static void model_step(struct model *m)
{
    switch (below(m, 12)) {
    case 0: step_create(m); break;
    case 1: step_fork(m); break;
    case 2: step_truncate(m); break;
    case 3: step_publish(m); break;
    case 4: step_attach(m); break;
    case 5:
        if (m->live > 0)
            seq_end(m, below(m, m->live));
        break;
    case 6:
    case 7: step_batch(m); break;
    default: step_append(m); break;
    }
    if (m->cuda != NULL && below(m, 8) == 0) {
        if (m->held == 0)
            stream_hold(m);
        else if (below(m, 3) == 0)
            stream_release(m);
    }
    step_update(m);
}

/* ---- life ---- */

static uint64_t seed_of(void)
{
    const char *given = getenv("KVMEM_SEED");
    uint64_t seed = given ? strtoull(given, NULL, 0) : 20261125;

    fprintf(stderr, "device table model: KVMEM_SEED=%" PRIu64 "\n", seed);
    return seed;
}

static void model_open(struct model *m, struct kvi_backend *backend)
{
    struct kvmem_embed_options embed = {
        .size = sizeof(embed), .device_bytes = 256u << 10, .granule_bytes = 4096};
    struct kvmem_space_options options = kvt_small_space("device table");
    struct kvmem_device_table_options table = {
        .size = sizeof(table), .row_limit = ROWS, .block_limit = BLOCKS};

    m->random = seed_of();
    m->cuda = backend;
    cr_assert(kvmem_client_embed(&embed, &m->client) == 0);
    cr_assert(kvmem_space_open(m->client, &options, &m->space) == 0);
    cr_assert(kvi_device_table_create(m->space, backend ? backend : kvi_space_backend(m->space),
                                      &table, &m->table) == 0,
              "%s", kvmem_error_detail()->text);
    naive_update(m);
    device_check(m);
}

static void model_run(struct model *m, uint32_t operations)
{
    struct kvmem_space_stats stats = {.size = sizeof(stats)};
    struct kvmem_device_table_info info = {.size = sizeof(info)};

    for (uint32_t i = 0; i < operations; i++) {
        model_step(m);
        if (i % 1000 == 0)
            cr_assert(kvmem_client_check(m->client) == 0, "%s", kvmem_error_detail()->text);
    }
    stream_release(m);
    cr_assert(kvmem_space_stats(m->space, &stats) == 0);
    cr_assert(kvmem_device_table_info(m->table, &info) == 0);
    m->copies = stats.tail_copies;
    fprintf(stderr,
            "device table model: %" PRIu64 " updates, %" PRIu64 " cells, %" PRIu64 " busy, %" PRIu64
            " hits, %" PRIu64 " copies\n",
            info.updates, info.cells, m->busy, m->hits, m->copies);
    cr_assert(info.updates == operations);
    cr_assert(m->hits > operations / 100 && m->copies > operations / 100);
    cr_assert(info.cells < info.updates * ROWS * BLOCKS / 4); /* it is the changes that it writes */
}

static void model_close(struct model *m)
{
    kvmem_device_table_destroy(m->table);
    kvmem_client_close(m->client);
}

Test(device_table_model, on_the_host, .timeout = 200)
{
    struct model m = {0};

    model_open(&m, NULL);
    model_run(&m, OPERATIONS);
    model_close(&m);
}

/* ---- on the fake CUDA device ---- */

static void fail_here(const char *file, int line, const char *message)
{
    cr_assert_fail("%s:%d: %s", file, line, message);
    abort(); /* not reached */
}

static void stream_open(struct model *m)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    int (*create)(kvi_cu_stream * out, unsigned flags);

    kvt_fake_function(&create, "cuStreamCreate");
    cr_assert(create(&m->stream, 1) == 0);
    m->counter = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    cr_assert(m->counter != MAP_FAILED);
    cr_assert(kvi_backend_host_pin(m->cuda, m->counter, page) == 0);
}

static void stream_close(struct model *m)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    int (*destroy)(kvi_cu_stream stream);

    kvt_fake_function(&destroy, "cuStreamDestroy");
    cr_assert(destroy(m->stream) == 0);
    cr_assert(kvi_backend_host_unpin(m->cuda, m->counter, page) == 0);
    munmap(m->counter, page);
}

Test(device_table_model, on_a_stream_that_waits, .timeout = 200)
{
    struct model m = {0};
    struct kvi_backend *cuda = NULL;

    kvt_fake_open(fail_here);
    cr_assert(kvt_cuda_open(0, &cuda) == 0);
    model_open(&m, cuda);
    stream_open(&m);
    model_run(&m, OPERATIONS / 2);
    cr_assert(m.busy > OPERATIONS / 200);
    stream_close(&m);
    model_close(&m);
    kvi_backend_destroy(cuda);
    kvt_fake_quiet();
}
