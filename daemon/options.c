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
    "  --device DEVICE        host: main memory pretending to be a device. cuda:N is not\n"
    "                         supported yet. Default: host.\n"
    "  --device-bytes SIZE    size of the device. Memory is taken as engines touch it.\n"
    "                         1MiB to 4TiB, a multiple of the granule. Default: 1GiB.\n"
    "  --granule-bytes SIZE   smallest mapping unit. A power of two, 4KiB to 1GiB, at most the\n"
    "                         size of the device. Default: 64KiB.\n"
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

static int read_device(const char *option, const char *value, struct kvd_options *options)
{
    (void)options;
    if (strcmp(value, "host") == 0)
        return 0;
    if (strncmp(value, "cuda:", 5) == 0)
        return kvi_error_set(KVMEM_E_NOT_SUPPORTED,
                             "%s: '%.80s' is not supported yet; this version has: host", option,
                             value);
    return bad(option, value, "a device; this version has: host");
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

static int finish(struct kvd_options *options)
{
    char number[32];

    if (options->granule_bytes > options->device_bytes ||
        options->device_bytes % options->granule_bytes != 0) {
        snprintf(number, sizeof(number), "%" PRIu64, options->device_bytes);
        return kvi_error_set(KVMEM_E_INVALID,
                             "--device-bytes: '%s' is not a multiple of --granule-bytes, %" PRIu64
                             " (range: 1MiB to 4TiB)",
                             number, options->granule_bytes);
    }
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
    *options = (struct kvd_options){.device_bytes = KVD_DEVICE_BYTES_DEFAULT,
                                    .granule_bytes = KVD_GRANULE_BYTES_DEFAULT};
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
