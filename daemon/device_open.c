/* SPDX-License-Identifier: Apache-2.0
 */
#include "device_open.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/backend_cuda.h"
#include "backend/backend_host.h"
#include "log.h"
#include "util/error.h"

#define MPS_DIRECTORY                                                           \
    "/tmp/nvidia-mps" /* where MPS keeps its pipes, unless it is told otherwise \
                       */

static void describe(const struct kvi_backend_info *info, struct kvi_dir_device *about)
{
    *about = (struct kvi_dir_device){
        .kind = info->kind,
        .device_bytes = info->device_bytes,
        .granule_bytes = info->granule_bytes,
        .releases_reclaim_mapped = (info->flags & KVI_BACKEND_RECLAIMS_MAPPED) != 0,
    };
    snprintf(about->name, sizeof(about->name), "%.47s", info->name);
}

static int open_host(const struct kvi_alloc *alloc, const struct kvd_device_options *options,
                     struct kvi_backend **out, struct kvi_dir_device *about)
{
    struct kvi_backend_host_options host = {
        .options_bytes = sizeof(host),
        .device_bytes =
            options->device_bytes != 0 ? options->device_bytes : KVD_DEVICE_BYTES_DEFAULT,
        .granule_bytes =
            options->granule_bytes != 0 ? options->granule_bytes : KVD_GRANULE_BYTES_DEFAULT,
        .alloc = alloc};
    int rc = kvi_backend_host_create(&host, out);

    if (rc == 0)
        describe(&(*out)->info, about);
    return rc;
}

/* ---- a GPU ---- */

static bool mps_pipe_is_there(void)
{
    const char *directory = getenv("CUDA_MPS_PIPE_DIRECTORY");
    char path[4096];

    if (directory == NULL || directory[0] == '\0')
        directory = MPS_DIRECTORY;
    snprintf(path, sizeof(path), "%s/control", directory);
    return access(path, F_OK) == 0;
}

static bool is_under_mps(enum kvd_mps mps, const struct kvi_backend_cuda_device *what)
{
    return mps == KVD_MPS_AUTO ? what->under_mps || mps_pipe_is_there() : mps == KVD_MPS_ON;
}

/* How much to take: what was asked for, or a share of what is free now, in whole granules. */
static int choose_bytes(const struct kvd_device_options *options,
                        const struct kvi_backend_memory *memory, uint64_t granule_bytes,
                        uint64_t *out_bytes)
{
    uint64_t free_bytes = memory->free_bytes;
    uint64_t bytes = options->device_bytes;

    if (bytes > free_bytes && bytes <= memory->total_bytes)
        kvd_log_always("cuda:%" PRIu32 ": --device-bytes is %" PRIu64 ", free are only %" PRIu64
                       " now: some segments cannot be created until others leave the device",
                       options->ordinal, bytes, free_bytes);
    if (bytes == 0) {
        bytes = free_bytes / 100 * KVD_FREE_PERCENT;
        bytes -= bytes % granule_bytes;
    }
    if (bytes == 0)
        return kvi_error_set(KVMEM_E_DEVICE_FULL,
                             "cuda:%" PRIu32 ": %" PRIu64 " bytes are free beside the daemon's own "
                             "granule, less than another of %" PRIu64,
                             options->ordinal, free_bytes, granule_bytes);
    *out_bytes = bytes;
    return 0;
}

/* The anchor's instance, with one granule to create. */
static int anchor_open(const struct kvi_backend_cuda_options *cuda, uint64_t granule_bytes,
                       struct kvd_anchor *out)
{
    struct kvi_backend_cuda_options options = *cuda;
    struct kvd_anchor anchor = {.fd = -1};
    struct kvi_phys phys = {0};
    int rc;

    options.device_bytes = granule_bytes;
    rc = kvi_backend_cuda_create(&options, &anchor.backend);
    if (rc == 0)
        rc = kvi_backend_segment_create(anchor.backend, granule_bytes, &phys);
    if (rc == 0)
        rc = kvi_backend_segment_export(anchor.backend, phys, &anchor.fd);
    if (rc < 0)
        kvd_anchor_close(&anchor);
    else
        *out = anchor;
    return rc;
}

