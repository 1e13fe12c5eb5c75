/* SPDX-License-Identifier: Apache-2.0
 *
 * The command line of kvmem-replay. Every value is checked against its range before anything
 * is done; the first wrong one is named with its value and the range.
 */
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define DEVICE_BYTES_DEFAULT (256ull << 20)

enum option_key {
    OPT_TRACE = 256,
    OPT_TOKENS_PER_ID,
    OPT_CLIENTS,
    OPT_REQUESTS,
    OPT_CONCURRENCY,
    OPT_SOCKET,
    OPT_EMBEDDED,
    OPT_DEVICE,
    OPT_DEVICE_BYTES,
    OPT_HELPER,
    OPT_GEOMETRY,
    OPT_PART,
    OPT_SEQUENTIAL,
    OPT_NO_OUTPUT,
    OPT_DRY,
    OPT_SELF_TEST,
    OPT_JSON,
    OPT_REPORT_FD,
    OPT_HELP
};

static const struct option LONG_OPTIONS[] = {
    {"trace", required_argument, NULL, OPT_TRACE},
    {"tokens-per-id", required_argument, NULL, OPT_TOKENS_PER_ID},
    {"clients", required_argument, NULL, OPT_CLIENTS},
    {"requests", required_argument, NULL, OPT_REQUESTS},
    {"concurrency", required_argument, NULL, OPT_CONCURRENCY},
    {"socket", required_argument, NULL, OPT_SOCKET},
    {"embedded", no_argument, NULL, OPT_EMBEDDED},
    {"device", required_argument, NULL, OPT_DEVICE},
    {"helper", no_argument, NULL, OPT_HELPER},
    {"device-bytes", required_argument, NULL, OPT_DEVICE_BYTES},
    {"geometry", required_argument, NULL, OPT_GEOMETRY},
    {"part", required_argument, NULL, OPT_PART},
    {"sequential", no_argument, NULL, OPT_SEQUENTIAL},
    {"no-output", no_argument, NULL, OPT_NO_OUTPUT},
    {"dry", no_argument, NULL, OPT_DRY},
    {"self-test", no_argument, NULL, OPT_SELF_TEST},
    {"json", no_argument, NULL, OPT_JSON},
    {"report-fd", required_argument, NULL, OPT_REPORT_FD},
    {"help", no_argument, NULL, OPT_HELP},
    {NULL, 0, NULL, 0},
};

static const char HELP[] =
    "kvmem-replay replays a trace of requests as a serving engine would, through the kvmem\n"
    "library, and checks the bytes that it reads.\n"
    "\n"
    "  kvmem-replay --trace FILE [options]\n"
    "\n"
    "What to replay\n"
    "  --trace FILE          JSON lines: {\"timestamp\": ms, \"input_length\": tokens,\n"
    "                        \"output_length\": tokens, \"hash_ids\": [ids of the prompt's "
    "blocks]}\n"
    "  --tokens-per-id N     prompt tokens that an id stands for, 1 .. 65536 (default 512)\n"
    "  --requests N          only the first N requests, 1 .. 4294967295 (default: all)\n"
    "  --part I/N            only requests I, I + N, I + 2N, ..., 1 <= I <= N <= 64 (default 1/1)\n"
    "  --no-output           no output tokens, prompts only\n"
    "\n"
    "How to replay it\n"
    "  --clients N           client processes that share the requests, 1 .. 64 (default 2; with\n"
    "                        --embedded or --part 1)\n"
    "  --concurrency N       requests that a client runs at a time, 1 .. 1024 (default 32)\n"
    "  --sequential          one request after another: --concurrency 1\n"
    "  --geometry LIST       of the model, any of layers=, kv_heads=, head_dim=, dtype=,\n"
    "                        block_tokens=, separated by commas; dtype is bf16, fp16 or fp32\n"
    "                        (default layers=2,kv_heads=2,head_dim=16,dtype=bf16,block_tokens=16)\n"
    "  --dry                 write and check no K and V, but hash every prompt token\n"
    "  --self-test           plant 1000 faults in what the checks see; all must be found\n"
    "\n"
    "Whose memory\n"
    "  --socket PATH         the daemon's socket (default $KVMEM_SOCKET, else kvmemd.sock in the\n"
    "                        runtime directory)\n"
    "  --embedded            no daemon: a device inside this process\n"
    "  --device NAME         host or cuda:N. K and V are written and checked by kernels on a GPU.\n"
    "                        With --embedded the device to use, N as the CUDA driver counts\n"
    "                        (default host); else the daemon's device of that name (default: the\n"
    "                        one where the space is, or can be)\n"
    "  --device-bytes SIZE   of that device, 1MiB .. 64TiB; KiB, MiB, GiB, TiB are understood\n"
    "                        (default 256MiB)\n"
    "  --helper              a thread of the library's makes the driver's calls that map memory\n"
    "\n"
    "  --json                print the result as one line of JSON\n"
    "  --help                print this\n"
    "\n"
    "Exit status: 0 when everything was replayed, no byte was wrong and nothing leaked; 1 when\n"
    "not; 2 when the command line or the trace is wrong.\n";

