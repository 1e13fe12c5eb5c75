/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmemctl version: this program's version, and the daemon's when one listens. Having none is
 * no failure here.
 */
#include <kvmem/error.h>
#include <string.h>

#include "ctl.h"
#include "json.h"
#include "text.h"

static void print_json(struct kvctl_run *run, bool is_there)
{
    const struct kvi_msg_welcome *welcome = &run->session.welcome;
    cJSON *document = cJSON_CreateObject();
    cJSON *daemon;

    cJSON_AddStringToObject(document, "version", KVCTL_VERSION);
    kvctl_json_u64(document, "protocol_version", KVI_PROTOCOL_VERSION);
    kvctl_json_u64(document, "protocol_version_min", KVI_PROTOCOL_VERSION_MIN);
    kvctl_json_text(document, "socket_path", run->session.path, sizeof(run->session.path));
    daemon = is_there ? cJSON_AddObjectToObject(document, "daemon")
                      : cJSON_AddNullToObject(document, "daemon");
    if (is_there) {
        kvctl_json_u64(daemon, "protocol_version", welcome->version);
        kvctl_json_u64(daemon, "protocol_version_min", welcome->version_min);
        kvctl_json_text(daemon, "device", welcome->device, sizeof(welcome->device));
        kvctl_json_u64(daemon, "device_count", welcome->device_count);
        kvctl_json_u64(daemon, "device_bytes", welcome->device_bytes);
        kvctl_json_u64(daemon, "granule_bytes", welcome->granule_bytes);
    }
    kvctl_json_print(run->out, document, 0);
}

int kvctl_cmd_version(struct kvctl_run *run)
{
    const struct kvi_msg_welcome *welcome = &run->session.welcome;
    int rc = kvctl_session_open(&run->session, &run->options);
    char device[KVCTL_NAME_BYTES];

    if (rc < 0 && rc != KVMEM_E_DAEMON_LOST)
        return kvctl_explain(stderr, &run->session.failure);
    if (run->options.is_json) {
        print_json(run, rc == 0);
        return KVCTL_EXIT_OK;
    }
    fprintf(run->out, "kvmemctl %s, protocol %u", KVCTL_VERSION, KVI_PROTOCOL_VERSION);
    if (KVI_PROTOCOL_VERSION_MIN < KVI_PROTOCOL_VERSION)
        fprintf(run->out, " (from %u on)", KVI_PROTOCOL_VERSION_MIN);
    fputc('\n', run->out);
    kvctl_clean(device, sizeof(device), welcome->device, sizeof(welcome->device),
                run->style.has_utf8);
    if (rc == 0)
        fprintf(run->out, "kvmemd at %s: protocol %u, device %s of %s\n", run->session.path,
                welcome->version, device, KVCTL_BYTES(welcome->device_bytes));
    else
        fprintf(run->out, "no kvmemd at %s\n", run->session.path);
    return KVCTL_EXIT_OK;
}
