/* SPDX-License-Identifier: Apache-2.0
 *
 * Entries shared between processes: found and read by others, written by nobody, alive after
 * their owner, adopted with what is in them, never evicted while somebody holds them.
 *
 * The pool has 1,024 blocks in 64 segments of 16, unless a test says otherwise. The test process
 * is a client itself (the reader); owners and takers are helper processes.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <kvmem.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/daemon.h"
#include "support/engine.h"
#include "support/shell.h"

#define POOL_BLOCKS    1024u
#define SEGMENT_BLOCKS 16u
#define TIME_LIMIT     (KVT_SLOWDOWN * 60)

static struct kvt_daemon daemon_;
static struct kvt_engine reader;
static struct kvt_self before;

static void open_scene(const char *device_bytes)
{
    struct kvt_engine_options options = {.socket_path = daemon_.socket_path, .name = "reader"};

    before = kvt_self_count();
    kvt_daemon_start_observed(&daemon_, device_bytes, "4KiB");
    kvt_must(kvt_engine_open(&reader, &options), "open");
}

static void close_scene(void)
{
    cr_assert_eq(kvmem_client_check(reader.client), 0, "%s", kvmem_error_detail()->text);
    kvt_engine_close(&reader);
    kvt_daemon_end_observed(&daemon_);
    cr_assert(kvt_self_is(&before));
}

static struct kvi_msg_stats_reply daemon_stats(void)
{
    struct kvi_msg_stats_reply stats;

    kvt_wire_stats(daemon_.wire, &stats);
    return stats;
}

static int peek(uint64_t stream, uint32_t blocks)
{
    struct kvmem_name names[64];

    kvt_engine_names(&reader, stream, blocks, names);
    return kvt_must(kvmem_prefix_peek(reader.space, blocks, names), "peek");
}

static uint64_t wrong_tokens(struct kvmem_seq seq, uint64_t stream, uint32_t blocks)
{
    return kvt_engine_wrong(&reader, seq, stream, 0, (uint64_t)blocks * KVT_BLOCK_TOKENS);
}

static struct kvmem_seq attached(uint64_t stream, uint32_t blocks)
{
    struct kvmem_seq seq;

    cr_assert_eq(kvt_must(kvt_engine_get(&reader, stream, blocks, &seq), "get"), (int)blocks,
                 "stream %" PRIu64, stream);
    return seq;
}

static void let_go(struct kvmem_seq seq)
{
    kvt_must(kvt_engine_free(&reader, seq), "free");
    kvt_must(kvmem_client_dispatch(reader.client, 0), "dispatch");
}

static void expect_clean(void)
{
    cr_assert(kvt_wire_is_clean(daemon_.wire));
    cr_assert_eq(daemon_stats().leaked_blocks, 0);
}

/* ---- readers ---- */

Test(ipc_sharing, another_process_finds_and_reads_what_was_published, .timeout = TIME_LIMIT)
{
    struct kvt_process owner;
    struct kvmem_seq seq;
    const int32_t *table;

    open_scene("4MiB");
    kvt_shell_start(&owner, &daemon_, "owner", "shared");
    kvt_shell(&owner, "ok", "put 1 40");
    cr_assert_eq(peek(1, 48), 40, "a peek tells the run that is there");
    cr_assert_eq(peek(2, 4), 0);
    seq = attached(1, 40);
    cr_assert_eq(wrong_tokens(seq, 1, 40), 0);
    kvt_must(kvmem_table_view(reader.space, 0, seq, &table), "table_view");
    for (int i = 0; i < 40; i++)
        cr_assert_str_eq(kvt_rights_at(kvt_block_address(&reader, table[i])), "r--s",
                         "block %d is mapped %s", i,
                         kvt_rights_at(kvt_block_address(&reader, table[i])));
    cr_assert_geq(daemon_stats().foreign_hit_blocks, 40);
    expect_clean();
    let_go(seq);
    kvt_shell_end(&owner);
    close_scene();
}

static void stray_dies(const char *stream, const char *blocks, const char *byte, const char *where)
{
    struct kvt_spawn_options options = {
        .program = "tests/helpers/client_stray",
        .arguments = {daemon_.socket_path, "shared", stream, blocks, byte, where}};
    struct kvt_process stray;
    char line[KVT_LINE_BYTES];
    int status;

    kvt_spawn(&stray, &options);
    cr_assert_eq(kvt_hear(&stray, line, KVT_ANSWER_LIMIT), 1);
    cr_assert_eq(kvt_answer_number(line, "hits"), strtoull(blocks, NULL, 10));
    cr_assert_eq(kvt_answer_number(line, "wrong"), 0);
    kvt_tell(&stray, "write");
    status = kvt_reap(&stray, KVT_ANSWER_LIMIT);
    cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "byte %s, %s: wait status 0x%x",
              byte, where, status);
}

