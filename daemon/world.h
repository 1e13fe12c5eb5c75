/* SPDX-License-Identifier: Apache-2.0
 *
 * The world as the directory sees it: struct kvi_dir_env over a server. Nothing in it calls back
 * into the directory; what must happen later is taken down (see server.h).
 */
#ifndef KVD_WORLD_H
#define KVD_WORLD_H

#include "directory/directory.h"

struct kvd_server;

struct kvi_dir_env kvd_world(struct kvd_server *server);

#endif
