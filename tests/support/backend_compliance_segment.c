/* SPDX-License-Identifier: Apache-2.0
 *
 * Compliance: segments and handles. See backend_compliance.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "support/backend_compliance.h"
#include "util/error.h"

#define SEGMENTS_MANY 40

static bool fd_is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

static void released(struct kvt_backend *t, struct kvi_backend *b, struct kvi_phys phys)
{
    KVT_OK(t, kvi_backend_segment_release(b, phys));
}

static int exported(struct kvt_backend *t, struct kvi_phys phys)
{
    int fd = -1;

    KVT_OK(t, kvi_backend_segment_export(t->device, phys, &fd));
    return fd;
}

void kvt_backend_info_is_complete(struct kvt_backend *t)
{
    const struct kvi_backend_info *device = &t->device->info;
    const struct kvi_backend_info *client = &t->client->info;

    KVT_CHECK(t, device->kind == KVI_BACKEND_HOST || device->kind == KVI_BACKEND_CUDA);
    KVT_CHECK(t, device->name[0] != '\0');
    KVT_CHECK(t, memchr(device->name, '\0', sizeof(device->name)) != NULL);
    KVT_CHECK(t, device->granule_bytes >= (uint64_t)sysconf(_SC_PAGESIZE));
    KVT_CHECK(t, (device->granule_bytes & (device->granule_bytes - 1)) == 0);
    KVT_CHECK(t, device->device_bytes == KVT_DEVICE_GRANULES * device->granule_bytes);
    KVT_CHECK(t, device->flags & KVI_BACKEND_CREATES);
    KVT_CHECK(t, client->kind == device->kind);
    KVT_CHECK(t, client->granule_bytes == device->granule_bytes);
    KVT_CHECK(t, client->device_bytes == 0);
    KVT_CHECK(t, !(client->flags & KVI_BACKEND_CREATES));
    KVT_CHECK(t, (client->flags | KVI_BACKEND_CREATES) == device->flags);
}

void kvt_backend_table_with_another_version_is_refused(struct kvt_backend *t)
{
    struct kvi_backend_ops ops = *t->device->ops;
    struct kvi_backend b = {&ops, t->device->info};

    KVT_OK(t, kvi_backend_table_check(t->device));
    KVT_OK(t, kvi_backend_table_check(&b));
    ops.version++;
    KVT_REFUSED(t, KVMEM_E_NOT_SUPPORTED, "version", kvi_backend_table_check(&b));
    ops.version--;
    ops.table_bytes -= 8;
    KVT_REFUSED(t, KVMEM_E_NOT_SUPPORTED, "bytes", kvi_backend_table_check(&b));
    ops.table_bytes += 8;
    ops.unmap = NULL;
    KVT_REFUSED(t, KVMEM_E_NOT_SUPPORTED, "unmap", kvi_backend_table_check(&b));
    ops = *t->device->ops;
    ops.destroy = NULL;
    KVT_REFUSED(t, KVMEM_E_NOT_SUPPORTED, "destroy", kvi_backend_table_check(&b));
    ops = *t->device->ops;
    b.info.granule_bytes = 3;
    KVT_REFUSED(t, KVMEM_E_INVALID, "granule_bytes", kvi_backend_table_check(&b));
    KVT_REFUSED(t, KVMEM_E_INVALID, "NULL", kvi_backend_table_check(NULL));
    kvi_backend_destroy(NULL);
}

void kvt_backend_create_takes_exactly_its_bytes(struct kvt_backend *t)
{
    struct kvi_backend_memory before = kvt_memory(t, t->device);
    struct kvi_phys one = kvt_segment(t, 1);
    struct kvi_phys seven = kvt_segment(t, 7);
    struct kvi_backend_memory during = kvt_memory(t, t->device);
    struct kvi_backend_memory after;

    KVT_CHECK(t, one.id != 0 && seven.id != 0 && one.id != seven.id);
    KVT_CHECK(t, during.created_bytes == before.created_bytes + 8 * t->granule);
    KVT_CHECK(t, during.handle_count == before.handle_count + 2);
    KVT_CHECK(t, during.free_bytes <= during.total_bytes);
    released(t, t->device, one);
    after = kvt_memory(t, t->device);
    KVT_CHECK(t, after.created_bytes == before.created_bytes + 7 * t->granule);
    released(t, t->device, seven);
    after = kvt_memory(t, t->device);
    KVT_CHECK(t, kvt_memory_same(&before, &after));
}

void kvt_backend_create_refuses_bad_sizes(struct kvt_backend *t)
{
    uint64_t g = t->granule;
    uint64_t bad[] = {
        0, 1, g - 1, g + 1, g / 2, 3 * g + g / 2, UINT64_MAX, 0 - g, UINT64_C(1) << 63, INT64_MAX};
    struct kvi_backend_memory before = kvt_memory(t, t->device);
    struct kvi_backend_memory after;
    struct kvi_phys phys;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        KVT_REFUSED(t, KVMEM_E_INVALID, "bytes",
                    kvi_backend_segment_create(t->device, bad[i], &phys));
    after = kvt_memory(t, t->device);
    KVT_CHECK(t, kvt_memory_same(&before, &after));
}

void kvt_backend_create_stops_when_full(struct kvt_backend *t)
{
    uint64_t g = t->granule;
    struct kvi_phys most = kvt_segment(t, KVT_DEVICE_GRANULES - 1);
    struct kvi_phys more = {77};
    struct kvi_backend_memory before = kvt_memory(t, t->device);
    struct kvi_backend_memory after;
    struct kvi_phys last;

    KVT_REFUSED(t, KVMEM_E_DEVICE_FULL, "bytes",
                kvi_backend_segment_create(t->device, 2 * g, &more));
    KVT_REFUSED(t, KVMEM_E_DEVICE_FULL, "bytes",
                kvi_backend_segment_create(t->device, (KVT_DEVICE_GRANULES + 1) * g, &more));
    KVT_REFUSED(t, KVMEM_E_DEVICE_FULL, "bytes",
                kvi_backend_segment_create(t->device, (uint64_t)INT64_MAX + 1 - g, &more));
    after = kvt_memory(t, t->device);
    KVT_CHECK(t, kvt_memory_same(&before, &after) && more.id == 77);
    last = kvt_segment(t, 1);
    KVT_REFUSED(t, KVMEM_E_DEVICE_FULL, "bytes", kvi_backend_segment_create(t->device, g, &more));
    released(t, t->device, most);
    most = kvt_segment(t, KVT_DEVICE_GRANULES - 1);
    released(t, t->device, last);
    released(t, t->device, most);
}

void kvt_backend_create_needs_a_device(struct kvt_backend *t)
{
    struct kvi_phys phys = {77};

    KVT_REFUSED(t, KVMEM_E_NOT_SUPPORTED, "device_bytes",
                kvi_backend_segment_create(t->client, t->granule, &phys));
    KVT_CHECK(t, phys.id == 77);
}

void kvt_backend_null_outputs_are_refused(struct kvt_backend *t)
{
    struct kvi_phys phys = kvt_segment(t, 1);
    int fd = exported(t, phys);

    KVT_REFUSED(t, KVMEM_E_INVALID, "out", kvi_backend_memory(t->device, NULL));
    KVT_REFUSED(t, KVMEM_E_INVALID, "out", kvi_backend_segment_create(t->device, t->granule, NULL));
    KVT_REFUSED(t, KVMEM_E_INVALID, "out_fd", kvi_backend_segment_export(t->device, phys, NULL));
    KVT_REFUSED(t, KVMEM_E_INVALID, "out",
                kvi_backend_segment_import_consume(t->client, fd, t->granule, NULL));
    KVT_CHECK(t, !fd_is_open(fd));
    KVT_REFUSED(t, KVMEM_E_INVALID, "out_base",
                kvi_backend_reserve(t->device, t->granule, 0, NULL));
    released(t, t->device, phys);
}

void kvt_backend_release_twice_is_refused(struct kvt_backend *t)
{
    struct kvi_phys phys = kvt_segment(t, 2);
    struct kvi_phys other = kvt_segment(t, 1);

    released(t, t->device, phys);
    KVT_REFUSED(t, KVMEM_E_INVALID, "handle", kvi_backend_segment_release(t->device, phys));
    KVT_CHECK(t, kvt_memory(t, t->device).created_bytes == t->granule);
    released(t, t->device, other);
    KVT_REFUSED(t, KVMEM_E_INVALID, "handle", kvi_backend_segment_release(t->device, phys));
    KVT_REFUSED(t, KVMEM_E_INVALID, "handle", kvi_backend_segment_release(t->device, other));
}

void kvt_backend_handles_never_given_are_refused(struct kvt_backend *t)
{
    struct kvi_phys live = kvt_segment(t, 1);
    uint64_t bad[] = {0,          live.id + 1, live.id + (UINT64_C(1) << 32),
                      UINT64_MAX, UINT32_MAX,  UINT64_C(1) << 63,
                      ~live.id};

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct kvi_phys phys = {bad[i]};
        int fd = -2;

        KVT_REFUSED(t, KVMEM_E_INVALID, "handle", kvi_backend_segment_release(t->device, phys));
        KVT_REFUSED(t, KVMEM_E_INVALID, "handle", kvi_backend_segment_export(t->device, phys, &fd));
        KVT_CHECK(t, fd == -2);
    }
    released(t, t->device, live);
}

void kvt_backend_released_handle_is_refused_everywhere(struct kvt_backend *t)
{
    uint64_t base = kvt_reserved(t, t->device, 1);
    struct kvi_phys dead = kvt_segment(t, 1);
    struct kvi_phys live;
    int fd = -2;

    released(t, t->device, dead);
    live = kvt_segment(t, 1); /* takes the place of the dead one, if places are reused */
    KVT_REFUSED(t, KVMEM_E_INVALID, "handle", kvi_backend_segment_export(t->device, dead, &fd));
    KVT_REFUSED(t, KVMEM_E_INVALID, "handle",
                kvi_backend_map(t->device, dead, base, t->granule, KVI_ACCESS_RW));
    KVT_REFUSED(t, KVMEM_E_INVALID, "handle", kvi_backend_segment_release(t->device, dead));
    released(t, t->device, live);
    KVT_OK(t, kvi_backend_unreserve(t->device, base, t->granule));
}

