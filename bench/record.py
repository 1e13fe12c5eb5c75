#!/usr/bin/env python3
"""Takes the rows of `make bench` on standard input and appends them to bench/results/host.jsonl,
with the date, the revision and what they ran on."""

import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def output_of(*command):
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout.strip()


def processor():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def main():
    run = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "revision": output_of("git", "describe", "--always", "--dirty"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "kernel": platform.release().split("-")[0],
        "compiler": output_of(os.environ.get("CC", "gcc"), "-dumpfullversion"),
    }
    with open(ROOT / "bench" / "results" / "host.jsonl", "a") as results:
        for line in sys.stdin:
            sys.stdout.write(line)
            if line.startswith("{"):
                results.write(json.dumps(run | json.loads(line)) + "\n")


if __name__ == "__main__":
    main()
