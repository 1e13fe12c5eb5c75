/* SPDX-License-Identifier: Apache-2.0
 *
 * The command line of kvmemd.
 */
#ifndef KVD_OPTIONS_H
#define KVD_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/un.h>

#include "wire/protocol.h"

#define KVD_DEVICE_BYTES_DEFAULT  (UINT64_C(1) << 30)
#define KVD_DEVICE_BYTES_MIN      (UINT64_C(1) << 20)
#define KVD_DEVICE_BYTES_MAX      (UINT64_C(4) << 40) /* about 65,535 segments of 64 MiB */
#define KVD_GRANULE_BYTES_DEFAULT (UINT64_C(64) << 10)
#define KVD_GRANULE_BYTES_MIN     (UINT64_C(4) << 10)
#define KVD_GRANULE_BYTES_MAX     (UINT64_C(1) << 30)
#define KVD_SOCKET_PATH_BYTES     (sizeof(((struct sockaddr_un *)0)->sun_path))

#define KVD_CUDA_ORDINAL_MAX 255u

enum kvd_device_kind {
    KVD_DEVICE_HOST,
    KVD_DEVICE_CUDA
};

enum kvd_mps {
    KVD_MPS_AUTO,
    KVD_MPS_ON,
    KVD_MPS_OFF
};

struct kvd_options {
    enum kvd_device_kind device_kind;
    uint32_t device_count;               /* 1 for the host */
    uint32_t ordinals[KVI_DEVICE_LIMIT]; /* of GPUs, all different */
    uint64_t device_bytes;               /* of each; 0: the default of the kind */
    uint64_t granule_bytes;              /* of the host; 0: the default */
    enum kvd_mps mps;
    char socket_path[KVD_SOCKET_PATH_BYTES];
    bool socket_is_default; /* neither --socket nor KVMEM_SOCKET: its directory is ours to make */
};

enum kvd_options_verdict {
    KVD_OPTIONS_RUN,
    KVD_OPTIONS_HELP,
    KVD_OPTIONS_VERSION,
    KVD_OPTIONS_BAD /* kvmem_error_detail() names option, value and range */
};

/* Fill *options from the command line and the environment. */
enum kvd_options_verdict kvd_options_parse(int argc, char *const argv[],
                                           struct kvd_options *options);

/* What --help prints; static storage. */
const char *kvd_options_help(void);

#endif
