/* SPDX-License-Identifier: Apache-2.0
 *
 * Timeline pages in this process: asked for, mapped, pinned, dropped. See fence.h.
 *
 * A page is mapped read-only; it becomes writable when it is pinned (cuMemHostRegister of CUDA 13
 * wants to write) and when it is the own one.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/client.h"
#include "client/fence.h"
#include "util/error.h"

#define LANES(timeline) ((timeline) & ~(KVI_LANE_COUNT - 1))

static size_t page_bytes(void)
{
    size_t os_page = (size_t)sysconf(_SC_PAGESIZE);

    return os_page > KVI_TIMELINE_BYTES ? os_page : KVI_TIMELINE_BYTES;
}

static int make_writable(struct kvi_page *page)
{
    if (page->is_writable)
        return 0;
    if (mprotect(page->lanes, page_bytes(), PROT_READ | PROT_WRITE))
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "mapping a timeline page writable");
    page->is_writable = true;
    return 0;
}

/* Map the page behind `fd`. */
static int map_page(struct kvmem_client *client, int fd, uint32_t timeline, struct kvi_page *page)
{
    struct stat info;
    void *at;

    if (fd < 0 || fstat(fd, &info) || info.st_size < (off_t)page_bytes())
        return kvi_client_protocol(client, "a timeline page that is too short");
    at = mmap(NULL, page_bytes(), PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        return kvi_error_sys(KVMEM_E_SYSTEM, errno, "mapping a timeline page");
    memset(page, 0, sizeof(*page));
    page->lanes = at;
    page->timeline = timeline;
    return 0;
}

static void unmap_page(struct kvi_page *page)
{
    for (uint32_t i = 0; i < page->pin_count; i++)
        (void)kvi_backend_host_unpin(page->pins[i], page->lanes, page_bytes());
    if (page->lanes)
        munmap(page->lanes, page_bytes());
    memset(page, 0, sizeof(*page));
}

/* Ask for a page and map it. */
static int fetch(struct kvmem_client *client, uint32_t timeline, bool is_own, struct kvi_page *page)
{
    struct kvi_msg_timeline_map *message;
    const struct kvi_msg_timeline_fd *reply;
    const void *answer;
    int code, fd;

    if (client->welcome.version < 2)
        return kvi_error_set(KVMEM_E_NOT_SUPPORTED,
                             "fence.kind: the daemon speaks protocol version %" PRIu32
                             ", timelines came with 2",
                             client->welcome.version);
    message = kvi_client_begin(client, KVI_OP_TIMELINE_MAP);
    message->timeline = timeline;
    message->is_own = is_own;
    code = kvi_client_call(client, KVI_OP_TIMELINE_FD, &answer);
    if (code)
        return code;
    reply = answer;
    if (reply->timeline % KVI_LANE_COUNT || (!is_own && reply->timeline != LANES(timeline)))
        return kvi_client_protocol(client, "a timeline_fd that does not match its timeline_map");
    fd = kvi_client_steal_fd(client);
    code = map_page(client, fd, reply->timeline, page);
    if (fd >= 0)
        close(fd);
    return code;
}

int kvi_fence_own_page(struct kvmem_client *client)
{
    struct kvi_page *own = &client->fences.own;
    int code;

    if (own->lanes)
        return 0;
    code = fetch(client, 0, true, own);
    if (code)
        return code;
    code = make_writable(own);
    if (code)
        unmap_page(own);
    else
        client->fences.lane_count = 1; /* lane 0 has no stream */
    return code;
}

struct kvi_page *kvi_fence_page(struct kvmem_client *client, uint32_t timeline)
{
    struct kvi_fences *fences = &client->fences;

    if (fences->own.lanes && fences->own.timeline == LANES(timeline))
        return &fences->own;
    for (uint32_t i = fences->producer_count; i-- > 0;)
        if (fences->producers[i].timeline == LANES(timeline))
            return &fences->producers[i];
    return NULL;
}

/* May the page go? Its producer is gone and neither a guard nor a stream waits. */
static bool is_idle(const struct kvi_fences *fences, const struct kvi_page *page)
{
    if (page->guard_parts || !__atomic_load_n(&page->lanes[0].broken, __ATOMIC_RELAXED))
        return false;
    for (uint32_t i = 0; i < KVI_LANE_COUNT; i++)
        if (page->waits[i] && kvi_backend_fence_poll(&fences->own.lanes[i].counter,
                                                     page->waits[i]) != KVI_FENCE_REACHED)
            return false;
    return true;
}

/* A place for one more producer; the oldest page that may go makes room. NULL: none may. */
static struct kvi_page *make_place(struct kvi_fences *fences)
{
    uint32_t i = 0;

    if (fences->producer_count < KVI_PRODUCER_LIMIT)
        return &fences->producers[fences->producer_count];
    while (i < fences->producer_count && !is_idle(fences, &fences->producers[i]))
        i++;
    if (i == fences->producer_count)
        return NULL;
    unmap_page(&fences->producers[i]);
    fences->producer_count--;
    memmove(&fences->producers[i], &fences->producers[i + 1],
            (fences->producer_count - i) * sizeof(*fences->producers));
    return &fences->producers[fences->producer_count];
}

int kvi_fence_producer_page(struct kvmem_client *client, uint32_t timeline)
{
    struct kvi_fences *fences = &client->fences;
    struct kvi_page *place;
    int code;

    if (kvi_fence_page(client, timeline))
        return 0;
    if (!fences->producers)
        fences->producers =
            kvi_allocate(&client->alloc, KVI_PRODUCER_LIMIT * sizeof(*fences->producers));
    if (!fences->producers)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "no memory for %u timelines", KVI_PRODUCER_LIMIT);
    place = make_place(fences);
    if (!place) {
        kvi_guards_look(client);
        place = make_place(fences);
    }
    if (!place)
        return kvi_error_set(KVMEM_E_LIMIT, "timelines of %u producers are in use here",
                             KVI_PRODUCER_LIMIT);
    code = fetch(client, timeline, false, place);
    fences->producer_count += !code;
    return code;
}

int kvi_page_pin(struct kvi_page *page, struct kvi_backend *backend)
{
    int code;

    for (uint32_t i = 0; i < page->pin_count; i++)
        if (page->pins[i] == backend)
            return 0;
    assert(page->pin_count < KVI_DEVICE_LIMIT);
    code = make_writable(page);
    if (!code)
        code = kvi_backend_host_pin(backend, page->lanes, page_bytes());
    if (!code)
        page->pins[page->pin_count++] = backend;
    return code;
}

void kvi_fences_fini(struct kvmem_client *client)
{
    struct kvi_fences *fences = &client->fences;

    for (uint32_t i = 0; i < fences->producer_count; i++)
        unmap_page(&fences->producers[i]);
    unmap_page(&fences->own);
    kvi_release(&client->alloc, fences->producers, KVI_PRODUCER_LIMIT * sizeof(*fences->producers));
    fences->producers = NULL;
    fences->producer_count = 0;
}
