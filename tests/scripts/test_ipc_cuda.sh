#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The tests with real processes that do not care what the device is (tests/ipc), once more: on the
# host device with helper threads in the clients, and on a GPU of the fake CUDA driver without and
# with them. Every process of a run, kvmemd included, opens the fake as its driver.
set -u
cd "$(dirname "$0")/../.." || exit 1

tests=${KVMEM_BUILD_DIR:-build/release}/tests
fake=$PWD/$tests/fake_cuda
case $tests in /*) fake=$tests/fake_cuda ;; esac
[ -e "$fake/libcuda.so.1" ] || { echo "the fake driver is not built"; exit 77; }
log=$(mktemp "${TMPDIR:-/tmp}/kvmem-ipc-cuda.XXXXXX") || exit 1
trap 'rm -f "$log"' EXIT

failed=0
# run WHAT TEST [VARIABLE=VALUE]...
run() {
    local what=$1 test=$2
    shift 2
    # 20: spare segments come and go.
    if env KVMEM_SPARE_MS=20 "$@" "$tests/ipc/$test" --filter "$filter" >"$log" 2>&1; then
        echo "ok: $test, $what"
    else
        echo "FAIL: $test, $what"
        cat "$log"
        failed=1
    fi
}

gpu="LD_LIBRARY_PATH=$fake KVMEM_FAKE_CUDA=granule=4096 CUDA_MPS_PIPE_DIRECTORY=/nonexistent KVT_DEVICE=cuda:0"
filter='*/*'
# With helpers its deadlines may pass while one more thread waits for a processor, and a wait that
# is not over yet is in no clock.
run "fake GPU" test_pressure $gpu
run "fake GPU" test_region $gpu
for test in test_sharing test_daemon_lost test_timeline; do
    run "host, helpers" "$test" KVT_HELPER=1
    # On a GPU a copied tail is held until the stream has passed: the counts are others.
    [ "$test" = test_sharing ] && filter='*/!(a_forks_tail_*)'
    run "fake GPU" "$test" $gpu
    run "fake GPU, helpers" "$test" $gpu KVT_HELPER=1
    filter='*/*'
done
filter='*/a_client_may_die_at_any_moment'
run "fake GPU, helpers" test_kill $gpu KVT_HELPER=1
exit $failed
