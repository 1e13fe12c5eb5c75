/* SPDX-License-Identifier: Apache-2.0
 *
 * Formatting of numbers, cleaning and padding of names.
 */
#include "text.h"

#include <inttypes.h>
#include <string.h>
#include <wchar.h>

const char *kvctl_bytes(char out[KVCTL_TEXT_BYTES], uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    unsigned unit = 0;

    if (bytes < 1024) {
        snprintf(out, KVCTL_TEXT_BYTES, "%" PRIu64 " B", bytes);
        return out;
    }
    /* 1023.95 would be rounded to 1024.0. */
    while (value >= 1023.95 && unit + 1 < sizeof(units) / sizeof(units[0])) {
        value /= 1024;
        unit++;
    }
    snprintf(out, KVCTL_TEXT_BYTES, "%.1f %s", value, units[unit]);
    return out;
}

const char *kvctl_count(char out[KVCTL_TEXT_BYTES], uint64_t count)
{
    char digits[24];
    int length = snprintf(digits, sizeof(digits), "%" PRIu64, count);
    char *end = out;

    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0)
            *end++ = ',';
        *end++ = digits[i];
    }
    *end = 0;
    return out;
}

const char *kvctl_percent(char out[KVCTL_TEXT_BYTES], uint64_t part, uint64_t whole)
{
    double percent = whole ? 100.0 * (double)part / (double)whole : 0;

    if (whole == 0)
        snprintf(out, KVCTL_TEXT_BYTES, "-");
    else if (part > 0 && percent < 0.05)
        snprintf(out, KVCTL_TEXT_BYTES, "<0.1 %%");
    else if (part < whole && percent >= 99.95)
        snprintf(out, KVCTL_TEXT_BYTES, ">99.9 %%");
    else
        snprintf(out, KVCTL_TEXT_BYTES, "%.1f %%", percent);
    return out;
}

const char *kvctl_percent_short(char out[KVCTL_TEXT_BYTES], uint64_t part, uint64_t whole)
{
    double percent = whole ? 100.0 * (double)part / (double)whole : 0;

    if (whole == 0)
        snprintf(out, KVCTL_TEXT_BYTES, "-");
    else if (part > 0 && percent < 1)
        snprintf(out, KVCTL_TEXT_BYTES, "<1%%");
    else if (part < whole && percent > 99)
        snprintf(out, KVCTL_TEXT_BYTES, "99%%");
    else
        snprintf(out, KVCTL_TEXT_BYTES, "%.0f%%", percent);
    return out;
}

const char *kvctl_duration(char out[KVCTL_TEXT_BYTES], uint64_t ns, bool has_utf8)
{
    uint64_t seconds = ns / 1000000000u;

    if (ns < 1000)
        snprintf(out, KVCTL_TEXT_BYTES, "%" PRIu64 " ns", ns);
    else if (ns < 999950)
        snprintf(out, KVCTL_TEXT_BYTES, "%.1f %s", (double)ns / 1e3, has_utf8 ? "µs" : "us");
    else if (ns < 999950000)
        snprintf(out, KVCTL_TEXT_BYTES, "%.1f ms", (double)ns / 1e6);
    else if (ns < 59950000000)
        snprintf(out, KVCTL_TEXT_BYTES, "%.1f s", (double)ns / 1e9);
    else if (seconds < 3600)
        snprintf(out, KVCTL_TEXT_BYTES, "%" PRIu64 " min %02" PRIu64 " s", seconds / 60,
                 seconds % 60);
    else if (seconds < 86400)
        snprintf(out, KVCTL_TEXT_BYTES, "%" PRIu64 " h %02" PRIu64 " min", seconds / 3600,
                 seconds / 60 % 60);
    else
        snprintf(out, KVCTL_TEXT_BYTES, "%" PRIu64 " d %02" PRIu64 " h", seconds / 86400,
                 seconds / 3600 % 24);
    return out;
}

/* Bytes of the UTF-8 character at `in` (at most `limit` bytes there) and its code point; 0 when
 * it is malformed: overlong, a surrogate, beyond U+10FFFF, cut short. */
