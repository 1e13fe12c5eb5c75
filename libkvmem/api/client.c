/* SPDX-License-Identifier: Apache-2.0
 *
 * Public functions of kvmem/client.h: arguments are checked here, the work is in client/client.c.
 */
#include "client/client.h"

#include <inttypes.h>
#include <string.h>
#include <sys/un.h>

#include "backend/backend_host.h"
#include "util/error.h"

#define NAME_BYTES 31u

static int check_name(const char *name)
{
    if (name && strnlen(name, NAME_BYTES + 1) > NAME_BYTES)
        return kvi_error_set(KVMEM_E_INVALID, "name: is longer than %u bytes", NAME_BYTES);
    return 0;
}

static int check_outbox(uint32_t records)
{
    if (records && (records < KVI_CLIENT_OUTBOX_MIN || records > KVI_CLIENT_OUTBOX_MAX))
        return kvi_error_set(KVMEM_E_INVALID,
                             "outbox_records: %" PRIu32 " is outside %u..%u (or 0)", records,
                             KVI_CLIENT_OUTBOX_MIN, KVI_CLIENT_OUTBOX_MAX);
    return 0;
}

static int check_flags(uint32_t flags)
{
    if (flags & ~(uint32_t)KVMEM_CLIENT_HELPER)
        return kvi_error_set(KVMEM_E_INVALID, "options.flags: %#" PRIx32 " is outside 0..%#x",
                             flags, KVMEM_CLIENT_HELPER);
    return 0;
}

static int check_connect(const struct kvmem_connect_options *options)
{
    int code;

    if (options->size != sizeof(*options))
        return kvi_error_set(KVMEM_E_INVALID, "options.size: %" PRIu32 ", expected %zu",
                             options->size, sizeof(*options));
    if (options->role > KVMEM_ROLE_OBSERVER)
        return kvi_error_set(KVMEM_E_INVALID, "role: %" PRIu32 " is outside 0..2", options->role);
    if (options->role == KVMEM_ROLE_MEMBER)
        return kvi_error_set(KVMEM_E_NOT_SUPPORTED, "role: MEMBER is not supported yet");
    if (options->session)
        return kvi_error_set(KVMEM_E_NOT_SUPPORTED, "session: joining is not supported yet");
    code = check_flags(options->flags);
    if (code)
        return code;
    if (options->timeout_ns < 0)
        return kvi_error_set(KVMEM_E_INVALID, "timeout_ns: %" PRId64 " is outside 0..%" PRId64,
                             options->timeout_ns, INT64_MAX);
    code = check_name(options->name);
    return code ? code : check_outbox(options->outbox_records);
}

int kvmem_client_connect(const struct kvmem_connect_options *options, struct kvmem_client **out)
{
    static const struct kvmem_connect_options defaults = {.size = sizeof(defaults)};
    struct kvi_client_options inner = {0};
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    struct kvi_link *link;
    int code;

    if (!out)
        return kvi_error_set(KVMEM_E_INVALID, "out: is NULL");
    if (!options)
        options = &defaults;
    code = check_connect(options);
    if (!code)
        code = kvi_socket_path(options->socket_path, path, sizeof(path));
    if (code)
        return code;
    inner.name = options->name;
    inner.role = options->role;
    inner.has_helper = options->flags & KVMEM_CLIENT_HELPER;
    inner.outbox_records = options->outbox_records;
    inner.timeout_ns = options->timeout_ns ? options->timeout_ns : KVI_CLIENT_TIMEOUT_NS;
    code = kvi_link_connect(path, inner.timeout_ns, &link);
    if (code)
        return code;
    code = kvi_client_create(link, &kvi_alloc_libc, &inner, out);
    if (code == KVMEM_E_DAEMON_LOST) /* one that is just ending still accepts */
        return kvi_error_set(code,
                             "kvmemd at %s closed the connection before it said welcome; "
                             "start one or set KVMEM_SOCKET",
                             path);
    return code;
}

static bool is_host(const struct kvmem_embed_options *options)
{
    return !options->device || !strcmp(options->device, "host");
}

