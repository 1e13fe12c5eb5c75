/* SPDX-License-Identifier: Apache-2.0
 *
 * A client that works a little, goes to a phase of its life and stays there until it is killed:
 * client_victim SOCKET SPACE PHASE STREAM BLOCKS SEED, descriptor 3 = the shared phase page.
 * STREAM with its BLOCKS is what another client holds published. Says "loaded client=N raw=N"
 * (raw: its second connection, which reads nothing; 4294967295 without one) and goes to the phase
 * when it reads a line. Errors end it with status 1, so that its death is none by a signal.
 */
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "support/engine.h"
#include "support/phase.h"
#include "support/spawn.h"
#include "support/wire.h"

#define WANTED_BLOCKS 64u

static struct kvt_phase_page *page;
static struct kvt_engine engine;
static struct kvt_wire raw;
static uint32_t raw_space;
static uint64_t seed;

static void set_phase(enum kvt_phase phase)
{
    atomic_store(&page->since_ns, kvt_now_ns());
    atomic_store(&page->phase, phase);
}

static _Noreturn void stay(enum kvt_phase phase)
{
    set_phase(phase);
    for (;;)
        pause();
}

static void wait_readable(int fd)
{
    struct pollfd state = {.fd = fd, .events = POLLIN};

    if (poll(&state, 1, -1) != 1)
        kvt_die("poll");
}

/* ---- load ---- */

/* Serve some of everybody's streams; keep some, with private tails. */
static void load(void)
{
    for (int i = 0; i < 4; i++) {
        uint64_t stream = kvt_random(&seed) % 32;
        struct kvmem_seq seq;
        int rc = kvt_engine_serve(&engine, stream, 1 + (uint32_t)(kvt_random(&seed) % 6),
                                  KVT_MS(50), &seq);

        if (kvt_is_full(rc))
            continue;
        kvt_must(rc, "serve");
        if (i % 2)
            rc = kvt_engine_append(&engine, seq, stream, 5, 0);
        else
            rc = kvt_engine_free(&engine, seq);
        if (!kvt_is_full(rc))
            kvt_must(rc, "append or free");
        kvt_must(kvmem_client_dispatch(engine.client, 0), "dispatch");
    }
}

/* A second connection of this process, with the space open, that will not read. */
static void open_raw(const char *socket_path, const char *space)
{
    struct {
        struct kvi_msg_space_open message;
        struct kvi_rec_group group;
    } open;
    const struct kvi_msg_space_opened *opened;
    struct kvi_rec_group *group;

    _Static_assert(sizeof(open.message) % 8 == 0, "the tail follows without a gap");
    kvt_wire_open(&raw, socket_path, KVMEM_ROLE_LEADER, "victim-raw");
    memset(&open, 0, sizeof(open));
    kvi_wire_begin(&open.message, KVI_OP_SPACE_OPEN, 0);
    snprintf(open.message.name, sizeof(open.message.name), "%s", space);
    snprintf(open.message.domain, sizeof(open.message.domain), "default");
    open.message.layout = KVMEM_LAYOUT_PAGE_HEAD_TOKEN;
    open.message.block_tokens = KVT_BLOCK_TOKENS;
    open.message.shard_count = 1;
    open.message.group_count = 1;
    group = kvi_wire_tail(&open.message, 0);
    *group = (struct kvi_rec_group){.layer_count = 2,
                                    .kv_head_count = 2,
                                    .head_dim_k = 16,
                                    .head_dim_v = 16,
                                    .dtype_k = KVMEM_DTYPE_BF16,
                                    .dtype_v = KVMEM_DTYPE_BF16};
    opened = kvt_wire_ask(&raw, &open.message, KVI_OP_SPACE_OPENED);
    raw_space = opened->space;
}

/* ---- phases ---- */

/* Everything that is free becomes an open block; then ask for more until the answer is late. */
static _Noreturn void go_waiting(void)
{
    struct kvmem_capacity capacity = {.size = sizeof(capacity)};
    struct kvmem_seq seq;

    kvt_must(kvmem_seq_create(engine.space, &seq), "create");
    for (;;) {
        int rc;

        kvt_must(kvmem_space_capacity(engine.space, &capacity), "capacity");
        if (capacity.free_blocks)
            kvt_must(kvmem_seq_append(engine.space, seq,
                                      (uint32_t)capacity.free_blocks * KVT_BLOCK_TOKENS,
                                      kvmem_fence_none()),
                     "append");
        rc = kvmem_space_reserve(engine.space, WANTED_BLOCKS, 0);
        if (rc == KVMEM_E_REFILL_PENDING) {
            set_phase(KVT_PHASE_WAITING);
            wait_readable(kvmem_client_fd(engine.client));
            set_phase(KVT_PHASE_NONE);
        } else if (rc < 0 && !kvt_is_full(rc)) {
            kvt_must(rc, "reserve");
        }
        kvt_must(kvmem_client_dispatch(engine.client, 0), "dispatch");
    }
}

