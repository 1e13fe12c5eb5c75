/* SPDX-License-Identifier: Apache-2.0
 *
 * The daemon's side of a client's timeline page (client/timeline.h): a memfd sealed against
 * shrinking and growing, made when somebody asks for it, mapped here until its client is
 * reclaimed. The client writes it, others read it and wait on it; the daemon looks, and writes
 * once, when the client's processes are gone: what they have not reached is broken, and whoever
 * waits goes on. Pages that others have mapped stay theirs.
 */
#ifndef KVD_TIMELINE_PAGE_H
#define KVD_TIMELINE_PAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "client/timeline.h"

/* Zeroed: nobody has asked for it. */
struct kvd_timeline_page {
    struct kvi_lane *lanes; /* KVI_LANE_COUNT, or NULL */
    int fd;                 /* valid with `lanes` */
};

/* Make it when it is not there. LIMIT when fds or memory are short, SYSTEM. */
int kvd_timeline_page_open(struct kvd_timeline_page *page);

/* A descriptor for a client, the caller's. Makes the page; its codes. */
int kvd_timeline_page_export(struct kvd_timeline_page *page, int *out_fd);

/* False also when there is no page. */
bool kvd_timeline_page_reached(const struct kvd_timeline_page *page, uint32_t lane, uint64_t value);

/* Its client's processes are gone: break every lane. */
void kvd_timeline_page_break(struct kvd_timeline_page *page);

/* Unmap and close; zeroed again. */
void kvd_timeline_page_fini(struct kvd_timeline_page *page);

#endif
