/* SPDX-License-Identifier: Apache-2.0
 *
 * Pins: references on entries that no lease holds, until unpin, a deadline, or the client goes.
 *
 *   id = serial << 24 | place in dir->pins      a stale id is refused, never taken for another
 *
 *   a client's pin_count   = Σ ref_count over its pins ≤ options.pin_limit
 *   a client's pin_objects = its pins                  ≤ options.pin_limit
 *
 * A pinned entry cannot be evicted nor its segment dropped, so a reference by segment number and
 * block stays valid as long as the pin. The table doubles when it is full.
 */
#include "directory/directory_internal.h"

#define PLACE_BITS   24u
#define PLACE_LIMIT  (UINT64_C(1) << PLACE_BITS)
#define FIRST_PLACES 64u

static size_t pin_bytes(uint32_t ref_count)
{
    return sizeof(struct kvi_dir_pin) + sizeof(struct kvi_dir_pin_ref) * ref_count;
}

/* A free place for a pin, making the table longer if need be. 0 or KVMEM_E_NO_MEMORY. */
static int find_place(struct kvi_dir *dir, uint64_t *place)
{
    uint64_t capacity = dir->pin_capacity ? dir->pin_capacity * 2 : FIRST_PLACES;
    struct kvi_dir_pin **pins;

    *place = dir->pin_hint;
    while (*place < dir->pin_slots && dir->pins[*place])
        (*place)++;
    if (*place < dir->pin_capacity)
        return 0;
    if (*place >= PLACE_LIMIT)
        return KVMEM_E_NO_MEMORY;
    pins = kvi_allocate(&dir->env.alloc, sizeof(struct kvi_dir_pin *) * capacity);
    if (!pins)
        return KVMEM_E_NO_MEMORY;
    if (dir->pins)
        memcpy(pins, dir->pins, sizeof(struct kvi_dir_pin *) * dir->pin_capacity);
    kvi_release(&dir->env.alloc, dir->pins, sizeof(struct kvi_dir_pin *) * dir->pin_capacity);
    dir->pins = pins;
    dir->pin_capacity = capacity;
    return 0;
}

/* The entries of that name that are there. */
static uint32_t find_entries(const struct kvi_dir *dir, uint32_t space, const struct kvi_msg_pin *m,
                             struct kvi_dir_pin_ref *refs)
{
    const struct kvi_rec_name *names = kvi_wire_tail_const(m, 0);
    uint32_t count = 0;

    for (uint32_t i = 0; i < m->name_count; i++)
        count += (uint32_t)kvi_dir_find(dir, space, names[i].bytes, &refs[count].segment,
                                        &refs[count].block);
    return count;
}

static struct kvi_dir_pin *create_pin(struct kvi_dir *dir, const struct kvi_dir_pin_ref *refs,
                                      uint32_t ref_count)
{
    struct kvi_dir_pin *pin = kvi_allocate(&dir->env.alloc, pin_bytes(ref_count));
    uint64_t place;

    if (!pin)
        return NULL;
    if (find_place(dir, &place) != 0) {
        kvi_release(&dir->env.alloc, pin, pin_bytes(ref_count));
        return NULL;
    }
    pin->id = ++dir->pin_serial << PLACE_BITS | place;
    pin->ref_count = ref_count;
    memcpy(pin->refs, refs, sizeof(*refs) * ref_count);
    for (uint32_t i = 0; i < ref_count; i++)
        kvi_dir_entry_pin(&dir->segments[refs[i].segment], refs[i].block);
    dir->pins[place] = pin;
    dir->pin_hint = place + 1;
    if (dir->pin_slots <= place)
        dir->pin_slots = place + 1;
    return pin;
}

static void end_pin(struct kvi_dir *dir, uint64_t place)
{
    struct kvi_dir_pin *pin = dir->pins[place];
    struct kvi_dir_client *client = &dir->clients[pin->client];

    for (uint32_t i = 0; i < pin->ref_count; i++)
        kvi_dir_entry_unpin(dir, &dir->segments[pin->refs[i].segment], pin->refs[i].block);
    client->pin_count -= pin->ref_count;
    client->pin_objects--;
    kvi_release(&dir->env.alloc, pin, pin_bytes(pin->ref_count));
    dir->pins[place] = NULL;
    if (place < dir->pin_hint)
        dir->pin_hint = place;
    while (dir->pin_slots > 0 && !dir->pins[dir->pin_slots - 1])
        dir->pin_slots--;
}

