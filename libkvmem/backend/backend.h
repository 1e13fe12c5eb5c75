/* SPDX-License-Identifier: Apache-2.0
 *
 * Backend: where device memory comes from. One versioned table of operations with several
 * implementations: host (memfds), cuda (driver VMM) and fault (wraps another, fails on order).
 *
 *   segment      one physical allocation, named by a struct kvi_phys; a multiple of the granule
 *   reservation  a range of address space without memory behind it
 *   mapping      a segment, whole and from its first byte, at an address in a reservation
 *
 *      reserve(R)          map(A)             map(B, read-only)    unmap(A)
 *      |- - - - - - - -|   |AAAA- - - - - -|  |AAAA- - BBBB- - |   |- - - - BBBB- - |
 *
 * The contract is the CUDA driver's, and every backend keeps to it, so that what works on the
 * host works on a GPU:
 *   - a segment is mapped whole, at offset 0, or not at all; it may be mapped several times;
 *   - a mapping lies in one reservation and overlaps no other mapping;
 *   - unmap and set_access take a range that consists of whole, adjoining mappings;
 *   - of several mappings of a segment the first one is unmapped last (driver 580: when the first
 *     is gone and the access of another is changed, later maps of the handle fail with UNKNOWN);
 *   - only the process that created a segment exports it; an importer cannot pass it on;
 *   - a handle may be released while mapped: the mappings stay valid for their holder, and on
 *     a device with KVI_BACKEND_RECLAIMS_MAPPED the bytes go with the creator's release
 *     (what the mappings show from then on is undefined: unmap first, where it matters).
 *
 * Every operation is all-or-nothing: after a negative code nothing has changed, outputs are
 * not written, and kvmem_error_detail() names the parameter and its range. The exception is an
 * fd given to a `_consume` operation: it is closed whatever the result.
 *
 * Threads: any thread may call; a backend guards its own tables. Two calls at one time on the
 * same segment, reservation or bytes are ordered by the caller. Nothing here waits for a
 * device, but on CUDA calls queue up behind other processes' driver calls: keep them off the
 * token path (DESIGN.md rule 4).
 *
 * Use the kvi_backend_* functions, not the table: they check what needs no state, once for all
 * implementations, before the table is called.
 */
#ifndef KVI_BACKEND_BACKEND_H
#define KVI_BACKEND_BACKEND_H

#include <stddef.h>
#include <stdint.h>

#define KVI_BACKEND_VERSION    2u
#define KVI_BACKEND_NAME_BYTES 48

struct kvi_backend;

enum kvi_backend_kind {
    KVI_BACKEND_HOST = 1,
    KVI_BACKEND_CUDA = 2,
};

enum kvi_backend_flag {
    /* The creator's release returns the bytes even while other processes have them mapped. */
    KVI_BACKEND_RECLAIMS_MAPPED = 1u << 0,
    /* set_access can turn a read-only mapping into a read-write one, and back, in place. On CUDA a
     * kernel that reads that very mapping meanwhile faults (HACKING, "Open on the GPU"). */
    KVI_BACKEND_CAN_UPGRADE = 1u << 1,
    /* The CPU can load from and store to mapped addresses: kvi_backend_pointer() works. */
    KVI_BACKEND_CPU_VISIBLE = 1u << 2,
    /* The instance may create and export segments; without it, it only imports them. */
    KVI_BACKEND_CREATES = 1u << 3,
};

enum kvi_access {
    KVI_ACCESS_RO = 1,
    KVI_ACCESS_RW = 2,
};

/* Answers of fence_wait and fence_poll; negative codes are failures. */
enum kvi_fence_state {
    KVI_FENCE_REACHED = 0,
    KVI_FENCE_PENDING = 1,
};

/* A segment as one process names it. Ids are not reused: a released one is refused for good
 * (for 2^32 generations of its slot). 0 names no segment. */
struct kvi_phys {
    uint64_t id;
};

/* Fixed when the backend is created. */
struct kvi_backend_info {
    enum kvi_backend_kind kind; /* a wrapper shows the kind of what it wraps */
    uint32_t flags;             /* enum kvi_backend_flag */
    uint64_t granule_bytes;     /* power of two; sizes and addresses are multiples of it */
    uint64_t device_bytes;      /* what may be created in all; 0 for a client-side instance */
    char name[KVI_BACKEND_NAME_BYTES];
};