void kvb_options_print_help(FILE *file)
{
    fputs(HELP, file);
}

static int parse_number(const char *text, uint64_t *out, char **end)
{
    if (text[0] < '0' || text[0] > '9')
        return -1;
    errno = 0;
    *out = strtoull(text, end, 10);
    return errno == 0 ? 0 : -1;
}

int kvb_parse_bytes(const char *text, uint64_t *out)
{
    static const char *const suffixes[] = {"", "KiB", "MiB", "GiB", "TiB"};
    uint64_t number;
    char *end;

    if (parse_number(text, &number, &end) != 0)
        return -1;
    for (unsigned i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
        if (strcmp(end, suffixes[i]) != 0)
            continue;
        if (number > UINT64_MAX >> (10 * i))
            return -1;
        *out = number << (10 * i);
        return 0;
    }
    return -1;
}

/* Where an option's value goes and what it may be. */
struct range {
    uint32_t *out;
    const char *name;
    uint32_t min;
    uint32_t max;
};

static int parse_ranged(const struct range *range, const char *text, char *error, size_t bytes)
{
    uint64_t number = 0;
    char *end = "";

    if (parse_number(text, &number, &end) != 0 || *end != '\0' || number < range->min ||
        number > range->max) {
        snprintf(error, bytes, "%s: %s is not a number in %" PRIu32 " .. %" PRIu32, range->name,
                 text, range->min, range->max);
        return -1;
    }
    *range->out = (uint32_t)number;
    return 0;
}

static int parse_dtype(const char *text, uint32_t *out)
{
    static const struct {
        const char *name;
        uint32_t dtype;
    } dtypes[] = {
        {"bf16", KVMEM_DTYPE_BF16}, {"fp16", KVMEM_DTYPE_FP16}, {"fp32", KVMEM_DTYPE_FP32}};

    for (unsigned i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (strcmp(text, dtypes[i].name) == 0) {
            *out = dtypes[i].dtype;
            return 0;
        }
    }
    return -1;
}

static int parse_geometry_item(const char *key, const char *value, struct kvb_model *model,
                               char *error, size_t bytes)
{
    const struct range ranges[] = {
        {&model->layers, "layers", 1, 1024},
        {&model->kv_heads, "kv_heads", 1, 1024},
        {&model->head_dim, "head_dim", 1, 4096},
        {&model->block_tokens, "block_tokens", 1, 4096},
    };

    for (unsigned i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++)
        if (strcmp(key, ranges[i].name) == 0)
            return parse_ranged(&ranges[i], value, error, bytes);
    if (strcmp(key, "dtype") != 0) {
        snprintf(error, bytes, "%s is none of layers, kv_heads, head_dim, dtype, block_tokens",
                 key);
        return -1;
    }
    if (parse_dtype(value, &model->dtype) != 0) {
        snprintf(error, bytes, "dtype: %s is none of bf16, fp16, fp32", value);
        return -1;
    }
    return 0;
}

