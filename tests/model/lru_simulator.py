#!/usr/bin/env python3
"""What hit ratio a pure LRU cache of blocks reaches on a trace: a yardstick for kvmem-replay.

It knows nothing of segments, leases, messages or bytes. Requests come one after another. Of each,
all full blocks but that of the last token are looked up; the leading run that is there hits; the
others are computed, which evicts the least recently used; at the end the request's blocks become
the most recently used ones, its tail first, so that a prefix outlives what follows it.

    lru_simulator.py TRACE --blocks 1048576 [--tokens-per-id 512] [--block-tokens 16] [--requests N]

prints one JSON object: requests, lookup_blocks, hit_blocks, hit_ratio, evictions.
"""

import argparse
import collections
import json


def chains(requests):
    """Numbers each distinct prefix of ids, so that equal ids behind different ones stay apart."""
    known = {}
    for request in requests:
        chain, parent = [], -1
        for block_id in request["hash_ids"]:
            parent = known.setdefault((parent, block_id), len(known))
            chain.append(parent)
        yield request["input_length"], chain


def block_keys(length, chain, tokens_per_id, block_tokens):
    """Keys of the full blocks of a prompt. A block belongs to the id that its last token is in."""
    keys = []
    for block in range(length // block_tokens):
        last = (block + 1) * block_tokens - 1
        keys.append((chain[last // tokens_per_id] << 20) + last % tokens_per_id)
    return keys


def simulate(requests, capacity, tokens_per_id, block_tokens):
    cache = collections.OrderedDict()  # least recently used first; blocks that nobody holds
    result = collections.Counter()
    for length, chain in chains(requests):
        keys = block_keys(length, chain, tokens_per_id, block_tokens)
        lookups = keys[: (length - 1) // block_tokens]
        hits = 0
        for key in lookups:
            if key not in cache:
                break
            hits += 1
        for key in lookups[:hits]:
            del cache[key]  # held by the request now
        needed = -(-length // block_tokens)
        if needed > capacity:
            raise SystemExit(f"a request needs {needed} blocks of {capacity}")
        while len(cache) + needed > capacity:
            cache.popitem(last=False)
            result["evictions"] += 1
        for key in reversed(keys):
            if key not in cache:  # else it is there already, and nobody asked for it
                cache[key] = None
        result["requests"] += 1
        result["lookup_blocks"] += len(lookups)
        result["hit_blocks"] += hits
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace")
    parser.add_argument("--blocks", type=int, required=True, help="capacity of the cache")
    parser.add_argument("--tokens-per-id", type=int, default=512)
    parser.add_argument("--block-tokens", type=int, default=16)
    parser.add_argument("--requests", type=int, default=0, help="only the first N; 0 = all")
    options = parser.parse_args()

    with open(options.trace) as lines:
        requests = [json.loads(line) for line in lines]
    if options.requests:
        requests = requests[: options.requests]
    result = simulate(requests, options.blocks, options.tokens_per_id, options.block_tokens)
    print(json.dumps({name: result[name] for name in
                      ("requests", "lookup_blocks", "hit_blocks", "evictions")} |
                     {"hit_ratio": result["hit_blocks"] / max(1, result["lookup_blocks"])}))


if __name__ == "__main__":
    main()
