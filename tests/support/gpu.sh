#!/bin/bash
# Runs the tests that need a GPU, one at a time, as they were built: nothing is compiled here, so
# the build folder may have come from another machine.
#
#   tests/support/gpu.sh [WORD]             those whose path contains it
#   tests/support/gpu.sh --memcheck [WORD]  cases without faults on purpose, with a twentieth of the
#                                           rounds, under compute-sanitizer's memcheck
#   tests/support/gpu.sh --racecheck [WORD] the attention kernels, the same way, for races between
#                                           threads in shared memory
#   KVMEM_CASE=word                         only such cases in each program
#   KVMEM_CUDA_DEVICE=1                     on that GPU; 0 is usual
#
# Exit status 77 without a GPU. $KVMEM_BUILD_DIR: build/release here. lib/external in it, if there, holds libraries that this
# machine lacks (make gpu-kit).
cd "$(dirname "$0")/../.." || exit 1
export KVMEM_BUILD_DIR=${KVMEM_BUILD_DIR:-$PWD/build/release}
if [ -d "$KVMEM_BUILD_DIR/lib/external" ]; then
    export LD_LIBRARY_PATH=$KVMEM_BUILD_DIR/lib/external${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi
tool=
case $1 in --memcheck | --racecheck)
    tool=${1#--}
    shift
    ;;
esac
word=$1

programs=()
for source in tests/gpu/*.c; do
    program=$KVMEM_BUILD_DIR/tests/gpu/$(basename "$source" .c)
    if [ ! -x "$program" ]; then
        echo "$program is not built: make gpu-programs, where nvcc is" >&2
        exit 1
    fi
    programs+=("$program")
done
"$KVMEM_BUILD_DIR/tests/gpu/protect" --probe || exit

# Cases of each program that are meant to be clean under memcheck. Those that are left out write
# where they may not on purpose, or take all of the device.
clean="fences:published_behind_a_stream fences:freed_behind_a_stream fences:a_promise_holds
       copies:forks_copy_their_tails copies:lists_are_copied copies:copies_in_a_graph
       copies:blocks_are_zeroed device_table:equal_to_padded_tables protect:refusals
       full:more_than_the_pool backend_cuda:copy"
attention="attention_grid:edges attention_grid:features attention_grid:quantised
           attention_grid:flash_ragged attention_grid:infer_latent attention_grid:graphs"
case $tool in
memcheck) clean="$clean $attention" ;;
racecheck) clean=$attention ;;
esac

if [ -n "$tool" ]; then
    if ! command -v compute-sanitizer > /dev/null; then
        echo "compute-sanitizer is not on the PATH"
        exit 77
    fi
    export KVMEM_ROUNDS_SHARE=${KVMEM_ROUNDS_SHARE:-20} KVMEM_SLOWDOWN=${KVMEM_SLOWDOWN:-4}
    export KVMEM_COST=${KVMEM_COST:-1e6}
    failed=0
    for one in $clean; do
        case $one in *"$word"*) ;; *) continue ;; esac
        echo "$tool $one"
        KVMEM_CASE=${one#*:} compute-sanitizer --tool $tool --target-processes all \
            --error-exitcode 9 --log-file "$KVMEM_BUILD_DIR/$tool-%p.log" \
            "$KVMEM_BUILD_DIR/tests/gpu/${one%%:*}"
        status=$?
        if [ $status -ne 0 ] && [ $status -ne 77 ]; then
            echo "FAIL $tool $one: status $status"
            failed=1
        fi
    done
    grep -h -v "SUMMARY: 0 errors\|SUMMARY: 0 hazards\|COMPUTE-SANITIZER" "$KVMEM_BUILD_DIR/$tool"-*.log |
        head -60
    grep -h "SUMMARY" "$KVMEM_BUILD_DIR/$tool"-*.log | sort | uniq -c
    rm -f "$KVMEM_BUILD_DIR/$tool"-*.log
    exit $failed
fi

scripts=()
for script in tests/scripts/test_replay_gpu.sh tests/scripts/region_sdpa.py; do
    [ -x "$script" ] && scripts+=("plain:$script")
done
exec python3 tests/support/run.py --logs "$KVMEM_BUILD_DIR/gpu-logs" --limit 540 --jobs 1 \
    ${word:+--only "$word"} "${programs[@]/#/plain:}" "${scripts[@]}"
