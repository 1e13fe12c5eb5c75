/* SPDX-License-Identifier: Apache-2.0
 *
 * Lines on stderr: one for each event worth knowing, none a message. The only place of kvmemd
 * that writes to stderr.
 */
#ifndef KVD_LOG_H
#define KVD_LOG_H

/* Write "kvmemd: <text>\n". Control bytes become '?' (peers choose parts of the text). A line is
 * dropped, and counted in the next one, beyond KVD_LOG_BURST in a row or KVD_LOG_PER_S a second,
 * and when stderr is a pipe that nobody reads: never blocks. */
void kvd_log(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The same for what must be seen: start, refusal to start, end. Not counted by the limit. */
void kvd_log_always(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
