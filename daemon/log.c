/* SPDX-License-Identifier: Apache-2.0
 *
 * The log: a token bucket in front of write(2). One thread.
 */
#include "log.h"

#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"

#define KVD_LOG_BURST 40u
#define KVD_LOG_PER_S 10u
#define LINE_BYTES    1024u /* below PIPE_BUF: a pipe that polls writable takes it whole */

static struct {
    uint64_t refilled_ns;
    uint32_t tokens;
    uint64_t dropped;
} bucket = {0, KVD_LOG_BURST, 0};

static int take_token(void)
{
    uint64_t now_ns = kvd_now_ns();
    uint64_t earned = (now_ns - bucket.refilled_ns) / (KVD_SECOND_NS / KVD_LOG_PER_S);

    if (bucket.refilled_ns == 0 || earned >= KVD_LOG_BURST) {
        bucket.tokens = KVD_LOG_BURST;
        bucket.refilled_ns = now_ns;
    } else if (earned > 0) {
        bucket.tokens += (uint32_t)earned;
        if (bucket.tokens > KVD_LOG_BURST)
            bucket.tokens = KVD_LOG_BURST;
        bucket.refilled_ns += earned * (KVD_SECOND_NS / KVD_LOG_PER_S);
    }
    if (bucket.tokens == 0)
        return 0;
    bucket.tokens--;
    return 1;
}

static void write_line(char *line, size_t bytes)
{
    struct pollfd out = {.fd = STDERR_FILENO, .events = POLLOUT};

    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = '?';
    line[bytes] = '\n';
    /* Stderr may be a pipe or a stopped terminal, and its description is not ours to make
     * non-blocking. */
    if (poll(&out, 1, 0) != 1 || (out.revents & POLLOUT) == 0 ||
        write(STDERR_FILENO, line, bytes + 1) < 0)
        bucket.dropped++;
    else
        bucket.dropped = 0;
}

static void format_line(const char *format, va_list arguments)
{
    char line[LINE_BYTES];
    size_t limit = sizeof(line) - 1; /* room for the newline */
    size_t used = (size_t)snprintf(line, limit, "kvmemd: ");
    int added;

    if (bucket.dropped > 0)
        used += (size_t)snprintf(line + used, limit - used, "(%llu lines dropped) ",
                                 (unsigned long long)bucket.dropped);
    added = vsnprintf(line + used, limit - used, format, arguments);
    if (added > 0)
        used += (size_t)added < limit - used ? (size_t)added : limit - used - 1;
    write_line(line, used);
}

void kvd_log(const char *format, ...)
{
    va_list arguments;

    if (!take_token()) {
        bucket.dropped++;
        return;
    }
    va_start(arguments, format);
    format_line(format, arguments);
    va_end(arguments);
}

void kvd_log_always(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    format_line(format, arguments);
    va_end(arguments);
}
