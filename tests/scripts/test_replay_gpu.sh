#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# kvmem-replay on a GPU: embedded, with a model of real size, the self-test, two clients of a
# daemon, and clients that are killed at different moments of their work. $KVMEM_CUDA_DEVICE is
# the device's number, 0 by default.
set -u
cd "$(dirname "$0")/../.." || exit 1

[ -e /dev/nvidiactl ] || { echo "no GPU here: there is no /dev/nvidiactl"; exit 77; }
. tests/support/replay.sh
gpu=cuda:${KVMEM_CUDA_DEVICE:-0}

# ---- embedded ----
"$replay" --trace "$trace" --embedded --device $gpu --requests 1 >"$run/out" 2>"$run/err"
if grep -q "built without nvcc" "$run/err"; then
    echo "kvmem-replay was built without nvcc"
    exit 77
fi
expect 0 --trace "$trace" --embedded --device $gpu --device-bytes 32MiB --requests 120 --json
is requests 120
is_right
is stale_prefixes 0
over hit_blocks 0
over blocks_checked 1000
over evictions 0
over preemptions 0

# Stores of 16 bytes, and odd ones; then blocks of 2 MiB, as of a model with 8 billion weights.
for geometry in layers=1,kv_heads=1,head_dim=64,dtype=fp32 layers=3,kv_heads=4,head_dim=8,dtype=fp16,block_tokens=32 layers=2,kv_heads=2,head_dim=12; do
    expect 0 --trace "$trace" --embedded --device $gpu --device-bytes 256MiB --requests 20 --geometry $geometry --json
    is_right
done
expect 0 --trace "$trace" --embedded --device $gpu --device-bytes 8GiB --requests 20 --helper --json \
    --geometry layers=32,kv_heads=8,head_dim=128
is_right
over evictions 0

self_test --device $gpu --device-bytes 64MiB

# ---- a daemon ----
start_daemon --device $gpu --device-bytes 48MiB
expect 1 --trace "$trace" --clients 1 --device host
says "--device: the daemon has no host, but $gpu"
two_clients --device $gpu
two_clients --helper # and finds by itself that it is a GPU
for requests in 10 50 100 150 200 250; do
    kill_one_client $requests
done
stop_daemon

[ $failed -eq 0 ] && echo "kvmem-replay on $gpu: all as expected"
exit $failed