static _Noreturn void go_fds(void)
{
    struct kvi_msg_blocks_request request;

    kvi_wire_begin(&request, KVI_OP_BLOCKS_REQUEST, 0);
    request.space = raw_space;
    request.block_count = WANTED_BLOCKS;
    request.flags = KVI_REQUEST_MAY_WAIT;
    kvt_wire_send(&raw, &request);
    wait_readable(raw.link->ops->poll_fd(raw.link));
    stay(KVT_PHASE_FDS);
}

/* Blocks written; by the seed also committed; also with a publication that was not sent. */
static _Noreturn void go_append(void)
{
    static struct kvmem_name names[KVT_BLOCK_LIMIT];
    uint64_t stream = UINT64_MAX - seed;
    struct kvmem_seq seq;
    int rc;

    kvt_must(kvmem_seq_create(engine.space, &seq), "create");
    do
        rc = kvmem_space_reserve(engine.space, 12, KVT_MS(1000));
    while (kvt_is_full(rc));
    kvt_must(rc, "reserve");
    kvt_must(kvmem_seq_append(engine.space, seq, 12 * KVT_BLOCK_TOKENS - 3, kvmem_fence_none()),
             "append");
    kvt_engine_write(&engine, seq, stream, 0, 12 * KVT_BLOCK_TOKENS - 3);
    if (seed % 3 > 0)
        kvt_must(kvmem_seq_commit(engine.space, seq, 12 * KVT_BLOCK_TOKENS - 3), "commit");
    if (seed % 3 > 1) {
        kvt_engine_names(&engine, stream, 11, names);
        kvt_must(kvmem_seq_publish(engine.space, seq, 0, 11, names, kvmem_fence_none()), "publish");
    }
    stay(KVT_PHASE_APPEND);
}

static _Noreturn void go_holding(uint64_t stream, uint32_t blocks)
{
    struct kvmem_seq seq;
    int hits = kvt_must(kvt_engine_get(&engine, stream, blocks, &seq), "get");

    if (hits != (int)blocks)
        kvt_die("%d of %u blocks found that another client holds", hits, blocks);
    if (kvt_engine_wrong(&engine, seq, stream, 0, blocks * KVT_BLOCK_TOKENS))
        kvt_die("wrong bytes in another client's blocks");
    stay(KVT_PHASE_HOLDING);
}

/* By the seed asleep in one dispatch, or busy with many that have something to send. */
static _Noreturn void go_dispatch(void)
{
    int64_t wait_ns = seed % 2 ? KVT_MS(60000) : KVT_MS(1) / 10;

    for (uint64_t i = 0;; i++) {
        struct kvmem_seq seq;
        int rc;

        set_phase(KVT_PHASE_DISPATCH);
        rc = kvmem_client_dispatch(engine.client, wait_ns);
        set_phase(KVT_PHASE_NONE);
        kvt_must(rc, "dispatch");
        if (i % 8)
            continue;
        rc = kvt_engine_serve(&engine, UINT64_MAX / 2 + seed + i, 2, 0, &seq);
        if (!kvt_is_full(rc)) {
            kvt_must(rc, "serve");
            kvt_must(kvt_engine_free(&engine, seq), "free");
        }
    }
}

int main(int argc, char **argv)
{
    struct kvt_engine_options options = {.name = "victim"};
    int phase;

    if (argc != 7)
        kvt_die("usage: client_victim SOCKET SPACE PHASE STREAM BLOCKS SEED");
    options.socket_path = argv[1];
    options.space = argv[2];
    phase = atoi(argv[3]);
    seed = strtoull(argv[6], NULL, 0);
    page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED, KVT_GIFT_FD, 0);
    if (page == MAP_FAILED)
        kvt_die("mmap of the phase page");
    kvt_must(kvt_engine_open(&engine, &options), "open");
    raw.client = UINT32_MAX;
    if (phase == KVT_PHASE_FDS)
        open_raw(argv[1], argv[2]);
    load();
    printf("loaded client=%u raw=%u\n", engine.number, raw.client);
    fflush(stdout);
    if (getchar() == EOF)
        return 1;
    switch (phase) {
    case KVT_PHASE_WAITING: go_waiting();
    case KVT_PHASE_FDS: go_fds();
    case KVT_PHASE_APPEND: go_append();
    case KVT_PHASE_HOLDING: go_holding(strtoull(argv[4], NULL, 0), (uint32_t)atoi(argv[5]));
    case KVT_PHASE_DISPATCH: go_dispatch();
    default: kvt_die("no phase %d", phase);
    }
}
