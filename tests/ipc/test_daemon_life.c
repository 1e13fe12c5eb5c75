/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmemd from start to end: readiness, one daemon a socket, the directory it lies in, signals,
 * and a kernel without io_uring.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "support/daemon.h"
#include "support/raw_client.h"

static struct kvt_daemon daemon_;
static const char *const small[] = {"--device-bytes", "64MiB", NULL};
static char text[64 * 1024];

static void prepare(void)
{
    kvt_daemon_prepare(&daemon_);
}

static void end(void)
{
    kvt_daemon_end(&daemon_);
}

TestSuite(daemon_life, .init = prepare, .fini = end, .timeout = 60);

static const char *log_text(void)
{
    kvt_daemon_log(&daemon_, text, sizeof(text));
    return text;
}

Test(daemon_life, starts_serves_and_stops)
{
    struct stat status;
    struct kvt_raw client;

    kvt_daemon_start(&daemon_, small);
    cr_assert(strstr(log_text(), "ready: device host, 0.1 GiB in 64 segments") != NULL, "%s", text);
    cr_assert(strstr(text, daemon_.socket_path) != NULL, "%s", text);
    cr_assert_eq(stat(daemon_.socket_path, &status), 0);
    cr_assert_eq(status.st_mode & 07777, 0600);
    cr_assert(kvt_raw_join(&client, daemon_.socket_path, "one"));
    cr_assert_geq(client.status_bytes, 4096);
    cr_assert(kvt_raw_goodbye(&client));
    kvt_raw_close(&client);
    cr_assert_eq(kvt_daemon_stop(&daemon_), 0, "%s", log_text());
    cr_assert_eq(stat(daemon_.socket_path, &status), -1);
}

Test(daemon_life, a_second_one_is_refused)
{
    const char *const again[] = {"--socket", daemon_.socket_path, NULL};
    char expected[256];
    struct kvt_raw client;

    kvt_daemon_start(&daemon_, small);
    cr_assert_eq(kvt_daemon_run_other(&daemon_, again), 1);
    snprintf(expected, sizeof(expected), "another kvmemd (pid %d) serves %s", daemon_.process.pid,
             daemon_.socket_path);
    cr_assert(strstr(log_text(), expected) != NULL, "wanted '%s' in: %s", expected, text);
    cr_assert(kvt_raw_join(&client, daemon_.socket_path, "still"), "the first one was disturbed");
    kvt_raw_close(&client);
}

Test(daemon_life, a_foreign_listener_without_lock_is_not_displaced)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *const options[] = {"--socket", daemon_.socket_path, NULL};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    strcpy(address.sun_path, daemon_.socket_path);
    cr_assert_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    cr_assert_eq(listen(fd, 1), 0);
    cr_assert_eq(kvt_daemon_run_other(&daemon_, options), 1);
    cr_assert(strstr(log_text(), "serves") != NULL, "%s", text);
    close(fd);
}

Test(daemon_life, a_dead_ones_socket_is_taken_over)
{
    struct stat status;
    struct kvt_raw client;

    kvt_daemon_start(&daemon_, small);
    kill(daemon_.process.pid, SIGKILL);
    cr_assert_eq(kvt_daemon_wait(&daemon_, KVT_MS(5000)), 128 + SIGKILL);
    cr_assert_eq(stat(daemon_.socket_path, &status), 0, "SIGKILL leaves the socket");
    kvt_daemon_start(&daemon_, small);
    cr_assert(kvt_raw_join(&client, daemon_.socket_path, "one"));
    kvt_raw_close(&client);
}

Test(daemon_life, what_is_no_socket_is_left_alone)
{
    const char *const options[] = {"--socket", daemon_.socket_path, NULL};
    FILE *file = fopen(daemon_.socket_path, "w");

    cr_assert(file != NULL);
    fputs("precious", file);
    fclose(file);
    cr_assert_eq(kvt_daemon_run_other(&daemon_, options), 1);
    cr_assert(strstr(log_text(), "exists and is no socket") != NULL, "%s", text);
    file = fopen(daemon_.socket_path, "r");
    cr_assert(fgets(text, sizeof(text), file) != NULL);
    fclose(file);
    cr_assert_str_eq(text, "precious");
}

Test(daemon_life, a_link_in_place_of_the_lock_is_not_followed)
{
    const char *const options[] = {"--socket", daemon_.socket_path, NULL};
    char lock[128];
    char victim[128];

    snprintf(lock, sizeof(lock), "%s.lock", daemon_.socket_path);
    snprintf(victim, sizeof(victim), "%s/victim", daemon_.directory);
    cr_assert_eq(symlink(victim, lock), 0);
    cr_assert_eq(kvt_daemon_run_other(&daemon_, options), 1);
    cr_assert_eq(access(victim, F_OK), -1);
}