/* A snapshot. Two equal snapshots around a sequence of calls: it leaked nothing. */
struct kvi_backend_memory {
    uint64_t total_bytes;   /* of the device, as the backend sees it; 0 on a host client side */
    uint64_t free_bytes;    /* of those, not taken by anybody */
    uint64_t created_bytes; /* in segments that this instance created and still holds */
    uint64_t handle_count;  /* live handles, created and imported */
    uint64_t reservation_count;
    uint64_t reserved_bytes;
    uint64_t mapping_count;
    uint64_t mapped_bytes; /* of address space: a segment mapped twice counts twice */
    uint64_t pin_count;
    uint64_t allocation_count; /* of device_alloc */
    uint64_t allocation_bytes;
};

/* Blocks of one space, by index: block i is the `bytes` from base + i × stride_bytes on. What is
 * written and what is read may lie in two ranges of addresses, of the same memory or not. */
struct kvi_backend_blocks {
    uint64_t to_base;
    uint64_t from_base; /* not looked at without `from` */
    uint64_t stride_bytes;
    uint64_t bytes;
    uint32_t count;
    const int32_t *from; /* (count); NULL: the destinations are cleared */
    const int32_t *to;   /* (count) */
};

/* ((int32_t *)base)[at] = value */
struct kvi_backend_cell {
    uint32_t at;
    int32_t value;
};

struct kvi_backend_ops {
    uint32_t version;     /* KVI_BACKEND_VERSION */
    uint32_t table_bytes; /* sizeof(struct kvi_backend_ops) where the table was compiled */

    void (*destroy)(struct kvi_backend *b);
    int (*memory)(struct kvi_backend *b, struct kvi_backend_memory *out);

    int (*segment_create)(struct kvi_backend *b, uint64_t bytes, struct kvi_phys *out);
    int (*segment_export)(struct kvi_backend *b, struct kvi_phys phys, int *out_fd);
    int (*segment_import_consume)(struct kvi_backend *b, int fd, uint64_t bytes,
                                  struct kvi_phys *out);
    int (*segment_release)(struct kvi_backend *b, struct kvi_phys phys);

    int (*reserve)(struct kvi_backend *b, uint64_t bytes, uint64_t alignment, uint64_t *out_base);
    int (*unreserve)(struct kvi_backend *b, uint64_t base, uint64_t bytes);
    int (*map)(struct kvi_backend *b, struct kvi_phys phys, uint64_t address, uint64_t bytes,
               enum kvi_access access);
    int (*set_access)(struct kvi_backend *b, uint64_t address, uint64_t bytes,
                      enum kvi_access access);
    int (*unmap)(struct kvi_backend *b, uint64_t address, uint64_t bytes);

    int (*copy)(struct kvi_backend *b, uint64_t to, uint64_t from, uint64_t bytes, uint64_t stream);
    int (*copy_in)(struct kvi_backend *b, uint64_t to, const void *from, uint64_t bytes,
                   uint64_t stream);
    int (*copy_out)(struct kvi_backend *b, void *to, uint64_t from, uint64_t bytes,
                    uint64_t stream);
    int (*blocks)(struct kvi_backend *b, const struct kvi_backend_blocks *list, uint64_t stream);
    int (*cells)(struct kvi_backend *b, uint64_t base, const struct kvi_backend_cell *cells,
                 uint32_t count, uint64_t stream);

    int (*device_alloc)(struct kvi_backend *b, uint64_t bytes, uint64_t *out_address);
    int (*device_free)(struct kvi_backend *b, uint64_t address, uint64_t bytes);

    int (*host_pin)(struct kvi_backend *b, void *memory, uint64_t bytes);
    int (*host_unpin)(struct kvi_backend *b, void *memory, uint64_t bytes);
    int (*fence_signal)(struct kvi_backend *b, uint64_t *counter, uint64_t value, uint64_t stream);
    int (*fence_wait)(struct kvi_backend *b, uint64_t *counter, uint64_t value, uint64_t stream);
};

/* X(symbol, member): every operation that can fail, in the order of the table. */
#define KVI_BACKEND_CALL_TABLE(X)             \
    X(MEMORY, memory)                         \
    X(SEGMENT_CREATE, segment_create)         \
    X(SEGMENT_EXPORT, segment_export)         \
    X(SEGMENT_IMPORT, segment_import_consume) \
    X(SEGMENT_RELEASE, segment_release)       \
    X(RESERVE, reserve)                       \
    X(UNRESERVE, unreserve)                   \
    X(MAP, map)                               \
    X(SET_ACCESS, set_access)                 \
    X(UNMAP, unmap)                           \
    X(COPY, copy)                             \
    X(COPY_IN, copy_in)                       \
    X(COPY_OUT, copy_out)                     \
    X(BLOCKS, blocks)                         \
    X(CELLS, cells)                           \
    X(DEVICE_ALLOC, device_alloc)             \
    X(DEVICE_FREE, device_free)               \
    X(HOST_PIN, host_pin)                     \
    X(HOST_UNPIN, host_unpin)                 \
    X(FENCE_SIGNAL, fence_signal)             \
    X(FENCE_WAIT, fence_wait)

