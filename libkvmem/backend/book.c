/* SPDX-License-Identifier: Apache-2.0
 *
 * The books of a backend: see book.h. Sorted arrays and binary search; a reservation has its
 * own array of mappings, so that a change costs a memmove within one space.
 */
#include "backend/book.h"

#include <inttypes.h>
#include <string.h>

#include "util/error.h"

#define CAPACITY_FIRST 16
#define SEGMENTS_MAX   ((size_t)UINT32_MAX - 1)
#define GRANULES_MAX   (UINT64_C(1) << 32) /* of a reservation; more than there are addresses */

int kvi_book_grow(const struct kvi_alloc *alloc, void *array, size_t *capacity, size_t count,
                  size_t element_bytes)
{
    size_t wanted = *capacity == 0 ? CAPACITY_FIRST : *capacity * 2;
    void *from;
    void *to = NULL;

    if (count < *capacity)
        return 0;
    if (wanted <= SIZE_MAX / element_bytes)
        to = kvi_allocate(alloc, wanted * element_bytes);
    if (to == NULL)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "backend: no memory for %zu table entries", wanted);
    memcpy(&from, array, sizeof(from)); /* a pointer of a type not known here */
    if (count > 0)
        memcpy(to, from, count * element_bytes);
    kvi_release(alloc, from, *capacity * element_bytes);
    memcpy(array, &to, sizeof(to));
    *capacity = wanted;
    return 0;
}

int kvi_book_init(struct kvi_book *book, const struct kvi_alloc *alloc, uint64_t granule_bytes)
{
    int error = pthread_mutex_init(&book->lock, NULL);

    if (error != 0)
        return kvi_error_sys(KVMEM_E_SYSTEM, error, "backend: pthread_mutex_init");
    book->alloc = alloc;
    book->granule_shift = (uint32_t)__builtin_ctzll(granule_bytes);
    return 0;
}

static void reservation_free(struct kvi_book *book, struct kvi_book_reservation *r)
{
    kvi_release(book->alloc, r->rights, r->rights_count);
    kvi_release(book->alloc, r->mappings, r->mapping_capacity * sizeof(*r->mappings));
}

void kvi_book_fini(struct kvi_book *book)
{
    for (size_t i = 0; i < book->reservation_count; i++)
        reservation_free(book, &book->reservations[i]);
    kvi_release(book->alloc, book->reservations,
                book->reservation_capacity * sizeof(*book->reservations));
    kvi_release(book->alloc, book->segments, book->segment_capacity * sizeof(*book->segments));
    kvi_allocations_fini(&book->allocations, book->alloc);
    pthread_mutex_destroy(&book->lock);
}

/* ---- handles ---- */

int kvi_book_segment_room(struct kvi_book *book)
{
    int rc;

    if (book->segment_free != 0)
        return 0;
    if (book->segment_slots == SEGMENTS_MAX)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "backend: %zu handles are live",
                             book->segment_slots);
    pthread_mutex_lock(&book->lock);
    rc = kvi_book_grow(book->alloc, &book->segments, &book->segment_capacity, book->segment_slots,
                       sizeof(*book->segments));
    pthread_mutex_unlock(&book->lock);
    return rc;
}

struct kvi_phys kvi_book_segment_add(struct kvi_book *book, uint64_t driver_handle, uint64_t bytes,
                                     bool created)
{
    struct kvi_book_segment *segment;
    size_t index;

    pthread_mutex_lock(&book->lock);
    if (book->segment_free != 0) {
        index = book->segment_free - 1;
        book->segment_free = book->segments[index].next_free;
    } else {
        index = book->segment_slots++;
        book->segments[index].generation = 0;
    }
    segment = &book->segments[index];
    segment->driver_handle = driver_handle;
    segment->bytes = bytes;
    segment->created = created;
    segment->next_free = 0;
    segment->mapping_count = 0;
    book->handle_count++;
    book->used_bytes += created ? bytes : 0;
    pthread_mutex_unlock(&book->lock);
    return (struct kvi_phys){(uint64_t)segment->generation << 32 | (index + 1)};
}

struct kvi_book_segment *kvi_book_segment_find(struct kvi_book *book, struct kvi_phys phys,
                                               const char *operation)
{
    uint64_t index = (phys.id & UINT32_MAX) - 1; /* slot 0 wraps, and fails the comparison */

    if (index >= book->segment_slots || book->segments[index].bytes == 0 ||
        book->segments[index].generation != phys.id >> 32) {
        kvi_error_set(KVMEM_E_INVALID,
                      "%s: segment handle %#" PRIx64 " is not live: released, or never given out",
                      operation, phys.id);
        return NULL;
    }
    return &book->segments[index];
}

