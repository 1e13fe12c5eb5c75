/* SPDX-License-Identifier: Apache-2.0
 *
 * Failures in words: what is wrong, and what to do next. Pure.
 */
#include <kvmem/error.h>
#include <string.h>

#include "ctl.h"
#include "request.h"
#include "text.h"
#include "wire/protocol.h"

static void explain_lost(FILE *err, const struct kvctl_failure *failure)
{
    if (failure->is_connected) {
        fprintf(err,
                "the daemon at %s ended the connection%s%s.\n"
                "It was stopped, or it crashed: its log on standard error says why. "
                "Start it again with\n"
                "  kvmemd --socket %s\n",
                failure->path, *failure->asked ? " while it was asked for " : "", failure->asked,
                failure->path);
        return;
    }
    fprintf(err,
            "no daemon listens at %s.\n"
            "Start one:            kvmemd --socket %s\n"
            "or name another one:  kvmemctl --socket PATH (or KVMEM_SOCKET=PATH)\n",
            failure->path, failure->path);
}

static void explain_version(FILE *err, const struct kvctl_failure *failure)
{
    fprintf(err, "kvmemctl %s speaks protocol versions %u to %u; ", KVCTL_VERSION,
            KVI_PROTOCOL_VERSION_MIN, KVI_PROTOCOL_VERSION);
    if (failure->version)
        fprintf(err, "the daemon at %s speaks %u to %u.\n", failure->path, failure->version_min,
                failure->version);
    else
        fprintf(err, "the daemon at %s says:\n  %s\n", failure->path, failure->detail);
    fputs("Install kvmemctl and kvmemd from the same release.\n", err);
}

static void explain_other(FILE *err, const struct kvctl_failure *failure)
{
    const char *detail = *failure->detail ? failure->detail : kvmem_error_text(failure->code);

    if (*failure->asked)
        fprintf(err, "the daemon at %s did not answer %s: %s (%s).\n", failure->path,
                failure->asked, detail, kvmem_error_name(failure->code));
    else
        fprintf(err, "cannot connect to %s: %s (%s).\n", failure->path, detail,
                kvmem_error_name(failure->code));
    if (kvmem_error_is_retryable(failure->code))
        fputs("Try again; it may have passed.\n", err);
    else if (failure->code == KVMEM_E_LIMIT)
        fputs("End a client that is not needed, then try again.\n", err);
}

int kvctl_explain(FILE *err, const struct kvctl_failure *failure)
{
    fputs("kvmemctl: ", err);
    switch (failure->code) {
    case KVMEM_E_DAEMON_LOST: explain_lost(err, failure); break;
    case KVMEM_E_VERSION: explain_version(err, failure); break;
    case KVMEM_E_PERMISSION:
        fprintf(err,
                "you may not connect to %s.\n"
                "Run kvmemctl as the user who started kvmemd, or as root: "
                "`ls -l %s` shows who that is.\n",
                failure->path, failure->path);
        break;
    case KVMEM_E_TIMED_OUT:
        fprintf(err,
                "the daemon at %s did not answer %s within %s.\n"
                "It may be stopped or overloaded; `ps -o pid,stat,time,cmd -C kvmemd` shows it. "
                "Or wait longer:\n"
                "  kvmemctl --timeout %g ...\n",
                failure->path, *failure->asked ? failure->asked : "the connection",
                KVCTL_DURATION((uint64_t)failure->timeout_ns, true),
                (double)failure->timeout_ns * 6 / 1e9);
        break;
    case KVMEM_E_PROTOCOL:
        fprintf(err,
                "what listens at %s does not speak kvmem's protocol: %s.\n"
                "Is it a kvmemd, and from the same release? --socket PATH names another one.\n",
                failure->path, *failure->detail ? failure->detail : "it sent something else");
        break;
    default: explain_other(err, failure);
    }
    return failure->code == KVMEM_E_INVALID && !failure->is_connected ? KVCTL_EXIT_USAGE
                                                                      : KVCTL_EXIT_FAILED;
}
