/* SPDX-License-Identifier: Apache-2.0
 *
 * How output may look: colours, glyphs, columns and rows. Found out once from the options, the
 * environment and the terminal; everything that draws takes it as an argument.
 */
#ifndef KVCTL_STYLE_H
#define KVCTL_STYLE_H

#include <stdbool.h>

#include "options.h"

struct kvctl_style {
    bool has_color;
    bool has_utf8;
    bool is_terminal;       /* standard output is one */
    unsigned width_columns; /* of the terminal, or --width, or 80 */
    unsigned table_columns; /* tables may be this wide: unlimited when piped into something */
    unsigned height_rows;   /* of the terminal; 0 when there is none */
};

/* What a piece of text means; the colours belong to style.c. */
enum kvctl_tone {
    KVCTL_TONE_PLAIN,
    KVCTL_TONE_TITLE,
    KVCTL_TONE_DIM,
    KVCTL_TONE_GOOD,
    KVCTL_TONE_BAD,
    KVCTL_TONE_LEASED,
    KVCTL_TONE_EVICTABLE,
    KVCTL_TONE_USED,
    KVCTL_TONE_WAITING
};

/* Call after setlocale(LC_CTYPE, ""). NO_COLOR (any value but the empty one) and TERM=dumb turn
 * automatic colour off; --color decides over both. */
void kvctl_style_find(const struct kvctl_options *options, struct kvctl_style *out);

/* The escape sequence that begins `tone`; "" without colour. */
const char *kvctl_tone(const struct kvctl_style *style, enum kvctl_tone tone);

/* The escape sequence that ends any tone; "" without colour. */
const char *kvctl_plain(const struct kvctl_style *style);

#endif
