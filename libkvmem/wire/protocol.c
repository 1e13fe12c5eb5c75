/* SPDX-License-Identifier: Apache-2.0
 *
 * Checks, lengths and descriptors of the wire protocol, all made from protocol.def.
 *
 *   header (16) | fixed fields | 0.. | tail 0 | 0.. | tail 1
 *                               ^ each tail begins at the next multiple of 8; the gaps are zero
 *
 *   length_bytes = end of the last tail = end of the fixed part when there is none
 *
 * Two things come from each row of the table. The descriptors are data: the document, the golden
 * test and the text of a refusal walk them. The checks are code: for every message and record one
 * function that looks at reserved bytes and one that looks at ranges, in which fields that cannot
 * be wrong cost nothing (the names of a lookup are not even walked). A check says only yes or no;
 * what exactly is wrong is found afterwards through the descriptors, when time no longer matters.
 *
 * Order of the verdicts: framing first (header, counts against the length, reserved bytes), then
 * the first field outside its range in the order of the table. Counts are compared with the
 * length in 64 bits, where 2^32 records of any size do not overflow; a count above its limit in
 * a datagram that is long enough cannot be, or is a bad field.
 *
 * Reads go through memcpy, so that a datagram may lie at any address. No state; any thread.
 */
#include "wire/protocol.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "fields are used as they lie on the wire");
_Static_assert(sizeof(struct kvi_header) == 16, "the header has 16 bytes");

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))
#define TAIL_ALIGNMENT  UINT64_C(8)

/* What a list of fields expands to where a kind does not matter. */
#define NO_U32(name, min, max, text)
#define NO_TEXT(name, bytes, text)
#define NO_ZERO(name, bytes)
#define NO_TAIL(record, count_field, limit, text)

/* ---- layout: no padding, and the longest message fits a datagram ---- */

#define SIZE_U32(name, min, max, text)   +4u
#define SIZE_U64(name, min, max, text)   +8u
#define SIZE_TEXT(name, bytes, text)     +(bytes)
#define SIZE_ZERO(name, bytes)           +(bytes)
#define LONGEST(record, count, limit, t) +7u + (limit) * sizeof(struct kvi_rec_##record)