/* First member of every implementation's own struct. */
struct kvi_backend {
    const struct kvi_backend_ops *ops;
    struct kvi_backend_info info;
};

/* NOT_SUPPORTED when `b`'s table has another version or size than this header or lacks an
 * operation (the detail says which), INVALID when its granule is no power of two. */
int kvi_backend_table_check(const struct kvi_backend *b);

/* Close every fd, mapping and reservation that is left, and free `b`. Segments whose fds
 * others hold live on: destroy is what a crash does, not a release. NULL is fine. The caller
 * sees to it that no other thread is inside. */
void kvi_backend_destroy(struct kvi_backend *b);

/* The CPU's pointer to a mapped address; only with KVI_BACKEND_CPU_VISIBLE. */
static inline void *kvi_backend_pointer(uint64_t address)
{
    return (void *)(uintptr_t)address;
}

/* What is in use now. SYSTEM when the device cannot say. */
int kvi_backend_memory(struct kvi_backend *b, struct kvi_backend_memory *out);

/* ---- segments ---- */

/* Create a segment of `bytes` (granule … device_bytes, a multiple of the granule). No page is
 * touched; contents are zero on the host, undefined on CUDA. INVALID for the size, DEVICE_FULL
 * when the device has less left, NOT_SUPPORTED on an instance that only imports, NO_MEMORY,
 * SYSTEM. */
int kvi_backend_segment_create(struct kvi_backend *b, uint64_t bytes, struct kvi_phys *out);

/* A new close-on-exec fd for another process to import; the caller owns and closes it. It
 * keeps the bytes alive by itself, but where RECLAIMS_MAPPED the creator's release empties it.
 * INVALID for a dead handle, NOT_SUPPORTED for an imported one, SYSTEM. */
int kvi_backend_segment_export(struct kvi_backend *b, struct kvi_phys phys, int *out_fd);

/* A handle for the segment behind `fd`, which was promised to be of `bytes`. The fd is closed
 * in every case (dup it first to keep it). CORRUPT when it is not what was promised: the
 * detail says what it is instead. A device that does not tell sizes (CUDA) finds out a wrong one at
 * the first map. INVALID, NO_MEMORY, SYSTEM. */
int kvi_backend_segment_import_consume(struct kvi_backend *b, int fd, uint64_t bytes,
                                       struct kvi_phys *out);

/* Drop the handle; see the contract above for what becomes of the bytes. INVALID for a dead
 * handle, SYSTEM (the handle then lives on). */
int kvi_backend_segment_release(struct kvi_backend *b, struct kvi_phys phys);

/* ---- address space ---- */

/* Reserve `bytes` (a multiple of the granule) of address space at a multiple of `alignment`
 * (0 for the granule; else a power of two, at least the granule). Costs no memory. INVALID,
 * NO_MEMORY, SYSTEM. */
int kvi_backend_reserve(struct kvi_backend *b, uint64_t bytes, uint64_t alignment,
                        uint64_t *out_base);

/* Give back a whole reservation, exactly as it was made. INVALID when there is none such or
 * something is still mapped in it. */
int kvi_backend_unreserve(struct kvi_backend *b, uint64_t base, uint64_t bytes);

/* Map the segment at `address`; `bytes` must be the whole segment. No page is touched. A
 * process forked later does not inherit the mapping (as on CUDA): when the pidfds of those who
 * mapped a segment have fired, nobody can write it any more. CORRUPT when an imported segment has
 * not the bytes that were promised (release it then); INVALID, NO_MEMORY, SYSTEM. */
int kvi_backend_map(struct kvi_backend *b, struct kvi_phys phys, uint64_t address, uint64_t bytes,
                    enum kvi_access access);

/* Change what this process may do in a range of whole mappings. INVALID; NOT_SUPPORTED without
 * KVI_BACKEND_CAN_UPGRADE; SYSTEM. */
int kvi_backend_set_access(struct kvi_backend *b, uint64_t address, uint64_t bytes,
                           enum kvi_access access);

/* Take a range of whole mappings out; the range stays reserved. INVALID, SYSTEM. */
int kvi_backend_unmap(struct kvi_backend *b, uint64_t address, uint64_t bytes);

/* ---- copies ----
 * 1 ≤ bytes; device ranges lie in mappings, destinations in read-write ones, or in memory of
 * device_alloc; the two ranges do not overlap. `stream` is the device's own handle (a CUstream), 0
 * the default one; on CUDA the copy is ordered on it and may be still running on return, on the
 * host it is done on return and the stream is ignored. INVALID for a range, SYSTEM for the device's
 * failure. */

