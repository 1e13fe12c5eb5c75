/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmemctl's formatting, cleaning, padding, options and JSON numbers.
 */
#include <criterion/criterion.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/json.h"
#include "ctl/options.h"
#include "ctl/table.h"
#include "ctl/text.h"

static void is_text(const char *got, const char *wanted)
{
    cr_assert_str_eq(got, wanted, "got \"%s\", wanted \"%s\"", got, wanted);
}

Test(ctl_text, bytes)
{
    is_text(KVCTL_BYTES(0), "0 B");
    is_text(KVCTL_BYTES(1023), "1023 B");
    is_text(KVCTL_BYTES(1024), "1.0 KiB");
    is_text(KVCTL_BYTES(64u << 20), "64.0 MiB");
    is_text(KVCTL_BYTES((1u << 20) - 1), "1.0 MiB");
    is_text(KVCTL_BYTES(1536), "1.5 KiB");
    is_text(KVCTL_BYTES(UINT64_MAX), "16.0 EiB");
}

Test(ctl_text, counts)
{
    is_text(KVCTL_COUNT(0), "0");
    is_text(KVCTL_COUNT(999), "999");
    is_text(KVCTL_COUNT(1000), "1,000");
    is_text(KVCTL_COUNT(1234567), "1,234,567");
    is_text(KVCTL_COUNT(UINT64_MAX), "18,446,744,073,709,551,615");
}

Test(ctl_text, percent_never_lies_at_the_ends)
{
    is_text(KVCTL_PERCENT(0, 0), "-");
    is_text(KVCTL_PERCENT(0, 10), "0.0 %");
    is_text(KVCTL_PERCENT(1, 1000000), "<0.1 %");
    is_text(KVCTL_PERCENT(999999, 1000000), ">99.9 %");
    is_text(KVCTL_PERCENT(10, 10), "100.0 %");
    is_text(KVCTL_PERCENT(1, 3), "33.3 %");
    char out[KVCTL_TEXT_BYTES];
    is_text(kvctl_percent_short(out, 1, 1000), "<1%");
    is_text(kvctl_percent_short(out, 999, 1000), "99%");
    is_text(kvctl_percent_short(out, 1000, 1000), "100%");
    is_text(kvctl_percent_short(out, 0, 0), "-");
}

Test(ctl_text, durations)
{
    is_text(KVCTL_DURATION(350, true), "350 ns");
    is_text(KVCTL_DURATION(1234, true), "1.2 µs");
    is_text(KVCTL_DURATION(1234, false), "1.2 us");
    is_text(KVCTL_DURATION(999949, false), "999.9 us");
    is_text(KVCTL_DURATION(999950, false), "1.0 ms");
    is_text(KVCTL_DURATION(5000000000, false), "5.0 s");
    is_text(KVCTL_DURATION(200ull * 1000000000, false), "3 min 20 s");
    is_text(KVCTL_DURATION(7500ull * 1000000000, false), "2 h 05 min");
    is_text(KVCTL_DURATION(273600ull * 1000000000, false), "3 d 04 h");
}

Test(ctl_text, clean_leaves_nothing_that_a_terminal_obeys)
{
    char out[64];

    is_text(kvctl_clean(out, sizeof(out), "a\033[2Jb\n", 32, true), "a?[2Jb?");
    is_text(kvctl_clean(out, sizeof(out),
                        "\xc2\x9b"
                        "31m",
                        32, true),
            "?31m"); /* C1 CSI */
    is_text(kvctl_clean(out, sizeof(out), "caf\xc3\xa9", 32, true), "café");
    is_text(kvctl_clean(out, sizeof(out), "caf\xc3\xa9", 32, false), "caf?");
    is_text(kvctl_clean(out, sizeof(out), "\xff\xc3", 32, true), "\xef\xbf\xbd\xef\xbf\xbd");
    is_text(kvctl_clean(out, sizeof(out), "\xc0\xaf", 32, false), "??");      /* overlong */
    is_text(kvctl_clean(out, sizeof(out), "\xed\xa0\x80", 32, false), "???"); /* surrogate */
    is_text(kvctl_clean(out, sizeof(out),
                        "\xe2\x80\xae"
                        "x",
                        32, true),
            "?x"); /* override */
    is_text(kvctl_clean(out, sizeof(out), "abcdef", 3, true), "abc");
    is_text(kvctl_clean(out, 4, "ab\xc3\xa9", 32, true), "ab"); /* never half a character */
}

