#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""PyTorch's attention on a GPU, to compare with in the same run.

    torch_gpu.py [--backends flash,cudnn,math] [--heads 32/8] [--dim 128] SxT[+C] ...

S sequences, the last T tokens of each are rows, C tokens come before them (attention_prefill_lab's shapes);
causal, bf16, contiguous K and V. Medians of 30 events. One line of JSON a backend and shape; one with
"refused" where a backend takes no such shape. Exit status 77 without PyTorch or a GPU.
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


def median_us(call):
    times = []
    for i in range(WARM + SAMPLES):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        if i >= WARM:
            times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times)


def measure(backend, shape, heads, kv_heads, dim):
    seqs, rows, before = shape
    tokens = rows + before
    make = dict(device="cuda", dtype=torch.bfloat16)
    q = torch.randn(seqs, heads, rows, dim, **make)
    k, v = (torch.randn(seqs, kv_heads, tokens, dim, **make) for _ in range(2))
    mask = {"attn_mask": causal_lower_right(rows, tokens)} if before else {"is_causal": True}
    row = {"peer": f"torch {torch.__version__} {backend}", "shape": f"{seqs}x{rows}+{before}"}

    def call():
        torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True, **mask)

    try:
        with sdpa_kernel(BACKENDS[backend]):
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


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("shapes", nargs="+")
    parser.add_argument("--backends", default="flash,cudnn")
    parser.add_argument("--heads", default="32/8")
    parser.add_argument("--dim", type=int, default=128)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here")
        sys.exit(77)
    heads, kv_heads = (int(n) for n in options.heads.split("/"))
    for text in options.shapes:
        seqs, rows, before = re.fullmatch(r"(\d+)x(\d+)(?:\+(\d+))?", text).groups(default="0")
        for backend in options.backends.split(","):
            shape = (int(seqs), int(rows), int(before))
            print(json.dumps(measure(backend, shape, heads, kv_heads, options.dim)), flush=True)


if __name__ == "__main__":
    main()