int kvi_backend_copy(struct kvi_backend *b, uint64_t to, uint64_t from, uint64_t bytes,
                     uint64_t stream);
int kvi_backend_copy_in(struct kvi_backend *b, uint64_t to, const void *from, uint64_t bytes,
                        uint64_t stream);
int kvi_backend_copy_out(struct kvi_backend *b, void *to, uint64_t from, uint64_t bytes,
                         uint64_t stream);

/* ---- blocks and cells ----
 * What an engine's process does to its own memory, inside the device: on CUDA one kernel launch
 * for up to KVI_BACKEND_BLOCKS_MAX blocks, another for each further as many. A daemon never calls
 * these two: it has no kernels in any context.
 *
 * Ordered on `stream` as a copy is, and not waiting; all of the list is looked at before anything
 * is enqueued. Should the device then fail in the middle of several launches (SYSTEM), those
 * before it are under way. blocks() may be captured in a graph, the list goes by value. */

#define KVI_BACKEND_BLOCKS_MAX 500u

/* Copy block from[i] to block to[i], or clear it. Bases, stride_bytes and bytes are multiples of
 * 16, bytes at most the stride, that at most 2^32. Each destination is named once and its memory
 * is no source's, else its bytes are undefined: this is not looked at. INVALID (names the place in
 * the list and the block), SYSTEM. */
int kvi_backend_blocks(struct kvi_backend *b, const struct kvi_backend_blocks *list,
                       uint64_t stream);

/* Store cells into device memory from `base` (a multiple of 4) on. `cells` lie in memory that was
 * pinned, and stay as they are until the stream is past. From base to the last cell all is mapped
 * read-write, or of one device_alloc. Each cell is named once. INVALID, SYSTEM. */
int kvi_backend_cells(struct kvi_backend *b, uint64_t base, const struct kvi_backend_cell *cells,
                      uint32_t count, uint64_t stream);

/* Bytes from the base to the end of the last cell; count > 0. */
static inline uint64_t kvi_backend_cells_bytes(const struct kvi_backend_cell *cells, uint32_t count)
{
    uint32_t last = 0;

    for (uint32_t i = 0; i < count; i++)
        last = cells[i].at > last ? cells[i].at : last;
    return ((uint64_t)last + 1) * sizeof(int32_t);
}

/* ---- memory of this process alone, outside the pool ----
 * Neither segment nor mapping: it is not exported, and its access is not changed. */

/* `bytes` (1 … 2^63 − 1) of device memory, at a multiple of 256, read-write, contents undefined.
 * DEVICE_FULL, NO_MEMORY (the tables, on the host also the memory), SYSTEM. */
int kvi_backend_device_alloc(struct kvi_backend *b, uint64_t bytes, uint64_t *out_address);

/* Give it back, as it was allocated. On CUDA it may wait for the device. INVALID, SYSTEM. */
int kvi_backend_device_free(struct kvi_backend *b, uint64_t address, uint64_t bytes);

/* ---- fences ----
 * A timeline is a 64-bit counter, 8-byte aligned, that only grows, in host memory that every
 * process concerned has pinned. A fence is (counter, value), reached when counter >= value. */

/* Let the device read and write `bytes` of the caller's memory (both multiples of the OS page;
 * overlaps no other pin). INVALID, NO_MEMORY, SYSTEM. */
int kvi_backend_host_pin(struct kvi_backend *b, void *memory, uint64_t bytes);

/* Undo one host_pin, exactly as it was made, before the memory goes. INVALID. */
int kvi_backend_host_unpin(struct kvi_backend *b, void *memory, uint64_t bytes);

/* Set `counter` to `value` once everything before it on `stream` is done (host: now, after all
 * earlier stores of this thread). INVALID for a counter outside every pin. SYSTEM. */
int kvi_backend_fence_signal(struct kvi_backend *b, uint64_t *counter, uint64_t value,
                             uint64_t stream);

/* Make what follows on `stream` wait. REACHED when it may go on or is sure to wait by itself.
 * PENDING (host only, which has no stream to hold back) when it may not go on yet: the caller
 * asks again. Never blocks. INVALID for a counter outside every pin. SYSTEM. */
int kvi_backend_fence_wait(struct kvi_backend *b, uint64_t *counter, uint64_t value,
                           uint64_t stream);

/* REACHED or PENDING, seen by the CPU; REACHED orders the signaller's earlier stores before the
 * caller's later loads. No system call, never blocks, cannot fail. */
static inline enum kvi_fence_state kvi_backend_fence_poll(const uint64_t *counter, uint64_t value)
{
    uint64_t now = __atomic_load_n(counter, __ATOMIC_ACQUIRE);

    return now >= value ? KVI_FENCE_REACHED : KVI_FENCE_PENDING;
}

#endif
