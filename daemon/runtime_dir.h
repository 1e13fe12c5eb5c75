/* SPDX-License-Identifier: Apache-2.0
 *
 * The directory that the socket lies in. Who can write there could put another socket in the
 * place of ours and read what engines send to it, so that we look before we bind.
 */
#ifndef KVD_RUNTIME_DIR_H
#define KVD_RUNTIME_DIR_H

#include <stdbool.h>

/* Open the directory of `socket_path`, an fd of the caller's. With `is_private` it is made (mode
 * 0700) when it is missing, and must be ours alone: owner, mode 0700. Otherwise it must exist,
 * belong to us or root, and be writable by nobody else. A symbolic link is refused either way.
 * PERMISSION or SYSTEM; the detail names directory and remedy. */
int kvd_runtime_dir_open(const char *socket_path, bool is_private, int *out_fd);

/* The last part of `path`: the socket's name in its directory. */
const char *kvd_runtime_dir_name(const char *path);

#endif
