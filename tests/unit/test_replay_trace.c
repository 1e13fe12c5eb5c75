/* SPDX-License-Identifier: Apache-2.0
 *
 * The trace reader of kvmem-replay: what it takes, and what it says of a line that is wrong.
 */
#include <criterion/criterion.h>
#include <unistd.h>

#include "replay/trace.c"

#define GOOD \
    "{\"timestamp\": 5, \"input_length\": 20, \"output_length\": 3, \"hash_ids\": [7, 8]}\n"

/* Load `text` as a trace of 16 tokens an id. */
static int load(const char *text, size_t bytes, uint32_t limit, struct kvb_trace *trace,
                char *error, size_t error_bytes)
{
    char path[] = "/tmp/kvmem-test-trace.XXXXXX";
    int fd = mkstemp(path);
    int rc;

    cr_assert(fd >= 0);
    cr_assert_eq(write(fd, text, bytes), (ssize_t)bytes);
    close(fd);
    rc = kvb_trace_load(path, 16, limit, trace, error, error_bytes);
    unlink(path);
    return rc;
}

Test(replay_trace, requests_and_ids)
{
    struct kvb_trace trace;
    char error[256] = "";
    const char *text = GOOD "{\"hash_ids\": [9], \"timestamp\": 6, \"output_length\": 0, "
                            "\"input_length\": 16, \"more\": null}";

    cr_assert_eq(load(text, strlen(text), 100, &trace, error, sizeof(error)), 0, "%s", error);
    cr_assert_eq(trace.request_count, 2);
    cr_assert_eq(trace.id_count, 3);
    cr_assert_eq(trace.requests[0].prompt_tokens, 20);
    cr_assert_eq(trace.requests[0].output_tokens, 3);
    cr_assert_eq(trace.requests[0].id_count, 2);
    cr_assert_eq(trace.requests[1].first_id, 2);
    cr_assert_eq(trace.requests[1].id_count, 1);
    cr_assert_eq(trace.ids[0], 7);
    cr_assert_eq(trace.ids[1], 8);
    cr_assert_eq(trace.ids[2], 9);
    kvb_trace_fini(&trace);
    cr_assert_eq(load(text, strlen(text), 1, &trace, error, sizeof(error)), 0);
    cr_assert_eq(trace.request_count, 1);
    kvb_trace_fini(&trace);
}

#define LINE(input, output, ids)                                                 \
    "{\"timestamp\": 0, \"input_length\": " input ", \"output_length\": " output \
    ", \"hash_ids\": " ids "}\n"

static const struct {
    const char *text;
    const char *expected;
} WRONG[] = {
    {"", ":1: expected a request"},
    {GOOD "not json\n", ":2: expected a JSON object"},
    {GOOD GOOD "\n", ":3: expected a JSON object"},
    {GOOD "[1]\n", ":2: expected a JSON object"},
    {GOOD "{} {}\n", ":2: expected a JSON object"},
    {GOOD "{\"timestamp\": 5, \"input_length\"", ":2: expected a JSON object"},
    {"{}\n", ":1: expected \"timestamp\": an integer in 0 .. "},
    {"{\"timestamp\": -1}\n", ":1: expected \"timestamp\""},
    {"{\"timestamp\": 1}\n", ":1: expected \"input_length\": an integer in 1 .. 16777216"},
    {LINE("0", "1", "[]"), ":1: expected \"input_length\""},
    {LINE("-16", "1", "[1]"), ":1: expected \"input_length\""},
    {LINE("1e30", "1", "[1]"), ":1: expected \"input_length\""},
    {LINE("16.5", "1", "[1]"), ":1: expected \"input_length\""},
    {LINE("\"16\"", "1", "[1]"), ":1: expected \"input_length\""},
    {LINE("16", "-1", "[1]"), ":1: expected \"output_length\": an integer in 0 .. 1048576"},
    {LINE("16", "1048577", "[1]"), ":1: expected \"output_length\""},
    {LINE("16", "1", "7"), ":1: expected \"hash_ids\": an array of integers"},
    {LINE("16", "1", "[-7]"), ":1: expected \"hash_ids\": integers in 0 .. 2^53"},
    {LINE("16", "1", "[0.5]"), ":1: expected \"hash_ids\": integers"},
    {LINE("16", "1", "[\"a\"]"), ":1: expected \"hash_ids\": integers"},
    {LINE("17", "1", "[1]"), ":1: expected 2 \"hash_ids\" (one for each 16 tokens"},
    {LINE("16", "1", "[1, 2]"), ":1: expected 1 \"hash_ids\""},
    {LINE("16", "1", "[]"), ":1: expected 1 \"hash_ids\""},
};

Test(replay_trace, a_wrong_line_is_named)
{
    for (size_t i = 0; i < sizeof(WRONG) / sizeof(WRONG[0]); i++) {
        struct kvb_trace trace;
        char error[256] = "";
        const char *text = WRONG[i].text;

        cr_assert_eq(load(text, strlen(text), 100, &trace, error, sizeof(error)), -1, "%s", text);
        cr_assert(strstr(error, WRONG[i].expected) != NULL, "'%s' lacks '%s'", error,
                  WRONG[i].expected);
        cr_assert_null(trace.requests);
    }
}

Test(replay_trace, a_zero_byte_ends_nothing_silently)
{
    static const char text[] = GOOD "{\"a\":1}\0" GOOD;
    struct kvb_trace trace;
    char error[256] = "";

    cr_assert_eq(load(text, sizeof(text) - 1, 100, &trace, error, sizeof(error)), -1);
    cr_assert(strstr(error, ":2: expected") != NULL, "%s", error);
}

Test(replay_trace, a_missing_file_is_named)
{
    struct kvb_trace trace;
    char error[256] = "";

    cr_assert_eq(kvb_trace_load("/no/such/trace", 16, 1, &trace, error, sizeof(error)), -1);
    cr_assert(strstr(error, "/no/such/trace") != NULL, "%s", error);
}

Test(replay_trace, the_excerpt)
{
    struct kvb_trace trace;
    char error[256] = "";

    cr_assert_eq(kvb_trace_load("tests/data/mooncake_excerpt.jsonl", 512, UINT32_MAX, &trace, error,
                                sizeof(error)),
                 0, "%s", error);
    cr_assert_eq(trace.request_count, 400);
    kvb_trace_fini(&trace);
}
