/* SPDX-License-Identifier: Apache-2.0
 *
 * kvi_wire_check against wrong bytes: every byte of every message set to every value, every
 * length, counts and fields at and outside their limits, texts, random datagrams. A datagram is
 * always checked in a heap block of exactly its length, so that the address sanitizer sees a read
 * beyond it. What the verdict must be is worked out from the descriptors, one field at a time,
 * which is not how the check works.
 *
 * Each test counts its cases and fails when it did fewer than it should.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdalign.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pattern.h"

#define WANT(...) cr_assert(__VA_ARGS__)

static alignas(8) uint8_t message[KVT_PATTERN_BYTES];
static char text[256];

static const struct kvi_message *all(uint32_t *count)
{
    return kvi_wire_messages(count);
}

/* The check on an exact copy, twice, with and without a text: the verdict must be the same. */
static enum kvi_wire_verdict check(const uint8_t *bytes, size_t count, uint32_t fd_count,
                                   enum kvi_direction direction)
{
    uint8_t *exact = malloc(count ? count : 1);
    enum kvi_wire_verdict verdict;

    memcpy(exact, bytes, count);
    text[0] = '\0';
    verdict = kvi_wire_check(exact, count, fd_count, direction, text, sizeof(text));
    WANT(kvi_wire_check(exact, count, fd_count, direction, NULL, 0) == verdict);
    WANT(memcmp(exact, bytes, count) == 0, "changed");
    free(exact);
    WANT(verdict == KVI_WIRE_OK || text[0], "no text");
    WANT(verdict != KVI_WIRE_OK || !text[0], "text without cause: %s", text);
    return verdict;
}

/* ---- every byte, every value ---- */

/* The field that holds byte `at` of the message, and where it begins; NULL in a gap. */
static const struct kvi_field *field_at(const struct kvi_message *m, size_t at, size_t *begin)
{
    const struct kvi_field *fields = m->fields;
    uint32_t count = m->field_count;
    size_t base = 0;

    for (unsigned t = 0; t < m->tail_count && at >= m->fixed_bytes; t++) {
        size_t tail = (size_t)((const uint8_t *)kvi_wire_tail_const(message, t) - message);

        if (at < tail)
            break;
        base = tail + (at - tail) / m->tails[t].record_bytes * m->tails[t].record_bytes;
        fields = m->tails[t].fields;
        count = m->tails[t].field_count;
    }
    for (uint32_t f = 0; f < count; f++)
        if (at >= base + fields[f].offset && at < base + fields[f].offset + fields[f].bytes) {
            *begin = base + fields[f].offset;
            return &fields[f];
        }
    return NULL;
}

static int is_count(const struct kvi_message *m, size_t begin)
{
    for (unsigned t = 0; t < m->tail_count; t++)
        if (m->tails[t].count_offset == begin)
            return 1;
    return 0;
}

static int is_number_in_range(const struct kvi_field *field, size_t begin)
{
    uint64_t value = 0;
    int32_t number;

    memcpy(&value, message + begin, field->bytes);
    memcpy(&number, message + begin, sizeof(number));
    if (field->kind == KVI_FIELD_I32)
        return number >= field->min && number <= (int64_t)field->max;
    return value >= (uint64_t)field->min && value <= field->max;
}

/* What must come of a message in which byte `at`, behind the header, has been changed. */
static enum kvi_wire_verdict expected_of(const struct kvi_message *m, size_t at, size_t bytes,
                                         int *is_known)
{
    size_t begin = 0;
    const struct kvi_field *field = field_at(m, at, &begin);

    *is_known = 1;
    if (!field || field->kind == KVI_FIELD_ZERO)
        return KVI_WIRE_BAD_FRAME;
    if (field->kind == KVI_FIELD_BYTES)
        return KVI_WIRE_OK;
    if (begin < m->fixed_bytes && at < m->fixed_bytes && is_count(m, begin))
        return kvi_wire_bytes(message) == bytes ? KVI_WIRE_BAD_FIELD : KVI_WIRE_BAD_FRAME;
    if (field->kind != KVI_FIELD_TEXT)
        return is_number_in_range(field, begin) ? KVI_WIRE_OK : KVI_WIRE_BAD_FIELD;
    *is_known = 0; /* texts have a test of their own */
    return KVI_WIRE_OK;
}

