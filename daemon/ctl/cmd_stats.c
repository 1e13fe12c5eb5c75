/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmemctl stats: the daemon's counters, grouped by the question they answer.
 */
#include <string.h>

#include "ctl.h"
#include "json.h"
#include "pool.h"
#include "stats.h"
#include "text.h"

#define LABEL_COLUMNS 22
#define VALUE_COLUMNS 12
#define SHARE_COLUMNS 9

static void print_group(FILE *out, const char *name, const struct kvctl_style *style)
{
    fprintf(out, "\n%s%s%s\n", kvctl_tone(style, KVCTL_TONE_TITLE), name, kvctl_plain(style));
}

/* "  label     value    share   remark" */
static void print_value(FILE *out, const char *label, const char *value, const char *part,
                        const char *remark, const struct kvctl_style *style)
{
    bool has_more = *part || *remark;

    fputs("  ", out);
    kvctl_pad(out, label, LABEL_COLUMNS, false, style->has_utf8);
    fprintf(out, "%*s", VALUE_COLUMNS, value);
    if (has_more)
        fprintf(out, "%*s", SHARE_COLUMNS, part);
    if (*remark)
        fprintf(out, "   %s%s%s", kvctl_tone(style, KVCTL_TONE_DIM), remark, kvctl_plain(style));
    fputc('\n', out);
}

#define LINE(label, value, part, remark) print_value(out, label, value, part, remark, style)

static void print_memory(FILE *out, const struct kvi_msg_stats_reply *s,
                         const struct kvctl_style *style)
{
    char text[96];

    print_group(out, "memory", style);
    snprintf(text, sizeof(text), "granule %s", KVCTL_BYTES(s->granule_bytes));
    LINE("device", KVCTL_BYTES(s->device_bytes), "", text);
    snprintf(text, sizeof(text), "%s segment%s, %s with a writer", KVCTL_COUNT(s->segment_count),
             kvctl_plural(s->segment_count), KVCTL_COUNT(s->owned_segments));
    LINE("in segments", KVCTL_BYTES(s->segment_bytes),
         KVCTL_PERCENT(s->segment_bytes, s->device_bytes), text);
    LINE("free", KVCTL_BYTES(s->free_bytes), KVCTL_PERCENT(s->free_bytes, s->device_bytes), "");
}

static void print_blocks(FILE *out, const struct kvi_msg_stats_reply *s,
                         const struct kvctl_style *style)
{
    uint64_t evictable =
        s->entry_blocks > s->leased_blocks ? s->entry_blocks - s->leased_blocks : 0;
    uint64_t total = s->total_blocks;

    print_group(out, "blocks", style);
    LINE("in segments", KVCTL_COUNT(total), "", "");
    LINE("leased entries", KVCTL_COUNT(s->leased_blocks), KVCTL_PERCENT(s->leased_blocks, total),
         "held by a client or a pin");
    LINE("evictable entries", KVCTL_COUNT(evictable), KVCTL_PERCENT(evictable, total),
         "cached until memory is wanted");
    LINE("owners' own", KVCTL_COUNT(s->owner_blocks), KVCTL_PERCENT(s->owner_blocks, total),
         "unpublished or free");
    LINE("idle", KVCTL_COUNT(s->idle_blocks), KVCTL_PERCENT(s->idle_blocks, total),
         "free in handed-in segments");
}

static void print_sharing(FILE *out, const struct kvi_msg_stats_reply *s,
                          const struct kvctl_style *style)
{
    char text[96];

    print_group(out, "sharing", style);
    snprintf(text, sizeof(text), "in %s lookup%s", KVCTL_COUNT(s->lookups),
             kvctl_plural(s->lookups));
    LINE("blocks looked up", KVCTL_COUNT(s->lookup_blocks), "", text);
    LINE("found", KVCTL_COUNT(s->hit_blocks), KVCTL_PERCENT(s->hit_blocks, s->lookup_blocks),
         "of those looked up");
    LINE("from another client", KVCTL_COUNT(s->foreign_hit_blocks),
         KVCTL_PERCENT(s->foreign_hit_blocks, s->hit_blocks), "of those found");
    LINE("blocks published", KVCTL_COUNT(s->published_blocks), "", "");
    LINE("published twice", KVCTL_COUNT(s->publish_exists_blocks), "",
         "the name was there already");
    LINE("leases", KVCTL_COUNT(s->lease_count), "", "");
    LINE("pins", KVCTL_COUNT(s->pin_count), "", "");
}

