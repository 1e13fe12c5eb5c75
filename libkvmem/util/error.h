/* SPDX-License-Identifier: Apache-2.0
 *
 * Setting the thread-local detail behind kvmem_error_detail(). A function that detects a
 * failure calls one of these and returns its result; functions above pass the code up as it is.
 */
#ifndef KVI_UTIL_ERROR_H
#define KVI_UTIL_ERROR_H

#include <kvmem/error.h>

/* Store `code` and the formatted text; errno and driver result become 0. Returns `code`. */
int kvi_error_set(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The same with the errno of a failed system call; its name is appended to the text. */
int kvi_error_sys(int code, int errno_value, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The same with the driver's result. */
int kvi_error_driver(int code, int driver_result, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Make `detail`, kept from another thread, this thread's. Returns its code. */
int kvi_error_restore(const struct kvmem_error_detail *detail);

#endif
