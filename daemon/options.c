/* SPDX-License-Identifier: Apache-2.0
 *
 * A table of options, each with what reads its value. Every complaint names the option, what was
 * given, and what is expected.
 */
#include "options.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/link.h"
#include "util/error.h"

static const char help_text[] =
    "Usage: kvmemd [OPTION]...\n"
    "Owns device memory for KV caches and shares it between engines (libkvmem).\n"
    "\n"
    "  --device DEVICE        host: main memory pretending to be a device. cuda:N: an NVIDIA GPU\n"
    "                         as the driver counts them (CUDA_VISIBLE_DEVICES), 0 to 255;\n"
    "                         several, 1 to 16: cuda:0,cuda:1. Default: host.\n"
    "  --device-bytes SIZE    size of the device, of each when there are several. 1MiB to 4TiB,\n"
    "                         a multiple of the granule. The host's memory is taken as engines\n"
    "                         touch it. Default: 1GiB of the host; of a GPU, 90 % of what is\n"
    "                         free there at the start, less one granule that the daemon keeps,\n"
    "                         in whole granules.\n"
    "  --granule-bytes SIZE   smallest mapping unit of the host device. A power of two,\n"
    "                         4KiB to 1GiB, at most the size of the device. Default: 64KiB.\n"
    "                         Not with cuda:N, where the driver decides.\n"
    "  --mps WHEN             auto, on or off: do engines share a GPU through NVIDIA's MPS? Then\n"
    "                         the end of a process does not prove that its kernels have ended,\n"
    "                         and what it could write is created afresh. auto: on when the\n"
    "                         driver says so or $CUDA_MPS_PIPE_DIRECTORY (/tmp/nvidia-mps) has\n"
    "                         a control pipe. Default: auto.\n"
    "  --socket PATH          where engines connect: a socket file of 1 to 107 bytes in a\n"
    "                         directory that only root and you may write. Default:\n"
    "                         $KVMEM_SOCKET, else $XDG_RUNTIME_DIR/kvmem/kvmemd.sock, else\n"
    "                         /run/kvmem/kvmemd.sock for root and\n"
    "                         /run/user/UID/kvmem/kvmemd.sock for others.\n"
    "  --help                 print this and exit.\n"
    "  --version              print the version and exit.\n"
    "\n"
    "SIZE is a number of bytes, or a number with KiB, MiB, GiB or TiB. SIGTERM and SIGINT give\n"
    "engines one second to leave; a second one ends at once. Readiness: a line on stderr, and\n"
    "READY=1 to $NOTIFY_SOCKET.\n"
    "Exit status: 0 ended by a signal, 1 could not run, 2 a bad option.\n";

static int bad(const char *option, const char *value, const char *expected)
{
    return kvi_error_set(KVMEM_E_INVALID, "%s: '%.80s' is not %s", option, value, expected);
}

/* ---- values ---- */

