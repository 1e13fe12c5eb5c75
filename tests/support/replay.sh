# SPDX-License-Identifier: Apache-2.0
#
# Sourced by the tests of kvmem-replay as a program: $run is a folder of their own, $replay the
# program, and what is not as expected makes $failed 1.

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
# expect STATUS ARGUMENTS...: stdout in out, stderr in err
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

# The last replay found what it must find and nothing else.
is_right() {
    is wrong_bytes 0
    is attention_wrong 0
    is leaked_blocks 0
    over blocks_checked 0
    over attention_checked 0
    awk "BEGIN { exit !($(number attention_max_error) < 1e-9) }" || wrong "attention error"
}

# self_test OPTIONS...: every planted fault is found, some of each kind.
self_test() {
    local kind
    expect 0 --trace "$trace" --embedded "$@" --requests 100 --self-test --json
    is planted_faults 1000
    is found_faults 1000
    is wrong_bytes 0
    for kind in bit layer head sequence generation length; do
        grep -qE "$kind [1-9][0-9]* of [1-9]" "$run/err" || wrong "no fault of kind $kind"
    done
}

# start_daemon OPTIONS...; stop_daemon
start_daemon() {
    export KVMEM_SOCKET=$run/kvmemd.sock
    "$bin/kvmemd" "$@" --socket "$KVMEM_SOCKET" 2>"$run/kvmemd.log" &
    daemon=$!
    for _ in $(seq 200); do
        "$bin/kvmemctl" stats --json >/dev/null 2>&1 && return
        sleep 0.05
    done
    cat "$run/kvmemd.log"
    wrong "kvmemd does not answer"
}
stop_daemon() {
    kill "$daemon"
    wait "$daemon" || wrong "kvmemd ended with status $?"
    daemon=
}

# two_clients OPTIONS...: they share what they compute.
two_clients() {
    expect 0 --trace "$trace" --requests 200 --json "$@"
    is clients 2
    is requests 200
    is_right
    over cross_client_hit_blocks 0
    over evictions 0
    over adoptions 0
}

lookups() {
    "$bin/kvmemctl" stats --json | grep -oE '"lookups":[[:space:]]*[0-9]+' | grep -oE '[0-9]+$'
}

# kill_one_client LOOKUPS OPTIONS...: after so many requests of 400 began. The other client goes
# on, and nothing that it reads is wrong.
kill_one_client() {
    local parent victim
    local goal=$(($(lookups) + $1))
    shift
    "$replay" --trace "$trace" --clients 2 --json "$@" >"$run/out" 2>"$run/err" &
    parent=$!
    while [ "$(lookups)" -lt $goal ] && kill -0 $parent 2>/dev/null; do
        sleep 0.01
    done
    victim=$(awk '{ print $2 }' "/proc/$parent/task/$parent/children")
    kill -9 "$victim" || wrong "no client to kill"
    wait "$parent"
    [ $? -eq 1 ] || wrong "a lost client did not make the status 1"
    says "was killed by signal 9"
    is lost_clients 1
    is wrong_bytes 0
    is leaked_blocks 0
    "$bin/kvmemctl" check >"$run/out" 2>&1 || wrong "kvmemctl check"
}
