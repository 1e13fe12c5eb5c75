/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmemctl: parse, connect, run the verb, print what it wrote. With --every, the last two again
 * and again over the same connection.
 */
#include <errno.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ctl.h"

/* A page over the last one: each line clears what is behind it, the last all below. */
static void print_page(const char *text, bool is_first)
{
    fputs(is_first ? "\033[2J\033[H" : "\033[H", stdout);
    while (*text) {
        size_t line = strcspn(text, "\n");

        fwrite(text, 1, line, stdout);
        fputs(text[line] ? "\033[K\n" : "\033[K", stdout);
        text += line + (text[line] != 0);
    }
    fputs("\033[J", stdout);
}

static int flush_output(void)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return KVCTL_EXIT_OK;
    fprintf(stderr, "kvmemctl: cannot write to standard output: %s\n", strerror(errno));
    return KVCTL_EXIT_FAILED;
}

/* Run the verb into memory, then print it. Returns an exit status. */
static int run_once(struct kvctl_run *run, const struct kvctl_verb *verb, unsigned round)
{
    char *text = NULL;
    size_t bytes = 0;
    int status;

    run->out = open_memstream(&text, &bytes);
    if (!run->out) {
        fputs("kvmemctl: no memory left\n", stderr);
        return KVCTL_EXIT_FAILED;
    }
    status = verb->run(run);
    fclose(run->out);
    if (status == KVCTL_EXIT_OK || status == KVCTL_EXIT_VIOLATION) {
        if (run->options.every_ns && run->style.is_terminal && !run->options.is_json)
            print_page(text, round == 0);
        else
            fprintf(stdout, "%s%s", round > 0 && !run->options.is_json ? "\n" : "", text);
        if (flush_output() != KVCTL_EXIT_OK)
            status = KVCTL_EXIT_FAILED;
    }
    free(text);
    return status;
}

static int run_verb(struct kvctl_run *run, const struct kvctl_verb *verb)
{
    const struct timespec pause = {run->options.every_ns / 1000000000,
                                   run->options.every_ns % 1000000000};
    int status = KVCTL_EXIT_OK;

    if (verb->needs_daemon && kvctl_session_open(&run->session, &run->options) < 0)
        return kvctl_explain(stderr, &run->session.failure);
    for (unsigned round = 0; status == KVCTL_EXIT_OK; round++) {
        kvctl_style_find(&run->options, &run->style); /* the window may have changed */
        status = run_once(run, verb, round);
        if (run->options.every_ns == 0)
            break;
        nanosleep(&pause, NULL);
    }
    return status;
}

/* The verb that the command line asks for, or NULL and an exit status. */
static const struct kvctl_verb *choose_verb(struct kvctl_options *options, int *status)
{
    const struct kvctl_verb *verb;
    const char *stray;

    if (options->wants_version)
        return kvctl_verb_find("version");
    if (!options->verb && options->wants_help)
        return kvctl_verb_find("help");
    *status = KVCTL_EXIT_USAGE;
    if (!options->verb) {
        kvctl_help_general(stderr);
        return NULL;
    }
    verb = kvctl_verb_find(options->verb);
    if (!verb) {
        kvctl_complain_verb(options->verb);
        return NULL;
    }
    if (options->wants_help) {
        options->word = verb->name;
        return kvctl_verb_find("help");
    }
    stray = kvctl_options_stray(options->given, verb->takes);
    if (stray) {
        fprintf(stderr, "kvmemctl: %s takes no %s. `kvmemctl help %s` says what it takes.\n",
                verb->name, *stray == '-' ? stray : "argument", verb->name);
        return NULL;
    }
    return verb;
}

int main(int argc, char **argv)
{
    static struct kvctl_run run; /* its buffer is too large for a small stack */
    const struct kvctl_verb *verb;
    char error[256];
    int status = KVCTL_EXIT_OK;

    setlocale(LC_CTYPE, "");
    if (kvctl_options_parse(argc, argv, &run.options, error, sizeof(error)) < 0) {
        fprintf(stderr, "kvmemctl: %s\n`kvmemctl help` lists the options.\n", error);
        return KVCTL_EXIT_USAGE;
    }
    verb = choose_verb(&run.options, &status);
    if (!verb)
        return status;
    status = run_verb(&run, verb);
    kvctl_session_close(&run.session);
    return status;
}