Test(ctl_text, clean_any_bytes)
{
    unsigned seed = 1;

    for (int round = 0; round < 20000; round++) {
        char in[24], out[100], again[100];

        for (size_t i = 0; i < sizeof(in); i++)
            in[i] = (char)rand_r(&seed);
        kvctl_clean(out, sizeof(out), in, sizeof(in), true);
        for (const char *c = out; *c; c++)
            cr_assert((unsigned char)*c >= 0x20 && *c != 0x7f);
        is_text(kvctl_clean(again, sizeof(again), out, sizeof(out), true), out);
    }
}

static void pad_is(const char *text, size_t columns, bool is_right, bool has_utf8,
                   const char *wanted)
{
    char *got;
    size_t bytes;
    FILE *out = open_memstream(&got, &bytes);

    kvctl_pad(out, text, columns, is_right, has_utf8);
    fclose(out);
    is_text(got, wanted);
    free(got);
}

Test(ctl_text, pad)
{
    setlocale(LC_CTYPE, "C.UTF-8");
    pad_is("ab", 4, false, true, "ab  ");
    pad_is("ab", 4, true, true, "  ab");
    pad_is("abcdef", 4, false, true, "abc…");
    pad_is("abcdef", 4, true, false, "abc~");
    pad_is("é", 3, false, true, "é  ");
    pad_is("日本語", 4, false, true, "日… "); /* two columns each */
    pad_is("abc", 0, false, true, "");
}

Test(ctl_text, edit_distance)
{
    cr_assert_eq(kvctl_edit_distance("stats", "stats"), 0);
    cr_assert_eq(kvctl_edit_distance("stast", "stats"), 1); /* neighbours swapped */
    cr_assert_eq(kvctl_edit_distance("mp", "map"), 1);
    cr_assert_eq(kvctl_edit_distance("", "map"), 3);
    cr_assert_eq(kvctl_edit_distance("kitten", "sitting"), 3);
}

/* ---- options -------------------------------------------------------------------------- */

static int parse(struct kvctl_options *out, char *error, const char *line)
{
    static char copy[256];
    char *argv[16] = {"kvmemctl"};
    int argc = 1;

    snprintf(copy, sizeof(copy), "%s", line);
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " "))
        argv[argc++] = word;
    return kvctl_options_parse(argc, argv, out, error, 256);
}

Test(ctl_options, anywhere)
{
    struct kvctl_options options;
    char error[256];

    cr_assert_eq(parse(&options, error, "map --json --socket /x --every 0.5 --width 120"), 0);
    is_text(options.verb, "map");
    is_text(options.socket, "/x");
    cr_assert(options.is_json);
    cr_assert_eq(options.every_ns, 500000000);
    cr_assert_eq(options.width_columns, 120);
    cr_assert_eq(options.timeout_ns, 5000000000);
    cr_assert_eq(options.given, KVCTL_TAKES_EVERY | KVCTL_TAKES_WIDTH);

    cr_assert_eq(parse(&options, error, "--color=never help map"), 0);
    cr_assert_eq(options.color, KVCTL_COLOR_NEVER);
    is_text(options.word, "map");
    cr_assert_null(kvctl_options_stray(options.given, KVCTL_TAKES_WORD));
    is_text(kvctl_options_stray(KVCTL_TAKES_SPACE, KVCTL_TAKES_WORD), "--space");
}

