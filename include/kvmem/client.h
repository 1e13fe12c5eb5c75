/* SPDX-License-Identifier: Apache-2.0
 *
 * A client is one engine process' session with the owner of device memory: a daemon (connect)
 * or a directory inside the process itself (embed; same behaviour, no sharing with others).
 *
 * Threads: one thread at a time uses a client and everything opened from it. The library starts
 * no thread but the one that KVMEM_CLIENT_HELPER asks for (all signals blocked), installs no signal
 * handler, prints nothing, and never exits.
 * Progress: what the hot path gives away (publish, release, free) is recorded in an outbox and
 * leaves with kvmem_client_dispatch(), which a serving engine calls once a step.
 */
#ifndef KVMEM_CLIENT_H
#define KVMEM_CLIENT_H

#include <kvmem/types.h>

#ifdef __cplusplus
extern "C" {
#endif

enum kvmem_role {
    KVMEM_ROLE_LEADER = 0,  /* allocates; the default */
    KVMEM_ROLE_MEMBER = 1,  /* maps what the leader of `session` has; not yet supported */
    KVMEM_ROLE_OBSERVER = 2 /* reads statistics only */
};

enum kvmem_client_flag {
    /* A thread of the client's own makes the driver calls that map memory ahead of need, so that
     * none is made on the calling thread in a steady state. What it has done counts from the next
     * dispatch on: an engine that others press for memory answers with its second dispatch, so that
     * steps of more than half the deadline (25 ms) should look at kvmem_client_fd() in between. */
    KVMEM_CLIENT_HELPER = 1
};

struct kvmem_connect_options {
    uint32_t size;           /* sizeof(struct kvmem_connect_options) */
    uint32_t role;           /* enum kvmem_role */
    const char *socket_path; /* NULL: $KVMEM_SOCKET, else the runtime directory's kvmemd.sock */
    const char *name;        /* shown by kvmemctl; NULL or at most 31 bytes of UTF-8 */
    const struct kvmem_session_token *session; /* MEMBER: whose session; reconnect: own; or NULL */
    uint32_t outbox_records;                   /* 0 = 65,536; range 1,024 .. 16,777,216 */
    uint32_t flags;                            /* enum kvmem_client_flag */
    int64_t timeout_ns; /* for connect and each request; 0 = 5 s; < 0 is refused */
};

struct kvmem_embed_options {
    uint32_t size;           /* sizeof(struct kvmem_embed_options) */
    uint32_t outbox_records; /* as above */
    const char *device;      /* NULL or "host"; or "cuda:N", N as the CUDA driver counts */
    const char *name;        /* as above */
    uint64_t device_bytes;   /* a multiple of granule_bytes; > 0, the address space is the limit */
    uint64_t granule_bytes;  /* host: 0 = 64 KiB; a power of two, 4 KiB .. 1 GiB. CUDA: 0 */
    uint32_t flags;          /* enum kvmem_client_flag */
    uint32_t reserved;       /* 0 */
};

/* Connect to kvmemd and say hello. `options` may be NULL (all defaults). On success *out is a
 * client that kvmem_client_close() ends. Blocks up to the time limit.
 * KVMEM_E_INVALID (names the option), NOT_SUPPORTED (role or session not built yet),
 * DAEMON_LOST (nobody listens: detail names the path), VERSION (names both sides' versions),
 * LIMIT (the daemon has no place left), TIMED_OUT, NO_MEMORY, SYSTEM. */
KVMEM_API int kvmem_client_connect(const struct kvmem_connect_options *options,
                                   struct kvmem_client **out);

/* A client with its own device and directory inside this process. On CUDA device_bytes is a
 * multiple of the driver's granule, and taken from the GPU as it is used. INVALID (names the
 * option), NOT_SUPPORTED (no driver, or one that lacks something), DEVICE_FULL (no memory for a
 * context), NO_MEMORY, SYSTEM. */
KVMEM_API int kvmem_client_embed(const struct kvmem_embed_options *options,
                                 struct kvmem_client **out);

/* End the session: spaces are closed, sequences freed, mappings removed; what was published
 * stays findable for others. NULL is allowed. Blocks at most the time limit of the client. */
KVMEM_API void kvmem_client_close(struct kvmem_client *client);

/* A file descriptor that polls readable when kvmem_client_dispatch() has something to do: a message
 * has come, or the helper has mapped something. Owned by the client; embedded clients have one too.
 * INVALID, SYSTEM (no descriptor left for it). */
KVMEM_API int kvmem_client_fd(const struct kvmem_client *client);

/* Let go of what was given up with fences that have passed, send the outbox, ask for memory where a
 * space runs low, hand in what is not needed, and take in what arrived. `timeout_ns`: 0 does not
 * wait; > 0 waits that long for at least one message, or for the helper to finish something.
 * Returns the number of messages taken in, or DAEMON_LOST, PROTOCOL, NO_MEMORY, SYSTEM. */
KVMEM_API int kvmem_client_dispatch(struct kvmem_client *client, int64_t timeout_ns);

/* Who this client is. */
struct kvmem_client_info {
    uint32_t size;             /* sizeof(struct kvmem_client_info), set by the caller */
    uint32_t client_number;    /* as kvmemctl shows it */
    uint32_t protocol_version; /* the one agreed on */
    uint32_t device_count;
    uint64_t device_bytes;
    uint64_t granule_bytes;
    struct kvmem_session_token session;
    char device_name[32];
};

/* A device of the client's daemon. */
struct kvmem_device_info {
    uint32_t kind;      /* 1 host, 2 CUDA */
    uint32_t is_stuck;  /* 1: its driver has not answered for seconds */
    uint32_t is_shared; /* 1: under CUDA MPS */
    uint32_t reserved;
    uint64_t device_bytes;  /* that the daemon may take */
    uint64_t free_bytes;    /* of these, in no segment */
    uint64_t granule_bytes; /* smallest mapping unit */
    uint8_t uuid[16];       /* of a GPU, the same in every process; zero for the host */
    char name[48];          /* "host", "cuda:0 NVIDIA H200" */
};

/* The devices as they are now, devices[i] for i < limit: kvmem_space_options.device is 1 + i.
 * Returns how many there are. Blocks for a round trip. INVALID, DAEMON_LOST, TIMED_OUT. */
KVMEM_API int kvmem_client_devices(struct kvmem_client *client, uint32_t limit,
                                   struct kvmem_device_info *devices);

/* Fill *info. KVMEM_E_INVALID when info->size is unknown. */
KVMEM_API int kvmem_client_info(const struct kvmem_client *client, struct kvmem_client_info *info);

/* Walk every structure of the client and verify its equations. 0, or KVMEM_E_CORRUPT with the
 * first violation in the detail text. For tests and bug reports: time grows with the pool. */
KVMEM_API int kvmem_client_check(const struct kvmem_client *client);

#ifdef __cplusplus
}
#endif
#endif