void kvt_backend_ids_are_not_reused(struct kvt_backend *t)
{
    uint64_t seen[SEGMENTS_MANY];

    for (int i = 0; i < SEGMENTS_MANY; i++) {
        struct kvi_phys phys = kvt_segment(t, 1);

        for (int j = 0; j < i; j++)
            KVT_CHECK(t, seen[j] != phys.id);
        seen[i] = phys.id;
        released(t, t->device, phys);
    }
}

void kvt_backend_many_segments_in_random_order(struct kvt_backend *t)
{
    struct kvi_phys live[KVT_DEVICE_GRANULES];
    uint64_t state = 2026;
    uint64_t count = 0;

    for (int step = 0; step < 600; step++) {
        uint64_t dice = kvt_next_random(&state);

        if (count < KVT_DEVICE_GRANULES && (dice & 1 || count == 0)) {
            live[count++] = kvt_segment(t, 1);
        } else {
            uint64_t at = (dice >> 8) % count;

            released(t, t->device, live[at]);
            live[at] = live[--count];
        }
        KVT_CHECK(t, kvt_memory(t, t->device).handle_count == count);
        KVT_CHECK(t, kvt_memory(t, t->device).created_bytes == count * t->granule);
    }
    while (count > 0)
        released(t, t->device, live[--count]);
}

