/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmemctl, run and read.
 */
#include "daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "common/bench.h"

#define OUTPUT_BYTES 65536u

/* kvmemctl beside this program, else just its name for a search in $PATH. */
static void find_kvmemctl(char *path, size_t bytes)
{
    char self[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
    char *slash;

    snprintf(path, bytes, "kvmemctl");
    if (length <= 0)
        return;
    self[length] = '\0';
    slash = strrchr(self, '/');
    if (slash == NULL)
        return;
    *slash = '\0';
    if ((size_t)snprintf(path, bytes, "%s/kvmemctl", self) >= bytes || access(path, X_OK) != 0)
        snprintf(path, bytes, "kvmemctl");
}

static size_t read_all(int fd, char *out, size_t bytes)
{
    size_t used = 0;
    ssize_t got;

    while (used + 1 < bytes) {
        got = read(fd, out + used, bytes - 1 - used);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        used += (size_t)got;
    }
    out[used] = '\0';
    return used;
}

/* What kvmemctl prints; its complaints go where ours go. 0 when it exits with 0. */
static int run_kvmemctl(const char *socket_path, char *out, size_t bytes)
{
    char path[PATH_MAX];
    char *with_socket[] = {"kvmemctl", "--socket", (char *)socket_path, "stats", "--json", NULL};
    char *without[] = {"kvmemctl", "stats", "--json", NULL};
    posix_spawn_file_actions_t actions;
    int ends[2], status = -1, rc;
    pid_t pid;

    if (pipe2(ends, O_CLOEXEC) != 0)
        return -1;
    find_kvmemctl(path, sizeof(path));
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    rc = posix_spawnp(&pid, path, &actions, NULL, socket_path != NULL ? with_socket : without,
                      environ);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    if (rc == 0) {
        read_all(ends[0], out, bytes);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
    }
    close(ends[0]);
    return rc == 0 && status == 0 ? 0 : -1;
}

static int get(const cJSON *object, const char *key, uint64_t *out)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);

    if (!cJSON_IsNumber(item) || item->valuedouble < 0)
        return -1;
    *out = (uint64_t)item->valuedouble;
    return 0;
}

int kvb_daemon_read(const char *socket_path, struct kvb_daemon_counts *out, char *error,
                    size_t error_bytes)
{
    char *text = malloc(OUTPUT_BYTES);
    cJSON *object = NULL;
    int rc = -1;

    if (text != NULL && run_kvmemctl(socket_path, text, OUTPUT_BYTES) == 0) {
        object = cJSON_Parse(text);
        if (get(object, "client_count", &out->client_count) == 0 &&
            get(object, "foreign_hit_blocks", &out->foreign_hit_blocks) == 0 &&
            get(object, "evicted_blocks", &out->evicted_blocks) == 0 &&
            get(object, "adopted_segments", &out->adopted_segments) == 0 &&
            get(object, "leaked_blocks", &out->leaked_blocks) == 0)
            rc = 0;
    }
    if (rc != 0)
        snprintf(error, error_bytes,
                 "kvmemctl stats --json did not tell the daemon's counters; is kvmemd running, and "
                 "kvmemctl installed beside kvmem-replay?");
    cJSON_Delete(object);
    free(text);
    return rc;
}

int kvb_daemon_read_after(const char *socket_path, uint64_t client_count,
                          struct kvb_daemon_counts *out, char *error, size_t error_bytes)
{
    uint64_t deadline = kvb_now_ns() + 3000000000ull;
    int rc;

    while ((rc = kvb_daemon_read(socket_path, out, error, error_bytes)) == 0 &&
           out->client_count > client_count && kvb_now_ns() < deadline)
        usleep(20000);
    return rc;
}
