/* SPDX-License-Identifier: Apache-2.0
 *
 * The daemon is killed under its clients: each call that needs it says so and none hangs, what is
 * mapped stays readable with the right bytes, sessions end properly, and the next daemon takes
 * the dead one's socket over.
 *
 * $KVMEM_LOSSES: how often it is killed under load (20); $KVMEM_SEED.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <kvmem.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "support/daemon.h"
#include "support/engine.h"
#include "support/shell.h"

#define LOSSES       20u
#define CALL_NS      KVT_MS(2500) /* a call that finds the daemon gone: half its time limit */
#define SLEEPER_NS   KVT_MS(4000) /* after the kill, of one that would wait for a minute */
#define TIME_LIMIT   (KVT_SLOWDOWN * 60)
#define CLIENTS      2
#define STATUS_LOST  3 /* of client_load */
#define KEPT_BLOCKS  40u
#define LOCAL_TOKENS 5u

static struct kvt_daemon daemon_;
static struct kvt_self before;

/* ---- call by call ---- */

static const char *lost_in_time(struct kvt_process *shell, const char *command)
{
    const char *answer = kvt_shell(shell, "error DAEMON_LOST", "%s", command);

    cr_assert_lt(kvt_answer_number(answer, "ns"), (uint64_t)CALL_NS, "%s: %s", command, answer);
    return answer;
}

static void expect_readable(struct kvt_process *shell)
{
    for (uint32_t i = 1; i <= 2; i++)
        cr_assert_eq(kvt_answer_number(kvt_shell(shell, "ok", "verify %u", i), "wrong"), 0);
}

/* The sleeper says DAEMON_LOST. It may have been answered before, by a refusal or a pressure
 * request that was under way: then it is sent to sleep again. (The kernel closes the sockets of a
 * process with io_uring some time after its exit, so that the loss is not seen at once.) */
static void expect_woken(struct kvt_process *sleeper, const char *command)
{
    uint64_t deadline = kvt_now_ns() + (uint64_t)SLEEPER_NS;
    char line[KVT_LINE_BYTES];

    for (;;) {
        cr_assert_eq(kvt_hear(sleeper, line, SLEEPER_NS), 1, "%s still waits", command);
        if (strncmp(line, "error DAEMON_LOST ", 18) == 0)
            return;
        cr_assert_lt(kvt_now_ns(), deadline, "%s: %s", command, line);
        kvt_tell(sleeper, "%s", command);
    }
}

static const char *const remote[] = {"dispatch 60000",   "get 1 8", "peek 1 8",
                                     "reserve 512 2000", "put 7 4", "serve 1 8"};
#define REMOTE_COUNT (sizeof(remote) / sizeof(remote[0]))

/* `shell` holds stream 1 (entries) and stream 2 (open blocks). `first`: how it learns of the loss.
 */
static void use_without_daemon(struct kvt_process *shell, const char *first)
{
    char answer[KVT_LINE_BYTES];

    expect_readable(shell);
    kvt_tell(shell, "%s", first);
    expect_woken(shell, first);
    for (size_t i = 0; i < REMOTE_COUNT; i++) {
        lost_in_time(shell, remote[i]);
        expect_readable(shell);
    }
    /* Blocks that it owns are still its own. */
    kvt_shell(shell, "ok", "more 2 %u", LOCAL_TOKENS);
    kvt_ask(shell, answer, "%s", "more 2 2000"); /* more than it has: a code, not a wait */
    cr_assert(strncmp(answer, "error OUT_OF_BLOCKS ", 20) == 0 ||
                  strncmp(answer, "error REFILL_PENDING ", 21) == 0 ||
                  strncmp(answer, "error DAEMON_LOST ", 18) == 0,
              "%s", answer);
    expect_readable(shell);
    kvt_shell(shell, "ok", "free 1");
    kvt_shell(shell, "ok", "free 2");
    lost_in_time(shell, "dispatch 100");
    kvt_shell_end(shell);
}

/* The kernel closes the socket of a process with io_uring some time after its exit: until then a
 * connection is made, and ends. */
