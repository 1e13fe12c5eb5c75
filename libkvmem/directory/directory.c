/* SPDX-License-Identifier: Apache-2.0
 *
 * Creating and destroying a directory, the way of a datagram through it, and deadlines.
 *
 *   datagram ─▶ copy ─▶ kvi_wire_check ─▶ state and role of the client ─▶ handler ─▶ reply
 *                                                                            │
 *                          waiting requests are tried again ◀── memory came back
 *
 * A handler checks everything before it changes anything: what it refuses left no trace but
 * counters. One message is carried out wholly before the next; the only things that last longer
 * are requests for blocks (request.c) and pins (pin.c).
 */
#include "directory/directory_internal.h"

#include <stdarg.h>
#include <stdio.h>

#include "util/error.h"

#define DEFAULT_PRESSURE_NS UINT64_C(50000000)
#define DEFAULT_UNACKED_FDS 64u
#define DEFAULT_PIN_LIMIT   65536u

/* ---- sending ---- */

uint64_t kvi_dir_now_ns(const struct kvi_dir *dir)
{
    return dir->env.now_ns(dir->env.context);
}

void kvi_dir_reply(struct kvi_dir *dir, const struct kvi_dir_client *client, void *message)
{
    size_t bytes = kvi_wire_finish(message);

    if (kvi_dir_client_is_reachable(client))
        dir->env.send(dir->env.context, client->number, message, bytes, NULL, 0);
}

void kvi_dir_refuse(struct kvi_dir *dir, const struct kvi_dir_client *client, uint32_t opcode,
                    uint32_t serial, int code, const char *format, ...)
{
    struct kvi_msg_error error;
    va_list args;

    kvi_wire_begin(&error, KVI_OP_ERROR, serial);
    error.code = code;
    error.opcode = opcode;
    va_start(args, format);
    vsnprintf(error.text, sizeof(error.text), format, args);
    va_end(args);
    kvi_dir_reply(dir, client, &error);
}

void kvi_dir_done(struct kvi_dir *dir, const struct kvi_dir_client *client,
                  const struct kvi_header *header)
{
    struct kvi_msg_done done;

    kvi_wire_begin(&done, KVI_OP_DONE, header->serial);
    done.opcode = header->opcode;
    kvi_dir_reply(dir, client, &done);
}

/* ---- create and destroy ---- */

static int check_device(const struct kvi_dir_device *o)
{
    if (o->granule_bytes < 4096 || (o->granule_bytes & (o->granule_bytes - 1)) != 0 ||
        o->granule_bytes > UINT64_C(1) << 40)
        return kvi_error_set(KVMEM_E_INVALID,
                             "granule_bytes: %llu is no power of two from 4096 to 2^40",
                             (unsigned long long)o->granule_bytes);
    if (o->device_bytes == 0 || o->device_bytes % o->granule_bytes != 0)
        return kvi_error_set(
            KVMEM_E_INVALID, "device_bytes: %llu is no multiple of the granule, %llu, above 0",
            (unsigned long long)o->device_bytes, (unsigned long long)o->granule_bytes);
    return 0;
}

static int check_options(const struct kvi_dir_options *o)
{
    int code = 0;

    if (o->device_count == 0 || o->device_count > KVI_DEVICE_LIMIT)
        return kvi_error_set(KVMEM_E_INVALID, "device_count: %u is outside 1..%u", o->device_count,
                             KVI_DEVICE_LIMIT);
    for (uint32_t i = 0; !code && i < o->device_count; i++)
        code = check_device(&o->devices[i]);
    if (code)
        return code;
    if (o->client_limit > KVI_CLIENT_LIMIT)
        return kvi_error_set(KVMEM_E_INVALID, "client_limit: %u is outside 0..%u", o->client_limit,
                             KVI_CLIENT_LIMIT);
    if (o->space_limit > KVI_SPACE_LIMIT)
        return kvi_error_set(KVMEM_E_INVALID, "space_limit: %u is outside 0..%u", o->space_limit,
                             KVI_SPACE_LIMIT);
    if (o->status_bytes > UINT64_C(1) << 30)
        return kvi_error_set(KVMEM_E_INVALID, "status_bytes: %llu is outside 0..2^30",
                             (unsigned long long)o->status_bytes);
    return 0;
}

static int check_env(const struct kvi_dir_env *env)
{
    if (env->version != KVI_DIR_ENV_VERSION || env->size != sizeof(*env))
        return kvi_error_set(KVMEM_E_INVALID, "env: version %u of %u bytes, wanted %u of %zu",
                             env->version, env->size, KVI_DIR_ENV_VERSION, sizeof(*env));
    if (!env->alloc.allocate || !env->alloc.release || !env->now_ns || !env->random || !env->send ||
        !env->segment_create || !env->segment_release || !env->client_close)
        return kvi_error_set(KVMEM_E_INVALID, "env: a callback is missing");
    return 0;
}

