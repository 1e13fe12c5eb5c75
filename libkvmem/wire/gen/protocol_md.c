/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmem-protocol: prints PROTOCOL.md from the message table. `make docs` writes the file, and a
 * test compares the two. What is said of framing here is what protocol.c checks.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <kvmem/client.h>
#include <kvmem/prefix.h>
#include <kvmem/space.h>

#include "wire/protocol.h"

static const char *const front[] = {
    "# The wire protocol of kvmem\n\n",
    "Made from `libkvmem/wire/protocol.def` by `kvmem-protocol`; do not edit (`make docs`).\n\n",
    "## Framing\n\n",
    "- A Unix socket of type SOCK_SEQPACKET. One message is one datagram.\n",
    "- Numbers are little-endian; fields lie at their natural alignment, without padding.\n",
    "- A message is a header of 16 bytes, its fixed fields, then its tails: arrays of records, "
    "whose"
    "\n  lengths are fields of type u32. Each tail begins at the next multiple of 8 bytes; the "
    "bytes"
    "\n  between are zero. `length_bytes` is the end of the last record.\n",
    "- Reserved bytes are zero.\n",
    "- A text is zero-terminated within its bytes, and zero behind that. A text that a client sends"
    "\n  is well-formed UTF-8 without control characters.\n",
    "- Descriptors travel with their datagram (SCM_RIGHTS), only from the daemon to a client; the\n"
    "  daemon's header says how many. The client's header says how many it has received in all,\n"
    "  which is how the daemon bounds those in flight.\n",
    "- `serial` is chosen by the asker and repeated in every reply; events have serial 0.\n",
    "- What breaks the framing (length, opcode, direction, reserved bytes, counts that do not "
    "make\n"
    "  the length, descriptors that may not come) ends the connection. A field outside its range "
    "is\n"
    "  answered with `error`, which names message, field and range, and nothing is changed.\n\n",
};

/* Two things that only the generator needs, straight from the table. */
#define RECORD_TEXT(lower, text) {#lower, (text)},
static const struct {
    const char *name;
    const char *text;
} record_texts[] = {KVI_RECORD_TABLE(RECORD_TEXT)};

#define HEADER_U32(field, low, high, meaning)      \
    {.kind = KVI_FIELD_U32,                        \
     .name = #field,                               \
     .offset = offsetof(struct kvi_header, field), \
     .bytes = 4,                                   \
     .min = (low),                                 \
     .max = (high),                                \
     .text = (meaning)},
static const struct kvi_field header_fields[] = {
    KVI_FIELDS_header(HEADER_U32, NONE, NONE, NONE, NONE, NONE, NONE)};

static const char *record_text(const char *name)
{
    for (size_t i = 0; i < sizeof(record_texts) / sizeof(record_texts[0]); i++)
        if (strcmp(record_texts[i].name, name) == 0)
            return record_texts[i].text;
    return "";
}

static const char *type_of(const struct kvi_field *field, char *text, size_t bytes)
{
    switch (field->kind) {
    case KVI_FIELD_U32: return "u32";
    case KVI_FIELD_U64: return "u64";
    case KVI_FIELD_I32: return "i32";
    case KVI_FIELD_TEXT: snprintf(text, bytes, "text[%zu]", field->bytes); break;
    case KVI_FIELD_BYTES: snprintf(text, bytes, "u8[%zu]", field->bytes); break;
    case KVI_FIELD_ZERO: snprintf(text, bytes, "zero[%zu]", field->bytes); break;
    }
    return text;
}

/* A number as people write it: the ends of types and powers of two by name. */
static const char *number(uint64_t value, char *text, size_t bytes)
{
    unsigned shift = 12;

    if (value == UINT64_MAX)
        return "2^64 − 1";
    if (value == UINT32_MAX)
        return "2^32 − 1";
    if (value == INT64_MAX)
        return "2^63 − 1";
    if (value == INT32_MAX)
        return "2^31 − 1";
    while (shift < 63 && value != UINT64_C(1) << shift)
        shift++;
    if (shift > 16 && shift < 63)
        snprintf(text, bytes, "2^%u", shift);
    else
        snprintf(text, bytes, "%" PRIu64, value);
    return text;
}

static void print_range(const struct kvi_field *field)
{
    char low[32];
    char high[32];

    if (field->kind == KVI_FIELD_I32)
        printf("%" PRId64 " .. %" PRId64, field->min, (int64_t)field->max);
    else if (field->kind == KVI_FIELD_U32 || field->kind == KVI_FIELD_U64)
        printf("%s .. %s", number((uint64_t)field->min, low, sizeof(low)),
               number(field->max, high, sizeof(high)));
}

static void print_fields(const struct kvi_field *fields, uint32_t count)
{
    char type[32];

    printf("| offset | type | field | range | meaning |\n|---|---|---|---|---|\n");
    for (uint32_t i = 0; i < count; i++) {
        printf("| %zu | %s | %s | ", fields[i].offset, type_of(&fields[i], type, sizeof(type)),
               fields[i].name);
        print_range(&fields[i]);
        printf(" | %s |\n", fields[i].text);
    }
    printf("\n");
}

