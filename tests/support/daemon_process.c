/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon_process.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define POLL_MS     2
#define OPTIONS_MAX 16

extern char **environ;

int64_t kvt_now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void kvt_sleep_ms(int ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = (ms % 1000) * 1000000L}, NULL);
}

/* Tests lie in BUILD/tests/group/x. */
const char *kvt_build_path(const char *program)
{
    static char path[4096];
    const char *build = getenv("KVMEM_BUILD_DIR");
    ssize_t bytes;

    if (build != NULL) {
        snprintf(path, sizeof(path), "%s/%s", build, program);
        return path;
    }
    bytes = readlink("/proc/self/exe", path, sizeof(path) / 2);
    path[bytes > 0 ? bytes : 0] = '\0';
    for (int up = 0; up < 3; up++)
        if (strrchr(path, '/') != NULL)
            *strrchr(path, '/') = '\0';
    bytes = (ssize_t)strlen(path);
    snprintf(path + bytes, sizeof(path) - (size_t)bytes, "/%s", program);
    return path;
}

bool kvt_daemon_prepare(struct kvt_daemon *daemon)
{
    memset(daemon, 0, sizeof(*daemon));
    strcpy(daemon->directory, "/tmp/kvmem-test-XXXXXX");
    if (mkdtemp(daemon->directory) == NULL)
        return false;
    snprintf(daemon->socket_path, sizeof(daemon->socket_path), "%s/kvmemd.sock", daemon->directory);
    snprintf(daemon->log_path, sizeof(daemon->log_path), "%s/log", daemon->directory);
    return true;
}

bool kvt_daemon_spawn(struct kvt_daemon *daemon, const char *const *command)
{
    posix_spawn_file_actions_t actions;
    int rc;

    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, daemon->log_path, O_WRONLY | O_CREAT | O_APPEND,
                                     0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    rc = posix_spawnp(&daemon->pid, command[0], &actions, NULL, (char *const *)(uintptr_t)command,
                      environ);
    posix_spawn_file_actions_destroy(&actions);
    if (rc != 0)
        daemon->pid = 0;
    return rc == 0;
}

bool kvt_daemon_start(struct kvt_daemon *daemon, const char *const *options)
{
    const char *command[OPTIONS_MAX + 4] = {kvt_build_path("bin/kvmemd"), "--socket",
                                            daemon->socket_path};

    for (int i = 0; options != NULL && options[i] != NULL && i < OPTIONS_MAX; i++)
        command[3 + i] = options[i];
    unlink(daemon->log_path);
    return kvt_daemon_spawn(daemon, command) &&
           kvt_daemon_logged(daemon, "kvmemd: ready: ", KVT_DAEMON_TIMEOUT_MS);
}

size_t kvt_daemon_log(const struct kvt_daemon *daemon, char *text, size_t text_bytes)
{
    int fd = open(daemon->log_path, O_RDONLY | O_CLOEXEC);
    ssize_t bytes = fd < 0 ? 0 : read(fd, text, text_bytes - 1);

    if (fd >= 0)
        close(fd);
    text[bytes > 0 ? bytes : 0] = '\0';
    return bytes > 0 ? (size_t)bytes : 0;
}

static bool is_running(const struct kvt_daemon *daemon)
{
    siginfo_t info = {0};

    return daemon->pid > 0 &&
           waitid(P_PID, (id_t)daemon->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == 0;
}

bool kvt_daemon_logged(const struct kvt_daemon *daemon, const char *text, int timeout_ms)
{
    static char log[64 * 1024];
    int64_t deadline_ms = kvt_now_ms() + timeout_ms;

    for (;;) {
        bool runs = is_running(daemon); /* before the look: its last line counts */

        kvt_daemon_log(daemon, log, sizeof(log));
        if (strstr(log, text) != NULL)
            return true;
        if (!runs || kvt_now_ms() > deadline_ms)
            return false;
        kvt_sleep_ms(POLL_MS);
    }
}

int kvt_daemon_wait(struct kvt_daemon *daemon, int timeout_ms)
{
    int64_t deadline_ms = kvt_now_ms() + timeout_ms;
    int status;

    while (waitpid(daemon->pid, &status, WNOHANG) == 0) {
        if (kvt_now_ms() > deadline_ms)
            return -1;
        kvt_sleep_ms(POLL_MS);
    }
    daemon->pid = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int kvt_daemon_stop(struct kvt_daemon *daemon)
{
    kill(daemon->pid, SIGTERM);
    return kvt_daemon_wait(daemon, KVT_DAEMON_TIMEOUT_MS);
}

/* The directory is flat, but for one level that tests of the runtime directory make. */
static void remove_tree(const char *path, int depth)
{
    DIR *directory = opendir(path);
    struct dirent *entry;
    char name[512];

    while (directory != NULL && (entry = readdir(directory)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);
        if (unlink(name) < 0 && depth > 0)
            remove_tree(name, depth - 1);
    }
    if (directory != NULL)
        closedir(directory);
    rmdir(path);
}

void kvt_daemon_end(struct kvt_daemon *daemon)
{
    if (daemon->pid > 0) {
        kill(daemon->pid, SIGKILL);
        kvt_daemon_wait(daemon, KVT_DAEMON_TIMEOUT_MS);
    }
    if (daemon->directory[0] != '\0')
        remove_tree(daemon->directory, 2);
    memset(daemon, 0, sizeof(*daemon));
}

/* ---- processes ---- */

int kvt_process_fd_count(pid_t pid)
{
    char path[64];
    DIR *directory;
    int count = -2; /* . and .. */

    snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
    directory = opendir(path);
    if (directory == NULL)
        return -1;
    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count;
}

/* The value-th word (from 0) of a file of /proc, after the last ')' if there is one. */
static int64_t proc_word(pid_t pid, const char *file, int value)
{
    char path[64];
    char text[1024];
    char *word = text;
    ssize_t bytes;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, file);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    bytes = read(fd, text, sizeof(text) - 1);
    close(fd);
    text[bytes > 0 ? bytes : 0] = '\0';
    if (strrchr(text, ')') != NULL)
        word = strrchr(text, ')') + 2;
    while (value-- > 0 && word != NULL)
        word = strchr(word, ' ') != NULL ? strchr(word, ' ') + 1 : NULL;
    return word != NULL ? strtoll(word, NULL, 10) : -1;
}

int64_t kvt_process_resident_bytes(pid_t pid)
{
    int64_t pages = proc_word(pid, "statm", 1);

    return pages < 0 ? -1 : pages * sysconf(_SC_PAGESIZE);
}

int64_t kvt_process_cpu_ms(pid_t pid)
{
    int64_t user = proc_word(pid, "stat", 11); /* utime and stime, counted after the name */
    int64_t system = proc_word(pid, "stat", 12);

    return user < 0 || system < 0 ? -1 : (user + system) * 1000 / sysconf(_SC_CLK_TCK);
}
