/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmem-replay: replays a trace as a serving engine would, and checks every byte that it reads.
 * replay.h says what an engine does, bytes.h what the bytes must be.
 */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common/bench.h"
#include "daemon.h"
#include "progress.h"
#include "replay.h"
#include "report.h"
#include "workers.h"

enum status {
    STATUS_RIGHT = 0,
    STATUS_WRONG = 1,
    STATUS_USAGE = 2
};

static int complain(const char *text)
{
    fprintf(stderr, "kvmem-replay: %s\n", text);
    return STATUS_WRONG;
}

static void draw(void *context, uint32_t finished, uint32_t total)
{
    (void)context;
    kvb_progress_draw(finished, total);
}

static void tell_parent(void *context, uint32_t finished, uint32_t total)
{
    const struct kvb_options *options = context;

    (void)total;
    dprintf(options->report_fd, "{\"finished\":%" PRIu32 "}\n", finished);
}

/* One engine in this process. 0, or −1 after a complaint. */
static int run_engine(const struct kvb_options *options, const struct kvb_trace *trace,
                      struct kvb_counts *counts)
{
    struct kvb_engine engine;
    char faults[400] = "";
    int rc = kvb_replay_open(&engine, options, trace);

    if (rc == 0) {
        engine.progress = options->report_fd >= 0 ? tell_parent : draw;
        engine.progress_context = (void *)options;
        rc = kvb_replay_run(&engine);
    }
    if (options->report_fd < 0)
        kvb_progress_clear();
    if (engine.faults != NULL)
        kvb_faults_describe(engine.faults, faults, sizeof(faults));
    if (kvb_replay_close(&engine) != 0)
        rc = -1;
    if (rc != 0)
        complain(engine.error);
    if (rc == 0 && faults[0] != '\0')
        fprintf(stderr, "faults found: %s\n", faults);
    *counts = engine.counts;
    return rc;
}

/* A client of a parent that collects results. */
static int run_part(const struct kvb_options *options, const struct kvb_trace *trace)
{
    struct kvb_counts counts;
    char *line;
    int rc;

    prctl(PR_SET_PDEATHSIG, SIGKILL); /* no engine goes on when nobody listens */
    if (run_engine(options, trace, &counts) != 0)
        return STATUS_WRONG;
    line = kvb_counts_print(&counts);
    rc = line != NULL && dprintf(options->report_fd, "%s", line) > 0 ? STATUS_RIGHT : STATUS_WRONG;
    free(line);
    return rc;
}

static void count_embedded(struct kvb_outcome *outcome)
{
    outcome->evictions = outcome->counts.reused_entry_blocks;
    outcome->adoptions = outcome->counts.adopted_segments;
    outcome->leaked_blocks = outcome->counts.held_blocks_at_end;
}

static void count_daemon(struct kvb_outcome *outcome, const struct kvb_daemon_counts *before,
                         const struct kvb_daemon_counts *after)
{
    outcome->cross_client_hit_blocks = after->foreign_hit_blocks - before->foreign_hit_blocks;
    outcome->evictions = after->evicted_blocks - before->evicted_blocks;
    outcome->adoptions = after->adopted_segments - before->adopted_segments;
    outcome->leaked_blocks = after->leaked_blocks;
}

/* Replay with one client or several; *outcome is complete then. 0, or −1 after a complaint. */
static int replay(int argc, char **argv, const struct kvb_options *options,
                  const struct kvb_trace *trace, struct kvb_outcome *outcome)
{
    struct kvb_daemon_counts before, after;
    const char *socket_path = options->socket_path;
    char error[512] = "";
    uint64_t started;
    int rc = 0;

    if (!options->is_embedded && kvb_daemon_read(socket_path, &before, error, sizeof(error)) != 0)
        return complain(error), -1;
    started = kvb_now_ns();
    if (options->clients > 1)
        rc = kvb_workers_run(argc, argv, options, trace->request_count, outcome, error,
                             sizeof(error));
    else if (run_engine(options, trace, &outcome->counts) != 0)
        outcome->lost_clients = 1;
    outcome->seconds = (double)(kvb_now_ns() - started) / 1e9;
    if (rc == 0 && options->is_embedded)
        count_embedded(outcome);
    else if (rc == 0 && (rc = kvb_daemon_read_after(socket_path, before.client_count, &after, error,
                                                    sizeof(error))) == 0)
        count_daemon(outcome, &before, &after);
    return rc != 0 ? complain(error), -1 : 0;
}

static int run_all(int argc, char **argv, const struct kvb_options *options,
                   const struct kvb_trace *trace)
{
    struct kvb_outcome outcome = {.clients = options->clients};
    const char *fault;

    kvb_counts_init(&outcome.counts);
    if (replay(argc, argv, options, trace, &outcome) != 0)
        return STATUS_WRONG;
    if (!options->is_json)
        kvb_outcome_print_text(&outcome, stdout);
    else if (kvb_outcome_print_json(&outcome, stdout) != 0)
        return complain("cannot write the result");
    fault = kvb_outcome_fault(&outcome, options);
    return fault == NULL ? STATUS_RIGHT : complain(fault);
}

int main(int argc, char **argv)
{
    struct kvb_options options;
    struct kvb_trace trace;
    char error[512];
    int status;

    switch (kvb_options_parse(argc, argv, &options, error, sizeof(error))) {
    case KVB_OPTIONS_HELP: kvb_options_print_help(stdout); return STATUS_RIGHT;
    case KVB_OPTIONS_WRONG: complain(error); return STATUS_USAGE;
    case KVB_OPTIONS_RUN: break;
    }
    if (kvb_trace_load(options.trace_path, options.tokens_per_id, options.request_limit, &trace,
                       error, sizeof(error)) != 0) {
        complain(error);
        return STATUS_USAGE;
    }
    signal(SIGPIPE, SIG_IGN);
    status =
        options.report_fd >= 0 ? run_part(&options, &trace) : run_all(argc, argv, &options, &trace);
    kvb_trace_fini(&trace);
    return status;
}