/* Most segments of a device: a granule each, in a space with regions. */
static uint64_t most_segments(const struct kvi_dir_device *options)
{
    return options->device_bytes / options->granule_bytes;
}

/* Numbers of segments: those of all devices, and one for a segment that is prepared before those
 * that it replaces are dropped. */
static uint32_t segment_limit_of(const struct kvi_dir_options *options)
{
    uint64_t limit = 1;

    for (uint32_t i = 0; i < options->device_count; i++)
        limit += most_segments(&options->devices[i]);
    return limit > KVI_SEGMENT_LIMIT ? KVI_SEGMENT_LIMIT : (uint32_t)limit;
}

static void set_options(struct kvi_dir *dir, const struct kvi_dir_options *options)
{
    dir->options = *options;
    for (uint32_t i = 0; i < options->device_count; i++)
        dir->options.devices[i].name[sizeof(options->devices[i].name) - 1] = '\0';
    if (dir->options.pressure_ns == 0)
        dir->options.pressure_ns = DEFAULT_PRESSURE_NS;
    if (dir->options.client_limit == 0)
        dir->options.client_limit = KVI_CLIENT_LIMIT;
    if (dir->options.space_limit == 0)
        dir->options.space_limit = KVI_SPACE_LIMIT;
    if (dir->options.unacked_fd_limit == 0)
        dir->options.unacked_fd_limit = DEFAULT_UNACKED_FDS;
    if (dir->options.pin_limit == 0)
        dir->options.pin_limit = DEFAULT_PIN_LIMIT;
}

static size_t heap_bytes(const struct kvi_dir *dir)
{
    return sizeof(struct kvi_heap_item) * dir->segment_limit;
}

static int allocate_tables(struct kvi_dir *dir)
{
    const struct kvi_alloc *alloc = &dir->env.alloc;

    dir->segments = kvi_allocate(alloc, sizeof(*dir->segments) * dir->segment_limit);
    dir->spaces = kvi_allocate(alloc, sizeof(*dir->spaces) * dir->options.space_limit);
    dir->clients = kvi_allocate(alloc, sizeof(*dir->clients) * dir->options.client_limit);
    dir->foreign.items = kvi_allocate(alloc, heap_bytes(dir));
    dir->whole.items = kvi_allocate(alloc, heap_bytes(dir));
    dir->blocks.items = kvi_allocate(alloc, heap_bytes(dir));
    if (!dir->segments || !dir->spaces || !dir->clients || !dir->foreign.items ||
        !dir->whole.items || !dir->blocks.items)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "no memory for the tables of the directory");
    for (uint32_t i = 0; i < dir->options.client_limit; i++)
        dir->clients[i].number = i;
    for (uint32_t i = 0; i < dir->segment_limit; i++)
        dir->segments[i].owner = KVI_NO_CLIENT;
    return 0;
}

static void free_tables(struct kvi_dir *dir)
{
    const struct kvi_alloc alloc = dir->env.alloc;

    kvi_release(&alloc, dir->blocks.items, heap_bytes(dir));
    kvi_release(&alloc, dir->whole.items, heap_bytes(dir));
    kvi_release(&alloc, dir->foreign.items, heap_bytes(dir));
    kvi_release(&alloc, dir->clients, sizeof(*dir->clients) * dir->options.client_limit);
    kvi_release(&alloc, dir->spaces, sizeof(*dir->spaces) * dir->options.space_limit);
    kvi_release(&alloc, dir->segments, sizeof(*dir->segments) * dir->segment_limit);
    kvi_release(&alloc, dir, sizeof(*dir));
}

int kvi_dir_create(const struct kvi_dir_options *options, const struct kvi_dir_env *env,
                   struct kvi_dir **out)
{
    uint8_t key[32];
    struct kvi_dir *dir;
    int code = check_options(options);

    if (code == 0)
        code = check_env(env);
    if (code != 0)
        return code;
    dir = kvi_allocate(&env->alloc, sizeof(*dir));
    if (!dir)
        return kvi_error_set(KVMEM_E_NO_MEMORY, "no memory for a directory");
    dir->env = *env;
    set_options(dir, options);
    for (uint32_t i = 0; i < options->device_count; i++)
        dir->memory[i].free_bytes = options->devices[i].device_bytes;
    dir->segment_limit = segment_limit_of(options);
    dir->next_tick_ns = KVI_DIR_NEVER;
    code = allocate_tables(dir);
    if (code != 0) {
        free_tables(dir);
        return code;
    }
    dir->started_ns = kvi_dir_now_ns(dir);
    env->random(env->context, key, sizeof(key));
    kvi_index_init(&dir->index, key);
    *out = dir;
    return 0;
}

