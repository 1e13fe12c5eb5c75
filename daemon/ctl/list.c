/* SPDX-License-Identifier: Apache-2.0
 *
 * Fetch, then one of two forms; see list.h.
 */
#include "list.h"

#include "json.h"

static int print_table(struct kvctl_run *run, const struct kvctl_list *list,
                       const struct kvctl_pool *pool)
{
    size_t count = list->count(pool);
    struct kvctl_table *table;

    if (count == 0 && list->none) {
        fprintf(run->out, "%s\n", list->none);
        return KVCTL_EXIT_OK;
    }
    table = kvctl_table_create(list->columns, list->column_count);
    if (!table) {
        fputs("kvmemctl: no memory left\n", stderr);
        return KVCTL_EXIT_FAILED;
    }
    for (size_t i = 0; i < count; i++)
        list->add_row(table, pool, i, &run->style);
    kvctl_table_print(run->out, table, run->style.table_columns, &run->style);
    kvctl_table_destroy(table);
    return KVCTL_EXIT_OK;
}

static void print_json(FILE *out, const struct kvctl_list *list, const struct kvctl_pool *pool)
{
    cJSON *document = cJSON_CreateObject();
    cJSON *array = cJSON_AddArrayToObject(document, list->key);

    for (size_t i = 0; i < list->count(pool); i++)
        cJSON_AddItemToArray(array, list->json(pool, i));
    kvctl_json_print(out, document, 0);
}

int kvctl_list_run(struct kvctl_run *run, const struct kvctl_list *list)
{
    struct kvctl_pool pool;
    int status = KVCTL_EXIT_OK;

    if (kvctl_pool_fetch(&run->session, list->part, &pool) < 0)
        status = kvctl_explain(stderr, &run->session.failure);
    else if (run->options.is_json)
        print_json(run->out, list, &pool);
    else
        status = print_table(run, list, &pool);
    kvctl_pool_free(&pool);
    return status;
}
