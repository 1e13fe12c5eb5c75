/* SPDX-License-Identifier: Apache-2.0
 *
 * The table over libc. Large blocks are mapped and stay untouched (fresh pages are zero already),
 * so that a pool that is never used costs address space only.
 */
#include "util/alloc.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ALIGNMENT      64u
#define MAP_FROM_BYTES (64u * 1024u)

static size_t rounded(size_t bytes)
{
    return (bytes + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
}

static void *libc_allocate(void *context, size_t bytes)
{
    void *memory;

    (void)context;
    if (bytes > SIZE_MAX / 2)
        return NULL;
    if (bytes >= MAP_FROM_BYTES) {
        memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        return memory == MAP_FAILED ? NULL : memory;
    }
    memory = aligned_alloc(ALIGNMENT, rounded(bytes));
    if (memory)
        memset(memory, 0, rounded(bytes));
    return memory;
}

static void libc_release(void *context, void *memory, size_t bytes)
{
    (void)context;
    if (bytes >= MAP_FROM_BYTES)
        munmap(memory, bytes);
    else
        free(memory);
}

const struct kvi_alloc kvi_alloc_libc = {NULL, libc_allocate, libc_release};
