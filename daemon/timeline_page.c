/* SPDX-License-Identifier: Apache-2.0
 */
#include "timeline_page.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "util/error.h"

static int failed(int errno_value, const char *what)
{
    int is_short = errno_value == EMFILE || errno_value == ENFILE || errno_value == ENOMEM;

    return kvi_error_sys(is_short ? KVMEM_E_LIMIT : KVMEM_E_SYSTEM, errno_value,
                         "timeline page: %s", what);
}

int kvd_timeline_page_open(struct kvd_timeline_page *page)
{
    void *memory;
    int rc;
    int fd;

    if (page->lanes != NULL)
        return 0;
    fd = memfd_create("kvmem-timeline", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return failed(errno, "memfd_create");
    if (ftruncate(fd, KVI_TIMELINE_BYTES) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        rc = failed(errno, "seal");
        goto fail_fd;
    }
    memory = mmap(NULL, KVI_TIMELINE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        rc = failed(errno, "mmap");
        goto fail_fd;
    }
    *page = (struct kvd_timeline_page){.lanes = memory, .fd = fd};
    return 0;

fail_fd:
    close(fd);
    return rc;
}

int kvd_timeline_page_export(struct kvd_timeline_page *page, int *out_fd)
{
    int rc = kvd_timeline_page_open(page);
    int fd;

    if (rc < 0)
        return rc;
    fd = fcntl(page->fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return failed(errno, "its descriptor");
    *out_fd = fd;
    return 0;
}

bool kvd_timeline_page_reached(const struct kvd_timeline_page *page, uint32_t lane, uint64_t value)
{
    return page->lanes != NULL && lane < KVI_LANE_COUNT &&
           kvi_lane_poll(&page->lanes[lane], value) == KVI_LANE_REACHED;
}

void kvd_timeline_page_break(struct kvd_timeline_page *page)
{
    for (uint32_t lane = 0; page->lanes != NULL && lane < KVI_LANE_COUNT; lane++)
        kvi_lane_break(&page->lanes[lane]);
}

void kvd_timeline_page_fini(struct kvd_timeline_page *page)
{
    if (page->lanes == NULL)
        return;
    munmap(page->lanes, KVI_TIMELINE_BYTES);
    close(page->fd);
    *page = (struct kvd_timeline_page){0};
}
