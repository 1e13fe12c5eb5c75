/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmem: KV-cache memory for LLM serving. This header includes the whole API; each of the
 * headers below stands alone.
 */
#ifndef KVMEM_H
#define KVMEM_H

#include <kvmem/blocks.h>
#include <kvmem/client.h>
#include <kvmem/device_table.h>
#include <kvmem/error.h>
#include <kvmem/fence.h>
#include <kvmem/prefix.h>
#include <kvmem/region.h>
#include <kvmem/seq.h>
#include <kvmem/space.h>
#include <kvmem/stats.h>
#include <kvmem/table.h>
#include <kvmem/types.h>

#endif
