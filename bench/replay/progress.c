/* SPDX-License-Identifier: Apache-2.0
 *
 * The bar of progress.h.
 */
#include "progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BAR_COLUMNS 40u

void kvb_progress_draw(uint32_t finished, uint32_t total)
{
    char bar[BAR_COLUMNS + 1];
    uint32_t full = total == 0 ? 0 : (uint32_t)((uint64_t)finished * BAR_COLUMNS / total);

    if (!isatty(STDERR_FILENO))
        return;
    memset(bar, '.', BAR_COLUMNS);
    memset(bar, '#', full);
    bar[BAR_COLUMNS] = '\0';
    fprintf(stderr, "\r[%s] %" PRIu32 " of %" PRIu32 " requests ", bar, finished, total);
    fflush(stderr);
}

void kvb_progress_clear(void)
{
    if (isatty(STDERR_FILENO))
        fputs("\r\033[K", stderr);
}