void kvt_backend_export_gives_fds_of_their_own(struct kvt_backend *t)
{
    struct kvi_phys phys = kvt_segment(t, 1);
    int first = exported(t, phys);
    int second = exported(t, phys);
    struct kvi_phys imported;

    KVT_CHECK(t, first != second && first > 2 && second > 2);
    KVT_CHECK(t, fcntl(first, F_GETFD) == FD_CLOEXEC);
    KVT_CHECK(t, fcntl(second, F_GETFD) == FD_CLOEXEC);
    close(first);
    KVT_OK(t, kvi_backend_segment_import_consume(t->client, second, t->granule, &imported));
    released(t, t->client, imported);
    close(exported(t, phys));
    released(t, t->device, phys);
}

void kvt_backend_export_needs_the_creator(struct kvt_backend *t)
{
    struct kvi_phys phys = kvt_segment(t, 1);
    struct kvi_phys imported = kvt_imported(t, phys, 1);
    int fd = -2;

    KVT_REFUSED(t, KVMEM_E_NOT_SUPPORTED, "creator",
                kvi_backend_segment_export(t->client, imported, &fd));
    KVT_CHECK(t, fd == -2);
    released(t, t->client, imported);
    released(t, t->device, phys);
}

void kvt_backend_import_takes_the_fd(struct kvt_backend *t)
{
    struct kvi_phys phys = kvt_segment(t, 1);
    int fd_count = kvt_fd_count();
    int fd = exported(t, phys);
    struct kvi_phys imported;

    KVT_CHECK(t, kvt_fd_count() == fd_count + 1);
    fcntl(fd, F_SETFD, 0); /* as recvmsg without MSG_CMSG_CLOEXEC would give it */
    KVT_OK(t, kvi_backend_segment_import_consume(t->client, fd, t->granule, &imported));
    KVT_CHECK(t, !fd_is_open(fd) || fcntl(fd, F_GETFD) == FD_CLOEXEC);
    released(t, t->client, imported);
    KVT_CHECK(t, !fd_is_open(fd));
    KVT_CHECK(t, kvt_fd_count() == fd_count);
    released(t, t->device, phys);
}

