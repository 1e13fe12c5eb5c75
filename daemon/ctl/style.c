/* SPDX-License-Identifier: Apache-2.0
 *
 * Asks the terminal and the environment what they can show.
 */
#include "style.h"

#include <langinfo.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static bool wants_color(const struct kvctl_options *options, bool is_terminal)
{
    const char *no_color = getenv("NO_COLOR"); /* https://no-color.org */
    const char *term = getenv("TERM");

    if (options->color != KVCTL_COLOR_AUTO)
        return options->color == KVCTL_COLOR_ALWAYS;
    return is_terminal && !(no_color && *no_color) && term && strcmp(term, "dumb") != 0;
}

static unsigned columns_from_environment(void)
{
    const char *text = getenv("COLUMNS");
    long columns = text ? strtol(text, NULL, 10) : 0;

    if (columns < KVCTL_WIDTH_MIN || columns > KVCTL_WIDTH_MAX)
        return 0;
    return (unsigned)columns;
}

void kvctl_style_find(const struct kvctl_options *options, struct kvctl_style *out)
{
    struct winsize window = {0};
    unsigned environment = columns_from_environment();

    memset(out, 0, sizeof(*out));
    out->is_terminal = isatty(STDOUT_FILENO);
    out->has_color = !options->is_json && wants_color(options, out->is_terminal);
    out->has_utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
    if (out->is_terminal && ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) == 0)
        out->height_rows = window.ws_row;

    if (options->width_columns)
        out->width_columns = options->width_columns;
    else if (window.ws_col >= KVCTL_WIDTH_MIN)
        out->width_columns = window.ws_col;
    else
        out->width_columns = environment ? environment : 80;
    out->table_columns =
        out->is_terminal || options->width_columns || environment ? out->width_columns : UINT_MAX;
}

const char *kvctl_tone(const struct kvctl_style *style, enum kvctl_tone tone)
{
    static const char *const sequences[] = {
        [KVCTL_TONE_PLAIN] = "",
        [KVCTL_TONE_TITLE] = "\033[1m",
        [KVCTL_TONE_DIM] = "\033[2m",
        [KVCTL_TONE_GOOD] = "\033[32m",
        [KVCTL_TONE_BAD] = "\033[1;31m",
        [KVCTL_TONE_LEASED] = "\033[32m",
        [KVCTL_TONE_EVICTABLE] = "\033[33m",
        [KVCTL_TONE_USED] = "\033[36m",
        [KVCTL_TONE_WAITING] = "\033[35m",
    };

    return style->has_color ? sequences[tone] : "";
}

const char *kvctl_plain(const struct kvctl_style *style)
{
    return style->has_color ? "\033[0m" : "";
}