static void want_header_verdict(const struct kvi_message *m, size_t at,
                                enum kvi_wire_verdict verdict)
{
    if (at >= 8 && at < 12) /* serial: anything */
        WANT(verdict == KVI_WIRE_OK, "%s byte %zu", m->name, at);
    else if (at >= 12 && m->direction == KVI_TO_DAEMON)
        WANT(verdict == KVI_WIRE_OK, "%s byte %zu", m->name, at);
    else if (at >= 4)
        WANT(verdict == KVI_WIRE_BAD_FRAME, "%s byte %zu", m->name, at);
    else if (at >= 1)
        WANT(verdict == KVI_WIRE_BAD_FRAME, "%s byte %zu", m->name, at);
}

static unsigned set_byte_to_all(const struct kvi_message *m, size_t at, size_t bytes)
{
    uint8_t before = message[at];
    int is_known;

    for (unsigned value = 0; value < 256; value++) {
        enum kvi_wire_verdict verdict;

        message[at] = (uint8_t)value;
        verdict = check(message, bytes, 0, m->direction);
        if (value == before)
            WANT(verdict == KVI_WIRE_OK, "%s", text);
        else if (at < 16)
            want_header_verdict(m, at, verdict);
        else if (expected_of(m, at, bytes, &is_known) != verdict)
            WANT(!is_known && verdict == KVI_WIRE_BAD_FIELD, "%s byte %zu = %u: %d %s", m->name, at,
                 value, verdict, text);
    }
    message[at] = before;
    return 256;
}

Test(check, every_byte_of_every_message_set_to_every_value)
{
    uint32_t count;
    const struct kvi_message *messages = all(&count);
    unsigned cases = 0;

    for (uint32_t i = 0; i < count; i++) {
        size_t bytes = kvt_pattern_fill(&messages[i], message);

        for (size_t at = 0; at < bytes; at++)
            cases += set_byte_to_all(&messages[i], at, bytes);
    }
    WANT(cases >= 1000000, "%u", cases);
}

/* ---- lengths ---- */

Test(check, every_length_but_the_right_one_is_refused)
{
    uint32_t count;
    const struct kvi_message *messages = all(&count);
    unsigned cases = 0;

    for (uint32_t i = 0; i < count; i++) {
        const struct kvi_message *m = &messages[i];
        size_t bytes = kvt_pattern_fill(m, message);

        memset(message + bytes, 0, 64);
        for (size_t length = 0; length <= bytes + 64; length++) {
            uint32_t said = (uint32_t)length;

            if (length == bytes)
                continue;
            WANT(check(message, length, 0, m->direction) == KVI_WIRE_BAD_FRAME, "%s: %zu of %zu",
                 m->name, length, bytes);
            memcpy(message + 4, &said, 4); /* the header tells the same lie */
            WANT(check(message, length, 0, m->direction) == KVI_WIRE_BAD_FRAME, "%s: %zu of %zu",
                 m->name, length, bytes);
            said = (uint32_t)bytes;
            memcpy(message + 4, &said, 4);
            cases += 2;
        }
    }
    WANT(cases >= 10000, "%u", cases);
}

Test(check, directions_descriptors_and_opcodes)
{
    uint32_t count;
    const struct kvi_message *messages = all(&count);
    unsigned cases = 0;

    for (uint32_t i = 0; i < count; i++) {
        const struct kvi_message *m = &messages[i];
        enum kvi_direction other = m->direction == KVI_TO_DAEMON ? KVI_TO_CLIENT : KVI_TO_DAEMON;
        size_t bytes = kvt_pattern_fill(m, message);

        WANT(check(message, bytes, 0, other) == KVI_WIRE_BAD_FRAME);
        for (uint32_t fds = 1; fds <= 17; fds++, cases++) {
            enum kvi_wire_verdict expected = fds <= m->fd_limit ? KVI_WIRE_OK : KVI_WIRE_BAD_FRAME;

            WANT(m->direction == KVI_TO_CLIENT || m->fd_limit == 0);
            if (m->direction == KVI_TO_CLIENT)
                memcpy(message + 12, &fds, 4);
            WANT(check(message, bytes, fds, m->direction) == expected, "%s, %u: %s", m->name, fds,
                 text);
            if (m->direction == KVI_TO_CLIENT) /* the header says another number */
                WANT(check(message, bytes, fds - 1, m->direction) == KVI_WIRE_BAD_FRAME);
        }
    }
    for (uint32_t opcode = 0; opcode < 100000; opcode += opcode < 300 ? 1 : 997, cases++) {
        size_t bytes = kvt_pattern_fill(&messages[0], message);

        memcpy(message, &opcode, 4);
        if (!kvi_wire_message(opcode))
            WANT(check(message, bytes, 0, KVI_TO_DAEMON) == KVI_WIRE_BAD_FRAME, "%u", opcode);
    }
    WANT(cases >= 900, "%u", cases);
}

