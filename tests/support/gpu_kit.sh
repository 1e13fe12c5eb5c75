#!/bin/bash
# Copies the libraries that the programs given need, but for libc's own and the C++ runtime, to the
# folder given first: what must travel with a build folder to a machine that has only a GPU.
folder=$1
shift
mkdir -p "$folder"
ldd "$@" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p' | sort -u |
    grep -E '/lib(nettle|uring|jemalloc|cjson|gomp)\.so' | while read -r library; do
    cp -uL "$library" "$folder/"
done
ls "$folder"
