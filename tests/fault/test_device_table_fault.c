/* SPDX-License-Identifier: Apache-2.0
 *
 * Tables on the device while allocations and calls of the device fail, each in turn: a table that
 * could not be made leaves nothing behind, an update that failed has changed nothing.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <string.h>

#include "backend/backend_fault.h"
#include "backend/backend_host.h"
#include "client/device_table.h"
#include "support/scripted.h"

enum {
    ROWS = 4,
    BLOCKS = 8
};

struct world {
    struct kvt_memory memory;
    struct kvi_backend *host;
    struct kvi_backend *backend;
    struct kvmem_client *client;
    struct kvmem_space *space;
    struct kvmem_seq seqs[2];
};

static void begin(struct world *w)
{
    static const uint32_t tokens[] = {3, 9};
    struct kvi_backend_host_options host = {.options_bytes = sizeof(host), .granule_bytes = 4096};
    struct kvmem_space_options options = kvt_small_space("faults");
    struct kvi_client_options client = {.outbox_records = 1024};
    struct kvi_link *link;

    memset(w, 0, sizeof(*w));
    kvt_memory_init(&w->memory);
    cr_assert(kvi_backend_host_create(&host, &w->host) == 0);
    cr_assert(kvi_backend_fault_create(w->host, &w->backend) == 0);
    client.backend = w->backend;
    cr_assert(kvi_link_embed(64u * 4096u, 4096, &link) == 0);
    cr_assert(kvi_client_create(link, &w->memory.alloc, &client, &w->client) == 0);
    cr_assert(kvmem_space_open(w->client, &options, &w->space) == 0);
    cr_assert(kvmem_space_reserve(w->space, 16, 0) == 0);
    cr_assert(kvmem_seqs_create(w->space, 2, w->seqs) == 0);
    cr_assert(kvmem_seqs_append(w->space, 2, w->seqs, tokens, kvmem_fence_none()) == 0);
}

static void end(struct world *w)
{
    kvmem_client_close(w->client);
    cr_assert(w->memory.live == 0);
    kvi_backend_destroy(w->backend);
    kvi_backend_destroy(w->host);
}

static int create(struct world *w, struct kvmem_device_table **out)
{
    struct kvmem_device_table_options options = {
        .size = sizeof(options), .row_limit = ROWS, .block_limit = BLOCKS};

    return kvmem_device_table_create(w->space, &options, out);
}

static struct kvi_backend_memory memory_of(struct world *w)
{
    struct kvi_backend_memory memory;

    cr_assert(kvi_backend_memory(w->host, &memory) == 0);
    return memory;
}

Test(device_table_fault, a_table_that_fails_leaves_nothing)
{
    static const enum kvi_backend_call calls[] = {
        KVI_BACKEND_CALL_HOST_PIN, KVI_BACKEND_CALL_DEVICE_ALLOC, KVI_BACKEND_CALL_COPY_IN,
        KVI_BACKEND_CALL_FENCE_SIGNAL};
    struct kvmem_device_table *table = NULL;
    struct kvi_backend_memory before, after;
    struct world w;
    uint64_t live;

    begin(&w);
    before = memory_of(&w);
    live = w.memory.live;
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        cr_assert(kvi_backend_fault_arm(w.backend, calls[i], 1, KVMEM_E_DEVICE_FULL, false) == 0);
        cr_assert(create(&w, &table) == KVMEM_E_DEVICE_FULL && table == NULL);
        cr_assert(strstr(kvmem_error_detail()->text, kvi_backend_call_name(calls[i])));
        after = memory_of(&w);
        cr_assert(after.pin_count == before.pin_count && after.allocation_count == 0);
        cr_assert(w.memory.live == live);
    }
    for (uint64_t nth = 1; nth <= 2; nth++) {
        w.memory.fail_at = nth;
        cr_assert(create(&w, &table) == KVMEM_E_NO_MEMORY && table == NULL);
        cr_assert(w.memory.live == live);
    }
    w.memory.fail_at = 3;
    cr_assert(create(&w, &table) == 0); /* it needs no third */
    w.memory.fail_at = 0;
    kvmem_device_table_destroy(table);
    after = memory_of(&w);
    cr_assert(after.pin_count == before.pin_count && after.allocation_count == 0);
    end(&w);
}