Test(daemon_life, a_directory_that_others_may_write_is_refused)
{
    const char *const options[] = {"--socket", daemon_.socket_path, NULL};
    char link_path[128];
    char below_link[160];
    const char *const linked[] = {"--socket", below_link, NULL};
    const char *const missing[] = {"--socket", "/nonexistent-kvmem/kvmemd.sock", NULL};

    chmod(daemon_.directory, 0777);
    cr_assert_eq(kvt_daemon_run_other(&daemon_, options), 1);
    cr_assert(strstr(log_text(), "mode 0777") != NULL, "%s", text);
    chmod(daemon_.directory, 0700);
    snprintf(link_path, sizeof(link_path), "%s/link", daemon_.directory);
    snprintf(below_link, sizeof(below_link), "%s/kvmemd.sock", link_path);
    cr_assert_eq(symlink(daemon_.directory, link_path), 0);
    cr_assert_eq(kvt_daemon_run_other(&daemon_, linked), 1);
    cr_assert(strstr(log_text(), "symbolic link") != NULL, "%s", text);
    cr_assert_eq(kvt_daemon_run_other(&daemon_, missing), 1);
    cr_assert(strstr(log_text(), "directory /nonexistent-kvmem") != NULL, "%s", text);
}

/* Start kvmemd as `kvmemd` alone, in a runtime directory of the test's. */
static bool run_without_arguments(void)
{
    unlink(daemon_.log_path);
    unsetenv("KVMEM_SOCKET");
    setenv("XDG_RUNTIME_DIR", daemon_.directory, 1);
    kvt_daemon_spawn(&daemon_, "bin/kvmemd", NULL);
    return kvt_daemon_logged(&daemon_, "kvmemd: ready: ", KVT_DAEMON_LIMIT);
}

Test(daemon_life, without_arguments_it_makes_a_private_directory)
{
    char directory[128];
    char socket_path[160];
    struct kvt_raw client;
    struct stat status;

    snprintf(directory, sizeof(directory), "%s/kvmem", daemon_.directory);
    snprintf(socket_path, sizeof(socket_path), "%s/kvmemd.sock", directory);
    cr_assert(run_without_arguments(), "%s", log_text());
    cr_assert_eq(stat(directory, &status), 0);
    cr_assert_eq(status.st_mode & 07777, 0700);
    cr_assert(kvt_raw_join(&client, socket_path, "one"));
    kvt_raw_close(&client);
    cr_assert_eq(kvt_daemon_stop(&daemon_), 0);
    chmod(directory, 0750);
    cr_assert_not(run_without_arguments());
    cr_assert_eq(kvt_daemon_wait(&daemon_, KVT_MS(5000)), 1);
    cr_assert(strstr(log_text(), "mode 0750, expected 0700") != NULL, "%s", text);
}

/* ---- readiness ---- */

static int notify_socket(const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t bytes = strlen(name);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct timeval timeout = {.tv_sec = 5};

    memcpy(address.sun_path, name, bytes);
    if (name[0] == '@')
        address.sun_path[0] = '\0';
    cr_assert_eq(bind(fd, (struct sockaddr *)&address,
                      (socklen_t)(offsetof(struct sockaddr_un, sun_path) + bytes)),
                 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    setenv("NOTIFY_SOCKET", name, 1);
    return fd;
}

static void hears_both(const char *name)
{
    int fd = notify_socket(name);
    ssize_t bytes;

    kvt_daemon_start(&daemon_, small);
    bytes = recv(fd, text, sizeof(text), 0);
    cr_assert(bytes == 7 && memcmp(text, "READY=1", 7) == 0, "%zd bytes", bytes);
    cr_assert_eq(kvt_daemon_stop(&daemon_), 0);
    bytes = recv(fd, text, sizeof(text), 0);
    cr_assert(bytes == 10 && memcmp(text, "STOPPING=1", 10) == 0, "%zd bytes", bytes);
    close(fd);
}

Test(daemon_life, notifies_a_path)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/notify", daemon_.directory);
    hears_both(path);
}

Test(daemon_life, notifies_an_abstract_address)
{
    char name[64];

    snprintf(name, sizeof(name), "@kvmem-test-%d", (int)getpid());
    hears_both(name);
}

Test(daemon_life, a_notify_socket_that_is_not_there_changes_nothing)
{
    setenv("NOTIFY_SOCKET", "/nonexistent-kvmem/notify", 1);
    kvt_daemon_start(&daemon_, small);
}

/* ---- signals ---- */

