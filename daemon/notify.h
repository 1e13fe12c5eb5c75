/* SPDX-License-Identifier: Apache-2.0
 *
 * Readiness for the service manager: datagrams to $NOTIFY_SOCKET, as sd_notify(3) describes
 * them, a file or an abstract address ('@'). Nothing happens when it is not set; a failure is
 * logged and changes nothing. Never blocks.
 */
#ifndef KVD_NOTIFY_H
#define KVD_NOTIFY_H

/* Send `state`, such as "READY=1". */
void kvd_notify(const char *state);

#endif
