#!/bin/bash
# Each public header compiles alone, as C11 and as C++17, without a warning.
set -u
cd "$(dirname "$0")/../.." || exit 1

failed=0
flags="-Iinclude -Wall -Wextra -Wpedantic -Werror -fsyntax-only"
for header in $(cd include && find . -name '*.h' | sort); do
    # An empty translation unit is not C, so that headers of macros only need a declaration more.
    unit=$(printf '#include "%s"\nint alone(void);\n' "${header#./}")
    echo "$unit" | ${CC:-gcc} -std=c11 $flags -xc - || failed=1
    echo "$unit" | ${CXX:-g++} -std=c++17 $flags -xc++ - || failed=1
done
exit $failed
