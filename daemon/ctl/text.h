/* SPDX-License-Identifier: Apache-2.0
 *
 * Numbers and names as people read them. Pure; nothing here fails.
 *
 * Names come from other processes: before they reach a terminal or a JSON text they go through
 * kvctl_clean(), which leaves no control character and no byte that is not UTF-8.
 */
#ifndef KVCTL_TEXT_H
#define KVCTL_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define KVCTL_TEXT_BYTES 32  /* room for any formatted number */
#define KVCTL_NAME_BYTES 200 /* room for any cleaned name of the protocol */

/* "512 B", "1.5 MiB": one decimal from KiB on, never "1024.0 KiB". Returns `out`. */
const char *kvctl_bytes(char out[KVCTL_TEXT_BYTES], uint64_t bytes);

/* "1,234,567". */
const char *kvctl_count(char out[KVCTL_TEXT_BYTES], uint64_t count);

/* "12.3 %" of `whole`; "-" when whole is 0. What is not nothing is not shown as 0.0, what is
 * not all is not shown as 100.0. */
const char *kvctl_percent(char out[KVCTL_TEXT_BYTES], uint64_t part, uint64_t whole);

/* The same in at most four columns: "0%", "<1%", "42%", ">99%" is "99%", "100%". */
const char *kvctl_percent_short(char out[KVCTL_TEXT_BYTES], uint64_t part, uint64_t whole);

/* "350 ns", "1.2 ms", "12.3 s", "3 min 20 s", "2 h 05 min", "3 d 04 h". */
const char *kvctl_duration(char out[KVCTL_TEXT_BYTES], uint64_t ns, bool has_utf8);

/* The same into storage that lives as long as the enclosing block. */
#define KVCTL_BYTES(n)         kvctl_bytes((char[KVCTL_TEXT_BYTES]){0}, (n))
#define KVCTL_COUNT(n)         kvctl_count((char[KVCTL_TEXT_BYTES]){0}, (n))
#define KVCTL_PERCENT(a, b)    kvctl_percent((char[KVCTL_TEXT_BYTES]){0}, (a), (b))
#define KVCTL_DURATION(ns, u8) kvctl_duration((char[KVCTL_TEXT_BYTES]){0}, (ns), (u8))

/* Copy at most `in_bytes` bytes of `in`, up to its end, into `out`, which is always terminated.
 * Control characters become '?'; bytes that are not UTF-8 become U+FFFD, or '?' when
 * `has_utf8` is false, which also replaces everything beyond ASCII. Returns `out`. */
const char *kvctl_clean(char *out, size_t out_bytes, const char *in, size_t in_bytes,
                        bool has_utf8);

/* Columns of a terminal that clean UTF-8 takes. */
size_t kvctl_columns(const char *text);

/* Write clean `text` in exactly `columns` columns, flush left, or right when `is_right`. What is
 * too long ends with "…", or "~" without UTF-8. */
void kvctl_pad(FILE *out, const char *text, size_t columns, bool is_right, bool has_utf8);

/* `count` times "s" or nothing. */
static inline const char *kvctl_plural(uint64_t count)
{
    return count == 1 ? "" : "s";
}

/* Edits (insert, delete, replace, swap neighbours) from one word to the other; long words are
 * compared by their first 31 bytes. (Optimal string alignment, Damerau 1964.) */
unsigned kvctl_edit_distance(const char *from, const char *to);

#endif