static void free_opens(struct kvi_dir *dir, struct kvi_dir_client *client)
{
    struct kvi_dir_open *open;

    while ((open = client->opens) != NULL) {
        client->opens = open->next;
        kvi_dir_open_free(dir, open);
    }
}

void kvi_dir_destroy(struct kvi_dir *dir)
{
    if (!dir)
        return;
    for (uint32_t i = 0; i < dir->segment_high; i++) {
        struct kvi_dir_segment *segment = &dir->segments[i];

        if (segment->entries)
            kvi_release(&dir->env.alloc, segment->entries,
                        kvi_dir_records_bytes(segment->block_count));
        if (segment->state != KVI_SEGMENT_FREE && segment->state != KVI_SEGMENT_CREATING)
            dir->env.segment_release(dir->env.context, i);
    }
    for (uint32_t i = 0; i < dir->options.client_limit; i++)
        free_opens(dir, &dir->clients[i]);
    for (uint32_t i = 0; i < dir->options.space_limit; i++)
        if (dir->spaces[i].is_used)
            kvi_dir_space_fini(dir, &dir->spaces[i]);
    kvi_dir_pin_fini(dir);
    kvi_dir_recycle_fini(dir);
    kvi_index_fini(&dir->index, &dir->env.alloc);
    free_tables(dir);
}

/* ---- messages ---- */

static int is_report(uint32_t opcode)
{
    return opcode == KVI_OP_STATS || opcode == KVI_OP_CLIENTS || opcode == KVI_OP_SPACES ||
           opcode == KVI_OP_SEGMENTS || opcode == KVI_OP_CHECK || opcode == KVI_OP_GOODBYE ||
           opcode == KVI_OP_ACKNOWLEDGE || opcode == KVI_OP_DEVICES;
}

static void dispatch(struct kvi_dir *dir, struct kvi_dir_client *client, const void *message)
{
    switch (((const struct kvi_header *)message)->opcode) {
    case KVI_OP_SPACE_OPEN: kvi_dir_space_open(dir, client, message); break;
    case KVI_OP_SPACE_CLOSE: kvi_dir_space_close(dir, client, message); break;
    case KVI_OP_BLOCKS_REQUEST: kvi_dir_blocks_request(dir, client, message); break;
    case KVI_OP_SEGMENT_HAND_IN: kvi_dir_segment_hand_in(dir, client, message); break;
    case KVI_OP_SEGMENT_MAP: kvi_dir_segment_map(dir, client, message); break;
    case KVI_OP_SEGMENT_UNMAPPED: kvi_dir_segment_unmapped(dir, client, message); break;
    case KVI_OP_LOOKUP: kvi_dir_lookup(dir, client, message); break;
    case KVI_OP_PUBLISH: kvi_dir_publish(dir, client, message); break;
    case KVI_OP_RELEASE: kvi_dir_release(dir, client, message); break;
    case KVI_OP_PIN: kvi_dir_pin_add(dir, client, message); break;
    case KVI_OP_UNPIN: kvi_dir_pin_remove(dir, client, message); break;
    case KVI_OP_STATS: kvi_dir_report_stats(dir, client, message); break;
    case KVI_OP_CLIENTS: kvi_dir_report_clients(dir, client, message); break;
    case KVI_OP_SPACES: kvi_dir_report_spaces(dir, client, message); break;
    case KVI_OP_SEGMENTS: kvi_dir_report_segments(dir, client, message); break;
    case KVI_OP_CHECK: kvi_dir_report_check(dir, client, message); break;
    case KVI_OP_DEVICES: kvi_dir_report_devices(dir, client, message); break;
    case KVI_OP_TIMELINE_MAP: kvi_dir_client_timeline(dir, client, message); break;
    case KVI_OP_ACKNOWLEDGE: break; /* every header does */
    case KVI_OP_GOODBYE: kvi_dir_client_goodbye(dir, client, message); break;
    default: assert(!"the check lets no other message pass");
    }
}

