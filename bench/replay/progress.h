/* SPDX-License-Identifier: Apache-2.0
 *
 * A progress bar on standard error, when that is a terminal.
 */
#ifndef KVB_REPLAY_PROGRESS_H
#define KVB_REPLAY_PROGRESS_H

#include <stdint.h>

/* Draw; nothing when standard error is no terminal. */
void kvb_progress_draw(uint32_t finished, uint32_t total);
/* Take the bar away. */
void kvb_progress_clear(void);

#endif
