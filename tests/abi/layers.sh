#!/bin/bash
# Dependencies point one way: each folder includes only what lies below it, and the directory knows
# no driver, no io_uring and no socket.
set -u
cd "$(dirname "$0")/../.." || exit 1

failed=0
# forbid FOLDER PATTERN: no #include in the folder may match.
forbid() {
    [ -d "$1" ] || return 0
    if grep -rnE --include='*.[ch]' --include='*.cu' --include='*.cuh' \
        "^ *# *include *[<\"]($2)" "$1"; then
        echo "$1 must not include the above"
        failed=1
    fi
}

forbid libkvmem "liburing|jemalloc|cjson"
forbid libkvmem/util "(api|client|directory|wire|backend)/"
forbid libkvmem/backend "(api|client|directory|wire)/"
forbid libkvmem/wire "(api|client|directory|backend)/"
forbid libkvmem/directory "(api|client)/|cuda|sys/socket|sys/un"
forbid libkvmem/client "api/"
forbid attention "(api|client|directory|wire|backend|util)/"
forbid bench/replay "(api|client|directory|wire|backend|util)/"
exit $failed