/* A checked message from a client that has said hello, or says it now. */
static void receive(struct kvi_dir *dir, struct kvi_dir_client *client, const void *message)
{
    const struct kvi_header *header = message;

    if (client->state == KVI_DIR_CLIENT_NEW) {
        if (header->opcode == KVI_OP_HELLO)
            kvi_dir_client_hello(dir, client, message);
        else
            kvi_dir_client_expel(dir, client, KVMEM_E_PROTOCOL, "the first message is not hello");
        return;
    }
    if (header->opcode == KVI_OP_HELLO) {
        kvi_dir_client_expel(dir, client, KVMEM_E_PROTOCOL, "hello was said before");
        return;
    }
    if (kvi_dir_client_acknowledge(client, header->fds_received) != 0) {
        kvi_dir_client_expel(dir, client, KVMEM_E_PROTOCOL,
                             "header.fds_received: not between what it was and what was sent");
        return;
    }
    if (client->role == KVMEM_ROLE_OBSERVER && !is_report(header->opcode))
        kvi_dir_refuse(dir, client, header->opcode, header->serial, KVMEM_E_PERMISSION,
                       "%s: an observer may only ask for reports", kvi_wire_name(header->opcode));
    else
        dispatch(dir, client, message);
    if (client->state == KVI_DIR_CLIENT_ALIVE)
        kvi_dir_request_resume(dir, client);
}

static struct kvi_dir_client *client_at(struct kvi_dir *dir, uint32_t number)
{
    if (number >= dir->options.client_limit || dir->clients[number].state == KVI_DIR_CLIENT_FREE)
        return NULL;
    return &dir->clients[number];
}

static void answer_verdict(struct kvi_dir *dir, struct kvi_dir_client *client, size_t bytes,
                           enum kvi_wire_verdict verdict, const char *text)
{
    const struct kvi_header *header = (const void *)dir->in;
    int is_whole = bytes >= sizeof(*header);
    uint32_t opcode = is_whole && header->opcode <= 255 ? header->opcode : 0;

    kvi_dir_refuse(dir, client, opcode, is_whole ? header->serial : 0,
                   verdict == KVI_WIRE_BAD_FIELD ? KVMEM_E_INVALID : KVMEM_E_PROTOCOL, "%s", text);
    if (verdict == KVI_WIRE_BAD_FRAME)
        kvi_dir_client_expel(dir, client, KVMEM_E_PROTOCOL, text);
}

void kvi_dir_message(struct kvi_dir *dir, uint32_t number, const void *datagram, size_t bytes,
                     uint32_t fd_count)
{
    struct kvi_dir_client *client = client_at(dir, number);
    char text[160] = "the datagram is too long";
    enum kvi_wire_verdict verdict = KVI_WIRE_BAD_FRAME;
    size_t copied = bytes < sizeof(dir->in) ? bytes : sizeof(dir->in);

    if (!client || (client->state != KVI_DIR_CLIENT_NEW && client->state != KVI_DIR_CLIENT_ALIVE))
        return; /* it came too late: the connection has ended for us */
    client->messages++;
    memcpy(dir->in, datagram, copied);
    if (bytes <= sizeof(dir->in))
        verdict = kvi_wire_check(dir->in, bytes, fd_count, KVI_TO_DAEMON, text, sizeof(text));
    if (verdict == KVI_WIRE_OK)
        receive(dir, client, dir->in);
    else
        answer_verdict(dir, client, copied, verdict, text);
    kvi_dir_request_retry(dir);
}

/* ---- deadlines ---- */

void kvi_dir_tick_at(struct kvi_dir *dir, uint64_t when_ns)
{
    if (when_ns < dir->next_tick_ns)
        dir->next_tick_ns = when_ns;
}

uint64_t kvi_dir_next_deadline_ns(const struct kvi_dir *dir)
{
    uint64_t request_ns = kvi_dir_request_next_deadline(dir);

    return request_ns < dir->next_tick_ns ? request_ns : dir->next_tick_ns;
}

void kvi_dir_tick(struct kvi_dir *dir)
{
    uint64_t now_ns = kvi_dir_now_ns(dir);

    if (now_ns >= dir->next_tick_ns) {
        dir->next_tick_ns = KVI_DIR_NEVER; /* both set it again for what is left */
        kvi_dir_pin_expire(dir, now_ns);
        kvi_dir_pressure_expire(dir, now_ns);
    }
    kvi_dir_request_retry(dir);
    kvi_dir_request_expire(dir, now_ns);
}

void kvi_dir_drain(struct kvi_dir *dir, uint64_t deadline_ns)
{
    struct kvi_msg_draining message;

    dir->is_draining = 1;
    for (uint32_t i = 0; i < dir->options.client_limit; i++) {
        if (dir->clients[i].state != KVI_DIR_CLIENT_ALIVE)
            continue;
        kvi_wire_begin(&message, KVI_OP_DRAINING, 0);
        message.deadline_ns = deadline_ns;
        kvi_dir_reply(dir, &dir->clients[i], &message);
    }
}
