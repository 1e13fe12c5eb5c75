/* SPDX-License-Identifier: Apache-2.0
 *
 * Every option of kvmemd at zero, negative, largest, overflow and garbage: exit status 2 and one
 * line that names option and range; and those values that are fine.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "support/daemon.h"

static struct kvt_daemon daemon_;
static char text[64 * 1024];

static void prepare(void)
{
    kvt_daemon_prepare(&daemon_);
}

static void end(void)
{
    kvt_daemon_end(&daemon_);
}

TestSuite(daemon_options, .init = prepare, .fini = end, .timeout = 60);

/* Run kvmemd with up to four arguments; its output is in `text`. */
static int run(const char *a, const char *b, const char *c, const char *d)
{
    const char *const arguments[] = {a, b, c, d, NULL};
    int status;

    unlink(daemon_.log_path);
    status = kvt_daemon_run_other(&daemon_, arguments);
    kvt_daemon_log(&daemon_, text, sizeof(text));
    return status;
}

static void is_refused(const char *option, const char *value, const char *range)
{
    cr_expect_eq(run(option, value, NULL, NULL), 2, "%s '%s': %s", option, value, text);
    cr_expect(strstr(text, option) != NULL && strstr(text, range) != NULL,
              "%s '%s': wanted option and '%s' in: %s", option, value, range, text);
    cr_expect_eq(strchr(text, '\n'), text + strlen(text) - 1, "one line: %s", text);
}

Test(daemon_options, sizes)
{
    static const char *const bad[] = {"0",
                                      "-1",
                                      "+1GiB",
                                      "",
                                      " 1GiB",
                                      "1GiB ",
                                      "1 GiB",
                                      "1GB",
                                      "1gib",
                                      "GiB",
                                      "1.5GiB",
                                      "0x100000",
                                      "1e9",
                                      "9223372036854775808",
                                      "18446744073709551615",
                                      "18446744073709551616",
                                      "99999999999999999999999999",
                                      "18014398509481984KiB",
                                      "16777216TiB",
                                      "garbage",
                                      "\x1b[31m"};

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        is_refused("--device-bytes", bad[i], "1MiB to 4TiB");
        is_refused("--granule-bytes", bad[i], "a power of two from 4KiB to 1GiB");
    }
    is_refused("--device-bytes", "1023KiB", "1MiB to 4TiB");
    is_refused("--device-bytes", "4398046511105", "1MiB to 4TiB");
    is_refused("--device-bytes", "5TiB", "1MiB to 4TiB");
    is_refused("--device-bytes", "1048577", "a multiple of --granule-bytes, 65536");
    is_refused("--granule-bytes", "2KiB", "a power of two from 4KiB to 1GiB");
    is_refused("--granule-bytes", "2GiB", "a power of two from 4KiB to 1GiB");
    is_refused("--granule-bytes", "65537", "a power of two from 4KiB to 1GiB");
}

Test(daemon_options, sizes_that_do_not_fit_together)
{
    cr_expect_eq(run("--device-bytes", "1MiB", "--granule-bytes", "2MiB"), 2);
    cr_expect(strstr(text, "--device-bytes: '1048576' is not a multiple of --granule-bytes, "
                           "2097152") != NULL,
              "%s", text);
}

Test(daemon_options, devices)
{
    static const char *const bad[] = {
        "",
        "gpu",
        "HOST",
        "cuda",
        "cuda:",
        "cuda:-1",
        "cuda:+1",
        "cuda: 1",
        "cuda:1x",
        "cuda:256",
        "CUDA:0",
        "cuda:0,",
        ",cuda:0",
        "cuda:0,,cuda:1",
        "cuda:0,1",
        "cuda:0,host",
        "host,cuda:0",
        "host,host",
        "cuda:0,cuda:0",
        "cuda:1,cuda:0,cuda:01",
        "cuda:18446744073709551616",
        ("cuda:0,cuda:1,cuda:2,cuda:3,cuda:4,cuda:5,cuda:6,cuda:7,cuda:8,cuda:9,cuda:10,cuda:11,"
         "cuda:12,cuda:13,cuda:14,cuda:15,cuda:16")};

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        is_refused("--device", bad[i], "host or a list of 1 to 16 different GPUs");
}

Test(daemon_options, mps)
{
    static const char *const bad[] = {"", "yes", "ON", "1", "auto "};

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        is_refused("--mps", bad[i], "auto, on or off");
}

Test(daemon_options, a_gpu_has_the_granule_of_its_driver)
{
    cr_expect_eq(run("--device=cuda:0", "--granule-bytes", "2MiB", NULL), 2);
    cr_expect(strstr(text, "--granule-bytes: '2097152' cannot be chosen with --device cuda:N: the "
                           "driver decides") != NULL,
              "%s", text);
}

Test(daemon_options, sockets)
{
    char path[256];

    memset(path, 'x', sizeof(path));
    path[0] = '/';
    path[108] = '\0';
    is_refused("--socket", path, "a path of 1 to 107 bytes");
    is_refused("--socket", "", "a path of 1 to 107 bytes");
    is_refused("--socket", "@abstract", "a file");
    is_refused("--socket", "/tmp/", "a file");
}

Test(daemon_options, unknown_ones)
{
    static const char *const bad[] = {"--gpu", "-d", "--device-byte", "--device-bytess", "host",
                                      "--",    "",   "--help=1"};

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        cr_expect_eq(run(bad[i], NULL, NULL, NULL), 2, "'%s'", bad[i]);
        cr_expect(strstr(text, bad[i]) != NULL && strstr(text, "--help") != NULL, "%s", text);
    }
    cr_expect_eq(run("--device", "host", "--socket", NULL), 2);
    cr_expect(strstr(text, "--socket needs a value") != NULL, "%s", text);
}

Test(daemon_options, help_and_version)
{
    static const char *const words[] = {"--device DEVICE",
                                        "--device-bytes SIZE",
                                        "--socket PATH",
                                        "--granule-bytes SIZE",
                                        "--help",
                                        "--version",
                                        "1MiB to 4TiB",
                                        "4KiB to 1GiB",
                                        "Default: 64KiB",
                                        "$XDG_RUNTIME_DIR",
                                        "--mps WHEN",
                                        "cuda:0,cuda:1",
                                        "Default: 1GiB of the host",
                                        "90 % of what is"};

    cr_expect_eq(run("--help", NULL, NULL, NULL), 0);
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        cr_expect(strstr(text, words[i]) != NULL, "--help does not say %s", words[i]);
    cr_expect_eq(run("--version", NULL, NULL, NULL), 0);
    cr_expect_eq(strncmp(text, "kvmemd 0.", 9), 0, "%s", text);
}

Test(daemon_options, good_ones)
{
    const char *const largest[] = {"--device=host", "--device-bytes=1024MiB",
                                   "--granule-bytes=16MiB", NULL};
    const char *const smallest[] = {"--device-bytes", "1048576", "--granule-bytes", "4KiB", NULL};

    kvt_daemon_start(&daemon_, largest);
    cr_expect(kvt_daemon_logged(&daemon_, "1.0 GiB in 64 segments of 16384 KiB, granule 16384 KiB",
                                KVT_MS(1000)));
    cr_expect_eq(kvt_daemon_stop(&daemon_), 0);
    kvt_daemon_start(&daemon_, smallest);
    cr_expect(kvt_daemon_logged(&daemon_, "in 64 segments of 16 KiB, granule 4 KiB", KVT_MS(1000)));
    cr_expect_eq(kvt_daemon_stop(&daemon_), 0);
}