Test(ipc_sharing, a_stray_write_kills_the_writer_alone, .timeout = TIME_LIMIT)
{
    static const char *const bytes[] = {"0", "1", "2048", "4095"};
    struct kvt_process owner;
    struct kvmem_seq seq;

    open_scene("4MiB");
    kvt_shell_start(&owner, &daemon_, "owner", "shared");
    kvt_shell(&owner, "ok", "put 1 8");
    kvt_shell(&owner, "ok", "put 2 64"); /* whole segments: handed in, written by nobody */
    seq = attached(1, 8);
    for (size_t i = 0; i < sizeof(bytes) / sizeof(bytes[0]); i++) {
        stray_dies("1", "8", bytes[i], "shared");
        stray_dies("2", "64", bytes[i], "shared");
        stray_dies("2", "64", bytes[i], "alias");
        stray_dies("2", "64", bytes[i], "own");
        cr_assert_eq(wrong_tokens(seq, 1, 8), 0);
        cr_assert_eq(kvt_answer_number(kvt_shell(&owner, "ok", "verify 1"), "wrong"), 0);
        cr_assert_eq(kvt_answer_number(kvt_shell(&owner, "ok", "verify 2"), "wrong"), 0);
        expect_clean();
    }
    kvt_shell(&owner, "ok", "put 3 8"); /* the owner goes on */
    kvt_shell(&owner, "ok", "check");
    cr_assert_eq(wrong_tokens(attached(3, 8), 3, 8), 0);
    kvt_shell_end(&owner);
    close_scene();
}

Test(ipc_sharing, one_name_has_one_block, .timeout = TIME_LIMIT)
{
    struct kvt_process owner;
    struct kvt_published published;
    struct kvmem_seq seq;

    open_scene("4MiB");
    kvt_shell_start(&owner, &daemon_, "owner", "shared");
    kvt_shell(&owner, "ok", "put 1 8");
    kvt_must(kvmem_seq_create(reader.space, &seq), "create");
    kvt_must(kvt_engine_append(&reader, seq, 1, 10 * KVT_BLOCK_TOKENS, KVT_MS(1000)), "append");
    kvt_must(kvt_engine_publish(&reader, seq, 1, 0, 10, &published), "publish");
    cr_assert_eq(published.by_state[KVMEM_PUBLISH_EXISTS], 8);
    cr_assert_eq(published.by_state[KVMEM_PUBLISHED], 2);
    cr_assert_eq(wrong_tokens(seq, 1, 10), 0);
    kvt_shell(&owner, "ok", "get 1 10");
    let_go(seq);
    expect_clean();
    kvt_shell_end(&owner);
    close_scene();
}

/* ---- forks ---- */

#define FORK_TOKENS 40u /* two and a half blocks */
#define CHILDREN    16u

static struct kvmem_seq_info info_of(struct kvmem_seq seq)
{
    struct kvmem_seq_info info = {.size = sizeof(info)};

    kvt_must(kvmem_seq_info(reader.space, seq, &info), "seq_info");
    return info;
}

static uint64_t used_blocks(void)
{
    struct kvmem_capacity capacity = {.size = sizeof(capacity)};

    kvt_must(kvmem_space_capacity(reader.space, &capacity), "capacity");
    return capacity.used_blocks;
}

static uint64_t tail_copies(void)
{
    struct kvmem_space_stats stats = {.size = sizeof(stats)};

    kvt_must(kvmem_space_stats(reader.space, &stats), "space_stats");
    return stats.tail_copies;
}

/* Child `i` writes tokens of its own behind the shared ones. */
static void grow(struct kvmem_seq seq, uint64_t stream, uint32_t tokens)
{
    struct kvmem_seq_info info = info_of(seq);

    kvt_must(kvmem_seq_append(reader.space, seq, tokens, kvmem_fence_none()), "append");
    kvt_engine_write(&reader, seq, stream, info.appended_tokens, tokens);
    kvt_must(kvmem_seq_commit(reader.space, seq, tokens), "commit");
}

