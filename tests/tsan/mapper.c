/* SPDX-License-Identifier: Apache-2.0
 *
 * A mapper with its helper at full speed, and the client's thread touching what it was told is
 * mapped. Run under ThreadSanitizer by `make test-tsan`; without it, it still checks every outcome.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "backend/backend_host.h"
#include "client/mapper.h"
#include "support/random.h"

#define GRANULE UINT64_C(4096)
#define PLACES  32u
#define ROUNDS  20000u
#define SEED    UINT64_C(0x7473616e)

static struct {
    struct kvi_backend *creator;
    struct kvi_backend *importer;
    struct kvi_phys created;
    struct kvi_phys phys[PLACES];
    uint8_t pending[PLACES];
    uint64_t base;
    uint64_t write_base;
    uint32_t failures;
} world;

static void mapped(const struct kvi_mapping *job)
{
    world.pending[job->tag] = 0;
    world.failures += job->code != 0;
    if (job->code)
        return;
    world.phys[job->tag] = job->phys;
    *(volatile uint8_t *)kvi_backend_pointer(job->write_address) = (uint8_t)job->tag;
}

static void unmapped(const struct kvi_mapping *job)
{
    world.pending[job->tag] = 0;
    world.failures += job->code != 0;
    world.phys[job->tag].id = 0;
}

/* Map what is not mapped, unmap what is. */
static int turn(struct kvi_mapper *mapper, uint32_t place)
{
    struct kvi_mapping job = {.kind = KVI_MAPPING_MAP,
                              .access = KVI_ACCESS_RW,
                              .backend = world.importer,
                              .fd = -1,
                              .address = world.base + place * GRANULE,
                              .write_address = world.write_base + place * GRANULE,
                              .bytes = GRANULE,
                              .done = mapped,
                              .tag = place};

    if (world.pending[place])
        return 0;
    if (world.phys[place].id) {
        job.kind = KVI_MAPPING_UNMAP;
        job.phys = world.phys[place];
        job.done = unmapped;
    } else if (kvi_backend_segment_export(world.creator, world.created, &job.fd)) {
        return -1;
    }
    world.pending[place] = 1;
    return kvi_mapper_submit(mapper, &job);
}

static const char *play(struct kvi_mapper *mapper)
{
    uint64_t seed = SEED;

    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint64_t dice = kvt_random(&seed);

        if (turn(mapper, dice % PLACES))
            return "a job was not taken";
        if (dice >> 48 & 1)
            kvi_mapper_poll(mapper);
        if ((dice >> 50 & 63) == 0)
            kvi_mapper_drain(mapper);
    }
    kvi_mapper_drain(mapper);
    for (uint32_t place = 0; place < PLACES; place++)
        if (world.phys[place].id && turn(mapper, place))
            return "the last jobs were not taken";
    return NULL;
}

int main(void)
{
    struct kvi_backend_host_options host = {
        .options_bytes = sizeof(host), .device_bytes = GRANULE, .granule_bytes = GRANULE};
    struct kvi_mapper_options options = {&kvi_alloc_libc, true};
    struct kvi_mapper *mapper = NULL;
    struct kvi_backend_memory memory;
    const char *failure = "a backend";

    if (kvi_backend_host_create(&host, &world.creator) ||
        kvi_backend_segment_create(world.creator, GRANULE, &world.created))
        goto out;
    host.device_bytes = 0;
    if (kvi_backend_host_create(&host, &world.importer) ||
        kvi_backend_reserve(world.importer, PLACES * GRANULE, 0, &world.base) ||
        kvi_backend_reserve(world.importer, PLACES * GRANULE, 0, &world.write_base) ||
        kvi_mapper_create(&options, &mapper))
        goto out;
    failure = play(mapper);
    kvi_mapper_destroy(mapper);
    if (!failure && world.failures)
        failure = "a job failed";
    if (!failure && (kvi_backend_memory(world.importer, &memory) || memory.mapping_count ||
                     memory.handle_count))
        failure = "something is mapped still";
    kvi_backend_destroy(world.importer);
    kvi_backend_destroy(world.creator);
out:
    if (failure)
        printf("mapper, seed %#llx: %s\n", (unsigned long long)SEED, failure);
    return failure != NULL;
}