/* ---- counts ---- */

/* A message with `n` records in tail `t`: what its own length says, or, if that is more than a
 * datagram holds, the first 64 KiB of it. */
static enum kvi_wire_verdict check_count(const struct kvi_message *m, unsigned t, uint32_t n)
{
    uint32_t counts[2] = {1, 1};
    uint64_t bytes = m->fixed_bytes;
    uint32_t said;

    kvt_pattern_fill_counts(m, counts, message);
    if (n <= m->tails[t].limit + 1 &&
        m->fixed_bytes + 64 + (uint64_t)n * m->tails[t].record_bytes < KVT_PATTERN_BYTES) {
        counts[t] = n;
        bytes = kvt_pattern_fill_counts(m, counts, message);
    } else {
        memcpy(message + m->tails[t].count_offset, &n, 4);
        bytes = kvi_wire_bytes(message) & UINT32_MAX; /* as a 32-bit sum would come out */
        bytes = bytes < KVI_MESSAGE_BYTES ? bytes : KVI_MESSAGE_BYTES;
        bytes = bytes > m->fixed_bytes ? bytes : m->fixed_bytes;
    }
    said = (uint32_t)bytes;
    memcpy(message + 4, &said, 4);
    return check(message, (size_t)bytes, 0, m->direction);
}

static const struct kvi_field *count_field(const struct kvi_message *m, unsigned t)
{
    for (uint32_t f = 0; f < m->field_count; f++)
        if (m->fields[f].offset == m->tails[t].count_offset)
            return &m->fields[f];
    return NULL;
}

Test(check, counts_at_their_limits)
{
    uint32_t count;
    const struct kvi_message *messages = all(&count);
    unsigned cases = 0;

    for (uint32_t i = 0; i < count; i++)
        for (unsigned t = 0; t < messages[i].tail_count; t++, cases += 7) {
            const struct kvi_message *m = &messages[i];
            const struct kvi_field *field = count_field(m, t);
            uint32_t limit = m->tails[t].limit;
            enum kvi_wire_verdict verdict;

            WANT(field && field->max == limit, "%s", m->name);
            WANT(check_count(m, t, limit) == KVI_WIRE_OK, "%s: %s", m->name, text);
            verdict = check_count(m, t, 0);
            WANT(verdict == (field->min ? KVI_WIRE_BAD_FIELD : KVI_WIRE_OK), "%s: %s", m->name,
                 text);
            WANT(!field->min || strstr(text, field->name), "%s", text);
            verdict = check_count(m, t, limit + 1);
            WANT(verdict != KVI_WIRE_OK, "%s: %s", m->name, text);
            WANT(verdict == KVI_WIRE_BAD_FRAME || strstr(text, field->name), "%s", text);
            WANT(check_count(m, t, UINT32_MAX) == KVI_WIRE_BAD_FRAME, "%s", m->name);
            WANT(check_count(m, t, UINT32_MAX - 1) == KVI_WIRE_BAD_FRAME, "%s", m->name);
            WANT(check_count(m, t, UINT32_MAX / 2 + 1) == KVI_WIRE_BAD_FRAME, "%s", m->name);
            /* the count whose bytes come to a multiple of 2^32 */
            WANT(check_count(m, t, (uint32_t)((UINT64_C(1) << 32) / m->tails[t].record_bytes)) ==
                     KVI_WIRE_BAD_FRAME,
                 "%s", m->name);
        }
    WANT(cases >= 100, "%u", cases);
}

/* ---- fields ---- */

static void want_named(const char *where, const struct kvi_field *field)
{
    char expected[160];

    if (field->kind == KVI_FIELD_I32)
        snprintf(expected, sizeof(expected), "is outside %" PRId64 "..%" PRId64, field->min,
                 (int64_t)field->max);
    else
        snprintf(expected, sizeof(expected), "is outside %" PRIu64 "..%" PRIu64,
                 (uint64_t)field->min, field->max);
    WANT(strstr(text, expected), "%s: expected %s", text, expected);
    snprintf(expected, sizeof(expected), "%s.%s: ", where, field->name);
    WANT(strncmp(text, expected, strlen(expected)) == 0, "%s: expected %s", text, expected);
}

