/* SPDX-License-Identifier: Apache-2.0
 *
 * getopt_long with sentences of our own.
 */
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text.h"

#define SECONDS_MAX        86400
#define TIMEOUT_DEFAULT_NS 5000000000
#define TIMEOUT_MIN_NS     1000000   /* 1 ms */
#define EVERY_MIN_NS       100000000 /* 0.1 s */

enum {
    SOCKET = 256,
    JSON,
    COLOR,
    TIMEOUT,
    EVERY,
    SPACE,
    WIDTH,
    ALL,
    VERSION
};

static const struct option long_options[] = {
    {"socket", required_argument, NULL, SOCKET},
    {"json", no_argument, NULL, JSON},
    {"color", required_argument, NULL, COLOR},
    {"timeout", required_argument, NULL, TIMEOUT},
    {"every", required_argument, NULL, EVERY},
    {"space", required_argument, NULL, SPACE},
    {"width", required_argument, NULL, WIDTH},
    {"all", no_argument, NULL, ALL},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, VERSION},
    {NULL, 0, NULL, 0},
};

int64_t kvctl_parse_seconds(const char *text, int64_t min_ns)
{
    char *end;
    double seconds;

    /* strtod also takes hexadecimal, infinity and leading blanks. */
    if (text[0] == 0 || text[strspn(text, "0123456789.")] != 0)
        return -1;
    errno = 0;
    seconds = strtod(text, &end);
    if (errno || *end || !(seconds <= SECONDS_MAX) || seconds * 1e9 < (double)min_ns)
        return -1;
    return (int64_t)(seconds * 1e9);
}

static int parse_width(const char *text, unsigned *out)
{
    char *end;
    long value;

    errno = 0;
    value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < KVCTL_WIDTH_MIN || value > KVCTL_WIDTH_MAX)
        return -1;
    *out = (unsigned)value;
    return 0;
}

static int parse_color(const char *text, enum kvctl_color *out)
{
    static const char *const names[] = {"auto", "always", "never"};

    for (unsigned i = 0; i < 3; i++) {
        if (strcmp(text, names[i]) == 0) {
            *out = (enum kvctl_color)i;
            return 0;
        }
    }
    return -1;
}

/* Take in one option. NULL, or what its value should have been. */
static const char *apply(struct kvctl_options *out, int option, const char *value)
{
    switch (option) {
    case SOCKET: out->socket = value; return *value ? NULL : "a path, not nothing";
    case JSON: out->is_json = true; return NULL;
    case COLOR: return parse_color(value, &out->color) ? "auto, always or never" : NULL;
    case TIMEOUT:
        out->timeout_ns = kvctl_parse_seconds(value, TIMEOUT_MIN_NS);
        return out->timeout_ns < 0 ? "seconds, 0.001 to 86400" : NULL;
    case EVERY:
        out->given |= KVCTL_TAKES_EVERY;
        out->every_ns = kvctl_parse_seconds(value, EVERY_MIN_NS);
        return out->every_ns < 0 ? "seconds, 0.1 to 86400" : NULL;
    case SPACE:
        out->given |= KVCTL_TAKES_SPACE;
        out->space = value;
        return *value ? NULL : "the name of a space (kvmemctl spaces lists them)";
    case WIDTH:
        out->given |= KVCTL_TAKES_WIDTH;
        return parse_width(value, &out->width_columns) ? "columns, 40 to 1000" : NULL;
    case ALL:
        out->given |= KVCTL_TAKES_ALL;
        out->is_all = true;
        return NULL;
    case VERSION: out->wants_version = true; return NULL;
    default: out->wants_help = true; return NULL;
    }
}

/* A sentence about what getopt_long refused (result '?' or ':'). */
static void explain_refused(int result, char **argv, char *error, size_t error_bytes)
{
    char word[64];
    const char *nearest = NULL;
    unsigned best = 3;
    size_t length = strcspn(argv[optind - 1], "=");

    if (result == ':') {
        snprintf(error, error_bytes, "%s needs a value", argv[optind - 1]);
        return;
    }
    if (optopt > 0 && optopt < 256) {
        snprintf(error, error_bytes, "there is no option -%c", optopt);
        return;
    }
    if (optopt >= 256) {
        snprintf(error, error_bytes, "%.*s takes no value", (int)length, argv[optind - 1]);
        return;
    }
    snprintf(word, sizeof(word), "%.*s", (int)length, argv[optind - 1]);
    for (const struct option *o = long_options; o->name; o++) {
        unsigned distance = strlen(word) > 2 ? kvctl_edit_distance(word + 2, o->name) : best;

        if (distance < best) {
            best = distance;
            nearest = o->name;
        }
    }
    snprintf(error, error_bytes,
             nearest ? "there is no option %s; did you mean --%s?"
                     : "there is no option %s, or it is not unique",
             word, nearest);
}

int kvctl_options_parse(int argc, char **argv, struct kvctl_options *out, char *error,
                        size_t error_bytes)
{
    int option;
    int index = 0;

    memset(out, 0, sizeof(*out));
    out->timeout_ns = TIMEOUT_DEFAULT_NS;
    optind = 0; /* glibc: begin anew, for tests that parse many times */
    while ((option = getopt_long(argc, argv, ":h", long_options, &index)) != -1) {
        const char *expected;

        if (option == '?' || option == ':') {
            explain_refused(option, argv, error, error_bytes);
            return -1;
        }
        expected = apply(out, option, optarg);
        if (expected) {
            snprintf(error, error_bytes, "--%s %s: expected %s", long_options[index].name, optarg,
                     expected);
            return -1;
        }
    }
    if (optind < argc)
        out->verb = argv[optind++];
    if (optind < argc) {
        out->given |= KVCTL_TAKES_WORD;
        out->word = argv[optind++];
    }
    if (optind < argc) {
        snprintf(error, error_bytes, "'%s' is one argument too many", argv[optind]);
        return -1;
    }
    return 0;
}

const char *kvctl_options_stray(unsigned given, unsigned taken)
{
    static const char *const names[] = {"--width", "--space", "--all", "--every", "an argument"};

    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if ((given & ~taken) >> i & 1)
            return names[i];
    return NULL;
}
