/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmemctl frag: fragmentation by name, a table a space.
 */
#include "ctl.h"
#include "frag.h"
#include "json.h"
#include "narrow.h"

static void add_frag(cJSON *object, const struct kvctl_frag *frag)
{
    const struct {
        const char *key;
        uint64_t value;
    } numbers[] = {
        {"segment_count", frag->segment_count},
        {"segment_bytes", frag->segment_bytes},
        {"token_bytes", frag->token_bytes},
        {"internal_bytes", frag->internal_bytes},
        {"external_bytes", frag->external_bytes},
        {"empty_bytes", frag->empty_bytes},
        {"waiting_bytes", frag->waiting_bytes},
        {"padding_bytes", frag->padding_bytes},
        {"total_blocks", frag->total_blocks},
        {"used_blocks", frag->used_blocks},
        {"external_blocks", frag->external_blocks},
        {"waiting_blocks", frag->waiting_blocks},
        {"unused_slot_tokens", frag->unused_slot_tokens},
        {"partly_used_segments", frag->partly_used_segments},
        {"empty_segments", frag->empty_segments},
        {"over_floor_segments", frag->over_floor_segments},
        {"over_floor_bytes", frag->over_floor_bytes},
        {"referenced_bytes", frag->referenced_bytes},
        {"shared_saved_bytes", frag->saved_bytes},
        {"virtual_bytes", frag->virtual_bytes},
    };

    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        kvctl_json_u64(object, numbers[i].key, numbers[i].value);
    kvctl_json_ratio(object, "waste_ratio", (double)(frag->segment_bytes - frag->token_bytes),
                     (double)frag->segment_bytes);
    kvctl_json_ratio(object, "internal_ratio", (double)frag->internal_bytes,
                     (double)frag->segment_bytes);
    kvctl_json_ratio(object, "external_ratio", (double)frag->external_bytes,
                     (double)frag->segment_bytes);
    kvctl_json_ratio(object, "padding_ratio", (double)frag->padding_bytes,
                     (double)frag->segment_bytes);
    kvctl_json_ratio(object, "virtual_ratio", (double)frag->virtual_bytes,
                     (double)frag->referenced_bytes);
}

static void print_json(FILE *out, const struct kvctl_pool *pool, bool is_line)
{
    cJSON *document = cJSON_CreateObject();
    cJSON *spaces = cJSON_AddArrayToObject(document, "spaces");
    struct kvctl_frag total = {0};

    for (size_t i = 0; i < pool->space_count; i++) {
        const struct kvi_rec_space_info *space = &pool->spaces[i];
        cJSON *object = cJSON_CreateObject();
        struct kvctl_frag frag;

        kvctl_frag_space(space, pool->segments, pool->segment_count, &frag);
        kvctl_frag_add(&total, &frag);
        kvctl_json_u64(object, "space", space->space);
        kvctl_json_text(object, "name", space->name, sizeof(space->name));
        kvctl_json_text(object, "domain", space->domain, sizeof(space->domain));
        kvctl_json_u64(object, "block_tokens", space->block_tokens);
        kvctl_json_u64(object, "block_bytes", space->block_bytes);
        add_frag(object, &frag);
        cJSON_AddItemToArray(spaces, object);
    }
    add_frag(cJSON_AddObjectToObject(document, "total"), &total);
    kvctl_json_print(out, document, is_line);
}

int kvctl_cmd_frag(struct kvctl_run *run)
{
    struct kvctl_pool pool;
    char title[300];
    int status = kvctl_pool_fetch_narrowed(run, &pool);

    snprintf(title, sizeof(title), "kvmemd at %s", run->session.path);
    if (status == KVCTL_EXIT_OK && run->options.is_json)
        print_json(run->out, &pool, run->options.every_ns > 0);
    else if (status == KVCTL_EXIT_OK)
        kvctl_frag_print(run->out, &pool, title, &run->style);
    kvctl_pool_free(&pool);
    return status;
}
