/* SPDX-License-Identifier: Apache-2.0
 *
 * What kvmem-replay was asked to do.
 */
#ifndef KVB_REPLAY_OPTIONS_H
#define KVB_REPLAY_OPTIONS_H

#include <stdio.h>

#include <kvmem.h>

#include "byte_function.h"

struct kvb_options {
    const char *trace_path;
    const char *socket_path; /* NULL: the library's default */
    struct kvb_model model;
    const char *device;    /* "host" or "cuda:N"; NULL: what the daemon has (embedded: "host") */
    uint64_t device_bytes; /* embedded only */
    uint32_t tokens_per_id;
    uint32_t clients;
    uint32_t request_limit;
    uint32_t concurrency;
    uint32_t part;  /* this process replays requests part, part + parts, ... */
    uint32_t parts; /* 1 = all of them */
    int report_fd;  /* of a client process: where its results go; -1 = none */
    int is_embedded;
    int is_helped; /* a thread of the library's maps memory */
    int is_sequential;
    int is_without_output;
    int is_dry;
    int is_self_test;
    int is_json;
};

enum kvb_options_verdict {
    KVB_OPTIONS_RUN,
    KVB_OPTIONS_HELP,
    KVB_OPTIONS_WRONG
};

/* Parse the command line. WRONG: `error` names the option, its value and what it may be. */
enum kvb_options_verdict kvb_options_parse(int argc, char **argv, struct kvb_options *out,
                                           char *error, size_t error_bytes);

void kvb_options_print_help(FILE *file);

/* A number with an optional KiB, MiB, GiB or TiB behind it. 0, or -1 when it is none. */
int kvb_parse_bytes(const char *text, uint64_t *out);

/* "layers=2,kv_heads=2,..." over the values in *model. 0, or -1 and the reason. */
int kvb_parse_geometry(const char *text, struct kvb_model *model, char *error, size_t error_bytes);

#endif
