#!/bin/bash
# Three lists of public functions are the same: those declared with KVMEM_API in include/, those in
# libkvmem.map, and those that libkvmem.so exports. They are fewer than 80.
set -u
cd "$(dirname "$0")/../.." || exit 1

library=${KVMEM_BUILD_DIR:-build/release}/lib/libkvmem.so
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What KVMEM_API stands for marks a declaration, which ends at a semicolon.
echo '#include "kvmem.h"' | ${CC:-gcc} -std=c11 -Iinclude -E -P -xc - | tr '\n;' ' \n' |
    sed -nE 's/.*visibility *\( *"default" *\) *\) *\)[^(]*\b(kvmem_[a-z0-9_]+) *\(.*/\1/p' |
    sort > "$work/headers"
sed 's,/\*.*\*/,,' libkvmem/libkvmem.map | grep -oE '\bkvmem_[a-z0-9_]+;' |
    tr -d ';' | sort > "$work/map"
nm -D --defined-only "$library" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' |
    sort > "$work/library"

failed=0
for list in headers library; do
    diff -u --label "libkvmem.map" --label "$list" "$work/map" "$work/$list" || failed=1
done
count=$(wc -l < "$work/map")
echo "$count functions"
[ "$count" -gt 0 ] && [ "$count" -lt 80 ] || { echo "expected 1 to 79"; failed=1; }
exit $failed
