/* SPDX-License-Identifier: Apache-2.0
 *
 * What every backend must do, as test cases that know backend.h and nothing of what is behind
 * it. A backend's test program names a factory and runs each case of KVT_BACKEND_CASES on it.
 *
 * Each case gets two instances: `device`, which creates, and `client`, which only imports, as
 * daemon and engine have them. It runs twice; around the second run the counts of open fds and
 * of kernel mappings must be equal, and what kvi_backend_memory() reports must be as before.
 * (The first run lets libc and sanitizers map what they will keep.) Where the CPU does not see
 * device memory, kernel mappings are the driver's own affair and not counted; its fds may take
 * up to KVT_ROUNDS_MAX runs to be those that it keeps.
 *
 * No test framework here: a failed check calls the factory's `fail`, which does not return.
 * One thread, but for the cases that start their own.
 */
#ifndef KVT_BACKEND_COMPLIANCE_H
#define KVT_BACKEND_COMPLIANCE_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/backend.h"

#define KVT_DEVICE_GRANULES 64
#define KVT_ROUNDS_MAX      6

struct kvt_backend_factory {
    void *context;
    /* A backend of `granules` granules; 0: a client-side instance. */
    int (*create)(void *context, uint64_t granules, struct kvi_backend **out);
    void (*destroy)(void *context, struct kvi_backend *b);
    /* 0, or a code with the detail set: the implementation's own check of its tables. May be
     * NULL. Called on both instances after each case. */
    int (*check)(void *context, struct kvi_backend *b);
    void (*fail)(const char *file, int line, const char *message);
    /* A part of a case that this device cannot be asked; may be NULL. */
    void (*skip)(const char *reason);
};

struct kvt_backend {
    const struct kvt_backend_factory *factory;
    struct kvi_backend *device;
    struct kvi_backend *client;
    uint64_t granule;      /* bytes */
    uint64_t *counters;    /* one pinned OS page, for both instances */
    uint64_t signal_count; /* counters[0] reaches it once everything issued is done */
};

typedef void (*kvt_backend_case)(struct kvt_backend *t);

/* Run one case, with everything that is checked around it. */
void kvt_backend_run(const struct kvt_backend_factory *factory, kvt_backend_case test_case);

/* X(name): kvt_backend_name is a kvt_backend_case. */
#define KVT_BACKEND_CASES(X)     \
    KVT_BACKEND_SEGMENT_CASES(X) \
    KVT_BACKEND_SPACE_CASES(X)   \
    KVT_BACKEND_COPY_CASES(X)    \
    KVT_BACKEND_BLOCK_CASES(X)

#define KVT_BACKEND_SEGMENT_CASES(X)         \
    X(info_is_complete)                      \
    X(table_with_another_version_is_refused) \
    X(create_takes_exactly_its_bytes)        \
    X(create_refuses_bad_sizes)              \
    X(create_stops_when_full)                \
    X(create_needs_a_device)                 \
    X(null_outputs_are_refused)              \
    X(release_twice_is_refused)              \
    X(handles_never_given_are_refused)       \
    X(released_handle_is_refused_everywhere) \
    X(ids_are_not_reused)                    \
    X(many_segments_in_random_order)         \
    X(export_gives_fds_of_their_own)         \
    X(export_needs_the_creator)              \
    X(import_takes_the_fd)                   \
    X(import_twice_gives_two_handles)        \
    X(import_is_not_charged)                 \
    X(import_refuses_bad_arguments)          \
    X(import_refuses_a_wrong_size)           \
    X(import_refuses_a_pipe)                 \
    X(import_refuses_a_plain_memfd)          \
    X(import_refuses_an_open_file)           \
    X(importers_release_keeps_the_bytes)     \
    X(creators_release_returns_the_bytes)    \
    X(bytes_outlive_their_creator)           \
    X(destroy_closes_everything)             \
    X(failed_calls_write_no_output)

#define KVT_BACKEND_SPACE_CASES(X)                 \
    X(reserve_aligns)                              \
    X(reserve_refuses_bad_arguments)               \
    X(reserve_too_much_changes_nothing)            \
    X(reservations_are_disjoint)                   \
    X(unreserve_takes_exactly_what_was_reserved)   \
    X(unreserve_refuses_while_mapped)              \
    X(map_read_write)                              \
    X(map_shows_the_same_bytes_twice)              \
    X(map_shows_the_creators_bytes_to_an_importer) \
    X(map_refuses_another_size)                    \
    X(map_refuses_bad_addresses)                   \
    X(map_refuses_an_overlap)                      \
    X(map_refuses_a_bad_access)                    \
    X(mapping_outlives_its_handle)                 \
    X(read_only_store_faults)                      \
    X(access_changes_in_place)                     \
    X(access_changes_in_a_run)                     \
    X(access_refuses_bad_ranges)                   \
    X(unmap_leaves_it_reserved)                    \
    X(unmap_takes_a_run)                           \
    X(unmap_refuses_bad_ranges)                    \
    X(unmap_twice_is_refused)                      \
    X(the_first_mapping_goes_last)                 \
    X(random_mappings_match_a_naive_twin)          \
    X(threads_map_side_by_side)

