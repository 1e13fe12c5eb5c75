#!/usr/bin/env python3
"""replay_dry and waste: whole runs of kvmem-replay over the whole trace that the project carries.

replay_dry: one request after another, no K/V bytes, every prompt token hashed, 1,048,576 blocks;
its hit ratio against tests/model/lru_simulator.py. waste: 32 concurrent requests with their output
tokens in a pool of a tenth of the trace's distinct blocks, averaged over time.
"""

import json
import lzma
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ.get("KVMEM_BUILD_DIR", ROOT / "build" / "release"))
TRACE = ROOT / "bench" / "data" / "mooncake_conversation.jsonl.xz"
DRY_BLOCKS = 1048576
DISTINCT_BLOCKS = 182790 * 512 // 16  # of 16 tokens
BLOCK_BYTES = 4096  # of the default geometry
RUNS = 3

failed = False


def report(bench, metric, values, limit, peer="limit", peer_median=None, at_least=False):
    """The row that bench/common/bench.c prints, for values measured here."""
    global failed
    median = statistics.median(values)
    peer_median = limit if peer_median is None else peer_median
    met = median >= limit if at_least else median <= limit
    failed |= not met
    print(json.dumps({"bench": bench, "metric": metric, "median": median, "p99": max(values),
                      "peer": peer, "peer_median": peer_median,
                      "ratio": round(median / peer_median, 6) if peer_median else 0,
                      "limit": limit, "met": met}), flush=True)


def replay(trace, *options):
    command = [BUILD / "bin" / "kvmem-replay", "--trace", trace, "--tokens-per-id", "512",
               "--embedded", "--dry", "--json", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"kvmem-replay: exit status {done.returncode}")
    return json.loads(done.stdout)


def dry(trace):
    size = f"--device-bytes={DRY_BLOCKS * BLOCK_BYTES}"
    runs = [replay(trace, "--sequential", "--no-output", size) for _ in range(RUNS)]
    resident = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    report("replay_dry", "ns for 12,031 requests, every token hashed",
           [run["seconds"] * 1e9 for run in runs], 5e9)
    report("replay_dry", "bytes resident at the most", [resident], 256 * 2**20)
    report("replay_dry", "entries evicted", [runs[0]["evictions"]], 4e6, at_least=True)
    simulator = subprocess.run(
        [sys.executable, ROOT / "tests" / "model" / "lru_simulator.py", trace,
         "--blocks", str(DRY_BLOCKS)], stdout=subprocess.PIPE, text=True, check=True)
    expected = json.loads(simulator.stdout)["hit_ratio"]
    report("replay_dry", "distance from a pure block-LRU's hit ratio",
           [abs(run["hit_ratio"] - expected) for run in runs], 0.005,
           peer=f"simulator {expected:.4f}, own {runs[0]['hit_ratio']:.4f}")


def waste(trace):
    run = replay(trace, "--concurrency", "32",
                 f"--device-bytes={DISTINCT_BLOCKS // 10 * BLOCK_BYTES // 65536 * 65536}")
    report("waste", "share of granted bytes that hold no token", [run["waste_ratio"]], 0.04)
    report("waste", "share of unused slots in used blocks",
           [run["unused_slot_ratio"]], 0.005)


def main():
    with tempfile.TemporaryDirectory() as folder:
        trace = os.path.join(folder, "trace.jsonl")
        with lzma.open(TRACE) as packed, open(trace, "wb") as plain:
            plain.write(packed.read())
        dry(trace)
        waste(trace)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