/* One numeric field at min − 1, min, max, max + 1, where the type holds them. */
static unsigned try_number(const struct kvi_message *m, const char *where,
                           const struct kvi_field *field, size_t at, size_t bytes)
{
    uint64_t mask = field->bytes == 4 ? UINT32_MAX : UINT64_MAX;
    uint64_t values[4] = {(uint64_t)field->min - 1, (uint64_t)field->min, field->max,
                          field->max + 1};
    int has_below = field->kind == KVI_FIELD_I32 ? field->min > INT32_MIN : field->min > 0;
    int has_above =
        field->kind == KVI_FIELD_I32 ? (int64_t)field->max < INT32_MAX : field->max < mask;
    uint8_t before[8];

    memcpy(before, message + at, field->bytes);
    for (int i = 0; i < 4; i++) {
        if ((i == 0 && !has_below) || (i == 3 && !has_above))
            continue;
        memcpy(message + at, &values[i], field->bytes);
        if (i == 1 || i == 2) {
            WANT(check(message, bytes, 0, m->direction) == KVI_WIRE_OK, "%s", text);
            continue;
        }
        WANT(check(message, bytes, 0, m->direction) == KVI_WIRE_BAD_FIELD, "%s.%s", where,
             field->name);
        want_named(where, field);
    }
    memcpy(message + at, before, field->bytes);
    return 2u + (unsigned)has_below + (unsigned)has_above;
}

static unsigned try_fields(const struct kvi_message *m, const char *where,
                           const struct kvi_field *fields, uint32_t count, size_t base,
                           size_t bytes, int are_fixed)
{
    unsigned cases = 0;

    for (uint32_t f = 0; f < count; f++) {
        int is_number = fields[f].kind == KVI_FIELD_U32 || fields[f].kind == KVI_FIELD_U64 ||
                        fields[f].kind == KVI_FIELD_I32;

        if (is_number && !(are_fixed && is_count(m, fields[f].offset)))
            cases += try_number(m, where, &fields[f], base + fields[f].offset, bytes);
    }
    return cases;
}

Test(check, numeric_fields_at_their_limits_are_named)
{
    uint32_t count;
    const struct kvi_message *messages = all(&count);
    char where[96];
    unsigned cases = 0;

    for (uint32_t i = 0; i < count; i++) {
        const struct kvi_message *m = &messages[i];
        size_t bytes = kvt_pattern_fill(m, message);

        cases += try_fields(m, m->name, m->fields, m->field_count, 0, bytes, 1);
        for (unsigned t = 0; t < m->tail_count; t++)
            for (uint32_t r = 0; r < 3 - t; r++) {
                size_t base = (size_t)((uint8_t *)kvi_wire_tail(message, t) - message) +
                              r * m->tails[t].record_bytes;

                snprintf(where, sizeof(where), "%s.%s[%u]", m->name, m->tails[t].record, r);
                cases += try_fields(m, where, m->tails[t].fields, m->tails[t].field_count, base,
                                    bytes, 0);
            }
    }
    WANT(cases >= 700, "%u", cases);
}

/* The verdict on the frame comes before that on a field. */
Test(check, a_broken_frame_outweighs_a_bad_field)
{
    struct kvi_msg_space_close close = {0};

    kvi_wire_begin(&close, KVI_OP_SPACE_CLOSE, 1);
    kvi_wire_finish(&close);
    close.reserved[3] = 1;
    WANT(check((uint8_t *)&close, sizeof(close), 0, KVI_TO_DAEMON) == KVI_WIRE_BAD_FRAME);
    WANT(strcmp(text, "space_close.reserved: reserved bytes are not zero") == 0, "%s", text);
}

/* A text that is too small for the reason is cut, not overrun. */
Test(check, the_reason_fits_any_room)
{
    struct kvi_msg_hello hello;
    unsigned cases = 0;

    kvi_wire_begin(&hello, KVI_OP_HELLO, 1);
    kvi_wire_finish(&hello);
    for (size_t room = 0; room <= 64; room++, cases++) {
        char *exact = malloc(room ? room : 1);

        WANT(kvi_wire_check(&hello, sizeof(hello), 0, KVI_TO_DAEMON, exact, room) ==
             KVI_WIRE_BAD_FIELD);
        WANT(room == 0 || strlen(exact) < room);
        free(exact);
    }
    WANT(cases >= 65);
}

/* ---- texts ---- */

