/* SPDX-License-Identifier: Apache-2.0
 *
 * Aligned tables. Cells are added row by row; printing finds the widths, and leaves out the
 * columns that matter least while the table is wider than it may be, saying so.
 */
#ifndef KVCTL_TABLE_H
#define KVCTL_TABLE_H

#include <stddef.h>
#include <stdio.h>

#include "style.h"

struct kvctl_column {
    const char *title;
    bool is_right;
    unsigned rank; /* the highest is left out first; 0 never */
};

struct kvctl_table;

/* `columns` must outlive the table. NULL when there is no memory. */
struct kvctl_table *kvctl_table_create(const struct kvctl_column *columns, size_t column_count);
void kvctl_table_destroy(struct kvctl_table *table);

/* The next cell, left to right, top to bottom; clean text (kvctl_clean). */
void kvctl_table_add(struct kvctl_table *table, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Print at most `width_columns` wide, as far as columns may be left out. */
void kvctl_table_print(FILE *out, const struct kvctl_table *table, unsigned width_columns,
                       const struct kvctl_style *style);

#endif
