#!/bin/bash
# PROTOCOL.md is what the message table says. `make docs` writes it.
cd "$(dirname "$0")/../.." || exit 1

generator=${KVMEM_BUILD_DIR:-build/release}/bin/kvmem-protocol
if [ ! -x "$generator" ]; then
    echo "kvmem-protocol is not built"
    exit 77
fi
"$generator" | diff -u libkvmem/wire/PROTOCOL.md - && exit 0
echo 'run "make docs"'
exit 1
