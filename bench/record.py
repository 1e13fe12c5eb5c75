#!/usr/bin/env python3
"""Takes the rows of `make bench` on standard input and appends them to bench/results/host.jsonl,
with the date, the revision and what they ran on. With --gpu the rows of `make bench-gpu`, to
h200.jsonl, with the card, its driver and its clocks as they are after the run.

$REVISION is the revision where there is no git; $RESULTS another file to append to."""

import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def output_of(*command):
    try:
        result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, text=True)
    except FileNotFoundError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def processor():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def when_and_what():
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "revision": os.environ.get("REVISION") or output_of("git", "describe", "--always", "--dirty"),
    }


def host():
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "kernel": platform.release().split("-")[0],
        "compiler": output_of(os.environ.get("CC", "gcc"), "-dumpfullversion"),
    }


def gpu():
    fields = {"device": "name", "driver": "driver_version", "clock_sm_mhz": "clocks.sm",
              "clock_memory_mhz": "clocks.mem", "clock_sm_max_mhz": "clocks.max.sm",
              "power_limit_w": "power.limit"}
    number = os.environ.get("KVMEM_CUDA_DEVICE", "0")
    answer = output_of("nvidia-smi", "-i", number, "--query-gpu=" + ",".join(fields.values()),
                       "--format=csv,noheader,nounits")
    values = [value.strip() for value in answer.split(",")] if answer else []
    known = dict(zip(fields, values)) if len(values) == len(fields) else {"device": "unknown"}
    for name, value in known.items():
        if name.endswith(("_mhz", "_w")):
            try:
                known[name] = float(value)
            except ValueError:  # [N/A]
                known[name] = None
    return known | {"processor": processor(), "cores": os.cpu_count()}


def main():
    is_gpu = sys.argv[1:] == ["--gpu"]
    if sys.argv[1:] and not is_gpu:
        sys.exit(f"unknown arguments: {sys.argv[1:]}")
    rows = []
    for line in sys.stdin:
        sys.stdout.write(line)
        sys.stdout.flush()
        if line.startswith("{"):
            rows.append(json.loads(line))
    if not rows:
        return  # no clocks to ask for where nothing ran
    run = when_and_what() | (gpu() if is_gpu else host())
    usual = ROOT / "bench" / "results" / ("h200.jsonl" if is_gpu else "host.jsonl")
    with open(os.environ.get("RESULTS") or usual, "a") as results:
        for row in rows:
            results.write(json.dumps(run | row) + "\n")


if __name__ == "__main__":
    main()