int kvb_parse_geometry(const char *text, struct kvb_model *model, char *error, size_t error_bytes)
{
    char copy[256];
    char *rest = copy;
    char *item;

    if (text[0] == '\0' || strlen(text) >= sizeof(copy)) {
        snprintf(error, error_bytes, "'%.32s' is not a list key=value,key=value", text);
        return -1;
    }
    strcpy(copy, text);
    while ((item = strsep(&rest, ",")) != NULL) {
        char *value = strchr(item, '=');

        if (value == NULL) {
            snprintf(error, error_bytes, "'%s' is not key=value", item);
            return -1;
        }
        *value++ = '\0';
        if (parse_geometry_item(item, value, model, error, error_bytes) != 0)
            return -1;
    }
    return 0;
}

static int parse_device_bytes(const char *text, uint64_t *out, char *error, size_t bytes)
{
    if (kvb_parse_bytes(text, out) == 0 && *out >= 1ull << 20 && *out <= 64ull << 40)
        return 0;
    snprintf(error, bytes, "--device-bytes: %s is not a size in 1MiB .. 64TiB", text);
    return -1;
}

static int parse_device(const char *text, struct kvb_options *out, char *error, size_t bytes)
{
    uint64_t number = 0;
    char *end = "";

    out->device = text;
    if (strcmp(text, "host") == 0 ||
        (strncmp(text, "cuda:", 5) == 0 && parse_number(text + 5, &number, &end) == 0 &&
         *end == '\0' && number < 64))
        return 0;
    snprintf(error, bytes, "--device: %s is neither host nor cuda:N with N in 0 .. 63", text);
    return -1;
}

static int parse_part(const char *text, struct kvb_options *out, char *error, size_t bytes)
{
    uint64_t part = 0;
    uint64_t parts = 0;
    char *end = "";

    if (parse_number(text, &part, &end) == 0 && *end == '/' &&
        parse_number(end + 1, &parts, &end) == 0 && *end == '\0' && part >= 1 && part <= parts &&
        parts <= 64) {
        out->part = (uint32_t)part - 1;
        out->parts = (uint32_t)parts;
        return 0;
    }
    snprintf(error, bytes, "--part: %s is not I/N with 1 <= I <= N <= 64", text);
    return -1;
}

static int parse_geometry_option(const char *text, struct kvb_options *out, char *error,
                                 size_t bytes)
{
    char reason[200];

    if (kvb_parse_geometry(text, &out->model, reason, sizeof(reason)) == 0)
        return 0;
    snprintf(error, bytes, "--geometry: %s", reason);
    return -1;
}

/* An option with a value. */
static int parse_value(int key, const char *text, struct kvb_options *out, char *error,
                       size_t bytes)
{
    uint32_t report_fd = 0;
    const struct range tokens = {&out->tokens_per_id, "--tokens-per-id", 1, 65536};
    const struct range clients = {&out->clients, "--clients", 1, 64};
    const struct range requests = {&out->request_limit, "--requests", 1, UINT32_MAX};
    const struct range concurrency = {&out->concurrency, "--concurrency", 1, 1024};
    const struct range report = {&report_fd, "--report-fd", 3, 1023};

    switch (key) {
    case OPT_TRACE: out->trace_path = text; return 0;
    case OPT_SOCKET: out->socket_path = text; return 0;
    case OPT_TOKENS_PER_ID: return parse_ranged(&tokens, text, error, bytes);
    case OPT_CLIENTS: return parse_ranged(&clients, text, error, bytes);
    case OPT_REQUESTS: return parse_ranged(&requests, text, error, bytes);
    case OPT_CONCURRENCY: return parse_ranged(&concurrency, text, error, bytes);
    case OPT_DEVICE: return parse_device(text, out, error, bytes);
    case OPT_DEVICE_BYTES: return parse_device_bytes(text, &out->device_bytes, error, bytes);
    case OPT_GEOMETRY: return parse_geometry_option(text, out, error, bytes);
    case OPT_PART: return parse_part(text, out, error, bytes);
    default:
        if (parse_ranged(&report, text, error, bytes) != 0)
            return -1;
        out->report_fd = (int)report_fd;
        return 0;
    }
}

