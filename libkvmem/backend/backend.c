/* SPDX-License-Identifier: Apache-2.0
 *
 * The front of every backend: what can be said about arguments without knowing any state is
 * checked here, once, so that all implementations refuse the same things in the same words.
 * An implementation may rely on:
 *
 *   sizes      multiples of the granule, 1 granule … 2^63 − 1 bytes
 *   addresses  multiples of the granule; address + bytes does not wrap
 *   access     KVI_ACCESS_RO or KVI_ACCESS_RW
 *   copies     1 byte or more, nothing wraps, device ranges of one copy do not overlap
 *   lists      one block or cell or more, indices not negative, no address wraps
 *   pointers   not NULL; pins on whole OS pages; counters 8-byte aligned
 *
 * No state, no locks; any thread.
 */
#include "backend/backend.h"

#include <inttypes.h>
#include <unistd.h>

#include "util/error.h"

#define BYTES_MAX       ((uint64_t)INT64_MAX)
#define BLOCK_ALIGNMENT 16u
#define STRIDE_MAX      (UINT64_C(1) << 32)

int kvi_backend_table_check(const struct kvi_backend *b)
{
    if (b == NULL || b->ops == NULL)
        return kvi_error_set(KVMEM_E_INVALID, "backend is NULL or has no table");
    if (b->ops->version != KVI_BACKEND_VERSION ||
        b->ops->table_bytes != sizeof(struct kvi_backend_ops))
        return kvi_error_set(KVMEM_E_NOT_SUPPORTED,
                             "backend table is version %" PRIu32 " of %" PRIu32
                             " bytes, this library wants version %u of %zu",
                             b->ops->version, b->ops->table_bytes, KVI_BACKEND_VERSION,
                             sizeof(struct kvi_backend_ops));
    if (b->ops->destroy == NULL)
        return kvi_error_set(KVMEM_E_NOT_SUPPORTED, "backend table lacks destroy");
#define CHECK_MEMBER(symbol, member) \
    if (b->ops->member == NULL)      \
        return kvi_error_set(KVMEM_E_NOT_SUPPORTED, "backend table lacks %s", #member);
    KVI_BACKEND_CALL_TABLE(CHECK_MEMBER)
#undef CHECK_MEMBER
    if (b->info.granule_bytes == 0 || (b->info.granule_bytes & (b->info.granule_bytes - 1)) != 0)
        return kvi_error_set(KVMEM_E_INVALID, "granule_bytes is %" PRIu64 ": want a power of two",
                             b->info.granule_bytes);
    return 0;
}

static int size_check(const struct kvi_backend *b, const char *operation, uint64_t bytes)
{
    uint64_t granule_bytes = b->info.granule_bytes;

    if (bytes == 0 || bytes > BYTES_MAX || bytes % granule_bytes != 0)
        return kvi_error_set(KVMEM_E_INVALID,
                             "%s: bytes is %" PRIu64 ": want a multiple of the granule, %" PRIu64
                             ", from there to 2^63 - 1",
                             operation, bytes, granule_bytes);
    return 0;
}

static int range_check(const struct kvi_backend *b, const char *operation, uint64_t address,
                       uint64_t bytes)
{
    int rc = size_check(b, operation, bytes);

    if (rc < 0)
        return rc;
    if (address % b->info.granule_bytes != 0)
        return kvi_error_set(KVMEM_E_INVALID,
                             "%s: address is %#" PRIx64
                             ": want a multiple of the granule, %" PRIu64,
                             operation, address, b->info.granule_bytes);
    if (address > UINT64_MAX - bytes)
        return kvi_error_set(KVMEM_E_INVALID,
                             "%s: address %#" PRIx64 " + bytes %" PRIu64 " passes 2^64", operation,
                             address, bytes);
    return 0;
}

static int access_check(const char *operation, enum kvi_access access)
{
    if (access != KVI_ACCESS_RO && access != KVI_ACCESS_RW)
        return kvi_error_set(KVMEM_E_INVALID,
                             "%s: access is %d: want %d (read) or %d (read, write)", operation,
                             (int)access, KVI_ACCESS_RO, KVI_ACCESS_RW);
    return 0;
}

static int pointer_check(const char *operation, const char *parameter, const void *pointer)
{
    if (pointer == NULL)
        return kvi_error_set(KVMEM_E_INVALID, "%s: %s is NULL", operation, parameter);
    return 0;
}

/* One end of a copy: any alignment, at least a byte. */
static int span_check(const char *operation, const char *parameter, uint64_t start, uint64_t bytes)
{
    if (bytes == 0 || bytes > BYTES_MAX)
        return kvi_error_set(KVMEM_E_INVALID, "%s: bytes is %" PRIu64 ": want 1 to 2^63 - 1",
                             operation, bytes);
    if (start > UINT64_MAX - bytes)
        return kvi_error_set(KVMEM_E_INVALID, "%s: %s %#" PRIx64 " + bytes %" PRIu64 " passes 2^64",
                             operation, parameter, start, bytes);
    return 0;
}

void kvi_backend_destroy(struct kvi_backend *b)
{
    if (b != NULL)
        b->ops->destroy(b);
}

int kvi_backend_memory(struct kvi_backend *b, struct kvi_backend_memory *out)
{
    int rc = pointer_check("memory", "out", out);

    return rc < 0 ? rc : b->ops->memory(b, out);
}

int kvi_backend_segment_create(struct kvi_backend *b, uint64_t bytes, struct kvi_phys *out)
{
    int rc = pointer_check("segment_create", "out", out);

    if (rc < 0)
        return rc;
    if (!(b->info.flags & KVI_BACKEND_CREATES))
        return kvi_error_set(KVMEM_E_NOT_SUPPORTED,
                             "segment_create: device_bytes is 0: this backend only imports");
    rc = size_check(b, "segment_create", bytes);
    return rc < 0 ? rc : b->ops->segment_create(b, bytes, out);
}

int kvi_backend_segment_export(struct kvi_backend *b, struct kvi_phys phys, int *out_fd)
{
    int rc = pointer_check("segment_export", "out_fd", out_fd);

    return rc < 0 ? rc : b->ops->segment_export(b, phys, out_fd);
}

int kvi_backend_segment_import_consume(struct kvi_backend *b, int fd, uint64_t bytes,
                                       struct kvi_phys *out)
{
    int rc;

    if (fd < 0)
        return kvi_error_set(KVMEM_E_INVALID, "segment_import: fd is %d: want 0 or more", fd);
    rc = pointer_check("segment_import", "out", out);
    if (rc == 0)
        rc = size_check(b, "segment_import", bytes);
    if (rc < 0) {
        close(fd);
        return rc;
    }
    return b->ops->segment_import_consume(b, fd, bytes, out);
}

int kvi_backend_segment_release(struct kvi_backend *b, struct kvi_phys phys)
{
    return b->ops->segment_release(b, phys);
}

int kvi_backend_reserve(struct kvi_backend *b, uint64_t bytes, uint64_t alignment,
                        uint64_t *out_base)
{
    int rc = pointer_check("reserve", "out_base", out_base);

    if (rc == 0)
        rc = size_check(b, "reserve", bytes);
    if (rc < 0)
        return rc;
    if (alignment == 0)
        alignment = b->info.granule_bytes;
    if (alignment < b->info.granule_bytes || (alignment & (alignment - 1)) != 0)
        return kvi_error_set(KVMEM_E_INVALID,
                             "reserve: alignment is %" PRIu64
                             ": want 0 or a power of two from %" PRIu64,
                             alignment, b->info.granule_bytes);
    return b->ops->reserve(b, bytes, alignment, out_base);
}

int kvi_backend_unreserve(struct kvi_backend *b, uint64_t base, uint64_t bytes)
{
    int rc = range_check(b, "unreserve", base, bytes);

    return rc < 0 ? rc : b->ops->unreserve(b, base, bytes);
}

int kvi_backend_map(struct kvi_backend *b, struct kvi_phys phys, uint64_t address, uint64_t bytes,
                    enum kvi_access access)
{
    int rc = range_check(b, "map", address, bytes);

    if (rc == 0)
        rc = access_check("map", access);
    return rc < 0 ? rc : b->ops->map(b, phys, address, bytes, access);
}

int kvi_backend_set_access(struct kvi_backend *b, uint64_t address, uint64_t bytes,
                           enum kvi_access access)
{
    int rc = range_check(b, "set_access", address, bytes);

    if (rc == 0)
        rc = access_check("set_access", access);
    if (rc < 0)
        return rc;
    if (!(b->info.flags & KVI_BACKEND_CAN_UPGRADE))
        return kvi_error_set(KVMEM_E_NOT_SUPPORTED,
                             "set_access: this device cannot change access in place: "
                             "unmap and map again");
    return b->ops->set_access(b, address, bytes, access);
}

int kvi_backend_unmap(struct kvi_backend *b, uint64_t address, uint64_t bytes)
{
    int rc = range_check(b, "unmap", address, bytes);

    return rc < 0 ? rc : b->ops->unmap(b, address, bytes);
}

int kvi_backend_copy(struct kvi_backend *b, uint64_t to, uint64_t from, uint64_t bytes,
                     uint64_t stream)
{
    int rc = span_check("copy", "to", to, bytes);

    if (rc == 0)
        rc = span_check("copy", "from", from, bytes);
    if (rc < 0)
        return rc;
    if (to < from + bytes && from < to + bytes)
        return kvi_error_set(KVMEM_E_INVALID,
                             "copy: to %#" PRIx64 " and from %#" PRIx64
                             " are less than bytes, %" PRIu64 ", apart",
                             to, from, bytes);
    return b->ops->copy(b, to, from, bytes, stream);
}

int kvi_backend_copy_in(struct kvi_backend *b, uint64_t to, const void *from, uint64_t bytes,
                        uint64_t stream)
{
    int rc = pointer_check("copy_in", "from", from);

    if (rc == 0)
        rc = span_check("copy_in", "to", to, bytes);
    if (rc == 0)
        rc = span_check("copy_in", "from", (uintptr_t)from, bytes);
    return rc < 0 ? rc : b->ops->copy_in(b, to, from, bytes, stream);
}

int kvi_backend_copy_out(struct kvi_backend *b, void *to, uint64_t from, uint64_t bytes,
                         uint64_t stream)
{
    int rc = pointer_check("copy_out", "to", to);

    if (rc == 0)
        rc = span_check("copy_out", "from", from, bytes);
    if (rc == 0)
        rc = span_check("copy_out", "to", (uintptr_t)to, bytes);
    return rc < 0 ? rc : b->ops->copy_out(b, to, from, bytes, stream);
}

/* ---- blocks and cells ---- */

static int blocks_shape_check(const struct kvi_backend_blocks *list)
{
    if (list->bytes == 0 || list->bytes % BLOCK_ALIGNMENT != 0 ||
        list->bytes > list->stride_bytes || list->stride_bytes % BLOCK_ALIGNMENT != 0 ||
        list->stride_bytes > STRIDE_MAX)
        return kvi_error_set(KVMEM_E_INVALID,
                             "blocks: bytes is %" PRIu64 ", stride_bytes %" PRIu64
                             ": want multiples of 16, 16 <= bytes <= stride_bytes <= 2^32",
                             list->bytes, list->stride_bytes);
    return 0;
}

static int base_check(const char *name, uint64_t base)
{
    if (base % BLOCK_ALIGNMENT != 0 || base > BYTES_MAX)
        return kvi_error_set(KVMEM_E_INVALID,
                             "blocks: %s is %#" PRIx64 ": want a multiple of 16 below 2^63", name,
                             base);
    return 0;
}

static int side_check(const char *name, const char *base_name, uint64_t base,
                      const int32_t *indices, uint32_t count)
{
    int32_t bits = 0;
    uint32_t at = 0;
    int rc = base_check(base_name, base);

    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < count; i++)
        bits |= indices[i];
    if (bits >= 0)
        return 0;
    while (indices[at] >= 0)
        at++;
    return kvi_error_set(KVMEM_E_INVALID, "blocks: %s[%" PRIu32 "] is %" PRId32 ": want 0 or more",
                         name, at, indices[at]);
}