#define FIELD_BYTES(list) \
    (0u KVI_FIELDS_##list(SIZE_U32, SIZE_U64, SIZE_U32, SIZE_TEXT, SIZE_TEXT, SIZE_ZERO, NO_TAIL))
#define TAIL_BYTES(list) \
    (0u KVI_FIELDS_##list(NO_U32, NO_U32, NO_U32, NO_TEXT, NO_TEXT, NO_ZERO, LONGEST))

#define ASSERT_MESSAGE(lower, upper, opcode, direction, fd_limit, text)                      \
    _Static_assert(sizeof(struct kvi_msg_##lower) == 16 + FIELD_BYTES(lower), "no padding"); \
    _Static_assert(sizeof(struct kvi_msg_##lower) + TAIL_BYTES(lower) <= KVI_MESSAGE_BYTES,  \
                   "the longest one fits a datagram");                                       \
    _Static_assert((opcode) > 0 && (opcode) < 256, "the opcode fits the index");             \
    _Static_assert((fd_limit) <= KVI_MESSAGE_FDS, "its descriptors fit a datagram");
KVI_MESSAGE_TABLE(ASSERT_MESSAGE)

#define ASSERT_RECORD(lower, text) \
    _Static_assert(sizeof(struct kvi_rec_##lower) == FIELD_BYTES(lower), "no padding");
KVI_RECORD_TABLE(ASSERT_RECORD)

/* ---- descriptors ----
 * DESC_x(struct) ends in the name of a macro that takes the field's own arguments next: this is
 * how a field learns the struct it lies in. */

#define DESC_U32(in) \
    {.kind = KVI_FIELD_U32, .offset = __builtin_offsetof(in, DESC_NUMBER
#define DESC_U64(in) \
    {.kind = KVI_FIELD_U64, .offset = __builtin_offsetof(in, DESC_U64_REST
#define DESC_I32(in) \
    {.kind = KVI_FIELD_I32, .offset = __builtin_offsetof(in, DESC_NUMBER
#define DESC_TEXT(in) \
    {.kind = KVI_FIELD_TEXT, .offset = __builtin_offsetof(in, DESC_ARRAY
#define DESC_BYTES(in) \
    {.kind = KVI_FIELD_BYTES, .offset = __builtin_offsetof(in, DESC_ARRAY
#define DESC_ZERO(in) \
    {.kind = KVI_FIELD_ZERO, .offset = __builtin_offsetof(in, DESC_ZERO_REST

/* clang-format off */
#define DESC_NUMBER(field, low, high, meaning)                                                     \
    field), .name = #field, .bytes = 4, .min = (low), .max = (uint64_t)(high), .text = (meaning)},
#define DESC_U64_REST(field, low, high, meaning)                                                   \
    field), .name = #field, .bytes = 8, .min = (low), .max = (uint64_t)(high), .text = (meaning)},
#define DESC_ARRAY(field, size, meaning)                                                           \
    field), .name = #field, .bytes = (size), .text = (meaning)},
#define DESC_ZERO_REST(field, size)                                                                \
    field), .name = #field, .bytes = (size), .text = "zero"},
/* clang-format on */

#define DESCRIPTORS(lower, in)                                                      \
    static const struct kvi_field fields_##lower[] = {                              \
        KVI_FIELDS_##lower(DESC_U32(in), DESC_U64(in), DESC_I32(in), DESC_TEXT(in), \
                           DESC_BYTES(in), DESC_ZERO(in), NO_TAIL)};
#define MESSAGE_DESCRIPTORS(lower, upper, opcode, direction, fd_limit, text) \
    DESCRIPTORS(lower, struct kvi_msg_##lower)
#define RECORD_DESCRIPTORS(lower, text) DESCRIPTORS(lower, struct kvi_rec_##lower)

KVI_MESSAGE_TABLE(MESSAGE_DESCRIPTORS)
KVI_RECORD_TABLE(RECORD_DESCRIPTORS)

/* As above: TAIL_DESC(struct) goes on with the tail's own arguments. */
#define TAIL_DESC(in) \
    {.count_offset = __builtin_offsetof(in, TAIL_DESC_REST
/* clang-format off */
#define TAIL_DESC_REST(rec, count_field, most, meaning)                                            \
    count_field), .record = #rec, .fields = fields_##rec, .field_count = COUNT_OF(fields_##rec),   \
    .record_bytes = sizeof(struct kvi_rec_##rec), .limit = (most), .text = (meaning)},
/* clang-format on */
#define MESSAGE_TAILS(lower, upper, opcode, direction, fd_limit, text)        \
    static const struct kvi_tail tails_##lower[] = {                          \
        KVI_FIELDS_##lower(NO_U32, NO_U32, NO_U32, NO_TEXT, NO_TEXT, NO_ZERO, \
                           TAIL_DESC(struct kvi_msg_##lower)){.record = NULL}};
KVI_MESSAGE_TABLE(MESSAGE_TAILS)

#define MESSAGE_ROW(lower, upper, op, way, fds, meaning) \
    {.opcode = (op),                                     \
     .direction = KVI_##way,                             \
     .fd_limit = (fds),                                  \
     .name = #lower,                                     \
     .text = (meaning),                                  \
     .fixed_bytes = sizeof(struct kvi_msg_##lower),      \
     .fields = fields_##lower,                           \
     .field_count = COUNT_OF(fields_##lower),            \
     .tails = tails_##lower,                             \
     .tail_count = COUNT_OF(tails_##lower) - 1},
static const struct kvi_message messages[] = {KVI_MESSAGE_TABLE(MESSAGE_ROW)};

/* ---- the checks of single fields ---- */

static inline uint32_t load_u32(const uint8_t *at)
{
    uint32_t value;

    memcpy(&value, at, sizeof(value));
    return value;
}

static inline uint64_t load_u64(const uint8_t *at)
{
    uint64_t value;

    memcpy(&value, at, sizeof(value));
    return value;
}

static inline bool is_u32_within(const uint8_t *at, uint32_t min, uint32_t max)
{
    return load_u32(at) - min <= max - min;
}

static inline bool is_u64_within(const uint8_t *at, uint64_t min, uint64_t max)
{
    return load_u64(at) - min <= max - min;
}

static inline bool is_i32_within(const uint8_t *at, int64_t min, int64_t max)
{
    int32_t value = (int32_t)load_u32(at);

    return value >= min && value <= max;
}

static inline bool is_zero(const uint8_t *at, size_t bytes)
{
    uint8_t any = 0;

    for (size_t i = 0; i < bytes; i++)
        any |= at[i];
    return any == 0;
}

/* Length of the well-formed UTF-8 character at `at` (Unicode, table 3-7) that is no control
 * character; 0 when there is none. `at` ends with a zero byte, which no character contains. */
static size_t character_bytes(const uint8_t *at)
{
    uint8_t low = 0x80;
    uint8_t high = 0xbf;
    size_t count;

    if (at[0] < 0x80)
        return at[0] >= 0x20 && at[0] != 0x7f;
    if (at[0] < 0xc2 || at[0] > 0xf4)
        return 0;
    count = at[0] < 0xe0 ? 2 : at[0] < 0xf0 ? 3 : 4;
    if (at[0] == 0xc2 || at[0] == 0xe0)
        low = 0xa0; /* after C2: U+0080..U+009F are controls; after E0: overlong */
    else if (at[0] == 0xf0)
        low = 0x90;
    else if (at[0] == 0xed)
        high = 0x9f;
    else if (at[0] == 0xf4)
        high = 0x8f;
    if (at[1] < low || at[1] > high)
        return 0;
    for (size_t i = 2; i < count; i++)
        if (at[i] < 0x80 || at[i] > 0xbf)
            return 0;
    return count;
}

/* Zero-terminated, zero behind that. What clients send is shown in terminals and logs: it is
 * UTF-8 without control characters. The daemon's own texts may be cut inside a character. */
static bool is_text(const uint8_t *at, size_t bytes, enum kvi_direction direction)
{
    const uint8_t *end = memchr(at, 0, bytes);
    size_t step;

    if (!end || !is_zero(end, (size_t)(at + bytes - end)))
        return false;
    if (direction == KVI_TO_CLIENT)
        return true;
    while (at < end) {
        step = character_bytes(at);
        if (step == 0)
            return false;
        at += step;
    }
    return true;
}

/* ---- the checks of whole messages and records ---- */

#define OK_U32(name, min, max, text) ok &= is_u32_within(at + offsetof(this_t, name), (min), (max));
#define OK_U64(name, min, max, text) ok &= is_u64_within(at + offsetof(this_t, name), (min), (max));
#define OK_I32(name, min, max, text) ok &= is_i32_within(at + offsetof(this_t, name), (min), (max));
#define OK_TEXT(name, bytes, text)   ok &= is_text(at + offsetof(this_t, name), (bytes), direction);
#define OK_ZERO(name, bytes)         ok &= is_zero(at + offsetof(this_t, name), (bytes));

/* The loops of records without such a field have an empty body and vanish. */
#define CHECKS(lower, in)                                                                       \
    static bool reserved_##lower(const uint8_t *at, uint32_t count)                             \
    {                                                                                           \
        typedef in this_t;                                                                      \
        bool ok = true;                                                                         \
        for (uint32_t i = 0; i < count; i++, at += sizeof(this_t)) {                            \
            KVI_FIELDS_##lower(NO_U32, NO_U32, NO_U32, NO_TEXT, NO_TEXT, OK_ZERO, NO_TAIL)      \
        }                                                                                       \
        return ok;                                                                              \
    }                                                                                           \
    static bool ranges_##lower(const uint8_t *at, uint32_t count, enum kvi_direction direction) \
    {                                                                                           \
        typedef in this_t;                                                                      \
        bool ok = true;                                                                         \
        (void)direction;                                                                        \
        for (uint32_t i = 0; i < count; i++, at += sizeof(this_t)) {                            \
            KVI_FIELDS_##lower(OK_U32, OK_U64, OK_I32, OK_TEXT, NO_TEXT, NO_ZERO, NO_TAIL)      \
        }                                                                                       \
        return ok;                                                                              \
    }
#define MESSAGE_CHECKS(lower, upper, opcode, direction, fd_limit, text) \
    CHECKS(lower, struct kvi_msg_##lower)
#define RECORD_CHECKS(lower, text) CHECKS(lower, struct kvi_rec_##lower)

KVI_MESSAGE_TABLE(MESSAGE_CHECKS)
KVI_RECORD_TABLE(RECORD_CHECKS)

/* The two checks of something, and after it those of its tails. */
struct checks {
    bool (*reserved)(const uint8_t *at, uint32_t count);
    bool (*ranges)(const uint8_t *at, uint32_t count, enum kvi_direction direction);
};

struct message_code {
    const struct kvi_message *message;
    struct checks fixed;
    struct checks tails[3]; /* two at most, and an empty one */
};

enum message_index {
#define MESSAGE_INDEX(lower, upper, opcode, direction, fd_limit, text) INDEX_##lower,
    KVI_MESSAGE_TABLE(MESSAGE_INDEX)
};

#define TAIL_CHECKS(record, count_field, limit, text) {reserved_##record, ranges_##record},
#define MESSAGE_CODE(lower, upper, opcode, direction, fd_limit, text)                  \
    [opcode] = {&messages[INDEX_##lower],                                              \
                {reserved_##lower, ranges_##lower},                                    \
                {KVI_FIELDS_##lower(NO_U32, NO_U32, NO_U32, NO_TEXT, NO_TEXT, NO_ZERO, \
                                    TAIL_CHECKS){NULL, NULL}}},
static const struct message_code codes[256] = {KVI_MESSAGE_TABLE(MESSAGE_CODE)};

const struct kvi_message *kvi_wire_message(uint32_t opcode)
{
    return opcode < COUNT_OF(codes) ? codes[opcode].message : NULL;
}

const struct kvi_message *kvi_wire_messages(uint32_t *count)
{
    *count = COUNT_OF(messages);
    return messages;
}

const char *kvi_wire_name(uint32_t opcode)
{
    const struct kvi_message *message = kvi_wire_message(opcode);

    return message ? message->name : "unknown";
}

/* ---- lengths and tails ---- */

static uint64_t tail_aligned(uint64_t bytes)
{
    return (bytes + TAIL_ALIGNMENT - 1) & ~(TAIL_ALIGNMENT - 1);
}

static uint32_t tail_count(const struct kvi_tail *tail, const uint8_t *message)
{
    return load_u32(message + tail->count_offset);
}

/* Where tail `which` begins; for which = tail_count, where the message ends. */
static uint64_t tail_offset(const struct kvi_message *m, const uint8_t *message, unsigned which)
{
    uint64_t end = m->fixed_bytes;

    for (unsigned i = 0; i < which; i++)
        end = tail_aligned(end) +
              (uint64_t)tail_count(&m->tails[i], message) * m->tails[i].record_bytes;
    return which < m->tail_count ? tail_aligned(end) : end;
}

const void *kvi_wire_tail_const(const void *message, unsigned which)
{
    const struct kvi_message *m = kvi_wire_message(load_u32(message));

    if (!m || which >= m->tail_count)
        return NULL;
    return (const uint8_t *)message + tail_offset(m, message, which);
}

void *kvi_wire_tail(void *message, unsigned which)
{
    return (void *)(uintptr_t)kvi_wire_tail_const(message, which);
}

size_t kvi_wire_bytes(const void *message)
{
    const struct kvi_message *m = kvi_wire_message(load_u32(message));

    return m ? (size_t)tail_offset(m, message, m->tail_count) : 0;
}

void kvi_wire_begin(void *message, enum kvi_opcode opcode, uint32_t serial)
{
    const struct kvi_message *m = kvi_wire_message(opcode);
    struct kvi_header header = {.opcode = opcode, .serial = serial};

    if (!m)
        return;
    memset(message, 0, m->fixed_bytes);
    memcpy(message, &header, sizeof(header));
}

size_t kvi_wire_finish(void *message)
{
    const struct kvi_message *m = kvi_wire_message(load_u32(message));
    uint8_t *bytes = message;
    uint64_t end;
    uint32_t length;

    if (!m)
        return 0;
    end = m->fixed_bytes;
    for (unsigned i = 0; i < m->tail_count; i++) {
        memset(bytes + end, 0, (size_t)(tail_aligned(end) - end));
        end = tail_aligned(end) +
              (uint64_t)tail_count(&m->tails[i], bytes) * m->tails[i].record_bytes;
    }
    length = (uint32_t)end;
    memcpy(bytes + offsetof(struct kvi_header, length_bytes), &length, sizeof(length));
    return length;
}

/* ---- the check of a datagram ---- */

/* Where the text of a verdict goes. */
struct report {
    char *text;
    size_t bytes;
};

__attribute__((format(printf, 2, 3))) static enum kvi_wire_verdict bad_frame(
    const struct report *report, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    if (report->text && report->bytes)
        vsnprintf(report->text, report->bytes, format, args);
    va_end(args);
    return KVI_WIRE_BAD_FRAME;
}

static bool is_field_ok(const struct kvi_field *field, const uint8_t *at,
                        enum kvi_direction direction)
{
    switch (field->kind) {
    case KVI_FIELD_U32: return is_u32_within(at, (uint32_t)field->min, (uint32_t)field->max);
    case KVI_FIELD_U64: return is_u64_within(at, (uint64_t)field->min, field->max);
    case KVI_FIELD_I32: return is_i32_within(at, field->min, (int64_t)field->max);
    case KVI_FIELD_TEXT: return is_text(at, field->bytes, direction);
    case KVI_FIELD_BYTES: return true;
    case KVI_FIELD_ZERO: return is_zero(at, field->bytes);
    }
    return false;
}

static void print_field(const struct report *report, const char *where,
                        const struct kvi_field *field, const uint8_t *at)
{
    if (field->kind == KVI_FIELD_U32)
        snprintf(report->text, report->bytes, "%s.%s: %" PRIu32 " is outside %" PRIu32 "..%" PRIu32,
                 where, field->name, load_u32(at), (uint32_t)field->min, (uint32_t)field->max);
    else if (field->kind == KVI_FIELD_U64)
        snprintf(report->text, report->bytes, "%s.%s: %" PRIu64 " is outside %" PRIu64 "..%" PRIu64,
                 where, field->name, load_u64(at), (uint64_t)field->min, field->max);
    else if (field->kind == KVI_FIELD_I32)
        snprintf(report->text, report->bytes, "%s.%s: %" PRId32 " is outside %" PRId64 "..%" PRId64,
                 where, field->name, (int32_t)load_u32(at), field->min, (int64_t)field->max);
    else if (field->kind == KVI_FIELD_TEXT)
        snprintf(report->text, report->bytes,
                 "%s.%s: not zero-terminated, zero-filled UTF-8 without control characters in %zu "
                 "bytes",
                 where, field->name, field->bytes);
    else
        snprintf(report->text, report->bytes, "%s.%s: reserved bytes are not zero", where,
                 field->name);
}

/* Print the first of `fields` that is wrong: a reserved one or, if not `is_reserved`, another. */
static bool print_offender(const struct report *report, const char *where,
                           const struct kvi_field *fields, uint32_t field_count, const uint8_t *at,
                           enum kvi_direction direction, bool is_reserved)
{
    for (uint32_t i = 0; i < field_count; i++) {
        if ((fields[i].kind == KVI_FIELD_ZERO) != is_reserved ||
            is_field_ok(&fields[i], at + fields[i].offset, direction))
            continue;
        print_field(report, where, &fields[i], at + fields[i].offset);
        return true;
    }
    return false;
}

/* Slow: says what a check has already found to be wrong. */
static void explain(const struct report *report, const struct kvi_message *m,
                    const uint8_t *message, bool is_reserved)
{
    char where[96];
    const uint8_t *record;

    if (!report->text || report->bytes == 0)
        return;
    if (print_offender(report, m->name, m->fields, m->field_count, message, m->direction,
                       is_reserved))
        return;
    for (unsigned t = 0; t < m->tail_count; t++) {
        const struct kvi_tail *tail = &m->tails[t];

        record = message + tail_offset(m, message, t);
        for (uint32_t i = 0; i < tail_count(tail, message); i++, record += tail->record_bytes) {
            snprintf(where, sizeof(where), "%s.%s[%" PRIu32 "]", m->name, tail->record, i);
            if (print_offender(report, where, tail->fields, tail->field_count, record, m->direction,
                               is_reserved))
                return;
        }
    }
}

/* Everything of the frame but reserved bytes. */
static enum kvi_wire_verdict check_header(const struct report *report, const uint8_t *message,
                                          size_t bytes, uint32_t fd_count,
                                          enum kvi_direction direction)
{
    struct kvi_header header;
    const struct kvi_message *m;
    uint64_t expected;

    if (bytes < sizeof(header))
        return bad_frame(report, "header: %zu bytes came, a header has 16", bytes);
    memcpy(&header, message, sizeof(header));
    m = kvi_wire_message(header.opcode);
    if (!m)
        return bad_frame(report, "header.opcode: %" PRIu32 " is no message", header.opcode);
    if (m->direction != direction)
        return bad_frame(report, "%s: goes the other way", m->name);
    if (header.length_bytes != bytes || bytes > KVI_MESSAGE_BYTES)
        return bad_frame(report, "%s.length_bytes: %" PRIu32 ", but %zu bytes came (at most %u)",
                         m->name, header.length_bytes, bytes, KVI_MESSAGE_BYTES);
    if (bytes < m->fixed_bytes)
        return bad_frame(report, "%s: %zu bytes came, at least %zu are needed", m->name, bytes,
                         m->fixed_bytes);
    expected = tail_offset(m, message, m->tail_count);
    if (expected != bytes)
        return bad_frame(report, "%s: its counts make %" PRIu64 " bytes, but %zu came", m->name,
                         expected, bytes);
    if (fd_count > m->fd_limit)
        return bad_frame(report, "%s: %" PRIu32 " descriptors came, at most %" PRIu32 " may",
                         m->name, fd_count, m->fd_limit);
    if (direction == KVI_TO_CLIENT && header.fds_received != fd_count)
        return bad_frame(report, "%s: %" PRIu32 " descriptors came, the header says %" PRIu32,
                         m->name, fd_count, header.fds_received);
    return KVI_WIRE_OK;
}

/* Reserved bytes: of the fixed part, between the tails, and in their records. */
static bool are_reserved_zero(const struct message_code *code, const uint8_t *message)
{
    const struct kvi_message *m = code->message;
    bool ok = code->fixed.reserved(message, 1);
    uint64_t end = m->fixed_bytes;

    for (unsigned i = 0; i < m->tail_count && ok; i++) {
        uint64_t begin = tail_aligned(end);
        uint32_t count = tail_count(&m->tails[i], message);

        ok = is_zero(message + end, (size_t)(begin - end)) &&
             code->tails[i].reserved(message + begin, count);
        end = begin + (uint64_t)count * m->tails[i].record_bytes;
    }
    return ok;
}

static bool are_ranges_kept(const struct message_code *code, const uint8_t *message)
{
    const struct kvi_message *m = code->message;
    bool ok = code->fixed.ranges(message, 1, m->direction);

    for (unsigned i = 0; i < m->tail_count && ok; i++)
        ok = code->tails[i].ranges(message + tail_offset(m, message, i),
                                   tail_count(&m->tails[i], message), m->direction);
    return ok;
}

enum kvi_wire_verdict kvi_wire_check(const void *datagram, size_t bytes, uint32_t fd_count,
                                     enum kvi_direction direction, char *text, size_t text_bytes)
{
    const struct report report = {text, text_bytes};
    const struct message_code *code;
    enum kvi_wire_verdict verdict;

    verdict = check_header(&report, datagram, bytes, fd_count, direction);
    if (verdict != KVI_WIRE_OK)
        return verdict;
    code = &codes[load_u32(datagram)];
    if (!are_reserved_zero(code, datagram)) {
        bad_frame(&report, "%s: bytes between its tails are not zero", code->message->name);
        explain(&report, code->message, datagram, true);
        return KVI_WIRE_BAD_FRAME;
    }
    if (!are_ranges_kept(code, datagram)) {
        explain(&report, code->message, datagram, false);
        return KVI_WIRE_BAD_FIELD;
    }
    return KVI_WIRE_OK;
}
