#!/usr/bin/env python3
"""PyTorch's scaled_dot_product_attention on the CPU: the peer of bench/attention.

torch_cpu.py SEQS,HEADS,KV_HEADS,ROWS,LENGTH,DIM,CAUSAL,THREADS prints "ready ..." once it has chosen
the fastest way in bf16 and in fp32 (grouped heads, or K and V repeated beforehand); for each line on
standard input it runs both and prints the nanoseconds of the better one. Without PyTorch it is
installed into build/torch, from the registry that pip knows ($KVMEM_TORCH: another Python that has
it); where that fails the first line says so.
"""

import os
import pathlib
import subprocess
import sys
import time

VENV = pathlib.Path(__file__).resolve().parent.parent.parent / "build" / "torch"


def run_elsewhere():
    """This script again, by a Python that has PyTorch."""
    python = os.environ.get("KVMEM_TORCH") or str(VENV / "bin" / "python3")
    if os.environ.get("KVMEM_TORCH_TRIED"):
        sys.exit(print("PyTorch does not load", flush=True))
    if not os.environ.get("KVMEM_TORCH") and not (VENV / "done").exists():
        print(f"installing PyTorch into {VENV}, once", file=sys.stderr)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "torch", "numpy"]
        for command in ([sys.executable, "-m", "venv", str(VENV)], pip):
            if subprocess.run(command, stdout=sys.stderr).returncode:
                sys.exit(print("PyTorch cannot be installed", flush=True))
        (VENV / "done").touch()
    os.environ["KVMEM_TORCH_TRIED"] = "1"
    os.execv(python, [python, *sys.argv])


try:
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attention
except ImportError:
    run_elsewhere()


def elapsed_ns(run):
    start = time.perf_counter_ns()
    run()
    return time.perf_counter_ns() - start


def ways(dtype, seqs, heads, kv_heads, rows, length, dim, causal):
    q = torch.randn(seqs, heads, rows, dim, dtype=dtype)
    k = torch.randn(seqs, kv_heads, length, dim, dtype=dtype)
    v = torch.randn(seqs, kv_heads, length, dim, dtype=dtype)
    repeated = [x.repeat_interleave(heads // kv_heads, 1) for x in (k, v)]
    yield "grouped", lambda: attention(q, k, v, is_causal=causal, enable_gqa=True)
    yield "repeated", lambda: attention(q, *repeated, is_causal=causal)


def fastest(dtype, *shape):
    timed = []
    for name, run in ways(dtype, *shape):
        run()
        timed.append((min(elapsed_ns(run) for _ in range(3)), name, run))
    return min(timed, key=lambda way: way[0])


def main():
    *shape, causal, threads = map(int, sys.argv[1].split(","))
    torch.set_num_threads(threads)
    chosen = [fastest(dtype, *shape, bool(causal)) for dtype in (torch.bfloat16, torch.float32)]
    print(f"ready: PyTorch {torch.__version__}, bf16 {chosen[0][1]} {chosen[0][0] / 1e6:.1f} ms, "
          f"fp32 {chosen[1][1]} {chosen[1][0] / 1e6:.1f} ms", flush=True)
    for _ in sys.stdin:
        print(min(elapsed_ns(run) for _, _, run in chosen), flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
