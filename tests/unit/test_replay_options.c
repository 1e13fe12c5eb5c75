/* SPDX-License-Identifier: Apache-2.0
 *
 * The command line of kvmem-replay: defaults, ranges, what does not go together.
 */
#include <criterion/criterion.h>

#include "replay/options.c"

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

static enum kvb_options_verdict parse(struct kvb_options *out, char *error, const char *line)
{
    static char copy[512]; /* options point into it */
    char *argv[32] = {"kvmem-replay"};
    char *rest = copy;
    char *word;
    int argc = 1;

    snprintf(copy, sizeof(copy), "%s", line);
    while ((word = strsep(&rest, " ")) != NULL)
        if (*word != '\0')
            argv[argc++] = word;
    return kvb_options_parse(argc, argv, out, error, 512);
}

Test(replay_options, defaults)
{
    struct kvb_options options;
    char error[512] = "";

    cr_assert_eq(parse(&options, error, "--trace t"), KVB_OPTIONS_RUN, "%s", error);
    cr_assert_eq(options.clients, 2);
    cr_assert_eq(options.concurrency, 32);
    cr_assert_eq(options.tokens_per_id, 512);
    cr_assert_eq(options.request_limit, UINT32_MAX);
    cr_assert_eq(options.parts, 1);
    cr_assert_eq(options.model.layers, 2);
    cr_assert_eq(options.model.kv_heads, 2);
    cr_assert_eq(options.model.head_dim, 16);
    cr_assert_eq(options.model.dtype, KVMEM_DTYPE_BF16);
    cr_assert_eq(options.model.block_tokens, 16);
    cr_assert_null(options.device);
    cr_assert(!options.is_helped);
    cr_assert_eq(parse(&options, error, "--trace t --embedded --sequential"), KVB_OPTIONS_RUN);
    cr_assert_eq(options.clients, 1);
    cr_assert_eq(options.concurrency, 1);
    cr_assert_eq(options.device_bytes, DEVICE_BYTES_DEFAULT);
    cr_assert_eq(parse(&options, error, "--help"), KVB_OPTIONS_HELP);
}

Test(replay_options, every_value_is_taken)
{
    struct kvb_options options;
    char error[512] = "";

    cr_assert_eq(
        parse(&options, error,
              "--trace t --embedded --device-bytes 3GiB --tokens-per-id 64 --requests 7 "
              "--concurrency 5 --device cuda:63 --helper --no-output --self-test --json --part 2/3 "
              "--geometry dtype=fp32,layers=1,head_dim=64,kv_heads=8,block_tokens=32"),
        KVB_OPTIONS_RUN, "%s", error);
    cr_assert_eq(options.device_bytes, 3ull << 30);
    cr_assert_eq(options.tokens_per_id, 64);
    cr_assert_eq(options.request_limit, 7);
    cr_assert_eq(options.concurrency, 5);
    cr_assert_str_eq(options.device, "cuda:63");
    cr_assert(options.is_helped);
    cr_assert_eq(options.part, 1);
    cr_assert_eq(options.parts, 3);
    cr_assert_eq(options.model.dtype, KVMEM_DTYPE_FP32);
    cr_assert_eq(options.model.layers, 1);
    cr_assert_eq(options.model.head_dim, 64);
    cr_assert_eq(options.model.kv_heads, 8);
    cr_assert_eq(options.model.block_tokens, 32);
    cr_assert(options.is_without_output && options.is_self_test && options.is_json);
}