static void expect_nobody_listens(void)
{
    struct kvt_engine_options options = {.socket_path = daemon_.socket_path, .name = "test"};
    struct kvt_engine engine;
    uint64_t deadline = kvt_now_ns() + (uint64_t)CALL_NS;

    do
        cr_assert_eq(kvt_engine_open(&engine, &options), KVMEM_E_DAEMON_LOST);
    while (!strstr(kvmem_error_detail()->text, daemon_.socket_path) && kvt_now_ns() < deadline);
    cr_assert_neq(strstr(kvmem_error_detail()->text, daemon_.socket_path), NULL, "%s",
                  kvmem_error_detail()->text);
}

Test(ipc_daemon_lost, every_call_says_so_and_memory_stays_readable, .timeout = TIME_LIMIT)
{
    struct kvt_process shells[REMOTE_COUNT], late;

    before = kvt_self_count();
    kvt_daemon_start_observed(&daemon_, "4MiB", "4KiB");
    for (uint32_t i = 0; i < REMOTE_COUNT; i++) {
        kvt_shell_start(&shells[i], &daemon_, remote[i], "shared");
        kvt_shell(&shells[i], "ok", i ? "get 1 %u" : "put 1 %u", KEPT_BLOCKS);
        kvt_shell(&shells[i], "ok", "open 2 3");
        kvt_shell(&shells[i], "ok", "reserve 4 1000");
    }
    kvt_daemon_kill(&daemon_);
    for (uint32_t i = 0; i < REMOTE_COUNT - 1; i++)
        use_without_daemon(&shells[i], remote[i]);
    expect_nobody_listens();

    kvt_daemon_start_observed(&daemon_, "4MiB", "4KiB"); /* on the dead one's socket */
    kvt_shell_start(&late, &daemon_, "late", "shared");
    cr_assert_eq(kvt_answer_number(kvt_shell(&late, "ok", "get 1 8"), "hits"), 0);
    kvt_shell(&late, "ok", "put 1 8");
    /* A session does not come back by itself. */
    use_without_daemon(&shells[REMOTE_COUNT - 1], remote[REMOTE_COUNT - 1]);
    cr_assert_eq(kvt_answer_number(kvt_shell(&late, "ok", "verify 1"), "wrong"), 0);
    kvt_shell_end(&late);
    kvt_daemon_end_observed(&daemon_);
    cr_assert(kvt_self_is(&before));
}

/* ---- in a call that waits ---- */

Test(ipc_daemon_lost, who_waits_is_woken, .timeout = TIME_LIMIT)
{
    struct kvt_process sleeper, owner, asker;

    before = kvt_self_count();
    kvt_daemon_start_observed(&daemon_, "4MiB", "4KiB");
    kvt_shell_start(&sleeper, &daemon_, "sleeper", "shared");
    kvt_shell_start(&owner, &daemon_, "owner", "shared");
    kvt_shell_start(&asker, &daemon_, "asker", "shared");
    kvt_shell(&owner, "ok", "grab");
    kvt_tell(&sleeper, "dispatch 60000");
    kvt_sleep_ns(KVT_MS(20));
    kvt_tell(&asker, "reserve 16 60000"); /* refused after 50 ms; the daemon dies before */
    kvt_sleep_ns(KVT_MS(5));
    kvt_daemon_kill(&daemon_);
    expect_woken(&sleeper, "dispatch 60000");
    expect_woken(&asker, "reserve 16 60000");
    kvt_tell(&owner, "dispatch 60000");
    expect_woken(&owner, "dispatch 60000");
    kvt_shell_end(&sleeper);
    kvt_shell_end(&asker);
    kvt_shell_end(&owner);
    kvt_daemon_end(&daemon_);
    cr_assert(kvt_self_is(&before));
}

/* ---- under load, again and again ---- */

static void start_load(struct kvt_process *load, uint64_t *random)
{
    char seed[24];
    struct kvt_spawn_options options = {
        .program = "tests/helpers/client_load",
        .arguments = {daemon_.socket_path, "shared", "32", "6", "8", seed}};
    char line[KVT_LINE_BYTES];

    snprintf(seed, sizeof(seed), "%" PRIu64, kvt_random(random));
    kvt_spawn(load, &options);
    cr_assert_eq(kvt_hear(load, line, KVT_ANSWER_LIMIT), 1);
}

