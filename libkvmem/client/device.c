/* SPDX-License-Identifier: Apache-2.0
 *
 * Devices of the daemon and backends for them; see device.h.
 */
#include "client/device.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "backend/backend_cuda.h"
#include "backend/backend_host.h"
#include "client/client.h"
#include "util/error.h"

#define HOST       1u /* device_info.kind */
#define UUID_BYTES 16u
#define UUID_TEXT  48u

/* ---- what there is ---- */

/* All that a client of a host device needs to know is in the welcome. */
static void take_welcome(struct kvmem_client *client)
{
    struct kvi_rec_device_info *info = &client->devices.list[0].info;

    info->kind = HOST;
    info->device_bytes = client->welcome.device_bytes;
    info->granule_bytes = client->welcome.granule_bytes;
    memcpy(info->name, client->welcome.device, sizeof(client->welcome.device));
    client->devices.count = 1;
}

int kvi_devices_learn(struct kvmem_client *client)
{
    const struct kvi_msg_devices_reply *reply;
    const struct kvi_rec_device_info *rows;
    const void *answer;
    int code;

    if (client->welcome.device_count == 1 && !strcmp(client->welcome.device, "host")) {
        take_welcome(client);
        return 0;
    }
    kvi_client_begin(client, KVI_OP_DEVICES);
    code = kvi_client_call(client, KVI_OP_DEVICES_REPLY, &answer);
    if (code)
        return code;
    reply = answer;
    rows = kvi_wire_tail_const(reply, 0);
    if (reply->device_count != client->welcome.device_count)
        return kvi_client_protocol(client, "devices_reply.device_count is not the welcome's");
    client->devices.count = reply->device_count;
    for (uint32_t i = 0; i < reply->device_count; i++)
        client->devices.list[i].info = rows[i];
    return 0;
}

bool kvi_devices_are_alike(const struct kvmem_client *client)
{
    const struct kvi_rec_device_info *first = &client->devices.list[0].info;

    for (uint32_t i = 1; i < client->devices.count; i++)
        if (client->devices.list[i].info.device_bytes != first->device_bytes ||
            client->devices.list[i].info.granule_bytes != first->granule_bytes)
            return false;
    return true;
}

/* ---- backends ---- */

static int make_host(struct kvmem_client *client, struct kvi_device *device)
{
    struct kvi_backend_host_options options = {.options_bytes = sizeof(options),
                                               .granule_bytes = device->info.granule_bytes,
                                               .alloc = &client->alloc};

    return kvi_backend_host_create(&options, &device->backend);
}

/* As nvidia-smi shows it. */
static void uuid_text(const uint8_t *uuid, char *text)
{
    int used = snprintf(text, UUID_TEXT, "GPU");

    for (uint32_t i = 0; i < UUID_BYTES; i++)
        used += snprintf(text + used, UUID_TEXT - (size_t)used, "%s%02x",
                         i == 0 || i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
}

/* The ordinal of the GPU with that UUID in this process. A device that cannot be asked is passed
 * over, but for the first: what is wrong with it is wrong with the driver. */
static int find_ordinal(const uint8_t *uuid, uint32_t *out)
{
    struct kvi_backend_cuda_options options = {.options_bytes = sizeof(options)};
    struct kvi_backend_cuda_device what = {.device_count = 1};
    char text[UUID_TEXT];
    uint32_t count = 1;

    for (uint32_t i = 0; i < count; i++) {
        int code;

        options.device_index = i;
        code = kvi_backend_cuda_query(&options, &what);
        if (code && i == 0)
            return code;
        if (code)
            continue;
        count = what.device_count;
        if (!memcmp(what.uuid, uuid, UUID_BYTES)) {
            *out = i;
            return 0;
        }
    }
    uuid_text(uuid, text);
    return kvi_error_set(KVMEM_E_NOT_SUPPORTED,
                         "device: the daemon's %s is none of the %" PRIu32
                         " GPUs that this process sees; let CUDA_VISIBLE_DEVICES contain it",
                         text, count);
}

static int make_cuda(struct kvmem_client *client, struct kvi_device *device)
{
    struct kvi_backend_cuda_options options = {.options_bytes = sizeof(options),
                                               .alloc = &client->alloc};
    int code = find_ordinal(device->info.uuid, &options.device_index);

    if (code)
        return code;
    code = kvi_backend_cuda_create(&options, &device->backend);
    if (code)
        return code;
    if (device->backend->info.granule_bytes == device->info.granule_bytes)
        return 0;
    code = kvi_error_set(KVMEM_E_NOT_SUPPORTED,
                         "device: its granule is %" PRIu64 " bytes in this process, %" PRIu64
                         " in the daemon",
                         device->backend->info.granule_bytes, device->info.granule_bytes);
    kvi_backend_destroy(device->backend);
    device->backend = NULL;
    return code;
}

int kvi_devices_backend(struct kvmem_client *client, uint32_t index, struct kvi_backend **out)
{
    struct kvi_device *device = &client->devices.list[index];
    int code = 0;

    if (client->devices.given) {
        *out = client->devices.given;
        return 0;
    }
    if (!device->backend)
        code = device->info.kind == HOST ? make_host(client, device) : make_cuda(client, device);
    if (!code)
        *out = device->backend;
    return code;
}

void kvi_devices_fini(struct kvmem_client *client)
{
    for (uint32_t i = 0; i < client->devices.count; i++)
        kvi_backend_destroy(client->devices.list[i].backend);
}
