#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# `make demo`: a daemon with a pool far smaller than the work needs, and two engines that share it
# while they replay an hour's chat requests. Half way one of them is killed with SIGKILL and
# replaced. Every byte that an engine reads is checked.
#
# Exit status 0 only when no byte was wrong, nothing leaked, the directory's invariants hold, and
# sharing between the engines, eviction, adoption and preemption each happened.
#
#   DEVICE=cuda:0 make demo     the same in the memory of a GPU
set -u
cd "$(dirname "$0")/.." || exit 1

bin=${KVMEM_BUILD_DIR:-build/release}/bin
trace=tests/data/mooncake_excerpt.jsonl
requests=400
device=${DEVICE:-host}
device_bytes=48MiB
model=layers=4,kv_heads=2,head_dim=16,dtype=bf16,block_tokens=16
seconds_limit=55

run=$(mktemp -d "${TMPDIR:-/tmp}/kvmem-demo.XXXXXX") || exit 1
export KVMEM_SOCKET=$run/kvmemd.sock
declare -A started=()

cleanup() {
    for name in "${!started[@]}"; do kill -9 "${started[$name]}" 2>/dev/null; done
    wait 2>/dev/null
    rm -rf "$run"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || say() { printf '\n%s\n' "$*"; }
die() {
    echo "demo: $*" >&2
    for log in "$run"/*.log; do [ -s "$log" ] && sed "s|^|  $(basename "$log"): |" "$log" >&2; done
    exit 1
}

# number FILE KEY: the number behind a key of a JSON file, 0 when it is not there.
number() {
    local found
    found=$(grep -oE "\"$2\"[[:space:]]*:[[:space:]]*[0-9]+" "$1" 2>/dev/null | head -1 | grep -oE '[0-9]+$')
    echo "${found:-0}"
}
stats() { "$bin/kvmemctl" stats --json >"$run/stats.json" 2>"$run/kvmemctl.log"; }
is_running() { kill -0 "${started[$1]}" 2>/dev/null; }

# start NAME COMMAND...: in the background, its output in NAME.json, its complaints in NAME.log
start() {
    local name=$1
    shift
    "$@" >"$run/$name.json" 2>"$run/$name.log" &
    started[$name]=$!
}
engine() {
    start "$1" "$bin/kvmem-replay" --trace "$trace" --part "$2" --geometry "$model" --json
}
# finish NAME: wait for its end; its exit status.
finish() {
    local pid=${started[$1]}
    wait "$pid"
    local status=$?
    unset "started[$1]"
    return $status
}

# until_lookups N NAME: until the daemon answered N lookups, while NAME runs.
until_lookups() {
    while is_running "$2" && stats && [ "$(number "$run/stats.json" lookups)" -lt "$1" ]; do
        [ $SECONDS -lt $seconds_limit ] || die "still not half way after $SECONDS s"
        sleep 0.02
    done
}
show() {
    "$bin/kvmemctl" map || die "kvmemctl map failed"
    echo
    "$bin/kvmemctl" frag || die "kvmemctl frag failed"
}

say "kvmemd: a pool of $device_bytes on $device for two engines, $requests requests, 2,053,765 prompt tokens"
start kvmemd "$bin/kvmemd" --device "$device" --device-bytes $device_bytes --socket "$KVMEM_SOCKET"
for _ in $(seq 500); do # a GPU takes a second or two to wake up
    stats && break
    is_running kvmemd || die "kvmemd ended"
    sleep 0.02
done
stats || die "kvmemd does not answer"

engine first 1/2
engine second 2/2
until_lookups $((requests / 3)) second
say "The pool while both engines run:"
show
until_lookups $((requests / 2)) second
is_running second || die "the second engine ended before it could be killed"
kill -9 "${started[second]}"
finish second 2>/dev/null
say "Half way: the second engine was killed with SIGKILL. Its successor starts at once, and"
echo "adopts what the dead one published."
engine third 2/2
until_lookups $((requests * 3 / 4)) third
say "The pool with the successor:"
show

while is_running first || is_running third; do
    [ $SECONDS -lt $seconds_limit ] || die "still not done after $SECONDS s"
    sleep 0.1
done
finish first || die "the first engine failed (status $?)"
finish third || die "the successor failed (status $?)"
for _ in $(seq 100); do # the daemon counts what is left after the last client
    stats || die "kvmemctl stats failed"
    [ "$(number "$run/stats.json" leased_blocks)" -eq 0 ] && break
    sleep 0.02
done

sum() { echo $(($(number "$run/first.json" "$1") + $(number "$run/third.json" "$1"))); }
daemon() { number "$run/stats.json" "$1"; }
failed=0
# verdict TEXT VALUE OPERATOR WANTED
verdict() {
    local mark="ok  "
    test "$2" "$3" "$4" || { mark=FAIL; failed=1; }
    printf '  %s  %-46s %s\n' "$mark" "$1" "$2"
}

say "What happened, $SECONDS s in all"
printf '        %-46s %s\n' "requests replayed to their end" "$(sum requests)" \
    "prompt tokens" "$(sum prompt_tokens)" "output tokens" "$(sum output_tokens)"
verdict "blocks compared with what they must hold" "$(sum blocks_checked)" -gt 0
verdict "wrong bytes" "$(sum wrong_bytes)" -eq 0
verdict "attention outputs compared" "$(sum attention_checked)" -gt 0
verdict "blocks found that another engine computed" "$(daemon foreign_hit_blocks)" -gt 0
verdict "entries evicted" "$(daemon evicted_blocks)" -gt 0
verdict "segments adopted" "$(daemon adopted_segments)" -gt 0
verdict "requests preempted and computed again" "$(sum preemptions)" -gt 0
verdict "blocks leaked, after the last engine left" "$(daemon leaked_blocks)" -eq 0
verdict "blocks still leased" "$(daemon leased_blocks)" -eq 0
if "$bin/kvmemctl" check >"$run/check.log" 2>&1; then
    printf '  ok    kvmemctl check: %s\n' "$(head -1 "$run/check.log")"
else
    printf '  FAIL  kvmemctl check: %s\n' "$(head -1 "$run/check.log")"
    failed=1
fi
exit $failed