static int check_host(const struct kvmem_embed_options *options)
{
    uint64_t granule =
        options->granule_bytes ? options->granule_bytes : KVI_BACKEND_HOST_GRANULE_DEFAULT;

    if ((granule & (granule - 1)) || granule < 4096 || granule > KVI_BACKEND_HOST_GRANULE_MAX)
        return kvi_error_set(KVMEM_E_INVALID,
                             "granule_bytes: %" PRIu64 " is no power of two in 4096..%" PRIu64,
                             granule, KVI_BACKEND_HOST_GRANULE_MAX);
    if (!options->device_bytes || options->device_bytes % granule)
        return kvi_error_set(KVMEM_E_INVALID,
                             "device_bytes: %" PRIu64
                             " is no positive multiple of granule_bytes %" PRIu64,
                             options->device_bytes, granule);
    return 0;
}

/* "cuda:N" with N a decimal number of at most three digits, or −1. */
static int ordinal_of(const char *device)
{
    int ordinal = 0;
    int digits = 0;

    if (strncmp(device, "cuda:", 5) != 0)
        return -1;
    for (device += 5; *device >= '0' && *device <= '9' && digits < 4; device++, digits++)
        ordinal = ordinal * 10 + (*device - '0');
    return digits < 1 || digits > 3 || *device ? -1 : ordinal;
}

static int check_cuda(const struct kvmem_embed_options *options)
{
    if (ordinal_of(options->device) < 0)
        return kvi_error_set(KVMEM_E_INVALID,
                             "device: %.31s is neither host nor cuda:N, N in 0..999",
                             options->device);
    if (options->granule_bytes)
        return kvi_error_set(KVMEM_E_INVALID,
                             "granule_bytes: %" PRIu64 ", must be 0 on CUDA: the driver decides",
                             options->granule_bytes);
    if (!options->device_bytes)
        return kvi_error_set(KVMEM_E_INVALID, "device_bytes: 0; how much of %.31s may be taken?",
                             options->device);
    return 0;
}

static int check_embed(const struct kvmem_embed_options *options)
{
    int code;

    if (!options)
        return kvi_error_set(KVMEM_E_INVALID, "options: is NULL");
    if (options->size != sizeof(*options))
        return kvi_error_set(KVMEM_E_INVALID, "options.size: %" PRIu32 ", expected %zu",
                             options->size, sizeof(*options));
    if (options->reserved)
        return kvi_error_set(KVMEM_E_INVALID, "options.reserved: %" PRIu32 ", must be 0",
                             options->reserved);
    code = check_flags(options->flags);
    if (code)
        return code;
    code = is_host(options) ? check_host(options) : check_cuda(options);
    if (code)
        return code;
    code = check_name(options->name);
    return code ? code : check_outbox(options->outbox_records);
}

int kvmem_client_embed(const struct kvmem_embed_options *options, struct kvmem_client **out)
{
    struct kvi_client_options inner = {0};
    struct kvi_link *link;
    int code;

    if (!out)
        return kvi_error_set(KVMEM_E_INVALID, "out: is NULL");
    code = check_embed(options);
    if (code)
        return code;
    inner.name = options->name;
    inner.outbox_records = options->outbox_records;
    inner.has_helper = options->flags & KVMEM_CLIENT_HELPER;
    if (is_host(options))
        code = kvi_link_embed(options->device_bytes,
                              options->granule_bytes ? options->granule_bytes
                                                     : KVI_BACKEND_HOST_GRANULE_DEFAULT,
                              &link);
    else
        code = kvi_link_embed_cuda(options->device_bytes, (uint32_t)ordinal_of(options->device),
                                   &link);
    return code ? code : kvi_client_create(link, &kvi_alloc_libc, &inner, out);
}

void kvmem_client_close(struct kvmem_client *client)
{
    if (client)
        kvi_client_destroy(client);
}

