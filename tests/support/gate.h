/* SPDX-License-Identifier: Apache-2.0
 *
 * A gate: a job of a mapper that is not over before the test opens it. What is submitted after it
 * waits behind it, with a helper.
 */
#ifndef KVT_GATE_H
#define KVT_GATE_H

#include "client/mapper.h"

struct kvt_gate {
    struct kvi_backend base; /* unmaps nothing, when the gate is open */
    uint32_t is_open;
};

/* Shut. */
void kvt_gate_init(struct kvt_gate *gate);

/* Hand the job over; several may wait at one gate. */
void kvt_gate_submit(struct kvt_gate *gate, struct kvi_mapper *mapper);

/* From any thread. */
void kvt_gate_open(struct kvt_gate *gate);

#endif
