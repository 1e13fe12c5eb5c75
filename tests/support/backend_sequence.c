/* SPDX-License-Identifier: Apache-2.0
 *
 * A sequence that uses every operation of a backend, for failing each of them. See
 * backend_compliance.h.
 */
#include <unistd.h>

#include "support/backend_compliance.h"

bool kvt_step_done(struct kvt_sequence *s, int rc)
{
    struct kvi_backend_memory after = kvt_memory(s->t, s->inner);

    if (rc < 0) {
        KVT_CHECK(s->t, rc == s->code);
        KVT_CHECK(s->t, kvt_memory_same(&s->before, &after));
        s->failed_count++;
    }
    s->before = after;
    return rc >= 0;
}

static bool sequence_blocks(struct kvt_sequence *s, uint64_t ours)
{
    struct kvi_backend_cell *cells = (struct kvi_backend_cell *)(void *)(s->t->counters + 32);
    struct kvi_backend_blocks list = {
        .to_base = ours, .from_base = ours, .stride_bytes = 64, .bytes = 64, .count = 1};
    int32_t from = 0;
    int32_t to = 2;
    uint64_t bytes = 1024;
    uint64_t memory = 0;
    bool done;

    list.to = &to;
    if (!kvt_step_done(s, kvi_backend_blocks(s->b, &list, 0)))
        return false;
    list.from = &from;
    if (!kvt_step_done(s, kvi_backend_blocks(s->b, &list, 0)) ||
        !kvt_step_done(s, kvi_backend_device_alloc(s->b, bytes, &memory)))
        return false;
    *cells = (struct kvi_backend_cell){3, 7};
    done = kvt_step_done(s, kvi_backend_cells(s->b, memory, cells, 1, 0));
    KVT_STEP_BACK(s, kvi_backend_device_free(s->b, memory, bytes));
    return done;
}

static bool sequence_copies(struct kvt_sequence *s, uint64_t ours, uint64_t theirs)
{
    uint64_t *counter = s->t->counters + 16;
    unsigned char bytes[64] = {7};
    struct kvi_backend_memory memory;

    *counter = 0;
    if (!(kvt_step_done(s, kvi_backend_copy_in(s->b, ours, bytes, 64, 0)) &&
          kvt_step_done(s, kvi_backend_copy(s->b, ours + 64, ours, 64, 0)) &&
          kvt_step_done(s, kvi_backend_copy_out(s->b, bytes, theirs + 64, 64, 0)) &&
          kvt_step_done(s, kvi_backend_set_access(s->b, theirs, s->t->granule, KVI_ACCESS_RW)) &&
          sequence_blocks(s, ours) &&
          kvt_step_done(s, kvi_backend_fence_signal(s->b, counter, 1, 0))))
        return false;
    kvt_reached(s->t, counter, 1); /* nothing is under way when it is unmapped and unpinned */
    return kvt_step_done(s, kvi_backend_fence_wait(s->b, counter, 1, 0)) &&
           kvt_step_done(s, kvi_backend_memory(s->b, &memory));
}

static void sequence_maps(struct kvt_sequence *s, struct kvi_phys phys, struct kvi_phys imported)
{
    uint64_t g = s->t->granule;
    uint64_t base = 0;

    if (!kvt_step_done(s, kvi_backend_reserve(s->b, 4 * g, 0, &base)))
        return;
    if (!kvt_step_done(s, kvi_backend_map(s->b, phys, base, g, KVI_ACCESS_RW)))
        goto unreserve;
    if (!kvt_step_done(s, kvi_backend_map(s->b, imported, base + 2 * g, g, KVI_ACCESS_RO)))
        goto unmap;
    sequence_copies(s, base, base + 2 * g);
    KVT_STEP_BACK(s, kvi_backend_unmap(s->b, base + 2 * g, g));
unmap:
    KVT_STEP_BACK(s, kvi_backend_unmap(s->b, base, g));
unreserve:
    KVT_STEP_BACK(s, kvi_backend_unreserve(s->b, base, 4 * g));
}

void kvt_sequence_run(struct kvt_sequence *s)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t g = s->t->granule;
    struct kvi_phys phys = {0};
    struct kvi_phys imported = {0};
    int fd = -1;

    s->before = kvt_memory(s->t, s->inner);
    if (!kvt_step_done(s, kvi_backend_host_pin(s->b, s->t->counters, page)))
        return;
    if (!kvt_step_done(s, kvi_backend_segment_create(s->b, g, &phys)))
        goto unpin;
    if (!kvt_step_done(s, kvi_backend_segment_export(s->b, phys, &fd)))
        goto release;
    if (!kvt_step_done(s, kvi_backend_segment_import_consume(s->b, fd, g, &imported)))
        goto release;
    sequence_maps(s, phys, imported);
    KVT_STEP_BACK(s, kvi_backend_segment_release(s->b, imported));
release:
    KVT_STEP_BACK(s, kvi_backend_segment_release(s->b, phys));
unpin:
    KVT_STEP_BACK(s, kvi_backend_host_unpin(s->b, s->t->counters, page));
}
