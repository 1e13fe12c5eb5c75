/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a process that is about to be killed is. It keeps this in a shared page, so that the page
 * says after its death where death met it.
 */
#ifndef KVT_PHASE_H
#define KVT_PHASE_H

#include <stdatomic.h>
#include <stdint.h>

enum kvt_phase {
    KVT_PHASE_NONE = 0, /* on its way */
    KVT_PHASE_WAITING,  /* asked for blocks, and the pool has none */
    KVT_PHASE_FDS,      /* descriptors are in its socket, unread */
    KVT_PHASE_APPEND,   /* has written blocks that nobody knows of */
    KVT_PHASE_HOLDING,  /* leases and maps another client's entries */
    KVT_PHASE_DISPATCH, /* inside kvmem_client_dispatch */
    KVT_PHASE_COUNT
};

struct kvt_phase_page {
    _Atomic uint32_t phase;
    _Atomic uint64_t since_ns;
};

#endif