static void fork_tails(struct kvmem_seq parent)
{
    struct kvmem_seq children[CHILDREN];

    kvt_must(kvmem_seqs_fork(reader.space, parent, CHILDREN, children), "fork");
    cr_assert_eq(info_of(parent).shared_blocks, 3);
    cr_assert_eq(used_blocks(), 3, "a fork shares every block");
    for (uint32_t i = 0; i < CHILDREN; i++) {
        grow(children[i], 100 + i, 1 + i);
        cr_assert_eq(tail_copies(), i + 1);
        cr_assert_eq(info_of(children[i]).shared_blocks, 2);
    }
    grow(parent, 99, 3); /* its tail is its own by now: no copy */
    cr_assert_eq(tail_copies(), CHILDREN);
    cr_assert_eq(kvt_engine_wrong(&reader, parent, 7, 0, FORK_TOKENS), 0);
    cr_assert_eq(kvt_engine_wrong(&reader, parent, 99, FORK_TOKENS, 3), 0);
    for (uint32_t i = 0; i < CHILDREN; i++) {
        cr_assert_eq(kvt_engine_wrong(&reader, children[i], 7, 0, FORK_TOKENS), 0);
        cr_assert_eq(kvt_engine_wrong(&reader, children[i], 100 + i, FORK_TOKENS, 1 + i), 0);
    }
    kvt_must(kvmem_client_check(reader.client), "client_check");
    kvt_must(kvmem_seqs_free(reader.space, CHILDREN, children, kvmem_fence_none()), "free");
    cr_assert_eq(used_blocks(), 3);
}

Test(ipc_sharing, a_forks_tail_is_copied_before_its_first_write, .timeout = TIME_LIMIT)
{
    struct kvmem_seq parent;

    open_scene("4MiB");
    kvt_must(kvmem_space_reserve(reader.space, 64, KVT_MS(1000)), "reserve");
    kvt_must(kvmem_seq_create(reader.space, &parent), "create");
    kvt_must(kvt_engine_append(&reader, parent, 7, FORK_TOKENS, 0), "append");
    cr_assert_eq(info_of(parent).shared_blocks, 0);
    fork_tails(parent);
    cr_assert_eq(kvt_engine_wrong(&reader, parent, 7, 0, FORK_TOKENS), 0);
    let_go(parent);
    cr_assert_eq(used_blocks(), 0);
    expect_clean();
    close_scene();
}

/* A fork of attached entries appends into blocks of its own; the entries stay as they are. */
Test(ipc_sharing, a_fork_of_attached_blocks_leaves_them_alone, .timeout = TIME_LIMIT)
{
    struct kvt_process owner;
    struct kvmem_seq seq, fork;

    open_scene("4MiB");
    kvt_shell_start(&owner, &daemon_, "owner", "shared");
    kvt_shell(&owner, "ok", "put 1 4");
    kvt_must(kvmem_space_reserve(reader.space, 8, KVT_MS(1000)), "reserve");
    seq = attached(1, 4);
    kvt_must(kvmem_seq_fork(reader.space, seq, &fork), "fork");
    kvt_must(kvmem_seq_truncate(reader.space, fork, 50, kvmem_fence_none()), "truncate");
    grow(fork, 2, 20); /* into the middle of a foreign, read-only block: a copy of it */
    cr_assert_eq(kvt_engine_wrong(&reader, fork, 1, 0, 50), 0);
    cr_assert_eq(kvt_engine_wrong(&reader, fork, 2, 50, 20), 0);
    cr_assert_eq(wrong_tokens(seq, 1, 4), 0);
    cr_assert_eq(kvt_answer_number(kvt_shell(&owner, "ok", "verify 1"), "wrong"), 0);
    let_go(fork);
    let_go(seq);
    expect_clean();
    kvt_shell_end(&owner);
    close_scene();
}

/* ---- after the owner ---- */

#define STREAMS       (POOL_BLOCKS / 8 - 2) /* of 8 blocks; with the owner's open ones: the pool */
#define LEASE_EVERY   8u
#define HELD_STREAMS  ((STREAMS + LEASE_EVERY - 1) / LEASE_EVERY)
#define STREAM_BLOCKS 8u

/* All of the pool is entries and a segment of open blocks, of an owner that is gone afterwards. */
static void leave_entries(int is_killed)
{
    struct kvt_process owner;

    kvt_shell_start(&owner, &daemon_, "owner", "shared");
    for (uint32_t i = 0; i < STREAMS; i++)
        kvt_shell(&owner, "ok", "put %u %u", i, STREAM_BLOCKS);
    kvt_shell(&owner, "ok", "open 5000 %u", SEGMENT_BLOCKS);
    if (is_killed) {
        kvt_kill(&owner);
        kvt_reap(&owner, KVT_ANSWER_LIMIT);
    } else {
        kvt_shell_end(&owner);
    }
}

