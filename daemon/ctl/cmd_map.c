/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmemctl map: the pool as a picture.
 */
#include "ctl.h"
#include "json.h"
#include "map.h"
#include "narrow.h"
#include "text.h"

/* Lines of the picture beside the rows of segments, and the cursor's. */
#define OTHER_LINES        11
#define OTHER_LINES_NARROW 14 /* the legend has one class a line */

static void add_classes(cJSON *object, const struct kvctl_blocks *blocks)
{
    kvctl_json_u64(object, "leased_blocks", blocks->of[KVCTL_BLOCK_LEASED]);
    kvctl_json_u64(object, "evictable_blocks", blocks->of[KVCTL_BLOCK_EVICTABLE]);
    kvctl_json_u64(object, "used_blocks", blocks->of[KVCTL_BLOCK_USED]);
    kvctl_json_u64(object, "waiting_blocks", blocks->of[KVCTL_BLOCK_WAITING]);
    kvctl_json_u64(object, "free_blocks", blocks->of[KVCTL_BLOCK_FREE]);
}

/* The cells as arrays of block counts, one a class. */
static void add_cells(cJSON *object, const struct kvi_rec_segment_info *segment)
{
    static const char *const keys[] = {"leased_cell_blocks", "evictable_cell_blocks",
                                       "used_cell_blocks", "waiting_cell_blocks",
                                       "free_cell_blocks"};
    struct kvctl_blocks cells[KVCTL_MAP_CELLS];
    unsigned count = kvctl_map_cells(segment, cells);

    kvctl_json_u64(object, "cell_blocks", segment->cell_blocks);
    for (unsigned class = 0; class < KVCTL_BLOCK_CLASSES; class ++) {
        cJSON *array = cJSON_AddArrayToObject(object, keys[class]);

        for (unsigned i = 0; i < count; i++)
            cJSON_AddItemToArray(array, kvctl_json_number(cells[i].of[class]));
    }
}

static cJSON *segment_json(const struct kvi_rec_segment_info *segment,
                           const struct kvctl_pool *pool)
{
    const struct kvi_rec_space_info *space = kvctl_pool_space(pool, segment->space);
    const struct kvi_rec_client_info *owner = kvctl_pool_client(pool, segment->owner);
    struct kvctl_blocks blocks = kvctl_map_count(segment);
    cJSON *object = cJSON_CreateObject();

    kvctl_json_u64(object, "segment", segment->segment);
    kvctl_json_u64(object, "space", segment->space);
    kvctl_json_text(object, "space_name", space ? space->name : "", sizeof(space->name));
    kvctl_json_u64(object, "slot", segment->slot);
    kvctl_json_u64(object, "generation", segment->generation);
    cJSON_AddStringToObject(object, "state", kvctl_segment_state_name(segment->state));
    if (segment->owner == KVI_NO_CLIENT)
        cJSON_AddNullToObject(object, "owner_client");
    else
        kvctl_json_u64(object, "owner_client", segment->owner);
    kvctl_json_text(object, "owner_name", owner ? owner->name : "", sizeof(owner->name));
    kvctl_json_u64(object, "mapper_count", segment->mapper_count);
    kvctl_json_u64(object, "total_blocks", segment->total_blocks);
    add_classes(object, &blocks);
    kvctl_json_u64(object, "used_tokens", segment->used_tokens);
    add_cells(object, segment);
    return object;
}

static void print_json(FILE *out, const struct kvctl_pool *pool, bool is_line)
{
    cJSON *document = cJSON_CreateObject();
    cJSON *segments;
    struct kvctl_blocks sum = {{0}};
    uint64_t total = 0;

    kvctl_json_u64(document, "device_bytes", pool->stats.device_bytes);
    kvctl_json_u64(document, "segment_bytes", pool->stats.segment_bytes);
    kvctl_json_u64(document, "free_bytes", pool->stats.free_bytes);
    segments = cJSON_AddArrayToObject(document, "segments");
    for (size_t i = 0; i < pool->segment_count; i++) {
        struct kvctl_blocks part = kvctl_map_count(&pool->segments[i]);

        for (unsigned class = 0; class < KVCTL_BLOCK_CLASSES; class ++)
            sum.of[class] += part.of[class];
        total += pool->segments[i].total_blocks;
        cJSON_AddItemToArray(segments, segment_json(&pool->segments[i], pool));
    }
    kvctl_json_u64(document, "total_blocks", total);
    add_classes(document, &sum);
    kvctl_json_print(out, document, is_line);
}

static unsigned rows_that_fit(const struct kvctl_style *style)
{
    unsigned others = style->width_columns >= 80 ? OTHER_LINES : OTHER_LINES_NARROW;

    return style->height_rows > others ? style->height_rows - others : 1;
}

int kvctl_cmd_map(struct kvctl_run *run)
{
    struct kvctl_map_options options = {.is_all = run->options.is_all};
    struct kvctl_pool pool;
    char title[300];
    int status = kvctl_pool_fetch_narrowed(run, &pool);

    snprintf(title, sizeof(title), "kvmemd at %s", run->session.path);
    options.title = title;
    if (run->options.every_ns && run->style.height_rows)
        options.row_limit = rows_that_fit(&run->style);
    if (status == KVCTL_EXIT_OK && run->options.is_json)
        print_json(run->out, &pool, run->options.every_ns > 0);
    else if (status == KVCTL_EXIT_OK)
        kvctl_map_print(run->out, &pool, &options, &run->style);
    kvctl_pool_free(&pool);
    return status;
}