#define KVT_BACKEND_COPY_CASES(X)          \
    X(copy_moves_any_bytes)                \
    X(copy_crosses_mappings)               \
    X(copy_refuses_bad_ranges)             \
    X(copy_refuses_read_only_destinations) \
    X(copy_in_and_out_refuse_bad_ranges)   \
    X(fence_is_reached_in_order)           \
    X(fence_refuses_bad_counters)          \
    X(pin_refuses_bad_memory)              \
    X(pin_is_undone_exactly)

#define KVT_BACKEND_BLOCK_CASES(X)           \
    X(blocks_are_copied)                     \
    X(blocks_are_written_through_an_alias)   \
    X(blocks_are_cleared)                    \
    X(blocks_of_any_size_match_a_naive_twin) \
    X(blocks_beyond_one_launch)              \
    X(blocks_refuse_bad_lists)               \
    X(blocks_refuse_what_is_not_theirs)      \
    X(cells_are_stored)                      \
    X(cells_refuse_bad_places)               \
    X(device_memory_is_counted)              \
    X(device_memory_is_freed_as_it_was_made) \
    X(device_memory_left_goes_with_the_backend)

#define KVT_BACKEND_DECLARE(name) void kvt_backend_##name(struct kvt_backend *t);
KVT_BACKEND_CASES(KVT_BACKEND_DECLARE)
#undef KVT_BACKEND_DECLARE

/* 1 when a sanitizer maps memory of its own. The Makefile says so; by hand the compiler does. */
#if defined(KVI_SANITIZE) || defined(__SANITIZE_ADDRESS__)
#define KVT_SANITIZED 1
#elif defined(__has_feature)
#define KVT_SANITIZED __has_feature(address_sanitizer)
#else
#define KVT_SANITIZED 0
#endif

/* ---- for the cases, and for tests of one backend in the same manner ---- */

/* Fail unless `condition`. */
#define KVT_CHECK(t, condition) kvt_check((t), (condition), __FILE__, __LINE__, #condition)

/* Fail unless `call` returns 0. */
#define KVT_OK(t, call) kvt_result((t), (call), 0, NULL, __FILE__, __LINE__, #call)

/* Fail unless `call` returns `code`, and the thread's detail says so with `word` in its text. */
#define KVT_REFUSED(t, code, word, call) \
    kvt_result((t), (call), (code), (word), __FILE__, __LINE__, #call)

void kvt_check(struct kvt_backend *t, bool condition, const char *file, int line, const char *text);
void kvt_result(struct kvt_backend *t, int result, int wanted, const char *word, const char *file,
                int line, const char *text);

/* Wait until everything issued on the default stream is done. */
void kvt_settle(struct kvt_backend *t, struct kvi_backend *b);

/* Wait until the counter has the value. */
void kvt_reached(struct kvt_backend *t, const uint64_t *counter, uint64_t value);

/* A new segment of `granules`. */
struct kvi_phys kvt_segment(struct kvt_backend *t, uint64_t granules);

/* The same segment in t->client. */
struct kvi_phys kvt_imported(struct kvt_backend *t, struct kvi_phys phys, uint64_t granules);

/* A reservation of `granules`, on the granule. */
uint64_t kvt_reserved(struct kvt_backend *t, struct kvi_backend *b, uint64_t granules);

/* Write, or check, a pattern that `seed` picks, through copy_in and copy_out. */
void kvt_fill(struct kvt_backend *t, struct kvi_backend *b, uint64_t address, uint64_t bytes,
              uint32_t seed);
bool kvt_filled(struct kvt_backend *t, struct kvi_backend *b, uint64_t address, uint64_t bytes,
                uint32_t seed);

/* Equal in everything but the free bytes, which others may change. */
bool kvt_memory_same(const struct kvi_backend_memory *a, const struct kvi_backend_memory *b);
struct kvi_backend_memory kvt_memory(struct kvt_backend *t, struct kvi_backend *b);

/* Does the CPU's load from, or store of the byte that is there to, this address fault? */
bool kvt_load_faults(uint64_t address);
bool kvt_store_faults(uint64_t address);

/* Open fds; kernel mappings of this process (under sanitizers those of memfds alone, since
 * their own come and go). */
int kvt_fd_count(void);
int kvt_map_count(void);

/* Bytes of [address, address + bytes) that belong to some kernel mapping of this process. */
uint64_t kvt_mapped_bytes(uint64_t address, uint64_t bytes);

/* SplitMix64: the next number in a row. */
uint64_t kvt_next_random(uint64_t *state);

/* ---- every operation once, for failing each of them ---- */

struct kvt_sequence {
    struct kvt_backend *t;
    struct kvi_backend *b;            /* what is called; creates and imports */
    struct kvi_backend *inner;        /* what must not change when a call fails; may be b */
    struct kvi_backend_memory before; /* of inner, before the next step */
    uint64_t failed_count;
    int code; /* the only one that may come */
};

/* The last call gave `rc`: when it failed, nothing may have changed. True if it worked. */
bool kvt_step_done(struct kvt_sequence *s, int rc);

/* A call that is simply made again: a fault that fires once is then over. */
#define KVT_STEP_BACK(s, call)                             \
    do {                                                   \
        if (!kvt_step_done((s), (call)))                   \
            KVT_CHECK((s)->t, kvt_step_done((s), (call))); \
    } while (0)

/* Everything once, undone in reverse from wherever it fails. Pins t->counters in s->b. */
void kvt_sequence_run(struct kvt_sequence *s);

#endif