Test(ctl_options, what_is_wrong_is_named)
{
    static const char *const cases[][2] = {
        {"map --timeout 0", "--timeout 0: expected seconds, 0.001 to 86400"},
        {"map --timeout -1", "--timeout -1: expected seconds, 0.001 to 86400"},
        {"map --timeout inf", "--timeout inf: expected seconds, 0.001 to 86400"},
        {"map --timeout 0x10", "--timeout 0x10: expected seconds, 0.001 to 86400"},
        {"map --timeout 86401", "--timeout 86401: expected seconds, 0.001 to 86400"},
        {"map --timeout 9e99", "--timeout 9e99: expected seconds, 0.001 to 86400"},
        {"map --every 0.01", "--every 0.01: expected seconds, 0.1 to 86400"},
        {"map --width 39", "--width 39: expected columns, 40 to 1000"},
        {"map --width 1001", "--width 1001: expected columns, 40 to 1000"},
        {"map --width 99999999999999999999",
         "--width 99999999999999999999: expected columns, 40 to 1000"},
        {"map --color green", "--color green: expected auto, always or never"},
        {"map --socket", "--socket needs a value"},
        {"map --jsn", "there is no option --jsn; did you mean --json?"},
        {"map --json=1", "--json takes no value"},
        {"map -x", "there is no option -x"},
        {"help map frag", "'frag' is one argument too many"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct kvctl_options options;
        char error[256] = "";

        cr_assert_eq(parse(&options, error, cases[i][0]), -1, "%s", cases[i][0]);
        is_text(error, cases[i][1]);
    }
}

/* ---- JSON and tables ------------------------------------------------------------------ */

Test(ctl_json, numbers_are_exact)
{
    cJSON *object = cJSON_CreateObject();
    char *text;

    kvctl_json_u64(object, "a_bytes", UINT64_MAX);
    kvctl_json_u64(object, "b_bytes", (1ull << 53) + 1);
    kvctl_json_ratio(object, "c_ratio", 1, 4);
    kvctl_json_ratio(object, "d_ratio", 1, 0);
    kvctl_json_text(object, "e", "x\"\xff", 8);
    text = cJSON_PrintUnformatted(object);
    is_text(text, "{\"a_bytes\":18446744073709551615,\"b_bytes\":9007199254740993,"
                  "\"c_ratio\":0.25,\"d_ratio\":null,\"e\":\"x\\\"\xef\xbf\xbd\"}");
    cJSON_free(text);
    cJSON_Delete(object);
}

static char *print_table(unsigned width)
{
    static const struct kvctl_column columns[] = {
        {"name", false, 0}, {"rare", true, 9}, {"bytes", true, 0}, {"often", true, 1}};
    const struct kvctl_style style = {.has_utf8 = true};
    struct kvctl_table *table = kvctl_table_create(columns, 4);
    char *text;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);

    for (int i = 0; i < 2; i++) {
        kvctl_table_add(table, i ? "a longer one" : "a");
        kvctl_table_add(table, "%d", i);
        kvctl_table_add(table, "%d KiB", i * 1000);
        kvctl_table_add(table, "x");
    }
    kvctl_table_print(out, table, width, &style);
    kvctl_table_destroy(table);
    fclose(out);
    return text;
}

Test(ctl_table, aligned)
{
    char *text = print_table(80);

    is_text(text, "name          rare     bytes  often\n"
                  "a                0     0 KiB      x\n"
                  "a longer one     1  1000 KiB      x\n");
    free(text);
}

Test(ctl_table, leaves_out_what_matters_least)
{
    char *text = print_table(30);

    is_text(text, "name             bytes  often\n"
                  "a                0 KiB      x\n"
                  "a longer one  1000 KiB      x\n"
                  "\nNot shown at this width: rare.\n");
    free(text);
    text = print_table(10); /* what has rank 0 stays */
    cr_assert_eq(strncmp(text, "name             bytes\n", 23), 0, "%s", text);
    free(text);
}