int kvi_backend_blocks(struct kvi_backend *b, const struct kvi_backend_blocks *list,
                       uint64_t stream)
{
    int rc = pointer_check("blocks", "list", list);

    if (rc < 0 || list->count == 0)
        return rc;
    rc = pointer_check("blocks", "to", list->to);
    if (rc == 0)
        rc = blocks_shape_check(list);
    if (rc == 0)
        rc = side_check("to", "to_base", list->to_base, list->to, list->count);
    if (rc == 0 && list->from != NULL)
        rc = side_check("from", "from_base", list->from_base, list->from, list->count);
    return rc < 0 ? rc : b->ops->blocks(b, list, stream);
}

int kvi_backend_cells(struct kvi_backend *b, uint64_t base, const struct kvi_backend_cell *cells,
                      uint32_t count, uint64_t stream)
{
    int rc;

    if (count == 0)
        return 0;
    rc = pointer_check("cells", "cells", cells);
    if (rc < 0)
        return rc;
    if (base % sizeof(int32_t) != 0 || base > BYTES_MAX)
        return kvi_error_set(KVMEM_E_INVALID,
                             "cells: base is %#" PRIx64 ": want a multiple of 4 below 2^63", base);
    if ((uintptr_t)cells % sizeof(*cells) != 0)
        return kvi_error_set(KVMEM_E_INVALID, "cells: cells is %p: want a multiple of 8",
                             (const void *)cells);
    return b->ops->cells(b, base, cells, count, stream);
}

