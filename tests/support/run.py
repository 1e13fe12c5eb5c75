#!/usr/bin/env python3
"""Runs test programs, two at a time, and ends with "N passed, N failed, N skipped".

Arguments are criterion:PATH for a Criterion program, each of whose tests is counted, and
plain:PATH for a program or script that is one test: exit status 0 passes, 77 skips, and then the
last line printed is the reason. absent:PATH is a program that was not built, for want of a library;
it counts as skipped.

A program fails if a test of it fails, crashes or outlives the limit, if its status is not 0, if a
sanitizer reported anything (Criterion passes leaks), if it leaves a process running, or if it is a
Criterion program without a test. The run fails if anything did, or if nothing ran.
"""

import argparse
import concurrent.futures
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

SKIPPED = 77
TAP_LINE = re.compile(r"^(not ok|ok)\b[ \-]*(.*)$")
printing = threading.Lock()


class Result:
    def __init__(self):
        self.passed, self.failed, self.skipped = 0, 0, 0
        self.complaints = []
        self.reason = ""

    def fail(self, complaint):
        """Something wrong that no test answered for counts as one failed test."""
        self.complaints.append(complaint)
        self.failed = max(self.failed, 1)


def group_is_alive(group):
    """True if a process of the group is more than a zombie."""
    for stat in glob.glob("/proc/[0-9]*/stat"):
        try:
            fields = open(stat).read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            return True
    return False


def leaves_processes(group):
    """Waits two seconds for the group to end, then kills it. True if that was needed."""
    deadline = time.monotonic() + 2
    while group_is_alive(group):
        if time.monotonic() > deadline:
            os.killpg(group, signal.SIGKILL)
            return True
        time.sleep(0.05)
    return False


def read_tap(path, result):
    """Counts a Criterion program's tests. Returns how many it found."""
    lines = open(path, errors="replace").read().splitlines() if os.path.exists(path) else []
    found = 0
    for line in lines:
        match = TAP_LINE.match(line)
        if not match:
            continue
        found += 1
        if "# SKIP" in line:
            result.skipped += 1
        elif match[1] == "ok":
            result.passed += 1
        else:
            result.failed += 1
            result.complaints.append(match[2])
    return found


def run(test, options):
    kind, path = test.split(":", 1)
    result = Result()
    if kind == "absent":
        result.skipped, result.reason = 1, "not built: a library is missing"
        return result
    base = os.path.join(options.logs, re.sub(r"\W", "_", path))
    log, tap, sanitizer = base + ".log", base + ".tap", base + ".sanitizer"
    command = [os.path.abspath(path)]
    if kind == "criterion":
        command += ["--tap=" + tap, "--verbose=1", "--jobs=1"]
    environment = dict(os.environ)
    for name in ("ASAN", "UBSAN", "TSAN", "LSAN"):
        given = environment.get(name + "_OPTIONS", "")
        environment[name + "_OPTIONS"] = ":".join(
            filter(None, [given, "log_path=" + sanitizer, "print_stacktrace=1"]))

    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output,
                                   stderr=subprocess.STDOUT, env=environment,
                                   start_new_session=True)
        try:
            status = process.wait(options.limit)
        except subprocess.TimeoutExpired:
            status = None
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            result.fail(f"still running after {options.limit:g} s")
    if status is not None and leaves_processes(process.pid):
        result.fail("left a process running")

    if kind == "criterion":
        if read_tap(tap, result) == 0 and status == 0:
            result.fail("has no test")
    elif status == 0:
        result.passed = 0 if result.failed else 1
    elif status == SKIPPED and not result.failed:
        result.skipped = 1
        lines = open(log, errors="replace").read().split("\n")
        result.reason = next((line for line in reversed(lines) if line.strip()), "no reason given")
    if status not in (0, SKIPPED, None) and not result.failed:
        result.fail(f"signal {-status}" if status < 0 else f"exit status {status}")
    for report in sorted(glob.glob(glob.escape(sanitizer) + ".*")):
        result.fail("sanitizer report:\n" + open(report, errors="replace").read()[:4000])
    return result


def show(test, result, seconds, options):
    path = test.split(":", 1)[1]
    verdict = "FAIL" if result.failed else "ok" if result.passed else "skip"
    counts = f"{result.passed} passed"
    counts += f", {result.failed} failed" if result.failed else ""
    counts += f", {result.skipped} skipped" if result.skipped else ""
    counts += f" ({result.reason})" if result.reason else ""
    with printing:
        print(f"{verdict:4}  {path}: {counts}, {seconds:.1f} s", flush=True)
        if result.failed:
            log = os.path.join(options.logs, re.sub(r"\W", "_", path) + ".log")
            tail = open(log, errors="replace").read().splitlines()[-40:]
            for line in "\n".join(result.complaints + tail).splitlines():
                print("      | " + line, flush=True)


def run_and_show(test, options):
    start = time.monotonic()
    result = run(test, options)
    show(test, result, time.monotonic() - start, options)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logs", required=True, help="folder for logs and reports, emptied first")
    parser.add_argument("--limit", type=float, default=240, help="seconds a program may take")
    parser.add_argument("--jobs", type=int, default=2, help="programs at a time")
    parser.add_argument("--only", default="", help="run only programs whose path contains this")
    parser.add_argument("--alone", action="append", default=[],
                        help="run programs whose path contains this by themselves, last")
    parser.add_argument("tests", nargs="*")
    options = parser.parse_args()

    options.logs = os.path.abspath(options.logs)
    shutil.rmtree(options.logs, ignore_errors=True)
    os.makedirs(options.logs)
    tests = [test for test in options.tests if options.only in test]
    alone = [test for test in tests if any(part in test for part in options.alone)]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        together = [test for test in tests if test not in alone]
        results = list(pool.map(lambda test: run_and_show(test, options), together))
    results += [run_and_show(test, options) for test in alone]

    passed, failed, skipped = (sum(getattr(result, what) for result in results)
                               for what in ("passed", "failed", "skipped"))
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    if passed + failed == 0:
        print("no test ran", file=sys.stderr)
    return 0 if failed == 0 and passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
