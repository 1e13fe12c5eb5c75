/* SPDX-License-Identifier: Apache-2.0
 *
 * Result codes. Every function of the library that can fail returns 0 (or a count) when it
 * did what it says, and one of these negative codes when it did not; then nothing changed.
 *
 * "Retryable" means: the same call may succeed later without a change of its arguments, after
 * kvmem_client_dispatch() has run or another client has given something back.
 */
#ifndef KVMEM_ERROR_H
#define KVMEM_ERROR_H

#include <stddef.h>
#include <stdint.h>

#include <kvmem/export.h>

#ifdef __cplusplus
extern "C" {
#endif

/* X(symbol, value, retryable, text): the one table that names, texts and tests come from. */
#define KVMEM_ERROR_TABLE(X)                                                        \
    X(INVALID, -1, 0, "an argument is outside its range")                           \
    X(NOT_SUPPORTED, -2, 0, "not supported by this version")                        \
    X(NO_MEMORY, -3, 1, "the process has no memory left for records")               \
    X(DEVICE_FULL, -4, 1, "the device has no memory left that may be taken")        \
    X(QUOTA, -5, 1, "the quota of the space or the client is used up")              \
    X(OUT_OF_BLOCKS, -6, 1, "no block is free and the daemon has none to give")     \
    X(REFILL_PENDING, -7, 1, "no block is free now; more are on their way")         \
    X(OUTBOX_FULL, -8, 1, "the outbox is full; call kvmem_client_dispatch")         \
    X(STALE, -9, 0, "the id names something that no longer exists")                 \
    X(NOT_FOUND, -10, 0, "no such object")                                          \
    X(EXISTS, -11, 0, "it exists already, with other properties")                   \
    X(LIMIT, -12, 0, "a fixed limit is reached")                                    \
    X(BUSY, -13, 1, "it is in use")                                                 \
    X(TIMED_OUT, -14, 1, "the time limit passed first")                             \
    X(VERSION, -15, 0, "library and daemon have no protocol version in common")     \
    X(PROTOCOL, -16, 0, "the peer sent something that the protocol does not allow") \
    X(DAEMON_LOST, -17, 0, "the daemon is gone; mapped memory stays readable")      \
    X(NOT_RESIDENT, -18, 1, "the bytes are not in device memory")                   \
    X(CORRUPT, -19, 0, "an invariant or a checksum does not hold")                  \
    X(PERMISSION, -20, 0, "the caller may not do this")                             \
    X(SYSTEM, -21, 0, "a system call failed; see kvmem_error_detail")

enum kvmem_error {
    KVMEM_OK = 0,
#define KVMEM_ERROR_ENUM(symbol, value, retryable, text) KVMEM_E_##symbol = (value),
    KVMEM_ERROR_TABLE(KVMEM_ERROR_ENUM)
#undef KVMEM_ERROR_ENUM
};

/* What is known of the last failure in the calling thread. Valid until its next kvmem call. */
struct kvmem_error_detail {
    int32_t code;          /* the code that was returned, one of enum kvmem_error */
    int32_t system_errno;  /* errno of the failed system call, or 0 */
    int32_t driver_result; /* CUresult of the failed driver call, or 0 */
    char text[244];        /* names the field, its value, its range and the remedy; UTF-8 */
};

/* Symbol of `code` without its prefix ("OUT_OF_BLOCKS"), "OK" for 0 and counts, "UNKNOWN" for
 * a number that is no code. Never NULL; static storage. Any thread. */
KVMEM_API const char *kvmem_error_name(int code);

/* One sentence about `code`; never NULL; static storage. Any thread. */
KVMEM_API const char *kvmem_error_text(int code);

/* 1 when the same call may succeed later unchanged, else 0. Any thread. */
KVMEM_API int kvmem_error_is_retryable(int code);

/* The calling thread's detail of its last failed call; never NULL; `code` is 0 before any
 * failure. Does not block. */
KVMEM_API const struct kvmem_error_detail *kvmem_error_detail(void);

#ifdef __cplusplus
}
#endif
#endif
