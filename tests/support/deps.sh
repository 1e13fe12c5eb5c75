#!/bin/bash
# What kvmem needs beyond a bare Debian or Ubuntu.
#
#   deps.sh install GROUP...   install what is missing, as root or through password-less sudo;
#                              where neither is there, print the command to run and exit 1
#   deps.sh check GROUP...     only look; exit 1 and say what is missing
#
# Groups: build, test, format, clang. Nothing is asked of the package manager when nothing is
# missing. WITH_URING=0 does without liburing; CC chooses the compiler.
set -u

cc=${CC:-gcc}
missing=()

has()      { command -v "$1" > /dev/null 2>&1; }
compiles() { echo '#include <stdlib.h>' | $cc -fsyntax-only -xc - > /dev/null 2>&1; }
library()  { pkg-config --exists "$1" > /dev/null 2>&1; }

# need PACKAGE TEST...: the package is missing if the test fails.
need() {
    local package=$1
    shift
    "$@" || missing+=("$package")
}

check_build() {
    case $(basename "${cc%% *}") in
    clang*) need "$(basename "${cc%% *}")" has "${cc%% *}" ;;
    *) need gcc has gcc ;;
    esac
    need libc6-dev compiles
    need make has make
    need pkg-config has pkg-config
    need libjemalloc-dev library jemalloc
    need nettle-dev library nettle
    need libcjson-dev library libcjson
    # Without liburing everything but the daemon can be built, so `check` lets that pass.
    if [ "$verb" = install ] && [ "${WITH_URING:-1}" != 0 ]; then
        need liburing-dev library liburing
    fi
}

check_test() {
    need libcriterion-dev library criterion
    need g++ has g++
    need python3 has python3
    need xz-utils has xz
}

check_format() { need clang-format has clang-format; }
check_clang()  { need clang has clang; }

install_missing() {
    local root=()
    if [ "$(id -u)" != 0 ]; then
        root=(sudo -n)
        if ! sudo -n true 2> /dev/null; then
            echo "kvmem needs: ${missing[*]}. Install with:" >&2
            echo "    $command" >&2
            exit 1
        fi
    fi
    echo "installing ${missing[*]}"
    "${root[@]}" apt-get update -qq || echo "apt-get update failed; trying all the same" >&2
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null || {
        echo "could not install them; the command was: $command" >&2
        exit 1
    }
}

verb=$1
shift
for group in "$@"; do
    "check_$group"
done
[ ${#missing[@]} -eq 0 ] && exit 0
command="sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}"

if [ "$verb" = check ]; then
    echo "kvmem needs: ${missing[*]}. Run \"make deps\", or:" >&2
    echo "    $command" >&2
    exit 1
fi
if ! has apt-get; then
    echo "kvmem needs what Debian calls: ${missing[*]}. No apt-get here: install them by hand." >&2
    exit 1
fi
install_missing