void kvt_backend_import_twice_gives_two_handles(struct kvt_backend *t)
{
    struct kvi_phys phys = kvt_segment(t, 2);
    struct kvi_phys first = kvt_imported(t, phys, 2);
    struct kvi_phys second = kvt_imported(t, phys, 2);

    KVT_CHECK(t, first.id != second.id);
    released(t, t->client, first);
    KVT_REFUSED(t, KVMEM_E_INVALID, "handle", kvi_backend_segment_release(t->client, first));
    released(t, t->client, second);
    released(t, t->device, phys);
}

void kvt_backend_import_is_not_charged(struct kvt_backend *t)
{
    struct kvi_phys phys = kvt_segment(t, 4);
    struct kvi_backend_memory before = kvt_memory(t, t->client);
    struct kvi_phys imported = kvt_imported(t, phys, 4);
    struct kvi_backend_memory during = kvt_memory(t, t->client);

    KVT_CHECK(t, during.created_bytes == before.created_bytes);
    KVT_CHECK(t, during.handle_count == before.handle_count + 1);
    released(t, t->client, imported);
    KVT_CHECK(t, kvt_memory(t, t->device).created_bytes == 4 * t->granule);
    released(t, t->device, phys);
}

void kvt_backend_import_refuses_bad_arguments(struct kvt_backend *t)
{
    uint64_t g = t->granule;
    uint64_t bad[] = {0, 1, g - 1, g + 1, UINT64_MAX, 0 - g, UINT64_C(1) << 63, INT64_MAX};
    struct kvi_phys phys = kvt_segment(t, 1);
    struct kvi_phys imported = {77};

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        int fd = exported(t, phys);

        KVT_REFUSED(t, KVMEM_E_INVALID, "bytes",
                    kvi_backend_segment_import_consume(t->client, fd, bad[i], &imported));
        KVT_CHECK(t, !fd_is_open(fd));
    }
    KVT_REFUSED(t, KVMEM_E_INVALID, "fd",
                kvi_backend_segment_import_consume(t->client, -1, g, &imported));
    KVT_REFUSED(t, KVMEM_E_INVALID, "fd",
                kvi_backend_segment_import_consume(t->client, INT32_MIN, g, &imported));
    KVT_REFUSED(t, KVMEM_E_INVALID, "fd",
                kvi_backend_segment_import_consume(t->client, INT32_MAX, g, &imported));
    KVT_CHECK(t, imported.id == 77);
    released(t, t->device, phys);
}

/* `fd` is refused as CORRUPT and closed, and nothing else changes. */
static void import_refused(struct kvt_backend *t, int fd, uint64_t bytes)
{
    struct kvi_backend_memory before = kvt_memory(t, t->client);
    struct kvi_phys imported = {77};
    struct kvi_backend_memory after;

    KVT_CHECK(t, fd >= 0);
    KVT_REFUSED(t, KVMEM_E_CORRUPT, "fd",
                kvi_backend_segment_import_consume(t->client, fd, bytes, &imported));
    KVT_CHECK(t, !fd_is_open(fd));
    KVT_CHECK(t, imported.id == 77);
    after = kvt_memory(t, t->client);
    KVT_CHECK(t, kvt_memory_same(&before, &after));
}

