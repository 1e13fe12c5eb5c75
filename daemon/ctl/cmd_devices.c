/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmemctl devices: what memory there is, and whether its drivers answer.
 */
#include <kvmem/error.h>
#include <string.h>

#include "ctl.h"
#include "json.h"
#include "table.h"
#include "text.h"

#define UUID_BYTES    48 /* of its text */
#define DEVICES_SINCE 2u /* version of the protocol */

static const struct kvctl_column columns[] = {
    {"device", true, 0}, {"name", false, 0},   {"memory", true, 0},
    {"free", true, 0},   {"granule", true, 3}, {"segments", true, 2},
    {"state", false, 0}, {"mps", false, 4},    {"uuid", false, 5},
};

static const char *state_name(uint32_t state)
{
    return state == 0 ? "ok" : state == 1 ? "stuck" : "unknown";
}

/* As nvidia-smi -L writes it; false for a device without one. */
static bool uuid_text(const uint8_t uuid[16], char text[UUID_BYTES])
{
    static const uint8_t none[16];
    size_t used = (size_t)snprintf(text, UUID_BYTES, "GPU");

    for (size_t i = 0; i < 16; i++)
        used += (size_t)snprintf(text + used, UUID_BYTES - used, "%s%02x",
                                 i == 0 || (i >= 4 && i <= 10 && i % 2 == 0) ? "-" : "", uuid[i]);
    return memcmp(uuid, none, sizeof(none)) != 0;
}

static void add_row(struct kvctl_table *table, uint32_t index,
                    const struct kvi_rec_device_info *device, const struct kvctl_style *style)
{
    char name[KVCTL_NAME_BYTES];
    char uuid[UUID_BYTES];

    kvctl_clean(name, sizeof(name), device->name, sizeof(device->name), style->has_utf8);
    kvctl_table_add(table, "%u", index);
    kvctl_table_add(table, "%s", name);
    kvctl_table_add(table, "%s", KVCTL_BYTES(device->device_bytes));
    kvctl_table_add(table, "%s", KVCTL_BYTES(device->free_bytes));
    kvctl_table_add(table, "%s", KVCTL_BYTES(device->granule_bytes));
    kvctl_table_add(table, "%s", KVCTL_COUNT(device->segment_count));
    kvctl_table_add(table, "%s", state_name(device->state));
    kvctl_table_add(table, "%s", device->flags & KVI_DEVICE_MPS ? "on" : "off");
    kvctl_table_add(table, "%s", uuid_text(device->uuid, uuid) ? uuid : "-");
}

static void print_advice(struct kvctl_run *run)
{
    const struct kvctl_style *style = &run->style;

    fprintf(run->out,
            "\n%sstuck%s: a call into the device's driver has not returned. Nothing is created on\n"
            "that device until it does; what exists there goes on being served, and it is well\n"
            "again by itself when the call returns. If it stays so:\n"
            "  dmesg | grep -i xid     the driver's reports of a failed GPU\n"
            "  nvidia-smi              hangs too? Then it is the driver, not kvmemd\n"
            "  kill -TERM <kvmemd>     ends it within seconds all the same; a GPU that was reset\n"
            "                          (nvidia-smi --gpu-reset) has lost its memory\n",
            kvctl_tone(style, KVCTL_TONE_BAD), kvctl_plain(style));
}

static int print_table(struct kvctl_run *run, const struct kvi_rec_device_info *devices,
                       uint32_t count)
{
    struct kvctl_table *table = kvctl_table_create(columns, sizeof(columns) / sizeof(columns[0]));
    bool is_stuck = false;

    if (!table) {
        fputs("kvmemctl: no memory left\n", stderr);
        return KVCTL_EXIT_FAILED;
    }
    for (uint32_t i = 0; i < count; i++) {
        add_row(table, i, &devices[i], &run->style);
        is_stuck |= devices[i].state == 1;
    }
    kvctl_table_print(run->out, table, run->style.table_columns, &run->style);
    kvctl_table_destroy(table);
    if (is_stuck)
        print_advice(run);
    return KVCTL_EXIT_OK;
}

static cJSON *json_of(uint32_t index, const struct kvi_rec_device_info *source)
{
    cJSON *object = cJSON_CreateObject();
    char uuid[UUID_BYTES];

    kvctl_json_u64(object, "device", index);
    KVCTL_JSON_FIELDS(device_info)
    cJSON_AddStringToObject(object, "state_name", state_name(source->state));
    cJSON_AddBoolToObject(object, "is_under_mps", (source->flags & KVI_DEVICE_MPS) != 0);
    if (uuid_text(source->uuid, uuid))
        cJSON_AddStringToObject(object, "uuid", uuid);
    else
        cJSON_AddNullToObject(object, "uuid");
    return object;
}

static void print_json(FILE *out, const struct kvi_rec_device_info *devices, uint32_t count)
{
    cJSON *document = cJSON_CreateObject();
    cJSON *array = cJSON_AddArrayToObject(document, "devices");

    for (uint32_t i = 0; i < count; i++)
        cJSON_AddItemToArray(array, json_of(i, &devices[i]));
    kvctl_json_print(out, document, 0);
}

/* The reply, or NULL: session->failure says why. A daemon that does not know the question would
 * take it for a broken message. */
static const struct kvi_msg_devices_reply *ask(struct kvctl_session *session)
{
    struct kvi_msg_devices request;
    const void *reply;

    if (session->welcome.version < DEVICES_SINCE) {
        session->failure = (struct kvctl_failure){.code = KVMEM_E_VERSION,
                                                  .is_connected = true,
                                                  .asked = "devices",
                                                  .path = session->path,
                                                  .version = session->welcome.version,
                                                  .version_min = session->welcome.version_min};
        return NULL;
    }
    kvi_wire_begin(&request, KVI_OP_DEVICES, 0);
    return kvctl_ask(session, &request, KVI_OP_DEVICES_REPLY, &reply) == 0 ? reply : NULL;
}

int kvctl_cmd_devices(struct kvctl_run *run)
{
    const struct kvi_msg_devices_reply *reply = ask(&run->session);
    const struct kvi_rec_device_info *devices;

    if (!reply)
        return kvctl_explain(stderr, &run->session.failure);
    devices = kvi_wire_tail_const(reply, 0);
    if (!run->options.is_json)
        return print_table(run, devices, reply->device_count);
    print_json(run->out, devices, reply->device_count);
    return KVCTL_EXIT_OK;
}
