/* SPDX-License-Identifier: Apache-2.0
 *
 * Exact integers and clean texts for cJSON.
 */
#include "json.h"

#include <inttypes.h>
#include <stdlib.h>

#include "text.h"

cJSON *kvctl_json_number(uint64_t value)
{
    char digits[24];

    snprintf(digits, sizeof(digits), "%" PRIu64, value);
    return cJSON_CreateRaw(digits);
}

void kvctl_json_u64(cJSON *object, const char *key, uint64_t value)
{
    cJSON_AddItemToObject(object, key, kvctl_json_number(value));
}

void kvctl_json_ratio(cJSON *object, const char *key, double part, double whole)
{
    if (whole > 0)
        cJSON_AddNumberToObject(object, key, part / whole);
    else
        cJSON_AddNullToObject(object, key);
}

void kvctl_json_text(cJSON *object, const char *key, const char *text, size_t bytes)
{
    char clean[1024];

    cJSON_AddStringToObject(object, key, kvctl_clean(clean, sizeof(clean), text, bytes, true));
}

void kvctl_json_print(FILE *out, cJSON *document, int is_line)
{
    char *text = is_line ? cJSON_PrintUnformatted(document) : cJSON_Print(document);

    if (text)
        fprintf(out, "%s\n", text);
    cJSON_free(text);
    cJSON_Delete(document);
}
