#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# kvmem-replay as a program: its complaints, an embedded replay, the self-test, the hit ratio
# against the pure LRU simulator, two clients of a daemon, and a client that is killed.
set -u
cd "$(dirname "$0")/../.." || exit 1

bin=${KVMEM_BUILD_DIR:-build/release}/bin
replay=$bin/kvmem-replay
trace=tests/data/mooncake_excerpt.jsonl
for program in kvmem-replay kvmemd kvmemctl; do
    [ -x "$bin/$program" ] || { echo "$program is not built"; exit 77; }
done

run=$(mktemp -d "${TMPDIR:-/tmp}/kvmem-replay.XXXXXX") || exit 1
daemon=
cleanup() {
    [ -z "$daemon" ] || kill -9 "$daemon" 2>/dev/null
    wait 2>/dev/null
    rm -rf "$run"
}
trap cleanup EXIT

failed=0
wrong() {
    echo "FAIL: $*"
    cat "$run/out" "$run/err" 2>/dev/null
    failed=1
}
# run STATUS ARGUMENTS...: stdout in out, stderr in err
expect() {
    local wanted=$1 status
    shift
    "$replay" "$@" >"$run/out" 2>"$run/err"
    status=$?
    [ $status -eq "$wanted" ] || wrong "status $status, not $wanted: kvmem-replay $*"
}
says() { grep -qF -- "$1" "$run/err" || wrong "stderr does not say: $1"; }
number() {
    local found
    found=$(grep -oE "\"$1\" *: *[-0-9.e+]+" "$run/out" | head -1 | sed 's/.*: *//')
    echo "${found:-missing}"
}
# is KEY VALUE; over KEY BOUND
is() { [ "$(number "$1")" = "$2" ] || wrong "$1 is $(number "$1"), not $2"; }
over() { awk "BEGIN { exit !($(number "$1") > $2) }" || wrong "$1 is $(number "$1"), not > $2"; }

# ---- complaints ----
expect 0 --help
grep -q -- --self-test "$run/out" || wrong "--help does not explain --self-test"
expect 2 --trace "$trace" --concurrency 0
says "--concurrency: 0 is not a number in 1 .. 1024"
expect 2 --trace "$run/none"
says "$run/none"
{ head -2 "$trace"; echo '{"timestamp": 1, "input_length": 1024, "output_length": 1, "hash_ids": [1]}'; } \
    >"$run/short.jsonl"
expect 2 --trace "$run/short.jsonl" --embedded
says "short.jsonl:3: expected 2 \"hash_ids\""
expect 1 --trace "$trace" --embedded --device-bytes 1MiB
says "a device of"
expect 1 --trace "$trace" --socket "$run/nobody.sock"
says "is kvmemd running"

# ---- embedded ----
expect 0 --trace "$trace" --embedded --device-bytes 32MiB --requests 120 --json
is requests 120
is wrong_bytes 0
is leaked_blocks 0
is attention_wrong 0
over hit_blocks 0
over blocks_checked 1000
over attention_checked 5
over evictions 1000
over preemptions 0
over output_tokens 10000
awk "BEGIN { exit !($(number attention_max_error) < 1e-9) }" || wrong "attention error"

for geometry in layers=1,kv_heads=1,head_dim=64,dtype=fp32 layers=3,kv_heads=4,head_dim=8,dtype=fp16,block_tokens=32; do
    expect 0 --trace "$trace" --embedded --device-bytes 256MiB --requests 20 --geometry $geometry --json
    is wrong_bytes 0
done

expect 0 --trace "$trace" --embedded --device-bytes 64MiB --requests 100 --self-test --json
is planted_faults 1000
is found_faults 1000
is wrong_bytes 0
for kind in bit layer head sequence generation length; do
    grep -qE "$kind [1-9][0-9]* of [1-9]" "$run/err" || wrong "no fault of kind $kind"
done

# ---- the same hits as a pure LRU of as many blocks ----
# A pool that is not small beside a prompt: evicting whole segments costs little there.
expect 0 --trace "$trace" --embedded --device-bytes 128MiB --sequential --no-output --dry --json
is requests 400
is output_tokens 0
is prompt_tokens 2053765
ours=$(number hit_ratio)
pure=$(python3 tests/model/lru_simulator.py "$trace" --blocks 32768 |
    sed 's/.*"hit_ratio": *\([0-9.]*\).*/\1/')
awk "BEGIN { d = $ours - $pure; exit !(d <= 0.01 && d >= -0.01) }" ||
    wrong "hit ratio $ours, a pure LRU has $pure"

# ---- a daemon ----
export KVMEM_SOCKET=$run/kvmemd.sock
"$bin/kvmemd" --device host --device-bytes 48MiB --socket "$KVMEM_SOCKET" 2>"$run/kvmemd.log" &
daemon=$!
for _ in $(seq 200); do
    "$bin/kvmemctl" stats --json >/dev/null 2>&1 && break
    sleep 0.05
done

expect 0 --trace "$trace" --requests 200 --json
is clients 2
is requests 200
is wrong_bytes 0
is leaked_blocks 0
over cross_client_hit_blocks 0
over evictions 0
over adoptions 0

"$replay" --trace "$trace" --clients 2 --json >"$run/out" 2>"$run/err" &
parent=$!
victim=
for _ in $(seq 200); do
    victim=$(cat "/proc/$parent/task/$parent/children" 2>/dev/null | awk '{ print $2 }')
    [ -n "$victim" ] && [ -e "/proc/$victim" ] && break
    sleep 0.01
done
sleep 0.3
kill -9 "$victim" || wrong "no client to kill"
wait "$parent"
[ $? -eq 1 ] || wrong "a lost client did not make the status 1"
says "was killed by signal 9"
is lost_clients 1
is wrong_bytes 0
is leaked_blocks 0
"$bin/kvmemctl" check >"$run/out" 2>&1 || wrong "kvmemctl check"

kill "$daemon"
wait "$daemon"
daemon=
[ $failed -eq 0 ] && echo "kvmem-replay: all as expected"
exit $failed