/* 0 when `text` is no size or does not fit 64 bits. */
static int parse_size(const char *text, uint64_t *out)
{
    static const struct {
        const char *suffix;
        unsigned shift;
    } units[] = {{"", 0}, {"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}};
    unsigned long long number;
    char *end;

    if (text[0] < '0' || text[0] > '9') /* strtoull would take a sign and blanks */
        return 0;
    errno = 0;
    number = strtoull(text, &end, 10);
    if (errno != 0)
        return 0;
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++)
        if (strcmp(end, units[i].suffix) == 0)
            return !__builtin_mul_overflow((uint64_t)number, UINT64_C(1) << units[i].shift, out);
    return 0;
}

/* "cuda:N" up to a comma or the end; what comes behind it, or NULL. */
static const char *parse_ordinal(const char *text, uint32_t *out)
{
    static const char prefix[] = "cuda:";
    unsigned long number;
    char *end;

    if (strncmp(text, prefix, sizeof(prefix) - 1) != 0)
        return NULL;
    text += sizeof(prefix) - 1;
    if (text[0] < '0' || text[0] > '9')
        return NULL;
    errno = 0;
    number = strtoul(text, &end, 10);
    if (errno != 0 || number > KVD_CUDA_ORDINAL_MAX || (*end != '\0' && *end != ','))
        return NULL;
    *out = (uint32_t)number;
    return end;
}

static int read_device(const char *option, const char *value, struct kvd_options *options)
{
    static const char expected[] = "host or a list of 1 to 16 different GPUs, cuda:N[,cuda:N...], "
                                   "N from 0 to 255";
    const char *rest = value;

    options->device_kind = KVD_DEVICE_HOST;
    options->device_count = 1;
    if (strcmp(value, "host") == 0)
        return 0;
    options->device_kind = KVD_DEVICE_CUDA;
    for (options->device_count = 0; options->device_count < KVI_DEVICE_LIMIT; rest++) {
        uint32_t *ordinal = &options->ordinals[options->device_count];

        rest = parse_ordinal(rest, ordinal);
        if (rest == NULL)
            return bad(option, value, expected);
        for (uint32_t i = 0; i < options->device_count; i++)
            if (options->ordinals[i] == *ordinal)
                return bad(option, value, expected);
        options->device_count++;
        if (*rest == '\0')
            return 0;
    }
    return bad(option, value, expected);
}

static int read_device_bytes(const char *option, const char *value, struct kvd_options *options)
{
    uint64_t bytes;

    if (!parse_size(value, &bytes) || bytes < KVD_DEVICE_BYTES_MIN || bytes > KVD_DEVICE_BYTES_MAX)
        return bad(option, value, "a size from 1MiB to 4TiB");
    options->device_bytes = bytes;
    return 0;
}

static int read_granule_bytes(const char *option, const char *value, struct kvd_options *options)
{
    uint64_t bytes;

    if (!parse_size(value, &bytes) || bytes < KVD_GRANULE_BYTES_MIN ||
        bytes > KVD_GRANULE_BYTES_MAX || (bytes & (bytes - 1)) != 0)
        return bad(option, value, "a power of two from 4KiB to 1GiB");
    options->granule_bytes = bytes;
    return 0;
}

static int read_mps(const char *option, const char *value, struct kvd_options *options)
{
    static const char *const words[] = {
        [KVD_MPS_AUTO] = "auto", [KVD_MPS_ON] = "on", [KVD_MPS_OFF] = "off"};

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (strcmp(value, words[i]) == 0) {
            options->mps = (enum kvd_mps)i;
            return 0;
        }
    return bad(option, value, "auto, on or off");
}

static int read_socket(const char *option, const char *value, struct kvd_options *options)
{
    size_t bytes = strlen(value);

    if (bytes == 0 || bytes >= sizeof(options->socket_path))
        return bad(option, value, "a path of 1 to 107 bytes");
    if (value[0] == '@')
        return bad(option, value,
                   "a file (abstract sockets have no owner; write ./@... for a file)");
    if (value[bytes - 1] == '/')
        return bad(option, value, "a file, but a directory");
    memcpy(options->socket_path, value, bytes + 1);
    return 0;
}

/* ---- the command line ---- */

static const struct option_row {
    const char *name;
    int (*read)(const char *option, const char *value, struct kvd_options *options);
} option_rows[] = {
    {"--device", read_device},
    {"--device-bytes", read_device_bytes},
    {"--granule-bytes", read_granule_bytes},
    {"--mps", read_mps},
    {"--socket", read_socket},
};

/* The row that `argument` names, up to its end or a '='. */
static const struct option_row *row_of(const char *argument, const char **value)
{
    size_t bytes = strcspn(argument, "=");

    for (size_t i = 0; i < sizeof(option_rows) / sizeof(option_rows[0]); i++)
        if (strlen(option_rows[i].name) == bytes &&
            strncmp(option_rows[i].name, argument, bytes) == 0) {
            *value = argument[bytes] == '=' ? argument + bytes + 1 : NULL;
            return &option_rows[i];
        }
    return NULL;
}

/* The sizes against each other and against the device. What a GPU has, the driver knows. */
static int check_sizes(const struct kvd_options *options)
{
    uint64_t bytes = options->device_bytes != 0 ? options->device_bytes : KVD_DEVICE_BYTES_DEFAULT;
    uint64_t granule =
        options->granule_bytes != 0 ? options->granule_bytes : KVD_GRANULE_BYTES_DEFAULT;

    if (options->device_kind == KVD_DEVICE_CUDA && options->granule_bytes != 0)
        return kvi_error_set(KVMEM_E_INVALID,
                             "--granule-bytes: '%" PRIu64 "' cannot be chosen with --device "
                             "cuda:N: the driver decides (2MiB on today's GPUs). Leave it out",
                             options->granule_bytes);
    if (options->device_kind == KVD_DEVICE_HOST && (granule > bytes || bytes % granule != 0))
        return kvi_error_set(KVMEM_E_INVALID,
                             "--device-bytes: '%" PRIu64 "' is not a multiple of --granule-bytes, "
                             "%" PRIu64 " (range: 1MiB to 4TiB)",
                             bytes, granule);
    return 0;
}

static int finish(struct kvd_options *options)
{
    int rc = check_sizes(options);

    if (rc < 0)
        return rc;
    if (options->socket_path[0] != '\0')
        return 0;
    options->socket_is_default = getenv("KVMEM_SOCKET") == NULL;
    if (kvi_socket_path(NULL, options->socket_path, sizeof(options->socket_path)) < 0)
        return kvi_error_set(KVMEM_E_INVALID,
                             "the default socket path is longer than 107 bytes: give --socket");
    if (!options->socket_is_default) /* the environment's must pass like an option's */
        return read_socket("KVMEM_SOCKET", getenv("KVMEM_SOCKET"), options);
    return 0;
}

enum kvd_options_verdict kvd_options_parse(int argc, char *const argv[],
                                           struct kvd_options *options)
{
    *options = (struct kvd_options){.device_kind = KVD_DEVICE_HOST, .device_count = 1};
    for (int i = 1; i < argc; i++) {
        const char *value = NULL;
        const struct option_row *row = row_of(argv[i], &value);

        if (strcmp(argv[i], "--help") == 0)
            return KVD_OPTIONS_HELP;
        if (strcmp(argv[i], "--version") == 0)
            return KVD_OPTIONS_VERSION;
        if (row == NULL) {
            kvi_error_set(KVMEM_E_INVALID, "'%.80s' is no option of kvmemd; see kvmemd --help",
                          argv[i]);
            return KVD_OPTIONS_BAD;
        }
        if (value == NULL && ++i == argc) {
            kvi_error_set(KVMEM_E_INVALID, "%s needs a value; see kvmemd --help", row->name);
            return KVD_OPTIONS_BAD;
        }
        if (row->read(row->name, value != NULL ? value : argv[i], options) < 0)
            return KVD_OPTIONS_BAD;
    }
    return finish(options) < 0 ? KVD_OPTIONS_BAD : KVD_OPTIONS_RUN;
}

const char *kvd_options_help(void)
{
    return help_text;
}
