/* SPDX-License-Identifier: Apache-2.0
 *
 * A table is its cells' texts, one after the other.
 */
#include "table.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "text.h"

#define COLUMN_LIMIT 24
#define GAP_COLUMNS  2

struct kvctl_table {
    const struct kvctl_column *columns;
    size_t column_count;
    char **cells; /* NULL where there was no memory */
    size_t cell_count;
    size_t cell_limit;
};

struct kvctl_table *kvctl_table_create(const struct kvctl_column *columns, size_t column_count)
{
    struct kvctl_table *table = calloc(1, sizeof(*table));

    if (!table || column_count > COLUMN_LIMIT) {
        free(table);
        return NULL;
    }
    table->columns = columns;
    table->column_count = column_count;
    return table;
}

void kvctl_table_destroy(struct kvctl_table *table)
{
    if (!table)
        return;
    for (size_t i = 0; i < table->cell_count; i++)
        free(table->cells[i]);
    free(table->cells);
    free(table);
}

void kvctl_table_add(struct kvctl_table *table, const char *format, ...)
{
    va_list args;
    char *text;

    if (table->cell_count == table->cell_limit) {
        size_t limit = table->cell_limit ? table->cell_limit * 2 : 64;
        char **grown = realloc(table->cells, limit * sizeof(*grown));

        if (!grown)
            return;
        table->cells = grown;
        table->cell_limit = limit;
    }
    va_start(args, format);
    if (vasprintf(&text, format, args) < 0)
        text = NULL;
    va_end(args);
    table->cells[table->cell_count++] = text;
}

static const char *cell(const struct kvctl_table *table, size_t at)
{
    return table->cells[at] ? table->cells[at] : "?";
}

/* Width of each column, 0 for those left out. */
static void choose_widths(const struct kvctl_table *table, unsigned limit, size_t *widths)
{
    size_t sum = 0;

    for (size_t i = 0; i < table->column_count; i++) {
        widths[i] = kvctl_columns(table->columns[i].title);
        for (size_t at = i; at < table->cell_count; at += table->column_count)
            if (kvctl_columns(cell(table, at)) > widths[i])
                widths[i] = kvctl_columns(cell(table, at));
        sum += widths[i] + (i ? GAP_COLUMNS : 0);
    }
    while (sum > limit) {
        size_t least = 0;

        for (size_t i = 0; i < table->column_count; i++)
            if (widths[i] &&
                (!widths[least] || table->columns[i].rank > table->columns[least].rank))
                least = i;
        if (table->columns[least].rank == 0)
            break;
        sum -= widths[least] + GAP_COLUMNS;
        widths[least] = 0;
    }
}

/* Cells of a row, or the titles when `row` is NULL. */
static void print_row(FILE *out, const struct kvctl_table *table, const size_t *widths,
                      char *const *row, const struct kvctl_style *style)
{
    bool is_first = true;
    size_t last = 0;

    for (size_t i = 0; i < table->column_count; i++)
        if (widths[i])
            last = i;
    for (size_t i = 0; i < table->column_count; i++) {
        const char *text = !row ? table->columns[i].title : row[i] ? row[i] : "?";

        if (widths[i] == 0)
            continue;
        if (!is_first)
            fprintf(out, "%*s", GAP_COLUMNS, "");
        is_first = false;
        if (i == last && !table->columns[i].is_right)
            fputs(text, out);
        else
            kvctl_pad(out, text, widths[i], table->columns[i].is_right, style->has_utf8);
    }
}

/* Names of the columns left out, in lines of `limit` columns. */
static void print_left_out(FILE *out, const struct kvctl_table *table, const size_t *widths,
                           unsigned limit, const struct kvctl_style *style)
{
    size_t column = 0;
    bool is_first = true;

    for (size_t i = 0; i < table->column_count; i++) {
        const char *title = table->columns[i].title;

        if (widths[i])
            continue;
        if (is_first) {
            fprintf(out, "\n%s", kvctl_tone(style, KVCTL_TONE_DIM));
            column = (size_t)fprintf(out, "Not shown at this width:") - 1;
        } else {
            fputc(',', out);
        }
        is_first = false;
        if (column + strlen(title) + 2 > limit) {
            fputc('\n', out);
            column = 0;
        }
        column += (size_t)fprintf(out, " %s", title) + 1;
    }
    if (!is_first)
        fprintf(out, ".%s\n", kvctl_plain(style));
}

void kvctl_table_print(FILE *out, const struct kvctl_table *table, unsigned width_columns,
                       const struct kvctl_style *style)
{
    size_t widths[COLUMN_LIMIT];

    choose_widths(table, width_columns, widths);
    fputs(kvctl_tone(style, KVCTL_TONE_TITLE), out);
    print_row(out, table, widths, NULL, style);
    fprintf(out, "%s\n", kvctl_plain(style));
    for (size_t at = 0; at + table->column_count <= table->cell_count; at += table->column_count) {
        print_row(out, table, widths, table->cells + at, style);
        fputc('\n', out);
    }
    print_left_out(out, table, widths, width_columns, style);
}
