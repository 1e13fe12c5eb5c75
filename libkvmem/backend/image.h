/* SPDX-License-Identifier: Apache-2.0
 *
 * A file as a constant of the program: const unsigned char `symbol`[], const uint64_t
 * `symbol`_bytes, hidden, to be declared by whoever reads them.
 */
#ifndef KVI_BACKEND_IMAGE_H
#define KVI_BACKEND_IMAGE_H

#define KVI_IMAGE(symbol, path)                             \
    __asm__(".pushsection .rodata\n"                        \
            ".balign 64\n"                                  \
            ".globl " symbol "\n"                           \
            ".hidden " symbol "\n" symbol ":\n"             \
            ".incbin \"" path "\"\n"                        \
            "1:\n"                                          \
            ".balign 8\n"                                   \
            ".globl " symbol "_bytes\n"                     \
            ".hidden " symbol "_bytes\n" symbol "_bytes:\n" \
            ".quad 1b - " symbol "\n"                       \
            ".popsection\n")

#endif
