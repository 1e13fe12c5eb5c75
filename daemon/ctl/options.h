/* SPDX-License-Identifier: Apache-2.0
 *
 * The command line: options anywhere, then a verb, then what the verb takes. Parsing changes
 * nothing and prints nothing; what is wrong comes back as a sentence.
 */
#ifndef KVCTL_OPTIONS_H
#define KVCTL_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KVCTL_WIDTH_MIN 40
#define KVCTL_WIDTH_MAX 1000

enum kvctl_color {
    KVCTL_COLOR_AUTO,
    KVCTL_COLOR_ALWAYS,
    KVCTL_COLOR_NEVER
};

/* Options that belong to some verbs only; a verb says which it takes. */
enum kvctl_option_set {
    KVCTL_TAKES_WIDTH = 1u << 0,
    KVCTL_TAKES_SPACE = 1u << 1,
    KVCTL_TAKES_ALL = 1u << 2,
    KVCTL_TAKES_EVERY = 1u << 3,
    KVCTL_TAKES_WORD = 1u << 4 /* an argument: help VERB */
};

struct kvctl_options {
    const char *socket;     /* --socket, or NULL */
    int64_t timeout_ns;     /* --timeout; > 0 */
    int64_t every_ns;       /* --every, or 0 */
    const char *space;      /* --space, or NULL */
    unsigned width_columns; /* --width, or 0 */
    enum kvctl_color color;
    bool is_json;
    bool is_all;
    bool wants_help;
    bool wants_version;
    const char *verb; /* or NULL */
    const char *word; /* argument of the verb, or NULL */
    unsigned given;   /* enum kvctl_option_set: which verb options were there */
};

/* Parse. 0, or -1 with a sentence that names option, value and range in `error`. Strings point
 * into argv, which is permuted (getopt). */
int kvctl_options_parse(int argc, char **argv, struct kvctl_options *out, char *error,
                        size_t error_bytes);

/* The name of the first option in `given` that is not in `taken`, or NULL. */
const char *kvctl_options_stray(unsigned given, unsigned taken);

/* A number of seconds, with decimals if wanted, min_ns to 86,400 s, as nanoseconds; -1 when
 * `text` is no such number. */
int64_t kvctl_parse_seconds(const char *text, int64_t min_ns);

#endif