/* Each wrong command line, and words that its message must have. */
static const struct {
    const char *line;
    const char *words[4];
} WRONG[] = {
    {"", {"--trace"}},
    {"--trace", {"--trace", "needs a value"}},
    {"--trace t --bogus", {"--bogus", "no such option"}},
    {"--trace t extra", {"extra"}},
    {"--trace t --tokens-per-id 0", {"--tokens-per-id", "0", "1 .. 65536"}},
    {"--trace t --tokens-per-id -1", {"--tokens-per-id", "-1", "1 .. 65536"}},
    {"--trace t --tokens-per-id 65537", {"--tokens-per-id", "65537", "1 .. 65536"}},
    {"--trace t --tokens-per-id 99999999999999999999", {"--tokens-per-id", "1 .. 65536"}},
    {"--trace t --tokens-per-id 5x", {"--tokens-per-id", "5x"}},
    {"--trace t --clients 0", {"--clients", "0", "1 .. 64"}},
    {"--trace t --clients 65", {"--clients", "65", "1 .. 64"}},
    {"--trace t --requests 0", {"--requests", "0", "1 .. 4294967295"}},
    {"--trace t --requests 4294967296", {"--requests", "4294967296"}},
    {"--trace t --concurrency 0", {"--concurrency", "0", "1 .. 1024"}},
    {"--trace t --concurrency 1025", {"--concurrency", "1025", "1 .. 1024"}},
    {"--trace t --device gpu", {"--device", "gpu", "host", "cuda:N"}},
    {"--trace t --device hosts", {"--device", "hosts"}},
    {"--trace t --device cuda:", {"--device", "cuda:"}},
    {"--trace t --device cuda:0x", {"--device", "cuda:0x"}},
    {"--trace t --device cuda:-1", {"--device", "cuda:-1"}},
    {"--trace t --device cuda:64", {"--device", "cuda:64", "0 .. 63"}},
    {"--trace t --embedded --device-bytes 0", {"--device-bytes", "0", "1MiB .. 64TiB"}},
    {"--trace t --embedded --device-bytes 1024KiBs", {"--device-bytes", "1024KiBs"}},
    {"--trace t --embedded --device-bytes 65TiB", {"--device-bytes", "65TiB"}},
    {"--trace t --embedded --device-bytes 99999999999TiB", {"--device-bytes"}},
    {"--trace t --device-bytes 1GiB", {"--device-bytes", "--embedded"}},
    {"--trace t --embedded --socket s", {"--embedded", "--socket"}},
    {"--trace t --embedded --clients 2", {"--clients"}},
    {"--trace t --sequential --concurrency 2", {"--sequential", "--concurrency"}},
    {"--trace t --self-test --dry", {"--self-test", "--dry"}},
    {"--trace t --part 0/2", {"--part", "0/2"}},
    {"--trace t --part 3/2", {"--part", "3/2"}},
    {"--trace t --part 1", {"--part", "1"}},
    {"--trace t --part 1/2 --clients 2", {"--part", "--clients"}},
    {"--trace t --geometry layers=0", {"--geometry", "layers", "1 .. 1024"}},
    {"--trace t --geometry layers=1025", {"--geometry", "layers", "1 .. 1024"}},
    {"--trace t --geometry kv_heads=-2", {"--geometry", "kv_heads", "-2"}},
    {"--trace t --geometry head_dim=4097", {"--geometry", "head_dim", "1 .. 4096"}},
    {"--trace t --geometry block_tokens=0", {"--geometry", "block_tokens", "1 .. 4096"}},
    {"--trace t --geometry dtype=fp8", {"--geometry", "dtype", "fp8"}},
    {"--trace t --geometry depth=2", {"--geometry", "depth"}},
    {"--trace t --geometry layers", {"--geometry", "layers"}},
    {"--trace t --geometry layers=2,", {"--geometry"}},
};

Test(replay_options, wrong_ones_are_named)
{
    for (size_t i = 0; i < COUNT_OF(WRONG); i++) {
        struct kvb_options options;
        char error[512] = "";

        cr_assert_eq(parse(&options, error, WRONG[i].line), KVB_OPTIONS_WRONG, "%s", WRONG[i].line);
        for (size_t w = 0; w < COUNT_OF(WRONG[i].words) && WRONG[i].words[w] != NULL; w++)
            cr_assert(strstr(error, WRONG[i].words[w]) != NULL, "'%s': '%s' lacks '%s'",
                      WRONG[i].line, error, WRONG[i].words[w]);
    }
}

Test(replay_options, sizes)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } right[] = {{"0", 0},
                 {"1", 1},
                 {"3KiB", 3072},
                 {"5MiB", 5 << 20},
                 {"2TiB", 2ull << 40},
                 {"18446744073709551615", UINT64_MAX}};
    static const char *const wrong[] = {
        "", "MiB", "-1", "1kb", "1.5GiB", "16777216TiB", "18446744073709551616", " 1"};
    uint64_t bytes;

    for (size_t i = 0; i < COUNT_OF(right); i++) {
        cr_assert_eq(kvb_parse_bytes(right[i].text, &bytes), 0, "%s", right[i].text);
        cr_assert_eq(bytes, right[i].bytes, "%s", right[i].text);
    }
    for (size_t i = 0; i < COUNT_OF(wrong); i++)
        cr_assert_eq(kvb_parse_bytes(wrong[i], &bytes), -1, "%s", wrong[i]);
}

Test(replay_options, help_names_every_option)
{
    for (const struct option *option = LONG_OPTIONS; option->name != NULL; option++) {
        char word[64];

        if (option->val == OPT_REPORT_FD)
            continue; /* between parent and clients */
        snprintf(word, sizeof(word), "--%s", option->name);
        cr_assert(strstr(HELP, word) != NULL, "%s", word);
    }
}