static void print_movement(FILE *out, const struct kvi_msg_stats_reply *s,
                           const struct kvctl_style *style)
{
    char text[96];

    print_group(out, "movement", style);
    snprintf(text, sizeof(text), "%s released", KVCTL_COUNT(s->released_segments));
    LINE("segments created", KVCTL_COUNT(s->created_segments), "", text);
    LINE("segments handed in", KVCTL_COUNT(s->handed_in_segments), "", "by their owners");
    LINE("segments adopted", KVCTL_COUNT(s->adopted_segments), "", "with the entries in them");
    LINE("segments orphaned", KVCTL_COUNT(s->orphaned_segments), "", "their owner died");
    snprintf(text, sizeof(text), "%s segment%s evicted whole", KVCTL_COUNT(s->evicted_segments),
             kvctl_plural(s->evicted_segments));
    LINE("blocks evicted", KVCTL_COUNT(s->evicted_blocks), "", text);
    LINE("grants", KVCTL_COUNT(s->grants), "", "requests that got blocks");
    LINE("clients reclaimed", KVCTL_COUNT(s->reclaimed_clients), "", "");
    LINE("descriptors in flight", KVCTL_COUNT(s->fds_in_flight), "", "sent, not acknowledged");
}

/* Like LINE, but what is not 0 stands out. */
static void print_trouble_line(FILE *out, const char *label, uint64_t count, const char *remark,
                               const struct kvctl_style *style)
{
    fputs(count ? kvctl_tone(style, KVCTL_TONE_BAD) : "", out);
    fputs("  ", out);
    kvctl_pad(out, label, LABEL_COLUMNS, false, style->has_utf8);
    fprintf(out, "%*s", VALUE_COLUMNS, KVCTL_COUNT(count));
    fputs(count ? kvctl_plain(style) : "", out);
    if (count)
        fprintf(out, "%*s   %s", SHARE_COLUMNS, "", remark);
    fputc('\n', out);
}

static void print_trouble(FILE *out, const struct kvi_msg_stats_reply *s,
                          const struct kvctl_style *style)
{
    char text[64];

    print_group(out, "trouble", style);
    print_trouble_line(out, "requests refused", s->refusals, "device full or quota", style);
    print_trouble_line(out, "publications refused", s->publish_refused_blocks,
                       "not the writer, or a limit", style);
    snprintf(text, sizeof(text), "%s missed", KVCTL_COUNT(s->pressure_missed));
    print_trouble_line(out, "pressure requests", s->pressure_requests, text, style);
    print_trouble_line(out, "protocol errors", s->protocol_errors, "connections ended", style);
    print_trouble_line(out, "leaked blocks", s->leaked_blocks, "a bug: run kvmemctl check", style);
}

void kvctl_stats_print(FILE *out, const struct kvi_msg_stats_reply *stats, const char *title,
                       const struct kvctl_style *style)
{
    fprintf(out, "%s%s%s\nup %s, %s client%s, %s space%s\n", kvctl_tone(style, KVCTL_TONE_TITLE),
            title, kvctl_plain(style), KVCTL_DURATION(stats->uptime_ns, style->has_utf8),
            KVCTL_COUNT(stats->client_count), kvctl_plural(stats->client_count),
            KVCTL_COUNT(stats->space_count), kvctl_plural(stats->space_count));
    print_memory(out, stats, style);
    print_blocks(out, stats, style);
    print_sharing(out, stats, style);
    print_movement(out, stats, style);
    print_trouble(out, stats, style);
}

cJSON *kvctl_stats_json(const struct kvi_msg_stats_reply *source)
{
    cJSON *object = cJSON_CreateObject();

    KVCTL_JSON_FIELDS(stats_reply)
    kvctl_json_ratio(object, "segment_ratio", (double)source->segment_bytes,
                     (double)source->device_bytes);
    kvctl_json_ratio(object, "entry_ratio", (double)source->entry_blocks,
                     (double)source->total_blocks);
    kvctl_json_ratio(object, "hit_ratio", (double)source->hit_blocks,
                     (double)source->lookup_blocks);
    kvctl_json_ratio(object, "foreign_hit_ratio", (double)source->foreign_hit_blocks,
                     (double)source->hit_blocks);
    return object;
}

int kvctl_cmd_stats(struct kvctl_run *run)
{
    struct kvctl_pool pool;
    char title[300];

    if (kvctl_pool_fetch(&run->session, KVCTL_POOL_STATS, &pool) < 0)
        return kvctl_explain(stderr, &run->session.failure);
    snprintf(title, sizeof(title), "kvmemd at %s", run->session.path);
    if (run->options.is_json)
        kvctl_json_print(run->out, kvctl_stats_json(&pool.stats), run->options.every_ns > 0);
    else
        kvctl_stats_print(run->out, &pool.stats, title, &run->style);
    kvctl_pool_free(&pool);
    return KVCTL_EXIT_OK;
}