/* The same for a promise of `granules`, which the first map may be the one to refuse. */
static void size_refused(struct kvt_backend *t, int fd, uint64_t granules)
{
    struct kvi_backend_memory before = kvt_memory(t, t->client);
    uint64_t base = kvt_reserved(t, t->client, granules);
    struct kvi_phys imported = {77};
    struct kvi_backend_memory after;
    int rc = kvi_backend_segment_import_consume(t->client, fd, granules * t->granule, &imported);

    KVT_CHECK(t, !fd_is_open(fd));
    if (rc == 0) {
        for (int i = 0; i < 2; i++) /* it stays refused, and may be released */
            KVT_REFUSED(
                t, KVMEM_E_CORRUPT, "bytes",
                kvi_backend_map(t->client, imported, base, granules * t->granule, KVI_ACCESS_RO));
        released(t, t->client, imported);
    } else {
        KVT_CHECK(t, rc == KVMEM_E_CORRUPT && imported.id == 77);
    }
    KVT_OK(t, kvi_backend_unreserve(t->client, base, granules * t->granule));
    after = kvt_memory(t, t->client);
    KVT_CHECK(t, kvt_memory_same(&before, &after));
}

void kvt_backend_import_refuses_a_wrong_size(struct kvt_backend *t)
{
    struct kvi_phys phys = kvt_segment(t, 2);

    size_refused(t, exported(t, phys), 1);
    size_refused(t, exported(t, phys), 3);
    import_refused(t, exported(t, phys), (uint64_t)INT64_MAX + 1 - t->granule);
    released(t, t->device, phys);
}

void kvt_backend_import_refuses_a_pipe(struct kvt_backend *t)
{
    int ends[2];

    KVT_CHECK(t, pipe2(ends, O_CLOEXEC) == 0);
    import_refused(t, ends[0], t->granule);
    import_refused(t, ends[1], t->granule);
}

void kvt_backend_import_refuses_a_plain_memfd(struct kvt_backend *t)
{
    int fd = memfd_create("kvmem-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    KVT_CHECK(t, fd >= 0 && ftruncate(fd, (off_t)t->granule) == 0);
    import_refused(t, fd, t->granule);
    fd = memfd_create("kvmem-test", MFD_CLOEXEC);
    KVT_CHECK(t, fd >= 0 && ftruncate(fd, (off_t)t->granule) == 0);
    import_refused(t, fd, t->granule);
}

void kvt_backend_import_refuses_an_open_file(struct kvt_backend *t)
{
    import_refused(t, open("/dev/null", O_RDWR | O_CLOEXEC), t->granule);
    import_refused(t, open("/dev/zero", O_RDWR | O_CLOEXEC), t->granule);
    import_refused(t, open("/proc/self/exe", O_RDONLY | O_CLOEXEC), t->granule);
    import_refused(t, open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC), t->granule);
}

void kvt_backend_importers_release_keeps_the_bytes(struct kvt_backend *t)
{
    uint64_t base = kvt_reserved(t, t->device, 1);
    struct kvi_phys phys = kvt_segment(t, 1);
    struct kvi_phys imported = kvt_imported(t, phys, 1);

    KVT_OK(t, kvi_backend_map(t->device, phys, base, t->granule, KVI_ACCESS_RW));
    kvt_fill(t, t->device, base, t->granule, 1);
    released(t, t->client, imported);
    KVT_CHECK(t, kvt_filled(t, t->device, base, t->granule, 1));
    KVT_CHECK(t, kvt_memory(t, t->device).created_bytes == t->granule);
    KVT_OK(t, kvi_backend_unmap(t->device, base, t->granule));
    released(t, t->device, phys);
    KVT_OK(t, kvi_backend_unreserve(t->device, base, t->granule));
}

void kvt_backend_creators_release_returns_the_bytes(struct kvt_backend *t)
{
    uint64_t g = t->granule;
    uint64_t base = kvt_reserved(t, t->client, KVT_DEVICE_GRANULES);
    struct kvi_phys all = kvt_segment(t, KVT_DEVICE_GRANULES);
    struct kvi_phys imported = kvt_imported(t, all, KVT_DEVICE_GRANULES);
    struct kvi_phys again = {0};
    int rc;

    KVT_OK(t, kvi_backend_map(t->client, imported, base, KVT_DEVICE_GRANULES * g, KVI_ACCESS_RW));
    kvt_fill(t, t->client, base, g, 1);
    released(t, t->device, all);
    rc = kvi_backend_segment_create(t->device, KVT_DEVICE_GRANULES * g, &again);
    if (t->device->info.flags & KVI_BACKEND_RECLAIMS_MAPPED) {
        KVT_OK(t, rc);
        KVT_CHECK(t, !kvt_filled(t, t->client, base, g, 1));
    }
    if (rc == 0)
        released(t, t->device, again);
    KVT_OK(t, kvi_backend_unmap(t->client, base, KVT_DEVICE_GRANULES * g));
    released(t, t->client, imported);
    KVT_OK(t, kvi_backend_unreserve(t->client, base, KVT_DEVICE_GRANULES * g));
}

