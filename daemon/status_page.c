/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory is taken as the client writes, and charged to it.
 */
#include "status_page.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client/status.h"
#include "util/error.h"

#define PAGE_BYTES 4096u
#define SLOTS_MIN  128u
#define SLOTS_MAX  8192u

size_t kvd_status_page_bytes(uint32_t segment_limit)
{
    /* Twice as many slots: segments hash to a window of places, and large ones take several. */
    size_t slots = (size_t)segment_limit * 2;
    size_t bytes;

    if (slots < SLOTS_MIN)
        slots = SLOTS_MIN;
    if (slots > SLOTS_MAX)
        slots = SLOTS_MAX;
    bytes = sizeof(struct kvi_status_header) + slots * sizeof(struct kvi_status_slot);
    return (bytes + PAGE_BYTES - 1) & ~(size_t)(PAGE_BYTES - 1);
}

static int failed(int errno_value, const char *what)
{
    int is_short = errno_value == EMFILE || errno_value == ENFILE || errno_value == ENOMEM;

    return kvi_error_sys(is_short ? KVMEM_E_LIMIT : KVMEM_E_SYSTEM, errno_value, "status page: %s",
                         what);
}

int kvd_status_page_init(struct kvd_status_page *page, size_t bytes)
{
    int fd = memfd_create("kvmem-status", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    void *memory;
    int rc;

    if (fd < 0)
        return failed(errno, "memfd_create");
    if (ftruncate(fd, (off_t)bytes) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        rc = failed(errno, "seal");
        goto fail_fd;
    }
    memory = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        rc = failed(errno, "mmap");
        goto fail_fd;
    }
    *page = (struct kvd_status_page){.memory = memory, .bytes = bytes, .fd = fd};
    return 0;

fail_fd:
    close(fd);
    return rc;
}

void kvd_status_page_fini(struct kvd_status_page *page)
{
    if (page->memory != NULL)
        munmap((void *)(uintptr_t)page->memory, page->bytes);
    if (page->fd >= 0)
        close(page->fd);
    *page = (struct kvd_status_page){.fd = -1};
}