static int reader_alone(const struct kvi_msg_stats_reply *stats)
{
    return stats->client_count == 2;
}

/* Streams with entries left, in whole or in part; those that are held must be whole. */
static uint32_t entries_left(uint32_t *partly)
{
    uint32_t left = 0;

    *partly = 0;
    for (uint32_t i = 0; i < STREAMS; i++) {
        int hits = peek(i, STREAM_BLOCKS);

        cr_assert(i % LEASE_EVERY || hits == (int)STREAM_BLOCKS, "stream %u is held, %d hits", i,
                  hits);
        left += hits > 0;
        *partly += hits > 0 && hits < (int)STREAM_BLOCKS;
    }
    return left;
}

static uint64_t wrong_in_held(const struct kvmem_seq *held)
{
    uint64_t wrong = 0;

    for (uint32_t i = 0; i < HELD_STREAMS; i++)
        wrong += wrong_tokens(held[i], i * LEASE_EVERY, STREAM_BLOCKS);
    return wrong;
}

/* The taker fills all there is with bytes of its own, and what the reader holds is watched. The
 * reader does not dispatch meanwhile: it would ask for some of the pool itself. */
static uint64_t take_all_under_watch(struct kvt_process *taker, const struct kvmem_seq *held)
{
    char line[KVT_LINE_BYTES] = "ok ";
    uint64_t taken = 0, walks = 0;
    int heard;

    while (strncmp(line, "ok ", 3) == 0) {
        kvt_tell(taker, "open %" PRIu64 " %u", 6000 + taken, SEGMENT_BLOCKS);
        while ((heard = kvt_hear(taker, line, 0)) < 0) {
            cr_assert_eq(wrong_in_held(held), 0);
            walks++;
        }
        cr_assert_eq(heard, 1);
        taken += strncmp(line, "ok ", 3) == 0 ? SEGMENT_BLOCKS : 0;
    }
    cr_assert_eq(strncmp(line, "error OUT_OF_BLOCKS ", 20), 0, "%s", line);
    for (uint64_t i = 0; i < taken; i += SEGMENT_BLOCKS)
        cr_assert_eq(
            kvt_answer_number(kvt_shell(taker, "ok", "verify %" PRIu64, 6000 + i), "wrong"), 0);
    printf("%" PRIu64 " blocks taken, %" PRIu64 " walks over what is held meanwhile\n", taken,
           walks);
    return taken;
}

/* A few blocks more than are free: entries go one by one, their segments stay with the others. */
static void take_some(struct kvt_process *taker)
{
    struct kvi_msg_stats_reply one = daemon_stats(), two;
    uint32_t left, partly;

    kvt_shell(taker, "ok", "reserve %u 2000", SEGMENT_BLOCKS + 5);
    two = daemon_stats();
    left = entries_left(&partly);
    printf("5 blocks more than are free: %" PRIu64 " entries evicted, %" PRIu64
           " segments adopted; "
           "%u of %u streams are left, %u of them in part\n",
           two.evicted_blocks - one.evicted_blocks, two.adopted_segments - one.adopted_segments,
           left, STREAMS, partly);
    cr_assert_geq(two.adopted_segments, 1);
    cr_assert_geq(two.evicted_blocks - one.evicted_blocks, 5);
    cr_assert_leq(two.evicted_blocks - one.evicted_blocks, 2 * SEGMENT_BLOCKS);
}

static void take_the_rest(struct kvt_process *taker, const struct kvmem_seq *held)
{
    uint32_t held_blocks = HELD_STREAMS * STREAM_BLOCKS, partly;
    uint64_t got = take_all_under_watch(taker, held);
    struct kvi_msg_stats_reply stats = daemon_stats();

    cr_assert_leq(got, POOL_BLOCKS - held_blocks);
    cr_assert_gt(got + SEGMENT_BLOCKS, POOL_BLOCKS - held_blocks, "%" PRIu64 " blocks", got);
    entries_left(&partly);
    cr_assert_eq(wrong_in_held(held), 0);
    cr_assert_eq(stats.leased_blocks, held_blocks);
    cr_assert_geq(stats.adopted_segments, HELD_STREAMS, "with entries in place");
    expect_clean();
}