static void slot_free(struct kvi_book *book, struct kvi_book_segment *segment)
{
    segment->next_free = book->segment_free;
    book->segment_free = (uint32_t)(segment - book->segments) + 1;
}

void kvi_book_segment_remove(struct kvi_book *book, struct kvi_book_segment *segment)
{
    pthread_mutex_lock(&book->lock);
    book->used_bytes -= segment->created ? segment->bytes : 0;
    book->handle_count--;
    segment->bytes = 0;
    segment->generation++;
    if (segment->mapping_count == 0)
        slot_free(book, segment);
    pthread_mutex_unlock(&book->lock);
}

/* ---- finding ---- */

/* Index of the first reservation that ends above `address`; reservation_count if none does. */
static size_t reservation_at(const struct kvi_book *book, uint64_t address)
{
    size_t low = 0;
    size_t high = book->reservation_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct kvi_book_reservation *r = &book->reservations[middle];

        if (r->base + r->bytes > address)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* The reservation that holds the whole range, or NULL. */
static struct kvi_book_reservation *reservation_of(const struct kvi_book *book, uint64_t address,
                                                   uint64_t bytes)
{
    size_t index = reservation_at(book, address);
    struct kvi_book_reservation *r;

    if (index == book->reservation_count)
        return NULL;
    r = &book->reservations[index];
    if (address < r->base || r->base + r->bytes - address < bytes)
        return NULL;
    return r;
}

/* Index of the first mapping that ends above `address`; mapping_count if none does. */
static size_t mapping_at(const struct kvi_book_reservation *r, uint64_t address)
{
    size_t low = 0;
    size_t high = r->mapping_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (r->mappings[middle].address + r->mappings[middle].bytes > address)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* The mappings that cover the range without a gap; the first and last may reach beyond it.
 * False if there are none such. */
static bool run_covering(const struct kvi_book *book, uint64_t address, uint64_t bytes,
                         struct kvi_book_run *out)
{
    struct kvi_book_reservation *r = reservation_of(book, address, bytes);
    uint64_t reached = address;
    size_t at;

    if (r == NULL)
        return false;
    at = mapping_at(r, address);
    *out = (struct kvi_book_run){r, at, at};
    while (at < r->mapping_count && r->mappings[at].address <= reached &&
           reached < address + bytes) {
        reached = r->mappings[at].address + r->mappings[at].bytes;
        at++;
    }
    out->last = at;
    return reached >= address + bytes;
}

/* ---- reservations ---- */

int kvi_book_reservation_room(struct kvi_book *book, uint64_t bytes,
                              struct kvi_book_reservation *one)
{
    uint64_t granules = bytes >> book->granule_shift;
    int rc;

    pthread_mutex_lock(&book->lock);
    rc = kvi_book_grow(book->alloc, &book->reservations, &book->reservation_capacity,
                       book->reservation_count, sizeof(*book->reservations));
    pthread_mutex_unlock(&book->lock);
    if (rc < 0)
        return rc;
    one->rights = granules <= GRANULES_MAX ? kvi_allocate(book->alloc, granules) : NULL;
    if (one->rights == NULL)
        return kvi_error_set(KVMEM_E_NO_MEMORY,
                             "reserve: bytes is %" PRIu64 ": no memory for the rights of %" PRIu64
                             " granules",
                             bytes, granules);
    one->rights_count = granules;
    return 0;
}

void kvi_book_reservation_forget(struct kvi_book *book, struct kvi_book_reservation *one)
{
    reservation_free(book, one);
}

void kvi_book_reservation_add(struct kvi_book *book, const struct kvi_book_reservation *one)
{
    struct kvi_book_reservation *at;

    pthread_mutex_lock(&book->lock);
    at = &book->reservations[reservation_at(book, one->base)];
    memmove(at + 1, at, (size_t)(book->reservations + book->reservation_count - at) * sizeof(*at));
    *at = *one;
    book->reservation_count++;
    book->reserved_bytes += one->bytes;
    pthread_mutex_unlock(&book->lock);
}

struct kvi_book_reservation *kvi_book_reservation_find(struct kvi_book *book, uint64_t base,
                                                       uint64_t bytes, const char *operation)
{
    struct kvi_book_reservation *r = reservation_of(book, base, bytes);

    if (r == NULL || r->base != base || r->bytes != bytes) {
        kvi_error_set(KVMEM_E_INVALID,
                      "%s: base %#" PRIx64 " + bytes %" PRIu64 " was not reserved like this",
                      operation, base, bytes);
        return NULL;
    }
    if (r->mapping_count > 0) {
        kvi_error_set(KVMEM_E_INVALID,
                      "%s: base %#" PRIx64 " still has %zu mappings: unmap them first", operation,
                      base, r->mapping_count);
        return NULL;
    }
    return r;
}

void kvi_book_reservation_remove(struct kvi_book *book, struct kvi_book_reservation *one)
{
    pthread_mutex_lock(&book->lock);
    reservation_free(book, one);
    book->reservation_count--;
    book->reserved_bytes -= one->bytes;
    memmove(one, one + 1,
            (size_t)(book->reservations + book->reservation_count - one) * sizeof(*one));
    pthread_mutex_unlock(&book->lock);
}

/* ---- mappings ---- */

static void rights_set(const struct kvi_book *book, struct kvi_book_reservation *r,
                       const struct kvi_book_mapping *mapping, uint8_t access)
{
    memset(r->rights + ((mapping->address - r->base) >> book->granule_shift), access,
           mapping->bytes >> book->granule_shift);
}

int kvi_book_map_place(struct kvi_book *book, uint64_t address, uint64_t bytes,
                       struct kvi_book_run *out)
{
    struct kvi_book_reservation *r = reservation_of(book, address, bytes);
    size_t at;
    int rc;

    if (r == NULL)
        return kvi_error_set(KVMEM_E_INVALID,
                             "map: address %#" PRIx64 " + bytes %" PRIu64 " is in no reservation",
                             address, bytes);
    at = mapping_at(r, address);
    if (at < r->mapping_count && r->mappings[at].address < address + bytes)
        return kvi_error_set(KVMEM_E_INVALID,
                             "map: address %#" PRIx64 " + bytes %" PRIu64
                             " overlaps the mapping at %#" PRIx64,
                             address, bytes, r->mappings[at].address);
    *out = (struct kvi_book_run){r, at, at};
    pthread_mutex_lock(&book->lock);
    rc = kvi_book_grow(book->alloc, &r->mappings, &r->mapping_capacity, r->mapping_count,
                       sizeof(*r->mappings));
    pthread_mutex_unlock(&book->lock);
    return rc;
}

void kvi_book_map_add(struct kvi_book *book, const struct kvi_book_run *place,
                      struct kvi_book_segment *segment, uint64_t address, enum kvi_access access)
{
    struct kvi_book_reservation *r = place->reservation;
    struct kvi_book_mapping *at = &r->mappings[place->first];

    pthread_mutex_lock(&book->lock);
    memmove(at + 1, at, (r->mapping_count - place->first) * sizeof(*at));
    *at = (struct kvi_book_mapping){.address = address,
                                    .bytes = segment->bytes,
                                    .slot = (uint32_t)(segment - book->segments),
                                    .is_first = segment->mapping_count == 0,
                                    .access = access};
    segment->mapping_count++;
    r->mapping_count++;
    rights_set(book, r, at, (uint8_t)access);
    book->mapping_count++;
    book->mapped_bytes += segment->bytes;
    pthread_mutex_unlock(&book->lock);
}

int kvi_book_run_find(struct kvi_book *book, uint64_t address, uint64_t bytes,
                      const char *operation, struct kvi_book_run *out)
{
    const struct kvi_book_mapping *mappings;

    if (!run_covering(book, address, bytes, out))
        return kvi_error_set(KVMEM_E_INVALID,
                             "%s: address %#" PRIx64 " + bytes %" PRIu64
                             " is not mapped throughout",
                             operation, address, bytes);
    mappings = out->reservation->mappings;
    if (mappings[out->first].address != address ||
        mappings[out->last - 1].address + mappings[out->last - 1].bytes != address + bytes)
        return kvi_error_set(KVMEM_E_INVALID,
                             "%s: address %#" PRIx64 " + bytes %" PRIu64
                             " cuts a mapping: want whole ones",
                             operation, address, bytes);
    return 0;
}

int kvi_book_unmap_find(struct kvi_book *book, uint64_t address, uint64_t bytes,
                        struct kvi_book_run *out)
{
    int rc = kvi_book_run_find(book, address, bytes, "unmap", out);

    for (size_t at = out->first; rc == 0 && at < out->last; at++) {
        const struct kvi_book_mapping *mapping = &out->reservation->mappings[at];
        uint32_t others = book->segments[mapping->slot].mapping_count;

        for (size_t i = out->first; mapping->is_first && others > 1 && i < out->last; i++)
            others -= i != at && out->reservation->mappings[i].slot == mapping->slot;
        if (mapping->is_first && others > 1)
            rc = kvi_error_set(KVMEM_E_INVALID,
                               "unmap: address %#" PRIx64 " is the first mapping of its segment: "
                               "unmap the other %" PRIu32 " before",
                               mapping->address, others - 1);
    }
    return rc;
}

void kvi_book_run_access(struct kvi_book *book, const struct kvi_book_run *run,
                         enum kvi_access access)
{
    pthread_mutex_lock(&book->lock);
    for (size_t at = run->first; at < run->last; at++) {
        run->reservation->mappings[at].access = access;
        rights_set(book, run->reservation, &run->reservation->mappings[at], (uint8_t)access);
    }
    pthread_mutex_unlock(&book->lock);
}

void kvi_book_run_remove(struct kvi_book *book, const struct kvi_book_run *run)
{
    struct kvi_book_reservation *r = run->reservation;

    pthread_mutex_lock(&book->lock);
    for (size_t at = run->first; at < run->last; at++) {
        struct kvi_book_segment *segment = &book->segments[r->mappings[at].slot];

        book->mapped_bytes -= r->mappings[at].bytes;
        rights_set(book, r, &r->mappings[at], 0);
        segment->mapping_count--;
        if (segment->mapping_count == 0 && segment->bytes == 0)
            slot_free(book, segment);
    }
    memmove(&r->mappings[run->first], &r->mappings[run->last],
            (r->mapping_count - run->last) * sizeof(*r->mappings));
    r->mapping_count -= run->last - run->first;
    book->mapping_count -= run->last - run->first;
    pthread_mutex_unlock(&book->lock);
}

/* ---- memory of device_alloc ---- */

int kvi_book_allocation_room(struct kvi_book *book)
{
    int rc;

    pthread_mutex_lock(&book->lock);
    rc = kvi_allocations_room(&book->allocations, book->alloc);
    pthread_mutex_unlock(&book->lock);
    return rc;
}

void kvi_book_allocation_add(struct kvi_book *book, uint64_t address, uint64_t bytes)
{
    pthread_mutex_lock(&book->lock);
    kvi_allocations_add(&book->allocations, address, bytes);
    pthread_mutex_unlock(&book->lock);
}

void kvi_book_allocation_remove(struct kvi_book *book, size_t at)
{
    pthread_mutex_lock(&book->lock);
    kvi_allocations_remove(&book->allocations, at);
    pthread_mutex_unlock(&book->lock);
}

/* ---- any thread ---- */

/* The least that may be done with the range, which lies in the reservation: 0, RO or RW. */
static uint8_t rights_of(const struct kvi_book *book, const struct kvi_book_reservation *r,
                         uint64_t address, uint64_t bytes)
{
    uint64_t last = (address - r->base + bytes - 1) >> book->granule_shift;
    uint8_t rights = KVI_ACCESS_RW;

    for (uint64_t at = (address - r->base) >> book->granule_shift; at <= last; at++)
        rights = r->rights[at] < rights ? r->rights[at] : rights;
    return rights;
}

/* Under the lock. `r` holds the blocks that were looked at last, or is NULL. */
static int indices_check(const struct kvi_book *book, const struct kvi_backend_blocks *list,
                         bool is_to)
{
    const struct kvi_book_reservation *r = NULL;
    const int32_t *indices = is_to ? list->to : list->from;
    uint64_t base = is_to ? list->to_base : list->from_base;

    for (uint32_t i = 0; i < list->count; i++) {
        uint64_t address = base + (uint64_t)(uint32_t)indices[i] * list->stride_bytes;
        uint8_t rights = 0;

        if (r == NULL || address < r->base || address - r->base > r->bytes - list->bytes)
            r = reservation_of(book, address, list->bytes);
        if (r != NULL)
            rights = rights_of(book, r, address, list->bytes);
        if (rights < (is_to ? KVI_ACCESS_RW : KVI_ACCESS_RO))
            return kvi_error_set(KVMEM_E_INVALID,
                                 "blocks: %s[%" PRIu32 "] is block %" PRId32 " at %#" PRIx64
                                 ", which is %s",
                                 is_to ? "to" : "from", i, indices[i], address,
                                 rights == 0 ? "not mapped throughout" : "mapped read-only");
    }
    return 0;
}

int kvi_book_blocks_check(struct kvi_book *book, const struct kvi_backend_blocks *list)
{
    int rc;

    pthread_mutex_lock(&book->lock);
    rc = indices_check(book, list, true);
    if (rc == 0 && list->from != NULL)
        rc = indices_check(book, list, false);
    pthread_mutex_unlock(&book->lock);
    return rc;
}

int kvi_book_span_check(struct kvi_book *book, uint64_t address, uint64_t bytes,
                        enum kvi_access access, const char *operation)
{
    struct kvi_book_run run;
    int rc = 0;

    pthread_mutex_lock(&book->lock);
    if (kvi_allocations_hold(&book->allocations, address, bytes))
        goto unlock;
    if (!run_covering(book, address, bytes, &run)) {
        rc = kvi_error_set(KVMEM_E_INVALID,
                           "%s: address %#" PRIx64 " + bytes %" PRIu64 " is not mapped throughout",
                           operation, address, bytes);
        goto unlock;
    }
    for (size_t at = run.first; at < run.last && access == KVI_ACCESS_RW && rc == 0; at++)
        if (run.reservation->mappings[at].access != KVI_ACCESS_RW)
            rc = kvi_error_set(KVMEM_E_INVALID, "%s: address %#" PRIx64 " is mapped read-only",
                               operation, run.reservation->mappings[at].address);
unlock:
    pthread_mutex_unlock(&book->lock);
    return rc;
}

void kvi_book_count(struct kvi_book *book, struct kvi_backend_memory *out)
{
    pthread_mutex_lock(&book->lock);
    out->created_bytes = book->used_bytes;
    out->handle_count = book->handle_count;
    out->reservation_count = book->reservation_count;
    out->reserved_bytes = book->reserved_bytes;
    out->mapping_count = book->mapping_count;
    out->mapped_bytes = book->mapped_bytes;
    out->allocation_count = book->allocations.count;
    out->allocation_bytes = book->allocations.bytes;
    pthread_mutex_unlock(&book->lock);
}

/* ---- check ---- */

static int violated(const char *equation, uint64_t left, uint64_t right)
{
    return kvi_error_set(KVMEM_E_CORRUPT, "backend books: %s: %#" PRIx64 " against %#" PRIx64,
                         equation, left, right);
}

static int segments_check(const struct kvi_book *book, uint64_t granule_bytes)
{
    uint64_t created_bytes = 0;
    uint64_t live_count = 0;
    uint64_t mapped_count = 0;
    uint64_t free_count = 0;

    for (size_t i = 0; i < book->segment_slots; i++) {
        const struct kvi_book_segment *segment = &book->segments[i];

        live_count += segment->bytes != 0;
        mapped_count += segment->bytes == 0 && segment->mapping_count > 0;
        created_bytes += segment->created ? segment->bytes : 0;
        if (segment->bytes % granule_bytes != 0)
            return violated("bytes of a segment, by slot", i, segment->bytes);
    }
    for (uint32_t at = book->segment_free; at != 0; at = book->segments[at - 1].next_free) {
        if (at > book->segment_slots || book->segments[at - 1].bytes != 0)
            return violated("free list names a slot that is not free, of slots", at,
                            book->segment_slots);
        if (++free_count > book->segment_slots)
            return violated("free list has a cycle, of slots", free_count, book->segment_slots);
    }
    if (live_count != book->handle_count)
        return violated("live slots = handle_count", live_count, book->handle_count);
    if (live_count + mapped_count + free_count != book->segment_slots)
        return violated("live + released and mapped + free = slots",
                        live_count + mapped_count + free_count, book->segment_slots);
    if (created_bytes != book->used_bytes)
        return violated("created bytes = used_bytes", created_bytes, book->used_bytes);
    return 0;
}

/* The rights are those of the mappings and nothing more. */
static int rights_check(const struct kvi_book_reservation *r, uint64_t granule_bytes)
{
    size_t granule = 0;

    for (size_t i = 0; i <= r->mapping_count; i++) {
        const struct kvi_book_mapping *mapping = i < r->mapping_count ? &r->mappings[i] : NULL;
        uint64_t start = mapping ? (mapping->address - r->base) / granule_bytes : r->rights_count;
        uint64_t end = mapping ? start + mapping->bytes / granule_bytes : start;

        for (; granule < end; granule++) {
            uint8_t wanted = granule < start ? 0 : (uint8_t)mapping->access;

            if (r->rights[granule] != wanted)
                return violated("rights of a granule", r->rights[granule], wanted);
        }
    }
    return 0;
}

/* Adds the reservation's mapped bytes to `mapped_bytes`. */
static int reservation_check(const struct kvi_book_reservation *r, uint64_t granule_bytes,
                             uint64_t *mapped_bytes)
{
    uint64_t reached = r->base;

    for (size_t i = 0; i < r->mapping_count; i++) {
        const struct kvi_book_mapping *mapping = &r->mappings[i];

        if (mapping->address < reached)
            return violated("mappings sorted and disjoint", reached, mapping->address);
        if ((mapping->address | mapping->bytes) % granule_bytes != 0 || mapping->bytes == 0)
            return violated("mapping on the granule", mapping->address, mapping->bytes);
        if (mapping->kept != 0)
            return violated("no handle kept between calls", mapping->address, mapping->kept);
        reached = mapping->address + mapping->bytes;
        *mapped_bytes += mapping->bytes;
    }
    if (reached > r->base + r->bytes)
        return violated("mappings inside the reservation", reached, r->base + r->bytes);
    if (r->rights_count != r->bytes / granule_bytes)
        return violated("a right for each granule", r->rights_count, r->bytes / granule_bytes);
    if (r->base < r->driver_base || r->base + r->bytes > r->driver_base + r->driver_bytes)
        return violated("reservation inside the driver's", r->base, r->driver_base);
    return rights_check(r, granule_bytes);
}

/* Mappings of a segment, and which of them is the first. */
static int slot_check(const struct kvi_book *book, uint32_t slot)
{
    uint64_t count = 0;
    uint64_t first = 0;

    for (size_t i = 0; i < book->reservation_count; i++)
        for (size_t at = 0; at < book->reservations[i].mapping_count; at++) {
            const struct kvi_book_mapping *mapping = &book->reservations[i].mappings[at];

            count += mapping->slot == slot;
            first += mapping->slot == slot && mapping->is_first;
        }
    if (count != book->segments[slot].mapping_count)
        return violated("mappings of a segment = its mapping_count", count,
                        book->segments[slot].mapping_count);
    if (first != (count > 0))
        return violated("one mapping of a segment is the first", first, count);
    return 0;
}

static int reservations_check(const struct kvi_book *book, uint64_t granule_bytes)
{
    uint64_t reached = 0;
    uint64_t reserved_bytes = 0;
    uint64_t mapped_bytes = 0;
    uint64_t mapping_count = 0;
    int rc;

    for (size_t i = 0; i < book->reservation_count; i++) {
        const struct kvi_book_reservation *r = &book->reservations[i];

        if (r->base < reached)
            return violated("reservations sorted and disjoint", reached, r->base);
        rc = reservation_check(r, granule_bytes, &mapped_bytes);
        if (rc < 0)
            return rc;
        reached = r->base + r->bytes;
        reserved_bytes += r->bytes;
        mapping_count += r->mapping_count;
    }
    if (reserved_bytes != book->reserved_bytes)
        return violated("bytes of reservations = reserved_bytes", reserved_bytes,
                        book->reserved_bytes);
    if (mapping_count != book->mapping_count)
        return violated("mappings = mapping_count", mapping_count, book->mapping_count);
    if (mapped_bytes != book->mapped_bytes)
        return violated("bytes of mappings = mapped_bytes", mapped_bytes, book->mapped_bytes);
    return 0;
}

int kvi_book_check(const struct kvi_book *book, uint64_t granule_bytes, uint64_t device_bytes)
{
    int rc = segments_check(book, granule_bytes);

    if (rc == 0 && book->used_bytes > device_bytes)
        rc = violated("used_bytes <= device_bytes", book->used_bytes, device_bytes);
    if (rc == 0)
        rc = reservations_check(book, granule_bytes);
    for (size_t slot = 0; rc == 0 && slot < book->segment_slots; slot++)
        rc = slot_check(book, (uint32_t)slot);
    return rc < 0 ? rc : kvi_allocations_check(&book->allocations);
}