Test(device_table_fault, an_update_that_is_not_launched_changes_nothing)
{
    struct kvmem_device_table_info info = {.size = sizeof(info)};
    struct kvmem_device_table *table;
    struct world w;

    begin(&w);
    cr_assert(create(&w, &table) == 0);
    cr_assert(kvi_backend_fault_arm(w.backend, KVI_BACKEND_CALL_CELLS, 1, KVMEM_E_SYSTEM, false) ==
              0);
    cr_assert(kvmem_device_table_update(table, 2, w.seqs, NULL) == KVMEM_E_SYSTEM);
    cr_assert(kvmem_device_table_info(table, &info) == 0);
    cr_assert(info.updates == 0 && info.rows == 0 && info.lengths[1] == 0);
    cr_assert(kvmem_device_table_update(table, 2, w.seqs, NULL) == 2 + 4);
    cr_assert(kvmem_device_table_info(table, &info) == 0);
    cr_assert(info.updates == 1 && info.rows == 2 && info.lengths[1] == 9);
    kvmem_device_table_destroy(table);
    end(&w);
}

/* The launch is under way, and nobody will know when: the table is not used any more. */
Test(device_table_fault, an_update_that_is_not_signalled_is_the_last)
{
    struct kvmem_device_table *table;
    struct world w;

    begin(&w);
    cr_assert(create(&w, &table) == 0);
    cr_assert(kvi_backend_fault_arm(w.backend, KVI_BACKEND_CALL_FENCE_SIGNAL, 1, KVMEM_E_SYSTEM,
                                    false) == 0);
    cr_assert(kvmem_device_table_update(table, 2, w.seqs, NULL) == KVMEM_E_SYSTEM);
    cr_assert(kvmem_device_table_update(table, 2, w.seqs, NULL) == KVMEM_E_SYSTEM);
    cr_assert(strstr(kvmem_error_detail()->text, "make another table"));
    kvmem_device_table_destroy(table);
    cr_assert(create(&w, &table) == 0);
    cr_assert(kvmem_device_table_update(table, 2, w.seqs, NULL) == 2 + 4);
    kvmem_device_table_destroy(table);
    end(&w);
}

/* A steady state allocates nothing and asks the device for no memory. */
Test(device_table_fault, updates_need_no_memory)
{
    struct kvmem_device_table *table;
    struct world w;
    uint64_t calls, others;

    begin(&w);
    cr_assert(create(&w, &table) == 0);
    calls = w.memory.calls;
    others = kvi_backend_fault_calls(w.backend, KVI_BACKEND_CALL_ANY) -
             kvi_backend_fault_calls(w.backend, KVI_BACKEND_CALL_CELLS) -
             kvi_backend_fault_calls(w.backend, KVI_BACKEND_CALL_FENCE_SIGNAL);
    for (int i = 0; i < 200; i++) {
        uint32_t tokens = (uint32_t)(i * 7 % 25);

        cr_assert(kvmem_seq_truncate(w.space, w.seqs[1], 1, kvmem_fence_none()) == 0);
        cr_assert(kvmem_seq_append(w.space, w.seqs[1], tokens, kvmem_fence_none()) == 0);
        cr_assert(kvmem_device_table_update(table, 1 + (uint32_t)i % 2, w.seqs, NULL) >= 0);
    }
    cr_assert(w.memory.calls == calls);
    cr_assert(kvi_backend_fault_calls(w.backend, KVI_BACKEND_CALL_ANY) -
                  kvi_backend_fault_calls(w.backend, KVI_BACKEND_CALL_CELLS) -
                  kvi_backend_fault_calls(w.backend, KVI_BACKEND_CALL_FENCE_SIGNAL) ==
              others);
    kvmem_device_table_destroy(table);
    end(&w);
}