void kvd_anchor_close(struct kvd_anchor *anchor)
{
    if (anchor->backend == NULL)
        return;
    if (anchor->fd >= 0)
        close(anchor->fd);
    kvi_backend_destroy(anchor->backend); /* and its handle */
    *anchor = (struct kvd_anchor){.fd = -1};
}

/* The backend on a device where context and anchor are: both take memory, so what is free is asked
 * for after them. */
static int open_sized(const struct kvd_device_options *options,
                      struct kvi_backend_cuda_options *cuda, struct kvd_anchor *anchor,
                      struct kvi_backend **out)
{
    uint64_t granule_bytes = anchor->backend->info.granule_bytes;
    struct kvi_backend_memory memory;
    int rc = kvi_backend_memory(anchor->backend, &memory);

    if (rc == 0)
        rc = choose_bytes(options, &memory, granule_bytes, &cuda->device_bytes);
    return rc < 0 ? rc : kvi_backend_cuda_create(cuda, out);
}

/* Not a granule is free: what the operator wants may come free later, only that exports are slow.
 */
static int open_without_anchor(const struct kvd_device_options *options,
                               struct kvi_backend_cuda_options *cuda, struct kvi_backend **out)
{
    int rc;

    cuda->device_bytes = options->device_bytes;
    rc = kvi_backend_cuda_create(cuda, out);
    if (rc == 0)
        kvd_log_always("cuda:%" PRIu32 ": not a granule is free now: segments cannot be created "
                       "until others leave the device, and each takes 0.7 ms longer until the "
                       "daemon is started again",
                       options->ordinal);
    return rc;
}

/* The backend speaks of its parameters, the operator knows options. */
static int in_options_words(int rc, const struct kvd_device_options *options)
{
    const struct kvmem_error_detail why = *kvmem_error_detail();

    return kvi_error_driver(
        rc, why.driver_result, "--device cuda:%" PRIu32 "%s: %s%s", options->ordinal,
        rc == KVMEM_E_NOT_SUPPORTED ? " cannot be had, --device host can" : "", why.text,
        rc == KVMEM_E_DEVICE_FULL ? ": end what uses the device (nvidia-smi shows it)" : "");
}

static int open_cuda(const struct kvi_alloc *alloc, const struct kvd_device_options *options,
                     struct kvi_backend **out, struct kvd_anchor *anchor,
                     struct kvi_dir_device *about)
{
    struct kvi_backend_cuda_options cuda = {
        .options_bytes = sizeof(cuda), .device_index = options->ordinal, .alloc = alloc};
    struct kvi_backend_cuda_device what;
    int rc = kvi_backend_cuda_query(&cuda, &what);

    if (rc == 0)
        rc = anchor_open(&cuda, what.granule_bytes, anchor);
    if (rc == KVMEM_E_DEVICE_FULL && options->device_bytes != 0)
        rc = open_without_anchor(options, &cuda, out);
    else if (rc == 0 && (rc = open_sized(options, &cuda, anchor, out)) < 0)
        kvd_anchor_close(anchor);
    if (rc < 0)
        return in_options_words(rc, options);
    describe(&(*out)->info, about);
    about->exit_proves_nothing = is_under_mps(options->mps, &what);
    memcpy(about->uuid, what.uuid, sizeof(about->uuid));
    return 0;
}

int kvd_device_open(const struct kvi_alloc *alloc, const struct kvd_device_options *options,
                    struct kvi_backend **out, struct kvd_anchor *anchor,
                    struct kvi_dir_device *about)
{
    *anchor = (struct kvd_anchor){.fd = -1};
    return options->kind == KVD_DEVICE_CUDA ? open_cuda(alloc, options, out, anchor, about)
                                            : open_host(alloc, options, out, about);
}
