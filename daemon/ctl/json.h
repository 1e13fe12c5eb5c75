/* SPDX-License-Identifier: Apache-2.0
 *
 * JSON through cJSON, with what it lacks: 64-bit integers (cJSON keeps numbers as doubles,
 * which are exact to 2^53 only) and texts that came from other processes.
 *
 * Every document is one object. Keys are stable; they end in their unit.
 */
#ifndef KVCTL_JSON_H
#define KVCTL_JSON_H

#include <cjson/cJSON.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* An exact integer. */
void kvctl_json_u64(cJSON *object, const char *key, uint64_t value);
cJSON *kvctl_json_number(uint64_t value);

/* part ÷ whole; null when whole is 0. */
void kvctl_json_ratio(cJSON *object, const char *key, double part, double whole);

/* A text of at most `bytes` bytes, made valid UTF-8. */
void kvctl_json_text(cJSON *object, const char *key, const char *text, size_t bytes);

/* Print and delete the document: indented, or on one line when documents follow each other. */
void kvctl_json_print(FILE *out, cJSON *document, int is_line);

/* An X-macro visitor of protocol.def's number fields: adds `source`'s field to `object`. */
#define KVCTL_JSON_FIELD(name, min, max, text) kvctl_json_u64(object, #name, source->name);
#define KVCTL_JSON_SKIP_BYTES(name, bytes, text)
#define KVCTL_JSON_SKIP_ZERO(name, bytes)
#define KVCTL_JSON_SKIP_TAIL(record, count_field, limit, text)
#define KVCTL_JSON_FIELD_TEXT(name, bytes, text) \
    kvctl_json_text(object, #name, source->name, bytes);
#define KVCTL_JSON_FIELDS(message)                                                           \
    KVI_FIELDS_##message(KVCTL_JSON_FIELD, KVCTL_JSON_FIELD, KVCTL_JSON_FIELD,               \
                         KVCTL_JSON_FIELD_TEXT, KVCTL_JSON_SKIP_BYTES, KVCTL_JSON_SKIP_ZERO, \
                         KVCTL_JSON_SKIP_TAIL)

#endif
