/* SPDX-License-Identifier: Apache-2.0
 *
 * The daemon's side of a client's status page (client/status.h): a memfd sealed against shrinking
 * and growing before anybody else sees it, mapped read-only here. Whatever its client does to
 * it, reading it never raises SIGBUS.
 */
#ifndef KVD_STATUS_PAGE_H
#define KVD_STATUS_PAGE_H

#include <stddef.h>
#include <stdint.h>

struct kvd_status_page {
    const void *memory;
    size_t bytes;
    int fd; /* −1 once it was given to the client */
};

/* Bytes of a page that can show `segment_limit` segments, and some that are large. */
size_t kvd_status_page_bytes(uint32_t segment_limit);

/* LIMIT when fds or memory are short, SYSTEM. */
int kvd_status_page_init(struct kvd_status_page *page, size_t bytes);
void kvd_status_page_fini(struct kvd_status_page *page);

#endif
