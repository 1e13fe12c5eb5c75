/* SPDX-License-Identifier: Apache-2.0
 *
 * See assert.h.
 */
#include "support/assert.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void kvt_assert_failed(const char *file, int line, const char *condition, const char *format, ...)
{
    va_list args;

    fflush(stdout);
    fprintf(stderr, "%s:%d: %s is false.", file, line, condition);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    abort();
}
