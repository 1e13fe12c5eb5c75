#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# kvmem-replay as a program: its complaints, an embedded replay, the self-test, the hit ratio
# against the pure LRU simulator, two clients of a daemon, and a client that is killed.
set -u
cd "$(dirname "$0")/../.." || exit 1

. tests/support/replay.sh

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
expect 2 --trace "$trace" --embedded --device gpu
says "--device: gpu is neither host nor cuda:N"
expect 1 --trace "$trace" --embedded --device cuda:63
says "cannot embed a device"
expect 1 --trace "$trace" --embedded --device-bytes 1MiB
says "a device of"
expect 1 --trace "$trace" --socket "$run/nobody.sock"
says "is kvmemd running"

# ---- embedded ----
expect 0 --trace "$trace" --embedded --device-bytes 32MiB --requests 120 --json
is requests 120
is_right
is stale_prefixes 0
over hit_blocks 0
over blocks_checked 1000
over attention_checked 5
over kernels_checked 5
over evictions 1000
over preemptions 0
over output_tokens 10000

for geometry in layers=1,kv_heads=1,head_dim=64,dtype=fp32 layers=3,kv_heads=4,head_dim=8,dtype=fp16,block_tokens=32; do
    expect 0 --trace "$trace" --embedded --device-bytes 256MiB --requests 20 --geometry $geometry --json
    is wrong_bytes 0
done

self_test --device-bytes 64MiB

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
start_daemon --device host --device-bytes 48MiB
expect 1 --trace "$trace" --clients 1 --device cuda:7
says "--device: the daemon has no cuda:7, but host"
two_clients --device host
kill_one_client 100
stop_daemon

[ $failed -eq 0 ] && echo "kvmem-replay: all as expected"
exit $failed
