/* SPDX-License-Identifier: Apache-2.0
 *
 * Assertions of what several tests share. They do without Criterion, in whose programs a death is
 * a failure of the case.
 */
#ifndef KVT_ASSERT_H
#define KVT_ASSERT_H

/* Death with the place, the condition, and what a format and its arguments say. */
#define KVT_ASSERT(condition, ...)                                              \
    do {                                                                        \
        if (!(condition))                                                       \
            kvt_assert_failed(__FILE__, __LINE__, #condition, " " __VA_ARGS__); \
    } while (0)

_Noreturn void kvt_assert_failed(const char *file, int line, const char *condition,
                                 const char *format, ...) __attribute__((format(printf, 4, 5)));

#endif
