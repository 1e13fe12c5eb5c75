/* SPDX-License-Identifier: Apache-2.0
 *
 * A prefix of one process in the regions of others: read-only there, by the hardware, and there
 * as long as somebody holds it. The test process is the owner; readers are helper processes.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <kvmem.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "support/daemon.h"
#include "support/engine.h"
#include "support/regions.h"

#define BLOCKS     6u
#define TOKENS     (BLOCKS * KVT_REGION_BLOCK_TOKENS)
#define TIME_LIMIT (KVT_SLOWDOWN * 60)

static struct kvt_daemon daemon_;
static struct kvmem_client *client;
static struct kvmem_space *space;
static struct kvmem_region *region;
static struct kvmem_seq seq;
static struct kvt_self before;

/* A published prefix of BLOCKS blocks in a sequence with a region. */
static void begin(void)
{
    struct kvmem_connect_options connect = {.size = sizeof(connect), .name = "owner"};
    struct kvmem_space_options options = kvt_region_space("regions");
    struct kvmem_publish_result results[BLOCKS];
    struct kvmem_name names[BLOCKS];
    int answered = 0;

    before = kvt_self_count();
    kvt_daemon_start_observed(&daemon_, "1MiB", "4KiB");
    connect.socket_path = daemon_.socket_path;
    kvt_must(kvmem_client_connect(&connect, &client), "connect");
    kvt_must(kvmem_space_open(client, &options, &space), "space_open");
    kvt_must(kvmem_space_reserve(space, 16, KVT_MS(5000)), "reserve");
    kvt_must(kvmem_seq_create(space, &seq), "seq_create");
    kvt_must(kvt_region_open(space, seq, 100, &region), "region_open");
    kvt_must(kvmem_seq_append(space, seq, TOKENS, kvmem_fence_none()), "append");
    for (uint32_t t = 0; t < TOKENS; t++)
        memset(kvt_region_write(region, t), (int)t + 1, KVT_REGION_TOKEN_BYTES);
    kvt_must(kvmem_seq_commit(space, seq, TOKENS), "commit");
    kvt_region_names(names, BLOCKS);
    kvt_must(kvmem_seq_publish(space, seq, 0, BLOCKS, names, kvmem_fence_none()), "publish");
    while (answered < (int)BLOCKS) {
        kvt_must(kvmem_client_dispatch(client, KVT_MS(1000)), "dispatch");
        answered += kvt_must(kvmem_publish_results(space, BLOCKS, results), "results");
    }
    kvt_must(kvmem_client_dispatch(client, 0), "dispatch");
}

static void end(void)
{
    cr_assert_eq(kvmem_client_check(client), 0, "%s", kvmem_error_detail()->text);
    kvmem_client_close(client);
    kvt_daemon_end_observed(&daemon_);
    cr_assert(kvt_self_is(&before));
}

static void start_reader(struct kvt_process *reader)
{
    struct kvt_spawn_options options = {.program = "tests/helpers/client_region",
                                        .arguments = {daemon_.socket_path, "6"}};
    char line[KVT_LINE_BYTES];

    kvt_spawn(reader, &options);
    cr_assert_eq(kvt_hear(reader, line, KVT_ANSWER_LIMIT), 1);
    cr_assert_eq(kvt_answer_number(line, "hits"), BLOCKS);
    cr_assert_eq(kvt_answer_number(line, "wrong"), 0);
    cr_assert_eq(kvt_answer_number(line, "tail"), 1);
}

static void end_reader(struct kvt_process *reader)
{
    char line[KVT_LINE_BYTES];

    cr_assert_eq(kvt_answer_number(kvt_ask(reader, line, "check"), "wrong"), 0);
    kvt_tell(reader, "end");
    cr_assert_eq(kvt_reap(reader, KVT_ANSWER_LIMIT), 0);
}

Test(ipc_region, a_stray_write_through_a_view_kills_the_writer_alone, .timeout = TIME_LIMIT)
{
    /* by the read address also of what is its own; shared ones have nothing at the write address */
    static const char *const strays[] = {"stray 0",     "stray 5",     "stray 23",    "stray 24",
                                         "overwrite 0", "overwrite 5", "overwrite 23"};
    struct kvt_process reader, stray;

    begin();
    start_reader(&reader);
    for (uint32_t i = 0; i < sizeof(strays) / sizeof(strays[0]); i++) {
        int status;

        start_reader(&stray);
        kvt_tell(&stray, "%s", strays[i]);
        status = kvt_reap(&stray, KVT_ANSWER_LIMIT);
        cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "%s: wait status 0x%x",
                  strays[i], status);
    }
    for (uint32_t i = 0; i < TOKENS * KVT_REGION_TOKEN_BYTES; i++)
        cr_assert_eq(kvt_region_token(region, 0)[i], (char)(i / KVT_REGION_TOKEN_BYTES + 1));
    end_reader(&reader);
    end();
}

/* What the owner handed in it cannot write any more, in its view or at the block's own address. */
Test(ipc_region, the_owner_reads_what_it_handed_in, .timeout = TIME_LIMIT)
{
    struct kvt_process reader;

    begin();
    start_reader(&reader);
    cr_assert_str_eq(kvt_rights_at(kvt_region_token(region, 0)), "r--s");
    cr_assert_str_eq(kvt_rights_at(kvt_region_write(region, 0)), "---p");
    cr_assert_str_eq(kvt_rights_at(kvt_region_block_token(space, seq, 0)), "r--s");
    kvt_must(kvmem_seq_append(space, seq, 1, kvmem_fence_none()), "append");
    cr_assert_str_eq(kvt_rights_at(kvt_region_token(region, TOKENS)), "r--s");
    cr_assert_str_eq(kvt_rights_at(kvt_region_write(region, TOKENS)), "rw-s");
    end_reader(&reader);
    end();
}

Test(ipc_region, a_view_outlives_the_publisher, .timeout = TIME_LIMIT)
{
    struct kvt_process reader;

    begin();
    start_reader(&reader);
    kvmem_client_close(client);
    end_reader(&reader);
    kvt_daemon_end_observed(&daemon_);
    cr_assert(kvt_self_is(&before));
}
