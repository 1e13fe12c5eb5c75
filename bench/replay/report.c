/* SPDX-License-Identifier: Apache-2.0
 *
 * The results of report.h.
 */
#include "report.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "replay.h"

#define ERROR_SHOWN 1e300 /* JSON has no infinity */

void kvb_counts_init(struct kvb_counts *counts)
{
    memset(counts, 0, sizeof(*counts));
    counts->waste_ratio = -1;
    counts->unused_slot_ratio = -1;
}

void kvb_counts_add(struct kvb_counts *sum, const struct kvb_counts *more)
{
#define ADD(name) sum->name += more->name;
    KVB_COUNT_TABLE(ADD)
#undef ADD
    sum->attention_max_error = fmax(sum->attention_max_error, more->attention_max_error);
    sum->waste_ratio = fmax(sum->waste_ratio, more->waste_ratio);
    sum->unused_slot_ratio = fmax(sum->unused_slot_ratio, more->unused_slot_ratio);
}

/* Counts are printed as integers whatever their size, which cJSON's numbers would not do. */
static void add_count(cJSON *object, const char *name, uint64_t value)
{
    char text[24];

    snprintf(text, sizeof(text), "%" PRIu64, value);
    cJSON_AddRawToObject(object, name, text);
}

static void add_ratio(cJSON *object, const char *name, double value)
{
    if (value < 0)
        cJSON_AddNullToObject(object, name);
    else
        cJSON_AddNumberToObject(object, name, value);
}

static cJSON *counts_object(const struct kvb_counts *counts)
{
    cJSON *object = cJSON_CreateObject();

#define PUT(name) add_count(object, #name, counts->name);
    KVB_COUNT_TABLE(PUT)
#undef PUT
    cJSON_AddNumberToObject(object, "attention_max_error",
                            fmin(counts->attention_max_error, ERROR_SHOWN));
    add_ratio(object, "waste_ratio", counts->waste_ratio);
    add_ratio(object, "unused_slot_ratio", counts->unused_slot_ratio);
    return object;
}

char *kvb_counts_print(const struct kvb_counts *counts)
{
    cJSON *object = counts_object(counts);
    char *text = cJSON_PrintUnformatted(object);
    char *line = NULL;

    if (text != NULL && asprintf(&line, "%s\n", text) < 0)
        line = NULL;
    free(text);
    cJSON_Delete(object);
    return line;
}

static int get_count(const cJSON *object, const char *name, uint64_t *out)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);

    if (!cJSON_IsNumber(item))
        return -1;
    *out = (uint64_t)item->valuedouble;
    return 0;
}

int kvb_counts_parse(const char *text, struct kvb_counts *out)
{
    cJSON *object = cJSON_Parse(text);
    const cJSON *error = cJSON_GetObjectItemCaseSensitive(object, "attention_max_error");
    int missing = !cJSON_IsNumber(error);

    kvb_counts_init(out);
#define GET(name) missing |= get_count(object, #name, &out->name);
    KVB_COUNT_TABLE(GET)
#undef GET
    if (!missing)
        out->attention_max_error = error->valuedouble;
    cJSON_Delete(object);
    return missing ? -1 : 0;
}

const char *kvb_outcome_fault(const struct kvb_outcome *outcome, const struct kvb_options *options)
{
    const struct kvb_counts *counts = &outcome->counts;

    if (outcome->lost_clients > 0)
        return "not every client finished";
    if (counts->wrong_bytes > 0)
        return "wrong bytes were read";
    if (counts->attention_wrong > 0)
        return "attention through the block table differs from the regenerated values";
    if (counts->kernels_wrong > 0)
        return "kva_attention_run through the block table differs from the regenerated values";
    if (outcome->leaked_blocks > 0 || counts->held_blocks_at_end > 0)
        return "blocks are still held though every sequence was freed";
    if (options->is_self_test && counts->planted_faults < KVB_FAULT_COUNT)
        return "fewer faults could be planted than the self-test needs; replay more requests";
    if (counts->found_faults < counts->planted_faults)
        return "the checks missed planted faults";
    return NULL;
}

int kvb_outcome_print_json(const struct kvb_outcome *outcome, FILE *file)
{
    const struct kvb_counts *counts = &outcome->counts;
    cJSON *object = counts_object(counts);
    char *text;
    int rc;

    cJSON_AddNumberToObject(object, "hit_ratio",
                            counts->lookup_blocks == 0
                                ? 0
                                : (double)counts->hit_blocks / (double)counts->lookup_blocks);
    add_count(object, "cross_client_hit_blocks", outcome->cross_client_hit_blocks);
    add_count(object, "evictions", outcome->evictions);
    add_count(object, "adoptions", outcome->adoptions);
    add_count(object, "leaked_blocks", outcome->leaked_blocks);
    add_count(object, "clients", outcome->clients);
    add_count(object, "lost_clients", outcome->lost_clients);
    cJSON_AddNumberToObject(object, "seconds", outcome->seconds);
    text = cJSON_PrintUnformatted(object);
    rc = text == NULL || fprintf(file, "%s\n", text) < 0 || fflush(file) != 0 ? -1 : 0;
    free(text);
    cJSON_Delete(object);
    return rc;
}

void kvb_outcome_print_text(const struct kvb_outcome *outcome, FILE *file)
{
    const struct kvb_counts *c = &outcome->counts;
    double hit =
        c->lookup_blocks == 0 ? 0 : 100.0 * (double)c->hit_blocks / (double)c->lookup_blocks;

    fprintf(file, "replayed    %" PRIu64 " requests in %.1f s, %" PRIu32 " client%s\n", c->requests,
            outcome->seconds, outcome->clients, outcome->clients == 1 ? "" : "s");
    fprintf(file, "tokens      %" PRIu64 " of prompts, %" PRIu64 " of outputs\n", c->prompt_tokens,
            c->output_tokens);
    fprintf(file,
            "prefixes    %.1f %% of %" PRIu64 " blocks found; %" PRIu64 " from another client\n",
            hit, c->lookup_blocks, outcome->cross_client_hit_blocks);
    fprintf(file,
            "memory      %" PRIu64 " entries evicted, %" PRIu64 " segments adopted, %" PRIu64
            " preemptions\n",
            outcome->evictions, outcome->adoptions, c->preemptions);
    if (c->stale_prefixes > 0)
        fprintf(file, "died        %" PRIu64 " prefixes before they were written: computed again\n",
                c->stale_prefixes);
    if (c->waste_ratio >= 0)
        fprintf(file, "waste       %.2f %% of granted bytes, %.2f %% of slots in used blocks\n",
                100 * c->waste_ratio, 100 * c->unused_slot_ratio);
    fprintf(file, "checked     %" PRIu64 " blocks, %" PRIu64 " wrong bytes\n", c->blocks_checked,
            c->wrong_bytes);
    fprintf(file,
            "attention   %" PRIu64 " requests, largest error %.2g; %" PRIu64
            " by the library's kernels\n",
            c->attention_checked, c->attention_max_error, c->kernels_checked);
    if (c->planted_faults > 0)
        fprintf(file, "self-test   %" PRIu64 " faults planted, %" PRIu64 " found\n",
                c->planted_faults, c->found_faults);
    fprintf(file, "leaked      %" PRIu64 " blocks\n", outcome->leaked_blocks);
}
