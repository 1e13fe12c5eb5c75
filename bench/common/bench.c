/* SPDX-License-Identifier: Apache-2.0
 *
 * Samples, reports and helper processes of the benchmarks.
 */
#include "common/bench.h"

#include <errno.h>
#include <kvmem/error.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

void kvb_add(struct kvb_samples *samples, double value)
{
    if (samples->count == sizeof(samples->values) / sizeof(samples->values[0]))
        kvb_fail("more samples than room");
    samples->values[samples->count++] = value;
}

static int ascending(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;

    return (a > b) - (a < b);
}

double kvb_quantile(const struct kvb_samples *samples, double share)
{
    struct kvb_samples sorted = *samples;

    if (!sorted.count)
        return 0;
    qsort(sorted.values, sorted.count, sizeof(double), ascending);
    return sorted.values[(size_t)(share * (double)(sorted.count - 1) + 0.5)];
}

static double median_ratio(const struct kvb_row *row)
{
    struct kvb_samples ratios = {.count = 0};

    for (size_t i = 0; i < row->own.count; i++)
        kvb_add(&ratios, row->own.values[i] / row->peer_samples.values[i]);
    return kvb_quantile(&ratios, 0.5);
}

int kvb_report(struct kvb_row *row)
{
    int is_paired = row->peer && row->own.count == row->peer_samples.count && row->own.count;
    double ratio = is_paired ? median_ratio(row) : 0;
    double median = kvb_quantile(&row->own, 0.5), p99 = kvb_quantile(&row->own, 0.99);
    double peer = row->peer ? kvb_quantile(&row->peer_samples, 0.5) : row->limit;
    int is_met;

    if (!is_paired)
        ratio = peer != 0 ? median / peer : 0;
    if (row->limit_kind == KVB_LIMIT_RATIO_MAX)
        is_met = ratio <= row->limit;
    else if (row->limit_kind == KVB_LIMIT_MEDIAN_MIN)
        is_met = median >= row->limit;
    else
        is_met = median <= row->limit;
    if (row->is_void || (row->peer && !row->peer_samples.count))
        is_met = 0;
    printf("{\"bench\":\"%s\",\"metric\":\"%s\",\"median\":%.6g,\"p99\":%.6g,\"peer\":\"%s\","
           "\"peer_median\":%.6g,\"ratio\":%.4g,\"limit\":%.6g,\"met\":%s,\"samples\":%zu%s%s%s}\n",
           row->bench, row->metric, median, p99, row->peer ? row->peer : "limit", peer, ratio,
           row->limit, is_met ? "true" : "false", row->own.count,
           row->is_void ? ",\"void\":true" : "", row->fields[0] ? "," : "", row->fields);
    fflush(stdout);
    return !is_met;
}

void kvb_fail(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(2);
}

void kvb_check(int result, const char *what)
{
    if (result < 0)
        kvb_fail("%s: %s: %s", what, kvmem_error_name(result), kvmem_error_detail()->text);
}

void kvb_pin_to_core(int core)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(core, &set);
    if (sched_setaffinity(0, sizeof(set), &set))
        kvb_fail("sched_setaffinity: %s", strerror(errno));
}

const char *kvb_program(const char *relative)
{
    static char path[512];
    const char *build = getenv("KVMEM_BUILD_DIR");
    char self[384];
    ssize_t length;

    if (build) {
        snprintf(path, sizeof(path), "%s/%s", build, relative);
        return path;
    }
    length = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (length < 0)
        kvb_fail("readlink /proc/self/exe: %s", strerror(errno));
    self[length] = '\0';
    for (int i = 0; i < 2; i++)
        *strrchr(self, '/') = '\0';
    snprintf(path, sizeof(path), "%s/%s", self, relative);
    return path;
}

void kvb_daemon_start(struct kvb_daemon *daemon, const char *device_bytes)
{
    const char *base = getenv("TMPDIR");
    char line[512] = "";
    FILE *log;
    int ends[2];

    snprintf(daemon->directory, sizeof(daemon->directory), "%s/kvmem-bench-XXXXXX",
             base ? base : "/var/tmp");
    if (!mkdtemp(daemon->directory) || pipe(ends))
        kvb_fail("mkdtemp or pipe: %s", strerror(errno));
    snprintf(daemon->socket_path, sizeof(daemon->socket_path), "%s/kvmemd.sock", daemon->directory);
    daemon->pid = fork();
    if (daemon->pid == 0) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        execl(kvb_program("bin/kvmemd"), "kvmemd", "--device", "host", "--device-bytes",
              device_bytes, "--socket", daemon->socket_path, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    log = fdopen(ends[0], "r");
    while (log && fgets(line, sizeof(line), log))
        if (strstr(line, "ready"))
            return; /* the pipe stays open, so that the daemon can go on logging */
    kvb_fail("kvmemd did not become ready: %s", line);
}

void kvb_daemon_stop(struct kvb_daemon *daemon)
{
    char path[192];

    kill(daemon->pid, SIGTERM);
    waitpid(daemon->pid, NULL, 0);
    snprintf(path, sizeof(path), "%s.lock", daemon->socket_path);
    unlink(path);
    unlink(daemon->socket_path);
    rmdir(daemon->directory);
}
