/* SPDX-License-Identifier: Apache-2.0
 *
 * Marks what libkvmem.so exports, and the version of this header set.
 */
#ifndef KVMEM_EXPORT_H
#define KVMEM_EXPORT_H

#if defined(__GNUC__)
#define KVMEM_API __attribute__((visibility("default")))
#else
#define KVMEM_API
#endif

#define KVMEM_VERSION_MAJOR 0
#define KVMEM_VERSION_MINOR 1
#define KVMEM_VERSION_PATCH 0

#endif
