/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmemctl clients: who is connected and what each one holds.
 */
#include "json.h"
#include "list.h"
#include "text.h"

static const struct kvctl_column columns[] = {
    {"client", true, 0}, {"name", false, 0},  {"pid", true, 1},      {"uid", true, 8},
    {"role", false, 9},  {"state", false, 0}, {"segments", true, 2}, {"memory", true, 0},
    {"mapped", true, 4}, {"leases", true, 2}, {"pins", true, 6},     {"used blocks", true, 3},
    {"tokens", true, 5}, {"fds", true, 10},   {"messages", true, 7}, {"age", true, 3},
};

static const char *state_name(uint32_t state)
{
    static const char *const names[] = {"connecting", "alive", "ending", "quarantined"};

    return state < sizeof(names) / sizeof(names[0]) ? names[state] : "unknown";
}

static const char *role_name(uint32_t role)
{
    static const char *const names[] = {"leader", "member", "observer"};

    return role < sizeof(names) / sizeof(names[0]) ? names[role] : "unknown";
}

static void add_row(struct kvctl_table *table, const struct kvctl_pool *pool, size_t at,
                    const struct kvctl_style *style)
{
    const struct kvi_rec_client_info *client = &pool->clients[at];
    char name[KVCTL_NAME_BYTES];

    kvctl_clean(name, sizeof(name), client->name, sizeof(client->name), style->has_utf8);
    kvctl_table_add(table, "%u", client->client);
    kvctl_table_add(table, "%s", *name ? name : "-");
    if (client->pid)
        kvctl_table_add(table, "%u", client->pid);
    else
        kvctl_table_add(table, "-");
    kvctl_table_add(table, "%u", client->uid);
    kvctl_table_add(table, "%s", role_name(client->role));
    kvctl_table_add(table, "%s", state_name(client->state));
    kvctl_table_add(table, "%s", KVCTL_COUNT(client->owned_segments));
    kvctl_table_add(table, "%s", KVCTL_BYTES(client->owned_bytes));
    kvctl_table_add(table, "%s", KVCTL_COUNT(client->mapped_segments));
    kvctl_table_add(table, "%s", KVCTL_COUNT(client->lease_count));
    kvctl_table_add(table, "%s", KVCTL_COUNT(client->pin_count));
    kvctl_table_add(table, "%s", KVCTL_COUNT(client->used_blocks));
    kvctl_table_add(table, "%s", KVCTL_COUNT(client->used_tokens));
    kvctl_table_add(table, "%u", client->fds_in_flight);
    kvctl_table_add(table, "%s", KVCTL_COUNT(client->messages));
    kvctl_table_add(table, "%s", KVCTL_DURATION(client->age_ns, style->has_utf8));
}

static size_t count(const struct kvctl_pool *pool)
{
    return pool->client_count;
}

static cJSON *json(const struct kvctl_pool *pool, size_t at)
{
    const struct kvi_rec_client_info *source = &pool->clients[at];
    cJSON *object = cJSON_CreateObject();

    KVCTL_JSON_FIELDS(client_info)
    cJSON_AddStringToObject(object, "state_name", state_name(source->state));
    cJSON_AddStringToObject(object, "role_name", role_name(source->role));
    return object;
}

int kvctl_cmd_clients(struct kvctl_run *run)
{
    static const struct kvctl_list list = {
        .part = KVCTL_POOL_CLIENTS,
        .key = "clients",
        .columns = columns,
        .column_count = sizeof(columns) / sizeof(columns[0]),
        .count = count,
        .add_row = add_row,
        .json = json,
    };

    return kvctl_list_run(run, &list);
}
