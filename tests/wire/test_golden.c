/* SPDX-License-Identifier: Apache-2.0
 *
 * The bytes of every message, against golden.txt: a line a message, its name and its bytes in
 * hexadecimal. They change when a peer of another version would no longer understand us, and then
 * KVI_PROTOCOL_VERSION must change too. To write the file anew: KVT_GOLDEN_WRITE=1 with this test.
 */
#include <criterion/criterion.h>
#include <stdalign.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pattern.h"

#define WANT(...) cr_assert(__VA_ARGS__)
#define MESSAGES  40u

static alignas(8) uint8_t message[KVT_PATTERN_BYTES];
static char line[8 * KVI_MESSAGE_BYTES];

static const char *golden_path(void)
{
    static char path[512];
    const char *slash = strrchr(__FILE__, '/');

    snprintf(path, sizeof(path), "%.*s/golden.txt", slash ? (int)(slash - __FILE__) : 1,
             slash ? __FILE__ : ".");
    return path;
}

/* "name hex" of a message with the pattern in it. */
static char *line_of(const struct kvi_message *m)
{
    size_t bytes = kvt_pattern_fill(m, message);
    char *at = line + sprintf(line, "%s ", m->name);

    for (size_t i = 0; i < bytes; i++)
        at += sprintf(at, "%02x", message[i]);
    return line;
}

static void write_golden(void)
{
    uint32_t count;
    const struct kvi_message *messages = kvi_wire_messages(&count);
    FILE *file = fopen(golden_path(), "w");

    WANT(file, "%s", golden_path());
    for (uint32_t i = 0; i < count; i++)
        fprintf(file, "%s\n", line_of(&messages[i]));
    WANT(fclose(file) == 0);
}

Test(golden, every_message_has_its_bytes)
{
    static char expected[sizeof(line)];
    uint32_t count;
    const struct kvi_message *messages = kvi_wire_messages(&count);
    FILE *file;
    unsigned cases = 0;

    if (getenv("KVT_GOLDEN_WRITE"))
        write_golden();
    file = fopen(golden_path(), "r");
    WANT(file, "%s is not there", golden_path());
    for (uint32_t i = 0; i < count; i++, cases++) {
        WANT(fgets(expected, sizeof(expected), file), "%s is missing", messages[i].name);
        expected[strcspn(expected, "\n")] = '\0';
        WANT(strcmp(line_of(&messages[i]), expected) == 0, "%s:\n%s\nexpected\n%s",
             messages[i].name, line, expected);
    }
    WANT(!fgets(expected, sizeof(expected), file), "more lines than messages");
    fclose(file);
    WANT(cases >= MESSAGES, "%u", cases);
}

/* The pattern itself keeps to the protocol, and comes back out of the tails. */
Test(golden, every_message_passes_the_check)
{
    char text[160] = "";
    uint32_t count;
    const struct kvi_message *messages = kvi_wire_messages(&count);
    unsigned cases = 0;

    for (uint32_t i = 0; i < count; i++, cases++) {
        const struct kvi_message *m = &messages[i];
        size_t bytes = kvt_pattern_fill(m, message);

        WANT(kvi_wire_check(message, bytes, 0, m->direction, text, sizeof(text)) == KVI_WIRE_OK,
             "%s", text);
        WANT(kvi_wire_bytes(message) == bytes);
        WANT(kvi_wire_message(m->opcode) == m);
        WANT(strcmp(kvi_wire_name(m->opcode), m->name) == 0);
        for (uint32_t t = 0; t < m->tail_count; t++) {
            const uint8_t *tail = kvi_wire_tail_const(message, t);

            WANT(tail == kvi_wire_tail(message, t));
            WANT((size_t)(tail - message) % 8 == 0 && tail >= message + m->fixed_bytes);
        }
        WANT(kvi_wire_tail(message, m->tail_count) == NULL);
    }
    WANT(cases >= MESSAGES, "%u", cases);
    WANT(strcmp(kvi_wire_name(0), "unknown") == 0 && strcmp(kvi_wire_name(256), "unknown") == 0);
    WANT(kvi_wire_message(UINT32_MAX) == NULL);
}

static void want_contiguous(const char *name, const struct kvi_field *fields, uint32_t count,
                            size_t begin, size_t end)
{
    for (uint32_t f = 0; f < count; f++) {
        WANT(fields[f].offset == begin, "%s.%s", name, fields[f].name);
        if (fields[f].kind == KVI_FIELD_U64)
            WANT(begin % 8 == 0 && fields[f].bytes == 8, "%s.%s", name, fields[f].name);
        else if (fields[f].kind == KVI_FIELD_U32 || fields[f].kind == KVI_FIELD_I32)
            WANT(begin % 4 == 0 && fields[f].bytes == 4, "%s.%s", name, fields[f].name);
        begin += fields[f].bytes;
    }
    WANT(begin == end, "%s", name);
}

/* The size of every struct is the sum of its fields: nothing is sent that no field names. */
Test(golden, nothing_is_padded)
{
    uint32_t count;
    const struct kvi_message *messages = kvi_wire_messages(&count);
    unsigned cases = 0;

    for (uint32_t i = 0; i < count; i++, cases++) {
        const struct kvi_message *m = &messages[i];

        want_contiguous(m->name, m->fields, m->field_count, 16, m->fixed_bytes);
        for (uint32_t t = 0; t < m->tail_count; t++) {
            want_contiguous(m->tails[t].record, m->tails[t].fields, m->tails[t].field_count, 0,
                            m->tails[t].record_bytes);
            WANT(m->tails[t].count_offset >= 16 && m->tails[t].count_offset < m->fixed_bytes);
        }
    }
    WANT(cases >= MESSAGES);
}
