/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmemctl: looks at a running kvmemd. Each verb is one file, cmd_<verb>.c, and one row of the
 * table in verbs.c.
 *
 *   main ── options ── verbs ──▶ cmd_stats, cmd_map, ... ──▶ list, request, pool ──▶ the daemon
 *                                    │
 *                                    └──▶ map, frag, table, json ──▶ text, style   (pure)
 *
 * A verb writes to run->out, a buffer in memory that main() puts on standard output in one
 * piece once the verb has succeeded: a failing verb prints no half page, a repeating one does
 * not flicker. Trouble goes to standard error.
 */
#ifndef KVCTL_CTL_H
#define KVCTL_CTL_H

#include <kvmem/export.h>
#include <stdio.h>

#include "options.h"
#include "request.h"
#include "style.h"

/* "0.1.0". (kvmem_version() is part of the library's API, which kvmemctl does not link.) */
#define KVCTL_TEXT_OF(number) #number
#define KVCTL_DOTS(a, b, c)   KVCTL_TEXT_OF(a) "." KVCTL_TEXT_OF(b) "." KVCTL_TEXT_OF(c)
#define KVCTL_VERSION         KVCTL_DOTS(KVMEM_VERSION_MAJOR, KVMEM_VERSION_MINOR, KVMEM_VERSION_PATCH)

enum kvctl_exit {
    KVCTL_EXIT_OK = 0,
    KVCTL_EXIT_VIOLATION = 1, /* check: an invariant does not hold */
    KVCTL_EXIT_USAGE = 2,
    KVCTL_EXIT_FAILED = 3 /* no daemon, or anything else */
};

struct kvctl_run {
    struct kvctl_options options;
    struct kvctl_style style;
    struct kvctl_session session; /* open when the verb needs a daemon */
    FILE *out;
};

struct kvctl_verb {
    const char *name;
    const char *summary; /* half a line, for the list of verbs */
    const char *help;    /* paragraphs */
    unsigned takes;      /* enum kvctl_option_set */
    bool needs_daemon;
    int (*run)(struct kvctl_run *run); /* returns an exit status */
};

/* The verb of that name, or NULL. */
const struct kvctl_verb *kvctl_verb_find(const char *name);

/* All verbs in the order of the help. */
const struct kvctl_verb *kvctl_verbs(unsigned *count);

/* The verb that was probably meant by `name`, or NULL when none is near. */
const struct kvctl_verb *kvctl_verb_nearest(const char *name);

/* The general help, and that of one verb. */
void kvctl_help_general(FILE *out);
void kvctl_help_verb(FILE *out, const struct kvctl_verb *verb);

/* "there is no verb X; did you mean Y?" on standard error. Returns the exit status. */
int kvctl_complain_verb(const char *name);

int kvctl_cmd_stats(struct kvctl_run *run);
int kvctl_cmd_map(struct kvctl_run *run);
int kvctl_cmd_frag(struct kvctl_run *run);
int kvctl_cmd_clients(struct kvctl_run *run);
int kvctl_cmd_spaces(struct kvctl_run *run);
int kvctl_cmd_devices(struct kvctl_run *run);
int kvctl_cmd_check(struct kvctl_run *run);
int kvctl_cmd_version(struct kvctl_run *run);
int kvctl_cmd_help(struct kvctl_run *run);

#endif