int kvi_backend_device_alloc(struct kvi_backend *b, uint64_t bytes, uint64_t *out_address)
{
    int rc = pointer_check("device_alloc", "out_address", out_address);

    if (rc == 0)
        rc = span_check("device_alloc", "address", 0, bytes);
    return rc < 0 ? rc : b->ops->device_alloc(b, bytes, out_address);
}

int kvi_backend_device_free(struct kvi_backend *b, uint64_t address, uint64_t bytes)
{
    return b->ops->device_free(b, address, bytes);
}

/* ---- pins and fences ---- */

static int pin_check(const char *operation, const void *memory, uint64_t bytes)
{
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    int rc = pointer_check(operation, "memory", memory);

    if (rc == 0)
        rc = span_check(operation, "memory", (uintptr_t)memory, bytes);
    if (rc < 0)
        return rc;
    if ((uintptr_t)memory % page_bytes != 0 || bytes % page_bytes != 0)
        return kvi_error_set(KVMEM_E_INVALID,
                             "%s: memory %p of %" PRIu64 " bytes: want multiples of the OS page, "
                             "%" PRIu64,
                             operation, memory, bytes, page_bytes);
    return 0;
}

int kvi_backend_host_pin(struct kvi_backend *b, void *memory, uint64_t bytes)
{
    int rc = pin_check("host_pin", memory, bytes);

    return rc < 0 ? rc : b->ops->host_pin(b, memory, bytes);
}

int kvi_backend_host_unpin(struct kvi_backend *b, void *memory, uint64_t bytes)
{
    int rc = pin_check("host_unpin", memory, bytes);

    return rc < 0 ? rc : b->ops->host_unpin(b, memory, bytes);
}

static int counter_check(const char *operation, const uint64_t *counter)
{
    int rc = pointer_check(operation, "counter", counter);

    if (rc < 0)
        return rc;
    if ((uintptr_t)counter % sizeof(*counter) != 0)
        return kvi_error_set(KVMEM_E_INVALID, "%s: counter is %p: want a multiple of 8", operation,
                             (const void *)counter);
    return 0;
}

int kvi_backend_fence_signal(struct kvi_backend *b, uint64_t *counter, uint64_t value,
                             uint64_t stream)
{
    int rc = counter_check("fence_signal", counter);

    return rc < 0 ? rc : b->ops->fence_signal(b, counter, value, stream);
}

int kvi_backend_fence_wait(struct kvi_backend *b, uint64_t *counter, uint64_t value,
                           uint64_t stream)
{
    int rc = counter_check("fence_wait", counter);

    return rc < 0 ? rc : b->ops->fence_wait(b, counter, value, stream);
}
