#!/bin/bash
# Runs the benchmarks on a GPU as they were built, in the order of their rows: a JSON line each on
# standard output, the rest on standard error.
#
#   bench/gpu/run.sh [WORD]    those whose name contains it
#   KVMEM_SAMPLES=n KVMEM_KILLS=n    fewer samples, fewer kills: for a look
#
# Exit status 0 when all ran and met their limits, 1 when a limit was missed, 2 when one did not
# run to its end, 77 without a GPU.
cd "$(dirname "$0")/../.." || exit 2
export KVMEM_BUILD_DIR=${KVMEM_BUILD_DIR:-$PWD/build/release}
if [ -d "$KVMEM_BUILD_DIR/lib/external" ]; then
    export LD_LIBRARY_PATH=$KVMEM_BUILD_DIR/lib/external${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi
status=0
for name in attach grow step_256 fork_tail_256 block_copy region_append shared_prefix move_memory \
    kill_reuse kv_write attention; do
    case $name in *"$1"*) ;; *) continue ;; esac
    program=("$KVMEM_BUILD_DIR/bench/gpu/$name")
    if [ $name = attention ]; then
        program=("$KVMEM_BUILD_DIR/bench/attention" --device "cuda:${KVMEM_CUDA_DEVICE:-0}"
            --samples "${KVMEM_SAMPLES:-31}")
    fi
    if [ ! -x "${program[0]}" ]; then
        echo "${program[0]} is not built: make gpu-programs, where nvcc is" >&2
        exit 2
    fi
    output=$("${program[@]}")
    result=$?
    if [ $result -eq 77 ]; then
        echo "$output" >&2
        exit 77
    fi
    grep '^{' <<< "$output"
    grep -v '^{' <<< "$output" >&2
    if [ $result -gt 1 ]; then
        echo "$name failed with status $result" >&2
        status=2
    elif [ $result -eq 1 ]; then
        echo "$name misses a limit" >&2
        [ $status -eq 0 ] && status=1
    fi
done
exit $status