static void print_message(const struct kvi_message *message)
{
    printf("### %s\n\nOpcode %" PRIu32 ", to the %s", message->name, message->opcode,
           message->direction == KVI_TO_DAEMON ? "daemon" : "client");
    if (message->fd_limit)
        printf(", with at most %" PRIu32 " descriptor%s", message->fd_limit,
               message->fd_limit == 1 ? "" : "s");
    printf(", %zu bytes%s. %s\n\n", message->fixed_bytes, message->tail_count ? " and tails" : "",
           message->text);
    print_fields(message->fields, message->field_count);
    for (uint32_t i = 0; i < message->tail_count; i++) {
        const struct kvi_tail *tail = &message->tails[i];
        const char *count_field = "?";

        for (uint32_t f = 0; f < message->field_count; f++)
            if (message->fields[f].offset == tail->count_offset)
                count_field = message->fields[f].name;
        printf("Tail: `%s` records of type [%s](#record-%s) (%zu bytes each, at most %" PRIu32
               "): %s.\n\n",
               count_field, tail->record, tail->record, tail->record_bytes, tail->limit,
               tail->text);
    }
}

/* Each record once, where a message uses it first. */
static void print_records(const struct kvi_message *messages, uint32_t count)
{
    const struct kvi_field *printed[64];
    size_t printed_count = 0;

    printf("## Records\n\n");
    for (uint32_t m = 0; m < count; m++)
        for (uint32_t t = 0; t < messages[m].tail_count; t++) {
            const struct kvi_tail *tail = &messages[m].tails[t];
            size_t i = 0;

            while (i < printed_count && printed[i] != tail->fields)
                i++;
            if (i < printed_count || printed_count == sizeof(printed) / sizeof(printed[0]))
                continue;
            printed[printed_count++] = tail->fields;
            printf("### Record %s\n\n%zu bytes. %s\n\n", tail->record, tail->record_bytes,
                   record_text(tail->record));
            print_fields(tail->fields, tail->field_count);
        }
}

#define CONSTANT(symbol)  \
    {                     \
#symbol, (symbol) \
    }
static const struct {
    const char *name;
    uint32_t value;
} constants[] = {
    CONSTANT(KVI_REQUEST_MAY_WAIT),
    CONSTANT(KVI_GRANT_LAST),
    CONSTANT(KVI_LOOKUP_PEEK),
    CONSTANT(KVI_SEGMENT_HAS_FD),
    CONSTANT(KVI_SEGMENT_ADOPTED),
    CONSTANT(KVI_SEGMENT_FREE),
    CONSTANT(KVI_SEGMENT_CREATING),
    CONSTANT(KVI_SEGMENT_OWNED),
    CONSTANT(KVI_SEGMENT_HANDED_IN),
    CONSTANT(KVI_SEGMENT_QUARANTINED),
    CONSTANT(KVI_SEGMENT_DRAINING),
    CONSTANT(KVMEM_ROLE_LEADER),
    CONSTANT(KVMEM_ROLE_MEMBER),
    CONSTANT(KVMEM_ROLE_OBSERVER),
    CONSTANT(KVMEM_LAYOUT_PAGE_HEAD_TOKEN),
    CONSTANT(KVMEM_LAYOUT_PAGE_TOKEN_HEAD),
    CONSTANT(KVMEM_LAYOUT_TOKEN_MAJOR),
    CONSTANT(KVMEM_LAYOUT_PER_LAYER),
    CONSTANT(KVMEM_DTYPE_NONE),
    CONSTANT(KVMEM_DTYPE_BF16),
    CONSTANT(KVMEM_DTYPE_FP16),
    CONSTANT(KVMEM_DTYPE_FP32),
    CONSTANT(KVMEM_DTYPE_FP8_E4M3),
    CONSTANT(KVMEM_DTYPE_INT8),
    CONSTANT(KVMEM_SCALE_NONE),
    CONSTANT(KVMEM_SCALE_TENSOR),
    CONSTANT(KVMEM_SCALE_HEAD),
    CONSTANT(KVMEM_SCALE_TOKEN_HEAD),
    CONSTANT(KVMEM_FENCE_NONE),
    CONSTANT(KVMEM_FENCE_HOST),
    CONSTANT(KVMEM_FENCE_STREAM),
    CONSTANT(KVMEM_FENCE_TIMELINE),
    CONSTANT(KVMEM_PUBLISHED),
    CONSTANT(KVMEM_PUBLISH_EXISTS),
    CONSTANT(KVMEM_PUBLISH_REFUSED),
};

static void print_constants(void)
{
    printf("## Constants\n\n| name | value |\n|---|---|\n");
    for (size_t i = 0; i < sizeof(constants) / sizeof(constants[0]); i++)
        printf("| %s | %" PRIu32 " |\n", constants[i].name, constants[i].value);
    printf("\nCodes of `error`:\n\n| code | name | meaning |\n|---|---|---|\n");
#define ERROR_ROW(symbol, value, retryable, text) \
    printf("| %d | " #symbol " | %s |\n", value, text);
    KVMEM_ERROR_TABLE(ERROR_ROW)
    printf("\n");
}

int main(void)
{
    uint32_t count;
    const struct kvi_message *messages = kvi_wire_messages(&count);

    for (size_t i = 0; i < sizeof(front) / sizeof(front[0]); i++)
        fputs(front[i], stdout);
    printf("Protocol version %u; the oldest spoken is %u. A datagram has at most %u bytes and %u "
           "descriptors.\n\n### Header\n\n",
           KVI_PROTOCOL_VERSION, KVI_PROTOCOL_VERSION_MIN, KVI_MESSAGE_BYTES, KVI_MESSAGE_FDS);
    print_fields(header_fields, sizeof(header_fields) / sizeof(header_fields[0]));
    print_constants();
    for (int way = KVI_TO_DAEMON; way <= KVI_TO_CLIENT; way++) {
        printf("## To the %s\n\n", way == KVI_TO_DAEMON ? "daemon" : "client");
        for (uint32_t i = 0; i < count; i++)
            if ((int)messages[i].direction == way)
                print_message(&messages[i]);
    }
    print_records(messages, count);
    return fflush(stdout) || ferror(stdout) ? 1 : 0;
}