static void send_pin(struct kvi_dir *dir, const struct kvi_dir_client *client,
                     const struct kvi_dir_pin *pin, uint32_t serial)
{
    struct kvi_msg_pin_reply reply;

    kvi_wire_begin(&reply, KVI_OP_PIN_REPLY, serial);
    reply.pin = pin->id;
    reply.pinned_count = pin->ref_count;
    kvi_dir_reply(dir, client, &reply);
}

void kvi_dir_pin_add(struct kvi_dir *dir, struct kvi_dir_client *client,
                     const struct kvi_msg_pin *m)
{
    struct kvi_dir_open *open = kvi_dir_open_need(dir, client, &m->header, m->space);
    struct kvi_dir_pin_ref *refs = (void *)dir->out; /* until the reply is written */
    uint64_t limit = dir->options.pin_limit;
    struct kvi_dir_pin *pin = NULL;
    uint32_t count;

    if (!open)
        return;
    if (m->group != 0) {
        kvi_dir_refuse(dir, client, m->header.opcode, m->header.serial, KVMEM_E_NOT_SUPPORTED,
                       "pin.group: only group 0 is supported yet");
        return;
    }
    count = find_entries(dir, open->space, m, refs);
    if (client->pin_count + count > limit || client->pin_objects >= limit) {
        kvi_dir_refuse(dir, client, m->header.opcode, m->header.serial, KVMEM_E_LIMIT,
                       "pin.name_count: a client may pin at most %u entries; unpin some",
                       dir->options.pin_limit);
        return;
    }
    pin = create_pin(dir, refs, count);
    if (!pin) {
        kvi_dir_refuse(dir, client, m->header.opcode, m->header.serial, KVMEM_E_NO_MEMORY,
                       "pin: no memory for its record");
        return;
    }
    pin->client = client->number;
    pin->space = open->space;
    pin->deadline_ns = m->lifetime_ns == 0 ? KVI_DIR_NEVER : kvi_dir_now_ns(dir) + m->lifetime_ns;
    kvi_dir_tick_at(dir, pin->deadline_ns);
    client->pin_count += count;
    client->pin_objects++;
    send_pin(dir, client, pin, m->header.serial);
}

void kvi_dir_pin_remove(struct kvi_dir *dir, struct kvi_dir_client *client,
                        const struct kvi_msg_unpin *m)
{
    uint64_t place = m->pin & (PLACE_LIMIT - 1);

    if (place >= dir->pin_slots || !dir->pins[place] || dir->pins[place]->id != m->pin ||
        dir->pins[place]->client != client->number) {
        kvi_dir_refuse(dir, client, m->header.opcode, m->header.serial, KVMEM_E_NOT_FOUND,
                       "unpin.pin: the client has no pin %llu; it may have expired",
                       (unsigned long long)m->pin);
        return;
    }
    end_pin(dir, place);
    kvi_dir_done(dir, client, &m->header);
}

void kvi_dir_pin_drop(struct kvi_dir *dir, uint32_t client, uint32_t space)
{
    if (dir->clients[client].pin_objects == 0)
        return;
    for (uint64_t place = dir->pin_slots; place > 0; place--) {
        const struct kvi_dir_pin *pin = place <= dir->pin_slots ? dir->pins[place - 1] : NULL;

        if (pin && pin->client == client && pin->space == space)
            end_pin(dir, place - 1);
    }
}

void kvi_dir_pin_expire(struct kvi_dir *dir, uint64_t now_ns)
{
    for (uint64_t place = 0; place < dir->pin_slots; place++) {
        const struct kvi_dir_pin *pin = dir->pins[place];

        if (!pin)
            continue;
        if (pin->deadline_ns <= now_ns)
            end_pin(dir, place);
        else
            kvi_dir_tick_at(dir, pin->deadline_ns);
    }
}

void kvi_dir_pin_fini(struct kvi_dir *dir)
{
    for (uint64_t place = 0; place < dir->pin_slots; place++)
        if (dir->pins[place])
            kvi_release(&dir->env.alloc, dir->pins[place], pin_bytes(dir->pins[place]->ref_count));
    kvi_release(&dir->env.alloc, dir->pins, sizeof(struct kvi_dir_pin *) * dir->pin_capacity);
}