static const struct text_case {
    const char *bytes;
    int is_good;
} text_cases[] = {
    {"", 1},
    {"a", 1},
    {"kvmem 7", 1},
    {"~", 1},
    {"\xc2\xa0", 1},
    {"\xc3\xa9", 1},
    {"\xdf\xbf", 1},
    {"\xe0\xa0\x80", 1},
    {"\xed\x9f\xbf", 1},
    {"\xee\x80\x80", 1},
    {"\xef\xbf\xbf", 1},
    {"\xf0\x90\x80\x80", 1},
    {"\xf4\x8f\xbf\xbf", 1},
    {"0123456789012345678901234567890", 1}, /* 31: all there is room for */
    {"\n", 0},
    {"\x1b[2J", 0},
    {"\x7f", 0},
    {"a\tb", 0},
    {"\x80", 0},
    {"\xbf", 0},
    {"\xc0\x80", 0},
    {"\xc1\xbf", 0},
    {"\xc2", 0},
    {"\xc2\x80", 0},
    {"\xc2\x9f", 0},
    {"\xc3(", 0},
    {"\xe0\x9f\xbf", 0},
    {"\xe2\x82", 0},
    {"\xed\xa0\x80", 0},
    {"\xed\xbf\xbf", 0},
    {"\xf0\x8f\xbf\xbf", 0},
    {"\xf4\x90\x80\x80", 0},
    {"\xf5\x80\x80\x80", 0},
    {"\xff", 0},
    {"\xf0\x9f\x98", 0},
    {"ok\xfe", 0},
};

Test(check, texts_from_clients)
{
    struct kvi_msg_hello hello;
    unsigned cases = 0;

    for (size_t i = 0; i < sizeof(text_cases) / sizeof(text_cases[0]); i++, cases++) {
        const struct text_case *c = &text_cases[i];

        kvi_wire_begin(&hello, KVI_OP_HELLO, 1);
        hello.version = hello.version_min = 1;
        memcpy(hello.name, c->bytes, strlen(c->bytes));
        kvi_wire_finish(&hello);
        WANT(check((uint8_t *)&hello, sizeof(hello), 0, KVI_TO_DAEMON) ==
                 (c->is_good ? KVI_WIRE_OK : KVI_WIRE_BAD_FIELD),
             "case %zu", i);
        WANT(c->is_good || strncmp(text, "hello.name: ", 12) == 0, "%s", text);
        hello.name[31] = 'x'; /* behind the end, or no end at all */
        WANT(check((uint8_t *)&hello, sizeof(hello), 0, KVI_TO_DAEMON) == KVI_WIRE_BAD_FIELD);
    }
    WANT(cases >= 36);
}

Test(check, texts_from_the_daemon_may_be_cut_anywhere)
{
    struct kvi_msg_error error;

    kvi_wire_begin(&error, KVI_OP_ERROR, 1);
    error.code = -1;
    memcpy(error.text, "a line\nand half a \xe2\x82", 20);
    kvi_wire_finish(&error);
    WANT(check((uint8_t *)&error, sizeof(error), 0, KVI_TO_CLIENT) == KVI_WIRE_OK);
    memset(error.text, 'x', sizeof(error.text));
    WANT(check((uint8_t *)&error, sizeof(error), 0, KVI_TO_CLIENT) == KVI_WIRE_BAD_FIELD);
}

/* ---- random datagrams ---- */

/* Random bytes, or a good message with a few random ones in it; never a crash, never an overrun,
 * and what passes has the length that its counts say. */
Test(check, random_datagrams)
{
    const uint64_t seed = 20240917;
    uint64_t state = seed;
    uint32_t count;
    const struct kvi_message *messages = all(&count);
    unsigned verdicts[3] = {0, 0, 0};
    unsigned cases = 0;

    for (; cases < 200000; cases++) {
        const struct kvi_message *m = &messages[kvt_pattern_next(&state) % count];
        size_t bytes = kvt_pattern_fill(m, message);
        unsigned changes = (unsigned)(kvt_pattern_next(&state) % 4);
        enum kvi_wire_verdict verdict;

        for (unsigned i = 0; i < changes; i++)
            message[8 + kvt_pattern_next(&state) % (bytes - 8)] = (uint8_t)kvt_pattern_next(&state);
        if (cases % 16 == 0)
            bytes = kvt_pattern_next(&state) % (bytes + 1);
        verdict = check(message, bytes, 0, m->direction);
        WANT(verdict != KVI_WIRE_OK || kvi_wire_bytes(message) == bytes);
        verdicts[verdict]++;
    }
    WANT(cases >= 200000 && verdicts[0] > 10000 && verdicts[1] > 10000 && verdicts[2] > 10000,
         "seed %" PRIu64 ": %u %u %u", seed, verdicts[0], verdicts[1], verdicts[2]);
}
