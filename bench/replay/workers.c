/* SPDX-License-Identifier: Apache-2.0
 *
 * The client processes of workers.h.
 */
#include "workers.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "progress.h"

#define LINE_BYTES    4096u
#define WORKERS_LIMIT 64u
#define REPORT_FD     3

struct worker {
    pid_t pid;
    int fd; /* −1 when it said all it will say */
    uint32_t finished;
    int has_counts;
    struct kvb_counts counts;
    char line[LINE_BYTES];
    size_t line_used;
};

/* argv with the client's part and where it reports; a later option wins. */
static char **worker_arguments(int argc, char **argv, char *part, char *report)
{
    char *more[] = {"--clients", "1", "--part", part, "--report-fd", report};
    char **out = calloc((size_t)argc + 7, sizeof(*out));

    if (out == NULL)
        return NULL;
    memcpy(out, argv, sizeof(*out) * (size_t)argc);
    memcpy(out + argc, more, sizeof(more));
    return out;
}

static int start(struct worker *worker, int argc, char **argv, uint32_t part, uint32_t parts)
{
    posix_spawn_file_actions_t actions;
    char part_text[32], report[16];
    char **arguments;
    int ends[2], rc;

    snprintf(part_text, sizeof(part_text), "%" PRIu32 "/%" PRIu32, part + 1, parts);
    snprintf(report, sizeof(report), "%d", REPORT_FD);
    arguments = worker_arguments(argc, argv, part_text, report);
    if (arguments == NULL || pipe2(ends, O_CLOEXEC) != 0) {
        free(arguments);
        return errno;
    }
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], REPORT_FD);
    rc = posix_spawn(&worker->pid, "/proc/self/exe", &actions, NULL, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    free(arguments);
    worker->fd = ends[0];
    if (rc != 0)
        close(ends[0]);
    return rc;
}

static void take_line(struct worker *worker, const char *line)
{
    cJSON *object = cJSON_Parse(line);
    const cJSON *finished = cJSON_GetObjectItemCaseSensitive(object, "finished");

    if (cJSON_IsNumber(finished))
        worker->finished = (uint32_t)finished->valuedouble;
    else if (kvb_counts_parse(line, &worker->counts) == 0)
        worker->has_counts = 1;
    cJSON_Delete(object);
}

/* Read what is there; closes the pipe at its end. */
static void take_input(struct worker *worker)
{
    ssize_t got = read(worker->fd, worker->line + worker->line_used,
                       sizeof(worker->line) - worker->line_used - 1);
    char *end;

    if (got < 0 && errno == EINTR)
        return;
    if (got <= 0) {
        close(worker->fd);
        worker->fd = -1;
        return;
    }
    worker->line_used += (size_t)got;
    worker->line[worker->line_used] = '\0';
    while ((end = strchr(worker->line, '\n')) != NULL) {
        size_t taken = (size_t)(end - worker->line) + 1;

        *end = '\0';
        take_line(worker, worker->line);
        worker->line_used -= taken;
        memmove(worker->line, worker->line + taken, worker->line_used + 1);
    }
    if (worker->line_used + 1 == sizeof(worker->line))
        worker->line_used = 0; /* no line of ours is so long */
}

static void listen_to_all(struct worker *workers, uint32_t count, uint32_t request_count)
{
    struct pollfd fds[WORKERS_LIMIT];
    uint32_t open, finished;

    do {
        open = finished = 0;
        for (uint32_t i = 0; i < count; i++) {
            fds[i] = (struct pollfd){.fd = workers[i].fd, .events = POLLIN};
            open += workers[i].fd >= 0;
            finished += workers[i].finished;
        }
        kvb_progress_draw(finished, request_count);
        if (open > 0 && poll(fds, count, -1) > 0)
            for (uint32_t i = 0; i < count; i++)
                if (fds[i].revents != 0)
                    take_input(&workers[i]);
    } while (open > 0);
    kvb_progress_clear();
}

/* Wait for its end. 1 when it did what it should. */
static int bury(struct worker *worker, uint32_t number)
{
    int status = 0;

    while (waitpid(worker->pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (WIFSIGNALED(status))
        fprintf(stderr,
                "kvmem-replay: client %" PRIu32 " (process %d) was killed by signal %d "
                "(%s) after %" PRIu32 " requests\n",
                number, (int)worker->pid, WTERMSIG(status), strsignal(WTERMSIG(status)),
                worker->finished);
    else if (WEXITSTATUS(status) != 0 || !worker->has_counts)
        fprintf(stderr,
                "kvmem-replay: client %" PRIu32 " (process %d) gave up with status %d "
                "after %" PRIu32 " requests\n",
                number, (int)worker->pid, WEXITSTATUS(status), worker->finished);
    else
        return 1;
    return 0;
}

int kvb_workers_run(int argc, char **argv, const struct kvb_options *options,
                    uint32_t request_count, struct kvb_outcome *outcome, char *error,
                    size_t error_bytes)
{
    struct worker *workers = calloc(options->clients, sizeof(*workers));
    uint32_t started = 0;
    int rc = workers == NULL ? ENOMEM : 0;

    while (rc == 0 && started < options->clients) {
        rc = start(&workers[started], argc, argv, started, options->clients);
        started += rc == 0;
    }
    if (rc != 0)
        snprintf(error, error_bytes, "cannot start client %" PRIu32 ": %s", started + 1,
                 strerror(rc));
    if (started > 0)
        listen_to_all(workers, started, request_count);
    for (uint32_t i = 0; i < started; i++) {
        outcome->lost_clients += !bury(&workers[i], i + 1);
        if (workers[i].has_counts)
            kvb_counts_add(&outcome->counts, &workers[i].counts);
    }
    free(workers);
    return rc == 0 ? 0 : -1;
}
