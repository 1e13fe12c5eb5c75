/* SPDX-License-Identifier: Apache-2.0
 *
 * The reader of trace.h. A line that is wrong ends it: file, line, what was expected.
 */
#include "trace.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#define ID_MAX ((uint64_t)1 << 53) /* the integers that JSON numbers hold exactly */

/* Where we are, for messages. */
struct place {
    const char *path;
    uint64_t line;
    char *error;
    size_t error_bytes;
};

static int expected(const struct place *place, const char *what)
{
    snprintf(place->error, place->error_bytes, "%s:%" PRIu64 ": expected %s", place->path,
             place->line, what);
    return -1;
}

/* An integer of the object in min .. max. */
static int get_number(const struct place *place, const cJSON *object, const char *key, uint64_t min,
                      uint64_t max, uint64_t *out)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    char what[120];

    if (cJSON_IsNumber(item) && item->valuedouble >= (double)min &&
        item->valuedouble <= (double)max && item->valuedouble == floor(item->valuedouble)) {
        *out = (uint64_t)item->valuedouble;
        return 0;
    }
    snprintf(what, sizeof(what), "\"%s\": an integer in %" PRIu64 " .. %" PRIu64, key, min, max);
    return expected(place, what);
}

/* Make room for one more element of `bytes`; the array at *array has `count` of `*room`. */
static int grow(void **array, uint64_t count, uint64_t *room, size_t bytes)
{
    uint64_t wanted = *room == 0 ? 1024 : *room * 2;
    void *grown;

    if (count < *room)
        return 0;
    grown = realloc(*array, wanted * bytes);
    if (grown == NULL)
        return -1;
    *array = grown;
    *room = wanted;
    return 0;
}

static int add_ids(const struct place *place, const cJSON *object, uint32_t wanted,
                   struct kvb_trace *trace)
{
    const cJSON *ids = cJSON_GetObjectItemCaseSensitive(object, "hash_ids");
    const cJSON *item;
    uint32_t count = 0;
    char what[160];

    if (!cJSON_IsArray(ids))
        return expected(place, "\"hash_ids\": an array of integers");
    cJSON_ArrayForEach(item, ids)
    {
        double value = item->valuedouble;

        if (!cJSON_IsNumber(item) || value < 0 || value > (double)ID_MAX || value != floor(value))
            return expected(place, "\"hash_ids\": integers in 0 .. 2^53");
        if (grow((void **)&trace->ids, trace->id_count, &trace->id_room, sizeof(*trace->ids)) != 0)
            return expected(place, "memory for its ids");
        trace->ids[trace->id_count++] = (uint64_t)value;
        count++;
    }
    if (count == wanted)
        return 0;
    snprintf(what, sizeof(what),
             "%" PRIu32 " \"hash_ids\" (one for each %" PRIu32
             " tokens of \"input_length\"), got %" PRIu32,
             wanted, trace->tokens_per_id, count);
    return expected(place, what);
}

static int add_request(const struct place *place, const cJSON *object, struct kvb_trace *trace)
{
    struct kvb_request request = {.first_id = trace->id_count};
    uint64_t timestamp, prompt, output, room = trace->request_room;

    if (!cJSON_IsObject(object))
        return expected(place, "a JSON object on a line of its own");
    if (get_number(place, object, "timestamp", 0, ID_MAX, &timestamp) != 0 ||
        get_number(place, object, "input_length", 1, KVB_PROMPT_TOKENS_LIMIT, &prompt) != 0 ||
        get_number(place, object, "output_length", 0, KVB_OUTPUT_TOKENS_LIMIT, &output) != 0)
        return -1;
    request.prompt_tokens = (uint32_t)prompt;
    request.output_tokens = (uint32_t)output;
    request.id_count = (uint32_t)((prompt + trace->tokens_per_id - 1) / trace->tokens_per_id);
    if (add_ids(place, object, request.id_count, trace) != 0)
        return -1;
    if (grow((void **)&trace->requests, trace->request_count, &room, sizeof(request)) != 0)
        return expected(place, "memory for the request");
    trace->request_room = (uint32_t)room;
    trace->requests[trace->request_count++] = request;
    return 0;
}

static int read_lines(FILE *file, struct place *place, uint32_t limit, struct kvb_trace *trace)
{
    char *line = NULL;
    size_t room = 0;
    ssize_t bytes;
    int rc = 0;

    while (rc == 0 && trace->request_count < limit && (bytes = getline(&line, &room, file)) > 0) {
        cJSON *object;

        place->line++;
        object =
            memchr(line, '\0', (size_t)bytes) == NULL ? cJSON_ParseWithOpts(line, NULL, 1) : NULL;
        rc = add_request(place, object, trace);
        cJSON_Delete(object);
    }
    free(line);
    if (rc == 0 && ferror(file)) {
        place->line++;
        rc = expected(place, "readable text");
    }
    if (rc == 0 && trace->request_count == 0) {
        place->line = 1;
        rc = expected(place, "a request, the file is empty");
    }
    return rc;
}

int kvb_trace_load(const char *path, uint32_t tokens_per_id, uint32_t request_limit,
                   struct kvb_trace *out, char *error, size_t error_bytes)
{
    struct place place = {path, 0, error, error_bytes};
    FILE *file = fopen(path, "re");
    int rc;

    memset(out, 0, sizeof(*out));
    out->tokens_per_id = tokens_per_id;
    if (file == NULL) {
        snprintf(error, error_bytes, "--trace: cannot open %s: %s", path, strerror(errno));
        return -1;
    }
    rc = read_lines(file, &place, request_limit, out);
    fclose(file);
    if (rc != 0)
        kvb_trace_fini(out);
    return rc;
}

void kvb_trace_fini(struct kvb_trace *trace)
{
    free(trace->requests);
    free(trace->ids);
    trace->requests = NULL;
    trace->ids = NULL;
}