static int parse_flag(int key, struct kvb_options *out)
{
    switch (key) {
    case OPT_EMBEDDED: out->is_embedded = 1; return 1;
    case OPT_HELPER: out->is_helped = 1; return 1;
    case OPT_SEQUENTIAL: out->is_sequential = 1; return 1;
    case OPT_NO_OUTPUT: out->is_without_output = 1; return 1;
    case OPT_DRY: out->is_dry = 1; return 1;
    case OPT_SELF_TEST: out->is_self_test = 1; return 1;
    case OPT_JSON: out->is_json = 1; return 1;
    default: return 0;
    }
}

/* What does not go together; then the defaults that depend on other options. */
static int settle(struct kvb_options *out, char *error, size_t bytes)
{
    const char *wrong = NULL;

    if (out->trace_path == NULL)
        wrong = "--trace FILE is needed; --help explains the options";
    else if (out->is_embedded && out->socket_path != NULL)
        wrong = "--embedded and --socket exclude each other";
    else if (out->is_embedded && out->clients > 1)
        wrong = "--clients: an embedded device has 1 client";
    else if (out->parts > 1 && out->clients > 1)
        wrong = "--part: goes with --clients 1 only";
    else if (!out->is_embedded && out->device_bytes != 0)
        wrong = "--device-bytes: goes with --embedded only; a daemon has its own";
    else if (out->is_sequential && out->concurrency > 1)
        wrong = "--sequential and --concurrency exclude each other";
    else if (out->is_dry && out->is_self_test)
        wrong = "--self-test: needs the bytes that --dry leaves out";
    if (wrong != NULL) {
        snprintf(error, bytes, "%s", wrong);
        return -1;
    }
    if (out->clients == 0)
        out->clients = out->is_embedded || out->parts > 1 || out->report_fd >= 0 ? 1 : 2;
    if (out->concurrency == 0)
        out->concurrency = out->is_sequential ? 1 : 32;
    if (out->device_bytes == 0)
        out->device_bytes = DEVICE_BYTES_DEFAULT;
    return 0;
}

static void set_defaults(struct kvb_options *out)
{
    memset(out, 0, sizeof(*out));
    out->model = (struct kvb_model){2, 2, 16, KVMEM_DTYPE_BF16, 16};
    out->tokens_per_id = 512;
    out->request_limit = UINT32_MAX;
    out->parts = 1;
    out->report_fd = -1;
}

enum kvb_options_verdict kvb_options_parse(int argc, char **argv, struct kvb_options *out,
                                           char *error, size_t error_bytes)
{
    int key;

    set_defaults(out);
    optind = 0; /* glibc: start afresh, for callers that parse more than once */
    opterr = 0;
    while ((key = getopt_long(argc, argv, ":", LONG_OPTIONS, NULL)) != -1) {
        if (key == OPT_HELP)
            return KVB_OPTIONS_HELP;
        if (key == '?' || key == ':') {
            snprintf(error, error_bytes, "%s: %s; --help lists the options", argv[optind - 1],
                     key == ':' ? "needs a value" : "no such option");
            return KVB_OPTIONS_WRONG;
        }
        if (!parse_flag(key, out) && parse_value(key, optarg, out, error, error_bytes) != 0)
            return KVB_OPTIONS_WRONG;
    }
    if (optind < argc) {
        snprintf(error, error_bytes, "%s: not an option; --help lists them", argv[optind]);
        return KVB_OPTIONS_WRONG;
    }
    return settle(out, error, error_bytes) == 0 ? KVB_OPTIONS_RUN : KVB_OPTIONS_WRONG;
}