Test(daemon_life, sigterm_drains)
{
    static struct kvt_raw_message message;
    struct kvt_raw stays;
    struct kvt_raw leaves;
    struct kvt_raw late;
    uint64_t start_ns;

    kvt_daemon_start(&daemon_, small);
    cr_assert(kvt_raw_join(&stays, daemon_.socket_path, "stays"));
    cr_assert(kvt_raw_join(&leaves, daemon_.socket_path, "leaves"));
    start_ns = kvt_now_ns();
    kill(daemon_.process.pid, SIGTERM);
    cr_assert_eq(kvt_raw_receive(&stays, &message, 5000), KVT_RAW_MESSAGE);
    cr_assert_eq(message.as.header.opcode, KVI_OP_DRAINING);
    cr_assert_eq(message.as.draining.deadline_ns, 1000000000u);
    cr_assert(kvt_raw_goodbye(&leaves), "requests are still answered");
    cr_assert_lt(kvt_raw_connect(&late, daemon_.socket_path), 0);
    cr_assert_eq(kvt_daemon_wait(&daemon_, KVT_MS(5000)), 0, "%s", log_text());
    cr_assert_geq(kvt_now_ns() - start_ns, (uint64_t)KVT_MS(900),
                  "the deadline is for those who stay");
    cr_assert(kvt_raw_is_ended(&stays, 1000));
    kvt_raw_close(&stays);
    kvt_raw_close(&leaves);
}

Test(daemon_life, sigterm_does_not_wait_for_nobody)
{
    uint64_t start_ns;

    kvt_daemon_start(&daemon_, small);
    start_ns = kvt_now_ns();
    cr_assert_eq(kvt_daemon_stop(&daemon_), 0);
    cr_assert_lt(kvt_now_ns() - start_ns, (uint64_t)KVT_MS(900));
}

Test(daemon_life, a_second_signal_ends_at_once)
{
    struct kvt_raw stays;
    uint64_t start_ns;

    kvt_daemon_start(&daemon_, small);
    cr_assert(kvt_raw_join(&stays, daemon_.socket_path, "stays"));
    start_ns = kvt_now_ns();
    kill(daemon_.process.pid, SIGINT);
    cr_assert(kvt_daemon_logged(&daemon_, "1 clients have", KVT_MS(5000)));
    kill(daemon_.process.pid, SIGINT);
    cr_assert_eq(kvt_daemon_wait(&daemon_, KVT_MS(5000)), 0);
    cr_assert_lt(kvt_now_ns() - start_ns, (uint64_t)KVT_MS(900));
    kvt_raw_close(&stays);
}

Test(daemon_life, sighup_and_sigpipe_are_nothing)
{
    struct kvt_raw client;

    kvt_daemon_start(&daemon_, small);
    kill(daemon_.process.pid, SIGHUP);
    kill(daemon_.process.pid, SIGPIPE);
    cr_assert(kvt_raw_join(&client, daemon_.socket_path, "one"));
    kvt_raw_close(&client);
}

Test(daemon_life, too_few_descriptors_are_refused_with_numbers)
{
    const char *const options[] = {"--socket", daemon_.socket_path, NULL};
    struct rlimit limit;

    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max = 1000;
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    cr_assert_eq(kvt_daemon_run_other(&daemon_, options), 1);
    cr_assert(strstr(log_text(),
                     "at most 1000 descriptors may be open here, 17568 are needed: "
                     "128 for segments and their devices, 68 for each of 256 clients") != NULL,
              "%s", text);
}

/* ---- where io_uring is blocked ---- */

Test(daemon_life, without_io_uring_it_serves_all_the_same)
{
    char kvmemd[512];
    const char *const arguments[] = {kvmemd, "--socket", daemon_.socket_path, NULL};
    struct kvt_raw client;
    struct kvi_msg_stats_reply stats;

    snprintf(kvmemd, sizeof(kvmemd), "%s", kvt_program_path("bin/kvmemd"));
    kvt_daemon_spawn(&daemon_, "tests/helpers/without_uring", arguments);
    cr_assert(kvt_daemon_logged(&daemon_, "kvmemd: ready: ", KVT_DAEMON_LIMIT), "%s", log_text());
    cr_assert(strstr(log_text(), "io_uring is not available (Operation not permitted)") != NULL,
              "%s", text);
    cr_assert(strstr(text, "loop poll") != NULL, "%s", text);
    cr_assert(kvt_raw_join(&client, daemon_.socket_path, "one"));
    for (int i = 0; i < 1000; i++)
        cr_assert(kvt_raw_stats(&client, &stats));
    cr_assert_eq(stats.client_count, 1);
    kvt_raw_close(&client);
    cr_assert_eq(kvt_daemon_stop(&daemon_), 0);
}