int kvmem_client_fd(const struct kvmem_client *client)
{
    if (!client)
        return kvi_error_set(KVMEM_E_INVALID, "client: is NULL");
    return kvi_client_poll_fd((struct kvmem_client *)(uintptr_t)client); /* made at first use */
}

int kvmem_client_dispatch(struct kvmem_client *client, int64_t timeout_ns)
{
    if (!client)
        return kvi_error_set(KVMEM_E_INVALID, "client: is NULL");
    if (timeout_ns < 0)
        return kvi_error_set(KVMEM_E_INVALID, "timeout_ns: %" PRId64 " is outside 0..%" PRId64,
                             timeout_ns, INT64_MAX);
    return kvi_client_dispatch(client, timeout_ns);
}

int kvmem_client_info(const struct kvmem_client *client, struct kvmem_client_info *info)
{
    if (!client || !info)
        return kvi_error_set(KVMEM_E_INVALID, "%s: is NULL", client ? "info" : "client");
    if (info->size != sizeof(*info))
        return kvi_error_set(KVMEM_E_INVALID, "info.size: %" PRIu32 ", expected %zu", info->size,
                             sizeof(*info));
    info->client_number = client->welcome.client;
    info->protocol_version = client->welcome.version;
    info->device_count = client->welcome.device_count;
    info->device_bytes = client->welcome.device_bytes;
    info->granule_bytes = client->welcome.granule_bytes;
    memcpy(info->session.bytes, client->welcome.session, sizeof(info->session.bytes));
    memcpy(info->device_name, client->welcome.device, sizeof(info->device_name));
    return 0;
}

int kvmem_client_check(const struct kvmem_client *client)
{
    if (!client)
        return kvi_error_set(KVMEM_E_INVALID, "client: is NULL");
    return kvi_client_check(client);
}

int kvmem_client_stats(const struct kvmem_client *client, struct kvmem_client_stats *out)
{
    struct kvi_mapper_stats jobs;

    if (!client || !out)
        return kvi_error_set(KVMEM_E_INVALID, "%s: is NULL", client ? "out" : "client");
    if (out->size != sizeof(*out))
        return kvi_error_set(KVMEM_E_INVALID, "out.size: %" PRIu32 ", expected %zu", out->size,
                             sizeof(*out));
    out->outbox_used_records = (uint32_t)(client->outbox.head - client->outbox.tail);
    out->messages_sent = client->messages_sent;
    out->messages_received = client->messages_received;
    out->dispatches = client->dispatches;
    out->segments_imported = client->segments_imported;
    out->pressure_requests = client->pressure_requests;
    kvi_mapper_stats(client->mapper, &jobs);
    out->helper_jobs = jobs.helper_jobs;
    out->driver_calls_inline = jobs.inline_jobs;
    return 0;
}

int kvmem_client_devices(struct kvmem_client *client, uint32_t limit,
                         struct kvmem_device_info *devices)
{
    const struct kvi_msg_devices_reply *reply;
    const struct kvi_rec_device_info *rows;
    const void *answer;
    int code;

    if (!client || (limit && !devices))
        return kvi_error_set(KVMEM_E_INVALID, "%s: is NULL", client ? "devices" : "client");
    kvi_client_begin(client, KVI_OP_DEVICES);
    code = kvi_client_call(client, KVI_OP_DEVICES_REPLY, &answer);
    if (code)
        return code;
    reply = answer;
    rows = kvi_wire_tail_const(reply, 0);
    for (uint32_t i = 0; i < reply->device_count && i < limit; i++) {
        devices[i] = (struct kvmem_device_info){.kind = rows[i].kind,
                                                .is_stuck = rows[i].state,
                                                .is_shared = rows[i].flags & KVI_DEVICE_MPS,
                                                .device_bytes = rows[i].device_bytes,
                                                .free_bytes = rows[i].free_bytes,
                                                .granule_bytes = rows[i].granule_bytes};
        memcpy(devices[i].uuid, rows[i].uuid, sizeof(devices[i].uuid));
        memcpy(devices[i].name, rows[i].name, sizeof(devices[i].name));
    }
    return (int)reply->device_count;
}