static size_t decode(const char *in, size_t limit, uint32_t *code)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *bytes = (const unsigned char *)in;
    size_t length = bytes[0] < 0x80             ? 1
                    : (bytes[0] & 0xe0) == 0xc0 ? 2
                    : (bytes[0] & 0xf0) == 0xe0 ? 3
                    : (bytes[0] & 0xf8) == 0xf0 ? 4
                                                : 0;

    if (length == 0 || length > limit)
        return 0;
    *code = length == 1 ? bytes[0] : bytes[0] & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((bytes[i] & 0xc0) != 0x80)
            return 0;
        *code = *code << 6 | (bytes[i] & 0x3fu);
    }
    if (*code < least[length] || *code > 0x10ffff || (*code >= 0xd800 && *code < 0xe000))
        return 0;
    return length;
}

/* C0, DEL, C1, and the characters that turn the direction of the text around. */
static bool is_control(uint32_t code)
{
    return code < 0x20 || (code >= 0x7f && code < 0xa0) || code == 0x2028 || code == 0x2029 ||
           (code >= 0x202a && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069);
}

const char *kvctl_clean(char *out, size_t out_bytes, const char *in, size_t in_bytes, bool has_utf8)
{
    size_t limit = strnlen(in, in_bytes);
    size_t used = 0;
    size_t length;

    for (size_t at = 0; at < limit; at += length) {
        uint32_t code = 0;
        const char *piece = in + at;
        size_t piece_bytes = length = decode(piece, limit - at, &code);

        if (length == 0) {
            length = 1;
            piece = has_utf8 ? "\xef\xbf\xbd" : "?";
            piece_bytes = strlen(piece);
        } else if (is_control(code) || (length > 1 && !has_utf8)) {
            piece = "?";
            piece_bytes = 1;
        }
        if (used + piece_bytes >= out_bytes)
            break;
        memcpy(out + used, piece, piece_bytes);
        used += piece_bytes;
    }
    out[used] = 0;
    return out;
}

/* Columns of one character; 1 for what the locale does not know. */
static size_t columns_of(uint32_t code)
{
    int columns = code < 0x80 ? 1 : wcwidth((wchar_t)code);

    return columns < 0 ? 1 : (size_t)columns;
}

/* Bytes of `text` that fit into `limit` columns; *columns: how many they take. */
static size_t fitting_bytes(const char *text, size_t limit, size_t *columns)
{
    size_t bytes = strlen(text);
    size_t at = 0;

    *columns = 0;
    while (at < bytes) {
        uint32_t code = '?';
        size_t length = decode(text + at, bytes - at, &code);
        size_t wide = columns_of(code);

        if (*columns + wide > limit)
            break;
        *columns += wide;
        at += length ? length : 1;
    }
    return at;
}

size_t kvctl_columns(const char *text)
{
    size_t columns;

    fitting_bytes(text, SIZE_MAX, &columns);
    return columns;
}

void kvctl_pad(FILE *out, const char *text, size_t columns, bool is_right, bool has_utf8)
{
    size_t used;
    size_t bytes = fitting_bytes(text, columns, &used);
    bool is_cut = text[bytes] != 0;

    if (columns == 0)
        return;
    if (is_cut) {
        bytes = fitting_bytes(text, columns - 1, &used);
        used++;
    }
    if (is_right)
        fprintf(out, "%*s", (int)(columns - used), "");
    fwrite(text, 1, bytes, out);
    if (is_cut)
        fputs(has_utf8 ? "…" : "~", out);
    if (!is_right)
        fprintf(out, "%*s", (int)(columns - used), "");
}

#define WORD_LIMIT 31

static unsigned smaller_of(unsigned a, unsigned b)
{
    return a < b ? a : b;
}

unsigned kvctl_edit_distance(const char *from, const char *to)
{
    unsigned rows[WORD_LIMIT + 1][WORD_LIMIT + 1];
    size_t from_bytes = strnlen(from, WORD_LIMIT);
    size_t to_bytes = strnlen(to, WORD_LIMIT);

    for (size_t i = 0; i <= from_bytes; i++) {
        for (size_t j = 0; j <= to_bytes; j++) {
            if (i == 0 || j == 0) {
                rows[i][j] = (unsigned)(i + j);
                continue;
            }
            rows[i][j] = smaller_of(smaller_of(rows[i - 1][j], rows[i][j - 1]) + 1,
                                    rows[i - 1][j - 1] + (from[i - 1] != to[j - 1]));
            if (i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1])
                rows[i][j] = smaller_of(rows[i][j], rows[i - 2][j - 2] + 1);
        }
    }
    return rows[from_bytes][to_bytes];
}
