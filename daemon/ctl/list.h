/* SPDX-License-Identifier: Apache-2.0
 *
 * Verbs that show one of the daemon's lists, a record a row: as a table or as JSON.
 */
#ifndef KVCTL_LIST_H
#define KVCTL_LIST_H

#include <cjson/cJSON.h>

#include "ctl.h"
#include "pool.h"
#include "table.h"

struct kvctl_list {
    enum kvctl_pool_part part;
    const char *key;  /* of the array in JSON */
    const char *none; /* a line in place of an empty table; NULL: its titles */
    const struct kvctl_column *columns;
    size_t column_count;
    size_t (*count)(const struct kvctl_pool *pool);
    void (*add_row)(struct kvctl_table *table, const struct kvctl_pool *pool, size_t at,
                    const struct kvctl_style *style);
    cJSON *(*json)(const struct kvctl_pool *pool, size_t at);
};

/* Fetch the list and write it to run->out. Returns an exit status. */
int kvctl_list_run(struct kvctl_run *run, const struct kvctl_list *list);

#endif
