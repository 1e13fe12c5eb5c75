/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmemctl spaces: the models' geometries, and what each space holds.
 */
#include "ctl.h"
#include "json.h"
#include "pool.h"
#include "table.h"
#include "text.h"

static const struct kvctl_column columns[] = {
    {"space", false, 0},  {"domain", false, 3},    {"tokens/block", true, 4},
    {"block", true, 2},   {"blocks/seg", true, 7}, {"segments", true, 0},
    {"owned", true, 5},   {"memory", true, 0},     {"quota", true, 2},
    {"entries", true, 1}, {"leased", true, 1},     {"owners' own", true, 6},
    {"idle", true, 6},    {"saved", true, 3},      {"clients", true, 0},
};

static void add_row(struct kvctl_table *table, const struct kvi_rec_space_info *space,
                    const struct kvctl_style *style)
{
    char name[KVCTL_NAME_BYTES], domain[KVCTL_NAME_BYTES];

    kvctl_clean(name, sizeof(name), space->name, sizeof(space->name), style->has_utf8);
    kvctl_clean(domain, sizeof(domain), space->domain, sizeof(space->domain), style->has_utf8);
    kvctl_table_add(table, "%s", name);
    kvctl_table_add(table, "%s", domain);
    kvctl_table_add(table, "%u", space->block_tokens);
    kvctl_table_add(table, "%s", KVCTL_BYTES(space->block_bytes));
    kvctl_table_add(table, "%s", KVCTL_COUNT(space->blocks_per_segment));
    kvctl_table_add(table, "%s", KVCTL_COUNT(space->segment_count));
    kvctl_table_add(table, "%s", KVCTL_COUNT(space->owned_segments));
    kvctl_table_add(table, "%s", KVCTL_BYTES(space->segment_count * space->segment_bytes));
    kvctl_table_add(table, "%s", space->quota_bytes ? KVCTL_BYTES(space->quota_bytes) : "none");
    kvctl_table_add(table, "%s", KVCTL_COUNT(space->entry_blocks));
    kvctl_table_add(table, "%s", KVCTL_COUNT(space->leased_blocks));
    kvctl_table_add(table, "%s", KVCTL_COUNT(space->owner_blocks));
    kvctl_table_add(table, "%s", KVCTL_COUNT(space->idle_blocks));
    kvctl_table_add(table, "%s", KVCTL_BYTES(space->shared_saved_bytes));
    kvctl_table_add(table, "%u", space->client_count);
}

static int print_table(struct kvctl_run *run, const struct kvctl_pool *pool)
{
    struct kvctl_table *table = kvctl_table_create(columns, sizeof(columns) / sizeof(columns[0]));

    if (!table) {
        fputs("kvmemctl: no memory left\n", stderr);
        return KVCTL_EXIT_FAILED;
    }
    for (size_t i = 0; i < pool->space_count; i++)
        add_row(table, &pool->spaces[i], &run->style);
    if (pool->space_count == 0)
        fputs("No space yet: a client opens one with kvmem_space_open.\n", run->out);
    else
        kvctl_table_print(run->out, table, run->style.table_columns, &run->style);
    kvctl_table_destroy(table);
    return KVCTL_EXIT_OK;
}

static void print_json(FILE *out, const struct kvctl_pool *pool)
{
    cJSON *document = cJSON_CreateObject();
    cJSON *array = cJSON_AddArrayToObject(document, "spaces");

    for (size_t i = 0; i < pool->space_count; i++) {
        const struct kvi_rec_space_info *source = &pool->spaces[i];
        cJSON *object = cJSON_CreateObject();

        KVCTL_JSON_FIELDS(space_info)
        cJSON_AddItemToArray(array, object);
    }
    kvctl_json_print(out, document, 0);
}

int kvctl_cmd_spaces(struct kvctl_run *run)
{
    struct kvctl_pool pool;
    int status = KVCTL_EXIT_OK;

    if (kvctl_pool_fetch(&run->session, KVCTL_POOL_SPACES, &pool) < 0)
        status = kvctl_explain(stderr, &run->session.failure);
    else if (run->options.is_json)
        print_json(run->out, &pool);
    else
        status = print_table(run, &pool);
    kvctl_pool_free(&pool);
    return status;
}
