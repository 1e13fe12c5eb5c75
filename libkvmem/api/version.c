/* SPDX-License-Identifier: Apache-2.0
 *
 * The version of the library that is loaded, which may be newer than the caller's headers.
 */
#include <kvmem/types.h>

#define TEXT_OF(number)               #number
#define DOTTED(major_n, minor, patch) TEXT_OF(major_n) "." TEXT_OF(minor) "." TEXT_OF(patch)

const char *kvmem_version(void)
{
    return DOTTED(KVMEM_VERSION_MAJOR, KVMEM_VERSION_MINOR, KVMEM_VERSION_PATCH);
}