/* It says that the daemon is lost, has seen no wrong byte, and has left nothing behind. */
static uint64_t expect_lost(struct kvt_process *load)
{
    char line[KVT_LINE_BYTES] = "";
    uint64_t ns;
    int status;

    cr_assert_eq(kvt_hear(load, line, SLEEPER_NS), 1, "a client hangs, or has died");
    cr_assert_eq(strncmp(line, "lost ", 5), 0, "%s", line);
    cr_assert_eq(kvt_answer_number(line, "wrong"), 0, "%s", line);
    ns = kvt_answer_number(line, "call_ns");
    cr_assert_lt(ns, (uint64_t)CALL_NS, "%s", line);
    status = kvt_reap(load, KVT_ANSWER_LIMIT);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == STATUS_LOST, "wait status 0x%x", status);
    return ns;
}

Test(ipc_daemon_lost, killed_under_load_again_and_again, .timeout = 2 * TIME_LIMIT)
{
    uint32_t losses = kvt_count_from_env("KVMEM_LOSSES", LOSSES, LOSSES);
    uint64_t random = kvt_seed("ipc_daemon_lost"), worst = 0;
    struct kvt_process load[CLIENTS];

    before = kvt_self_count();
    for (uint32_t done = 0; done < losses; done++) {
        kvt_daemon_start_observed(&daemon_, "4MiB", "4KiB");
        for (int i = 0; i < CLIENTS; i++)
            start_load(&load[i], &random);
        kvt_sleep_ns((int64_t)(kvt_random(&random) % (uint64_t)KVT_MS(60)));
        kvt_daemon_kill(&daemon_);
        for (int i = 0; i < CLIENTS; i++) {
            uint64_t ns = expect_lost(&load[i]);

            worst = ns > worst ? ns : worst;
        }
    }
    printf("%u daemons killed under %d clients; the slowest call that found out took %.2f ms\n",
           losses, CLIENTS, (double)worst / 1e6);
    kvt_daemon_end(&daemon_);
    cr_assert(kvt_self_is(&before));
}

/* ---- a daemon that is there and says nothing ---- */

#define TIMEOUT_NS KVT_MS(200)

static void signal_daemon(int number)
{
    cr_assert_eq(kill(daemon_.process.pid, number), 0);
}

Test(ipc_daemon_lost, a_silent_daemon_is_a_time_out, .timeout = TIME_LIMIT)
{
    struct kvt_engine_options options = {
        .socket_path = daemon_.socket_path, .name = "patient", .timeout_ns = TIMEOUT_NS};
    struct kvt_engine engine;
    struct kvmem_seq seq;
    uint64_t start_ns;
    int hits;

    before = kvt_self_count();
    kvt_daemon_start_observed(&daemon_, "4MiB", "4KiB");
    kvt_must(kvt_engine_open(&engine, &options), "open");
    for (uint64_t stream = 1; stream <= 2; stream++) {
        kvt_must(kvt_engine_put(&engine, stream, 8, KVT_MS(1000), &seq), "put");
        kvt_must(kvt_engine_free(&engine, seq), "free");
    }
    for (int i = 0; i < 3; i++) {
        signal_daemon(SIGSTOP);
        start_ns = kvt_now_ns();
        cr_assert_eq(kvt_engine_get(&engine, 1, 8, &seq), KVMEM_E_TIMED_OUT);
        cr_assert_lt(kvt_now_ns() - start_ns, (uint64_t)(TIMEOUT_NS + CALL_NS));
        cr_assert_geq(kvmem_client_dispatch(engine.client, 0), 0, "a dispatch does not wait");
        signal_daemon(SIGCONT);
        /* The late answer has leased stream 1 for nobody: that must not stay so. */
        do
            hits = kvt_engine_get(&engine, 2, 8, &seq);
        while (hits == KVMEM_E_TIMED_OUT && kvt_now_ns() - start_ns < (uint64_t)KVT_ANSWER_LIMIT);
        cr_assert_eq(hits, 8, "%s", kvmem_error_detail()->text);
        cr_assert_eq(kvt_engine_wrong(&engine, seq, 2, 0, 8 * KVT_BLOCK_TOKENS), 0);
        kvt_must(kvt_engine_free(&engine, seq), "free");
        kvt_must(kvmem_client_dispatch(engine.client, 0), "dispatch");
        cr_assert_eq(kvt_wire_sums(daemon_.wire).leases, 0);
        cr_assert_eq(kvmem_client_check(engine.client), 0, "%s", kvmem_error_detail()->text);
    }
    kvt_engine_close(&engine);
    kvt_daemon_end_observed(&daemon_);
    cr_assert(kvt_self_is(&before));
}