static void adopt_from_dead_owner(int is_killed)
{
    struct kvmem_seq held[HELD_STREAMS];
    struct kvi_msg_stats_reply stats;
    struct kvt_process taker;

    open_scene("4MiB");
    leave_entries(is_killed);
    kvt_wire_wait(daemon_.wire, reader_alone, "the owner's end", KVT_ANSWER_LIMIT);
    stats = daemon_stats();
    cr_assert_eq(stats.entry_blocks, STREAMS * STREAM_BLOCKS);
    cr_assert_eq(stats.owned_segments, 0);
    cr_assert_eq(stats.idle_blocks, stats.total_blocks - stats.entry_blocks, "open ones are free");
    cr_assert_eq(stats.orphaned_segments > 0, is_killed);
    for (uint32_t i = 0; i < HELD_STREAMS; i++)
        held[i] = attached(i * LEASE_EVERY, STREAM_BLOCKS);
    cr_assert_eq(wrong_in_held(held), 0);
    kvt_shell_start(&taker, &daemon_, "taker", "shared");
    take_some(&taker);
    take_the_rest(&taker, held);
    for (uint32_t i = 0; i < HELD_STREAMS; i++)
        let_go(held[i]);
    kvt_shell_end(&taker);
    close_scene();
}

Test(ipc_sharing, entries_of_an_owner_that_left_are_found_and_adopted, .timeout = TIME_LIMIT)
{
    adopt_from_dead_owner(0);
}

Test(ipc_sharing, entries_of_an_owner_that_was_killed_are_found_and_adopted, .timeout = TIME_LIMIT)
{
    adopt_from_dead_owner(1);
}

/* ---- leases ---- */

#define GRANTS      10000u
#define HELD_BLOCKS 64u /* of 256 in the pool of 1 MiB */

static void start_churn(struct kvt_process *churn, uint64_t *random)
{
    char seed[24];
    struct kvt_spawn_options options = {
        .program = "tests/helpers/client_load",
        .arguments = {daemon_.socket_path, "shared", "300", "4", "6", seed, "1"}};
    char line[KVT_LINE_BYTES];

    snprintf(seed, sizeof(seed), "%" PRIu64, kvt_random(random));
    kvt_spawn(churn, &options);
    cr_assert_eq(kvt_hear(churn, line, KVT_ANSWER_LIMIT), 1);
}

static void end_churn(struct kvt_process *churn)
{
    char line[KVT_LINE_BYTES];
    int status;

    cr_assert_eq(kvt_answer_number(kvt_ask(churn, line, "%s", "?"), "wrong"), 0);
    printf("churn: %s\n", line);
    kvt_hang_up(churn);
    status = kvt_reap(churn, KVT_ANSWER_LIMIT);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "wait status 0x%x", status);
}

Test(ipc_sharing, what_is_leased_is_never_evicted, .timeout = 2 * TIME_LIMIT)
{
    uint64_t random = kvt_seed("ipc_sharing");
    const uint64_t stream = 1000000;
    struct kvt_process owner, churn[2];
    struct kvi_msg_stats_reply first, stats;
    struct kvmem_seq seq;
    uint64_t walks = 0;

    open_scene("1MiB");
    kvt_shell_start(&owner, &daemon_, "owner", "shared");
    kvt_shell(&owner, "ok", "put %" PRIu64 " %u", stream, HELD_BLOCKS);
    seq = attached(stream, HELD_BLOCKS);
    kvt_kill(&owner);
    kvt_reap(&owner, KVT_ANSWER_LIMIT);
    first = daemon_stats();
    for (int i = 0; i < 2; i++)
        start_churn(&churn[i], &random);
    do {
        cr_assert_eq(wrong_tokens(seq, stream, HELD_BLOCKS), 0);
        cr_assert_eq(peek(stream, HELD_BLOCKS), (int)HELD_BLOCKS);
        kvt_must(kvmem_client_dispatch(reader.client, 0), "dispatch");
        walks++;
        kvt_sleep_ns(KVT_MS(5));
        stats = daemon_stats();
    } while (stats.grants - first.grants < GRANTS);
    printf("%" PRIu64 " grants, %" PRIu64 " evictions, %" PRIu64 " adoptions; %" PRIu64
           " walks over what is held\n",
           stats.grants, stats.evicted_blocks, stats.adopted_segments, walks);
    cr_assert_gt(stats.evicted_blocks, GRANTS / 2);
    for (int i = 0; i < 2; i++)
        end_churn(&churn[i]);
    cr_assert_eq(wrong_tokens(seq, stream, HELD_BLOCKS), 0);
    expect_clean();
    let_go(seq);
    close_scene();
}
