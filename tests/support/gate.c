/* SPDX-License-Identifier: Apache-2.0
 *
 * A backend with one operation; see gate.h.
 */
#include "support/gate.h"

#include <kvmem/error.h>
#include <poll.h>
#include <string.h>

#include "support/spawn.h"

#define GRANULE UINT64_C(4096)

static int wait_at_gate(struct kvi_backend *b, uint64_t address, uint64_t bytes)
{
    const struct kvt_gate *gate = (const struct kvt_gate *)b;

    (void)address;
    (void)bytes;
    while (!__atomic_load_n(&gate->is_open, __ATOMIC_ACQUIRE))
        poll(NULL, 0, 1);
    return 0;
}

static void passed(const struct kvi_mapping *job)
{
    (void)job;
}

void kvt_gate_init(struct kvt_gate *gate)
{
    static const struct kvi_backend_ops ops = {.unmap = wait_at_gate};

    memset(gate, 0, sizeof(*gate));
    gate->base.ops = &ops;
    gate->base.info.granule_bytes = GRANULE;
}

void kvt_gate_submit(struct kvt_gate *gate, struct kvi_mapper *mapper)
{
    struct kvi_mapping job = {.kind = KVI_MAPPING_LOWER,
                              .backend = &gate->base,
                              .fd = -1,
                              .bytes = GRANULE,
                              .done = passed};

    if (kvi_mapper_submit(mapper, &job))
        kvt_die("gate: %s", kvmem_error_detail()->text);
}

void kvt_gate_open(struct kvt_gate *gate)
{
    __atomic_store_n(&gate->is_open, 1, __ATOMIC_RELEASE);
}