void kvt_backend_bytes_outlive_their_creator(struct kvt_backend *t)
{
    uint64_t g = t->granule;
    struct kvi_backend *creator = NULL;
    struct kvi_phys phys = {0};
    uint64_t base = 0;
    int fd = -1;

    KVT_OK(t, t->factory->create(t->factory->context, 4, &creator));
    KVT_OK(t, kvi_backend_segment_create(creator, 2 * g, &phys));
    KVT_OK(t, kvi_backend_reserve(creator, 2 * g, 0, &base));
    KVT_OK(t, kvi_backend_map(creator, phys, base, 2 * g, KVI_ACCESS_RW));
    KVT_OK(t, kvi_backend_host_pin(creator, t->counters, (uint64_t)sysconf(_SC_PAGESIZE)));
    kvt_fill(t, creator, base, 2 * g, 9);
    KVT_OK(t, kvi_backend_segment_export(creator, phys, &fd));
    t->factory->destroy(t->factory->context, creator);
    KVT_OK(t, kvi_backend_segment_import_consume(t->client, fd, 2 * g, &phys));
    base = kvt_reserved(t, t->client, 2);
    KVT_OK(t, kvi_backend_map(t->client, phys, base, 2 * g, KVI_ACCESS_RO));
    KVT_CHECK(t, kvt_filled(t, t->client, base, 2 * g, 9));
    KVT_OK(t, kvi_backend_unmap(t->client, base, 2 * g));
    released(t, t->client, phys);
    KVT_OK(t, kvi_backend_unreserve(t->client, base, 2 * g));
}

void kvt_backend_destroy_closes_everything(struct kvt_backend *t)
{
    uint64_t g = t->granule;
    int fd_count = kvt_fd_count();
    struct kvi_backend *b = NULL;
    struct kvi_phys phys = {0};
    uint64_t base = 0;
    int fd = -1;

    KVT_OK(t, t->factory->create(t->factory->context, 8, &b));
    for (int i = 0; i < 4; i++) {
        KVT_OK(t, kvi_backend_segment_create(b, 2 * g, &phys));
        KVT_OK(t, kvi_backend_reserve(b, 8 * g, 0, &base));
        KVT_OK(t, kvi_backend_map(b, phys, base + 2 * g, 2 * g, KVI_ACCESS_RW));
        KVT_OK(t, kvi_backend_segment_export(b, phys, &fd));
        KVT_OK(t, kvi_backend_segment_import_consume(b, fd, 2 * g, &phys));
        KVT_OK(t, kvi_backend_map(b, phys, base + 5 * g, 2 * g, KVI_ACCESS_RO));
    }
    t->factory->destroy(t->factory->context, b);
    KVT_CHECK(t, kvt_fd_count() == fd_count);
}

void kvt_backend_failed_calls_write_no_output(struct kvt_backend *t)
{
    struct kvi_phys phys = {UINT64_C(0x5a5a5a5a)};
    uint64_t base = UINT64_C(0x5a5a5a5a);
    int fd = 0x5a5a;

    KVT_REFUSED(t, KVMEM_E_INVALID, "bytes", kvi_backend_segment_create(t->device, 1, &phys));
    KVT_REFUSED(t, KVMEM_E_DEVICE_FULL, "bytes",
                kvi_backend_segment_create(t->device, 1000 * t->granule, &phys));
    KVT_REFUSED(t, KVMEM_E_INVALID, "handle", kvi_backend_segment_export(t->device, phys, &fd));
    KVT_REFUSED(t, KVMEM_E_INVALID, "bytes", kvi_backend_reserve(t->device, 1, 0, &base));
    KVT_CHECK(t, phys.id == 0x5a5a5a5a && base == 0x5a5a5a5a && fd == 0x5a5a);
    KVT_CHECK(t, kvmem_error_detail()->code == KVMEM_E_INVALID);
    KVT_CHECK(t, kvmem_error_detail()->system_errno == 0);
}
