/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmemctl spaces: the models' geometries, and what each space holds.
 */
#include "json.h"
#include "list.h"
#include "text.h"

static const struct kvctl_column columns[] = {
    {"space", false, 0},  {"domain", false, 3},    {"tokens/block", true, 4},
    {"block", true, 2},   {"blocks/seg", true, 7}, {"segments", true, 0},
    {"owned", true, 5},   {"memory", true, 0},     {"quota", true, 2},
    {"entries", true, 1}, {"leased", true, 1},     {"owners' own", true, 6},
    {"idle", true, 6},    {"saved", true, 3},      {"clients", true, 0},
};

static void add_row(struct kvctl_table *table, const struct kvctl_pool *pool, size_t at,
                    const struct kvctl_style *style)
{
    const struct kvi_rec_space_info *space = &pool->spaces[at];
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

static size_t count(const struct kvctl_pool *pool)
{
    return pool->space_count;
}

static cJSON *json(const struct kvctl_pool *pool, size_t at)
{
    const struct kvi_rec_space_info *source = &pool->spaces[at];
    cJSON *object = cJSON_CreateObject();

    KVCTL_JSON_FIELDS(space_info)
    return object;
}

int kvctl_cmd_spaces(struct kvctl_run *run)
{
    static const struct kvctl_list list = {
        .part = KVCTL_POOL_SPACES,
        .key = "spaces",
        .none = "No space yet: a client opens one with kvmem_space_open.",
        .columns = columns,
        .column_count = sizeof(columns) / sizeof(columns[0]),
        .count = count,
        .add_row = add_row,
        .json = json,
    };

    return kvctl_list_run(run, &list);
}
