/* SPDX-License-Identifier: Apache-2.0
 *
 * The error table's names and texts, and the thread-local detail of the last failure.
 * One detail a thread, overwritten by each failure; nothing here allocates or fails.
 */
#include "util/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local struct kvmem_error_detail last_detail;

static const struct error_row {
    int code;
    int is_retryable;
    const char *name;
    const char *text;
} error_rows[] = {
#define ERROR_ROW(symbol, value, retryable, text) {value, retryable, #symbol, text},
    KVMEM_ERROR_TABLE(ERROR_ROW)
#undef ERROR_ROW
};

static const struct error_row *row_of(int code)
{
    for (size_t i = 0; i < sizeof(error_rows) / sizeof(error_rows[0]); i++)
        if (error_rows[i].code == code)
            return &error_rows[i];
    return NULL;
}

const char *kvmem_error_name(int code)
{
    const struct error_row *row = row_of(code);

    if (row)
        return row->name;
    return code >= 0 ? "OK" : "UNKNOWN";
}

const char *kvmem_error_text(int code)
{
    const struct error_row *row = row_of(code);

    if (row)
        return row->text;
    return code >= 0 ? "no error" : "this number is no kvmem result code";
}

int kvmem_error_is_retryable(int code)
{
    const struct error_row *row = row_of(code);

    return row ? row->is_retryable : 0;
}

const struct kvmem_error_detail *kvmem_error_detail(void)
{
    return &last_detail;
}

static int store(int code, int errno_value, int driver_result, const char *format, va_list args)
{
    int used = vsnprintf(last_detail.text, sizeof(last_detail.text), format, args);

    last_detail.code = code;
    last_detail.system_errno = errno_value;
    last_detail.driver_result = driver_result;
    if (errno_value && used >= 0 && (size_t)used < sizeof(last_detail.text))
        snprintf(last_detail.text + used, sizeof(last_detail.text) - (size_t)used, ": %s",
                 strerrordesc_np(errno_value));
    return code;
}

int kvi_error_set(int code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    store(code, 0, 0, format, args);
    va_end(args);
    return code;
}

int kvi_error_sys(int code, int errno_value, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    store(code, errno_value, 0, format, args);
    va_end(args);
    return code;
}

int kvi_error_driver(int code, int driver_result, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    store(code, 0, driver_result, format, args);
    va_end(args);
    return code;
}

int kvi_error_restore(const struct kvmem_error_detail *detail)
{
    last_detail = *detail;
    return detail->code;
}
