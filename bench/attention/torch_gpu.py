#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""PyTorch's attention on a GPU, to compare with in the same run.

    torch_gpu.py [--backends flash,cudnn,math] [--heads 32/8] [--dim 128] SxT[+C] ...

S sequences, the last T tokens of each are rows, C tokens come before them (attention_prefill_lab's shapes);
causal, bf16, contiguous K and V. Medians of 30 events. One line of JSON a backend and shape; one with
"refused" where a backend takes no such shape. Exit status 77 without PyTorch or a GPU.

Without a shape it prints "ready" and then answers lines "BACKEND SHAPE RUNS": the microseconds of a run,
of so many in a row after one that is not timed (bench/attention asks), or "refused ...".
"""
import argparse
import json
import re
import statistics
import sys

try:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.bias import causal_lower_right
except ImportError as error:
    print(error)
    sys.exit(77)

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
SAMPLES, WARM = 30, 3


def elapsed_us(call, runs=1):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(runs):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3 / runs


def median_us(call):
    return statistics.median([elapsed_us(call) for _ in range(WARM + SAMPLES)][WARM:])


def shape_of(text):
    return tuple(map(int, re.fullmatch(r"(\d+)x(\d+)(?:\+(\d+))?", text).groups(default="0")))


def call_of(backend, shape, heads, kv_heads, dim):
    seqs, rows, before = shape
    tokens = rows + before
    make = dict(device="cuda", dtype=torch.bfloat16)
    q = torch.randn(seqs, heads, rows, dim, **make)
    k, v = (torch.randn(seqs, kv_heads, tokens, dim, **make) for _ in range(2))
    mask = {"attn_mask": causal_lower_right(rows, tokens)} if before else {"is_causal": True}

    def call():
        with sdpa_kernel(BACKENDS[backend]):
            torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True, **mask)

    return call


def measure(backend, shape, heads, kv_heads, dim):
    seqs, rows, before = shape
    row = {"peer": f"torch {torch.__version__} {backend}", "shape": f"{seqs}x{rows}+{before}"}
    call = call_of(backend, shape, heads, kv_heads, dim)
    try:
        torch.cuda.reset_peak_memory_stats()
        us = median_us(call)
    except RuntimeError as error:
        return row | {"refused": str(error).splitlines()[0][:120]}
    pairs = rows * before + rows * (rows + 1) / 2
    return row | {
        "us": round(us, 1),
        "tflops": round(4 * dim * heads * seqs * pairs / us / 1e6, 1),
        "peak_mib": round(torch.cuda.max_memory_allocated() / 2**20),
    }


def answer(heads, kv_heads, dim):
    print(f"ready: PyTorch {torch.__version__} on {torch.cuda.get_device_name()}", flush=True)
    known, call = None, None
    for line in sys.stdin:
        backend, text, runs = line.split()
        try:
            if known != (backend, text):
                call = None  # its memory goes first
                torch.cuda.empty_cache()
                known, call = (backend, text), call_of(backend, shape_of(text), heads, kv_heads, dim)
            call()
            print(elapsed_us(call, int(runs)), flush=True)
        except RuntimeError as error:
            print("refused", str(error).splitlines()[0][:120], flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("shapes", nargs="*")
    parser.add_argument("--backends", default="flash,cudnn")
    parser.add_argument("--heads", default="32/8")
    parser.add_argument("--dim", type=int, default=128)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here")
        sys.exit(77)
    heads, kv_heads = (int(n) for n in options.heads.split("/"))
    if not options.shapes:
        answer(heads, kv_heads, options.dim)
    for text in options.shapes:
        for backend in options.backends.split(","):
            shape = shape_of(text)
            print(json.dumps(measure(backend, shape, heads, kv_heads, options.dim)), flush=True)


if __name__ == "__main__":
    main()
