/* SPDX-License-Identifier: Apache-2.0
 *
 * The devices of the client's daemon, as this process reaches them.
 *
 *   index    of a device, the daemon's: what spaces and messages name it by
 *   ordinal  of a GPU, the driver's in this process: another one, with CUDA_VISIBLE_DEVICES. The
 *            two meet in the UUID, which is the same everywhere
 *   backend  one that imports, made when the first space lies on its device; lives until the
 *            client ends, since streams and pinned pages are known to it
 *
 * A client that was given a backend uses it for all devices, and does not own it.
 */
#ifndef KVI_CLIENT_DEVICE_H
#define KVI_CLIENT_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/backend.h"
#include "wire/protocol.h"

struct kvmem_client;

struct kvi_device {
    struct kvi_rec_device_info info;
    struct kvi_backend *backend; /* NULL until a space lies there */
};

struct kvi_devices {
    struct kvi_backend *given; /* the caller's, for all of them; or NULL */
    uint32_t count;
    struct kvi_device list[KVI_DEVICE_LIMIT];
};

/* Know the devices, after the welcome: asks the daemon unless it has the host's alone. 0,
 * PROTOCOL, DAEMON_LOST, TIMED_OUT. */
int kvi_devices_learn(struct kvmem_client *client);

/* Destroy the backends. Nothing uses them any more. */
void kvi_devices_fini(struct kvmem_client *client);

/* Are all devices of the same size and granule, so that a geometry is the same on each? */
bool kvi_devices_are_alike(const struct kvmem_client *client);

/* The backend of a device, made now if need be. NOT_SUPPORTED: no driver or an old one, or none of
 * the GPUs that this process sees is it (names its UUID); NO_MEMORY, DEVICE_FULL, SYSTEM. */
int kvi_devices_backend(struct kvmem_client *client, uint32_t index, struct kvi_backend **out);

#endif
