/* SPDX-License-Identifier: Apache-2.0
 *
 * What map and frag begin with: fetch everything, keep the space of --space.
 */
#ifndef KVCTL_NARROW_H
#define KVCTL_NARROW_H

#include "ctl.h"
#include "pool.h"

/* Fetch all lists and apply --space. An exit status: FAILED (explained on standard error), or
 * USAGE when no space has that name, naming those there are. Free the pool in any case. */
int kvctl_pool_fetch_narrowed(struct kvctl_run *run, struct kvctl_pool *out);

#endif
