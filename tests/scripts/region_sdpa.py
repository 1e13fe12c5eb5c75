#!/usr/bin/env python3
"""PyTorch's scaled_dot_product_attention, unmodified, on a region: region_sdpa.py [cuda:0 | host]

A space with regions, token-major, is embedded; a sequence's region becomes a tensor through a
DLPack capsule that ctypes makes, so that code which knows nothing of blocks reads it. Its bytes
must be those behind the block table, and attention over it that over a contiguous copy: for a
sequence that grows, for a fork and its parent after a copy-on-write (the copy takes the old tail's
place in the view), and for a sequence attached to the published prefix. Tokens are written where
the region is written, or where the space is, by turns, and read where either is read.

The bytes are compared bit for bit. Outputs are too where both calls choose the same kernel; it may
depend on strides, so a difference of one unit in the last place of the largest value is allowed.

The copy is made by a kernel that reads a block at a time. What copy engines (cudaMemcpy) make of
the same memory is tried in the end, block by block and over all of a view at once.
"""

import ctypes
import os
import sys
from ctypes import (CFUNCTYPE, POINTER, Structure, byref, c_char_p, c_int, c_int32, c_int64, c_uint8,
                    c_uint16, c_uint32, c_uint64, c_void_p, py_object)

LAYERS, HEADS, DIM, BLOCK_TOKENS, LIMIT = 2, 8, 128, 256, 8192
TOKEN_BYTES = LAYERS * 2 * HEADS * DIM * 2
BF16, TOKEN_MAJOR, REGIONS, HELPER = 1, 3, 1, 1
FENCE_STREAM = 2
GRANULE = 2 << 20
DEVICE_BYTES = 512 << 20


def skip(why):
    print(why)
    sys.exit(77)


def check(condition, *what):
    if not condition:
        raise AssertionError(" ".join(map(str, what)))


# ---- libkvmem ----------------------------------------------------------------------------------


class Seq(Structure):
    _fields_ = [("index", c_uint32), ("generation", c_uint32)]


class Fence(Structure):
    _fields_ = [("kind", c_uint32), ("timeline", c_uint32), ("value", c_uint64),
                ("stream", c_void_p)]


class Name(Structure):
    _fields_ = [("bytes", c_uint8 * 32)]


class PublishResult(Structure):
    _fields_ = [("block", c_int32), ("state", c_uint32)]


class EmbedOptions(Structure):
    _fields_ = [("size", c_uint32), ("outbox_records", c_uint32), ("device", c_char_p),
                ("name", c_char_p), ("device_bytes", c_uint64), ("granule_bytes", c_uint64),
                ("flags", c_uint32), ("reserved", c_uint32)]


class GroupOptions(Structure):
    _fields_ = [(name, c_uint32) for name in
                ("layer_count", "kv_head_count", "head_dim_k", "head_dim_v", "dtype_k", "dtype_v",
                 "scale_mode", "scale_dtype", "window_tokens", "reserved")]


class SpaceOptions(Structure):
    _fields_ = [("size", c_uint32), ("layout", c_uint32), ("name", c_char_p), ("domain", c_char_p),
                ("fingerprint", c_uint8 * 32), ("block_tokens", c_uint32),
                ("group_count", c_uint32), ("shard_count", c_uint32), ("shard_index", c_uint32),
                ("quota_bytes", c_uint64), ("flags", c_uint32), ("device", c_uint32),
                ("low_water_blocks", c_uint32), ("refill_blocks", c_uint32),
                ("seq_limit", c_uint32), ("reserved", c_uint32), ("groups", GroupOptions * 8)]


class Geometry(Structure):
    _fields_ = [("size", c_uint32), ("block_tokens", c_uint32), ("block_bytes", c_uint64),
                ("index_stride_bytes", c_uint64), ("segment_bytes", c_uint64),
                ("blocks_per_segment", c_uint32), ("segment_limit", c_uint32),
                ("layer_stride_bytes", c_uint64), ("v_offset_bytes", c_uint64),
                ("k_head_stride_bytes", c_uint64), ("k_token_stride_bytes", c_uint64),
                ("v_head_stride_bytes", c_uint64), ("v_token_stride_bytes", c_uint64),
                ("k_scale_offset_bytes", c_uint64), ("v_scale_offset_bytes", c_uint64),
                ("padding_ratio", ctypes.c_double)]


class RegionOptions(Structure):
    _fields_ = [("size", c_uint32), ("ahead_blocks", c_uint32), ("token_limit", c_uint64)]


class RegionInfo(Structure):
    _fields_ = [("size", c_uint32), ("mapped_blocks", c_uint32), ("base", c_void_p),
                ("write_base", c_void_p), ("block_bytes", c_uint64),
                ("token_stride_bytes", c_uint64),
                ("token_limit", c_uint64), ("mapped_tokens", c_uint64), ("waits", c_uint64),
                ("remaps", c_uint64)]


class ErrorDetail(Structure):
    _fields_ = [("code", c_int32), ("system_errno", c_int32), ("driver_result", c_int32),
                ("text", ctypes.c_char * 244)]


class Library:
    """libkvmem.so: results below 0 become exceptions with the error's text."""

    def __init__(self):
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        build = os.environ.get("KVMEM_BUILD_DIR", os.path.join(root, "build", "release"))
        self.so = ctypes.CDLL(os.path.join(build, "lib", "libkvmem.so"))
        self.so.kvmem_error_name.restype = c_char_p
        self.so.kvmem_error_detail.restype = POINTER(ErrorDetail)
        self.so.kvmem_space_base.restype = c_void_p
        self.so.kvmem_space_write_base.restype = c_void_p
        self.so.kvmem_client_close.restype = None

    def refusal(self, code):
        text = self.so.kvmem_error_detail().contents.text.decode(errors="replace")
        return self.so.kvmem_error_name(code).decode() + ": " + text

    def __getattr__(self, name):
        function = getattr(self.so, "kvmem_" + name)

        def call(*arguments):
            result = function(*arguments)
            if function.restype is c_int and result < 0:
                raise RuntimeError("kvmem_%s: %s" % (name, self.refusal(result)))
            return result

        return call


def sized(structure, **fields):
    return structure(size=ctypes.sizeof(structure), **fields)


def embed(library, device):
    """A client and a space on it; skips where the library has no such device."""
    client, space = c_void_p(), c_void_p()
    options = sized(EmbedOptions, device=device.encode(), device_bytes=DEVICE_BYTES, flags=HELPER,
                    granule_bytes=GRANULE if device == "host" else 0)
    code = library.so.kvmem_client_embed(byref(options), byref(client))
    if code < 0 and library.so.kvmem_error_name(code) == b"NOT_SUPPORTED":
        skip("no %s here: %s" % (device, library.refusal(code)))
    check(code == 0, "kvmem_client_embed:", library.refusal(code))
    options = sized(SpaceOptions, layout=TOKEN_MAJOR, flags=REGIONS, name=b"sdpa",
                    block_tokens=BLOCK_TOKENS, group_count=1, shard_count=1)
    options.groups[0] = GroupOptions(LAYERS, HEADS, DIM, DIM, BF16, BF16)
    library.space_open(client, byref(options), byref(space))
    return client, space


# ---- DLPack ------------------------------------------------------------------------------------


class DLTensor(Structure):
    _fields_ = [("data", c_void_p), ("device_type", c_int32), ("device_id", c_int32),
                ("ndim", c_int32), ("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16),
                ("shape", POINTER(c_int64)), ("strides", POINTER(c_int64)),
                ("byte_offset", c_uint64)]


class DLManagedTensor(Structure):
    pass


Deleter = CFUNCTYPE(None, POINTER(DLManagedTensor))
DLManagedTensor._fields_ = [("tensor", DLTensor), ("context", c_void_p), ("deleter", Deleter)]
DL_CPU, DL_CUDA, DL_BFLOAT = 1, 2, 4
keep = []  # what capsules point to; the memory itself is the space's


@Deleter
def nothing_to_delete(_):
    pass


def tensor_at(torch, device, address, shape, strides):
    """A bf16 tensor of that shape over memory that is there; strides in elements."""
    managed = DLManagedTensor(deleter=nothing_to_delete)
    dimensions, steps = (c_int64 * len(shape))(*shape), (c_int64 * len(shape))(*strides)
    keep.append((managed, dimensions, steps))
    managed.tensor = DLTensor(address, DL_CPU if device == "host" else DL_CUDA, 0, len(shape),
                              DL_BFLOAT, 16, 1, dimensions, steps, 0)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = py_object, [c_void_p, c_char_p, c_void_p]
    return torch.from_dlpack(new(ctypes.addressof(managed), b"dltensor", None))


# ---- the engine --------------------------------------------------------------------------------


class Engine:
    def __init__(self, torch, library, device):
        self.torch, self.library, self.device = torch, library, device
        self.client, self.space = embed(library, device)
        self.geometry = sized(Geometry)
        library.space_geometry(self.space, c_uint32(0), byref(self.geometry))
        self.base = library.space_base(self.space, c_uint32(0), c_uint32(0))
        self.write_base = library.space_write_base(self.space, c_uint32(0), c_uint32(0))
        check(self.geometry.block_bytes == BLOCK_TOKENS * TOKEN_BYTES, "block_bytes")
        library.space_reserve(self.space, c_uint64(48), c_int64(5_000_000_000))

    def fence(self):
        """Behind what torch's stream holds now."""
        if self.device == "host":
            return Fence()
        return Fence(FENCE_STREAM, 0, 0, self.torch.cuda.current_stream().cuda_stream)

    def strides(self):
        g = self.geometry
        return [g.k_token_stride_bytes // 2, g.layer_stride_bytes // 2, g.v_offset_bytes // 2,
                g.k_head_stride_bytes // 2, 1]

    def tensor(self, address, tokens):
        """(token, layer, K | V, head, dim)"""
        return tensor_at(self.torch, self.device, address, [tokens, LAYERS, 2, HEADS, DIM],
                         self.strides())

    def create(self):
        seq = Seq()
        self.library.seq_create(self.space, byref(seq))
        return seq

    def open_region(self, seq):
        region = c_void_p()
        options = sized(RegionOptions, token_limit=LIMIT)
        self.library.region_open(self.space, seq, byref(options), byref(region))
        return region

    def info(self, region):
        info = sized(RegionInfo)
        self.library.region_info(region, byref(info))
        check(info.token_stride_bytes == TOKEN_BYTES, "token stride", info.token_stride_bytes)
        return info

    def table(self, seq):
        view = POINTER(c_int32)()
        count = self.library.table_view(self.space, c_uint32(0), seq, byref(view))
        return [view[i] for i in range(count)]

    def block(self, index, base=None):
        return self.tensor((base or self.base) + index * self.geometry.index_stride_bytes,
                           BLOCK_TOKENS)

    def empty(self, tokens):
        return self.torch.empty(tokens, LAYERS, 2, HEADS, DIM, dtype=self.torch.bfloat16,
                                device="cpu" if self.device == "host" else "cuda")

    def by_blocks(self, seq, first, end):
        """(index of the block, first slot in it, first token, how many) of tokens first .. end"""
        table = self.table(seq)
        while first < end:
            slot = first % BLOCK_TOKENS
            count = min(BLOCK_TOKENS - slot, end - first)
            yield table[first // BLOCK_TOKENS], slot, first, count
            first += count

    def gather(self, seq, tokens):
        """A contiguous copy by way of the block table, made by kernels."""
        copy, bits = self.empty(tokens), self.torch.int16
        for index, _, at, count in self.by_blocks(seq, 0, tokens):
            self.torch.bitwise_or(self.block(index)[:count].view(bits), 0,
                                  out=copy[at:at + count].view(bits))
        return copy

    def append(self, seq, first, tokens, region=None):
        """Tokens from `first` on, random, written through the view or through the blocks."""
        self.library.seq_append(self.space, seq, c_uint32(tokens), self.fence())
        new = self.empty(tokens).normal_()
        view = self.tensor(self.info(region).write_base, first + tokens) if region else None
        for index, slot, at, count in self.by_blocks(seq, first, first + tokens):
            if region:
                to = view[at:at + count]
            else:
                to = self.block(index, self.write_base)[slot:slot + count]
            to.copy_(new[at - first:at - first + count])
        self.library.seq_commit(self.space, seq, c_uint32(tokens))
        self.dispatch()

    def dispatch(self):
        self.library.client_dispatch(self.client, c_int64(0))

    def publish(self, seq, blocks):
        names = (Name * blocks)()
        for i in range(blocks):
            names[i].bytes[0], names[i].bytes[1] = 1, i
        results, answered = (PublishResult * blocks)(), 0
        self.library.seq_publish(self.space, seq, c_uint32(0), c_uint32(blocks), names,
                                 self.fence())
        for _ in range(200):
            self.library.client_dispatch(self.client, c_int64(10_000_000))
            answered += self.library.publish_results(self.space, c_uint32(blocks), results)
            if answered == blocks:
                return names
        raise AssertionError("%d of %d publications are answered" % (answered, blocks))

    def attach(self, seq, names):
        blocks, ready = (c_int32 * len(names))(), Fence()
        hits = self.library.prefix_lookup(self.space, c_uint32(len(names)), names, blocks,
                                          byref(ready))
        check(hits == len(names), hits, "hits of", len(names))
        if self.device != "host":
            self.library.fence_order(self.space,
                                     c_void_p(self.torch.cuda.current_stream().cuda_stream),
                                     byref(ready))
        self.library.seq_attach(self.space, seq, c_uint32(hits), blocks)


def compare(engine, what, seq, region, tokens):
    """Bytes of the view, and attention of every layer over it, against the block table's."""
    torch = engine.torch
    info = engine.info(region)
    check(info.mapped_tokens >= tokens, what, "maps", info.mapped_tokens, "of", tokens)
    view, copy = engine.tensor(info.base, tokens), engine.gather(seq, tokens)
    check(torch.equal(view.view(torch.int16), copy.view(torch.int16)), what, "has other bytes")
    exact = True
    for layer in range(LAYERS):
        query = torch.randn(1, HEADS, 16, DIM, dtype=torch.bfloat16, device=view.device)
        outputs = []
        for kv in (view, copy):
            k, v = (kv[:, layer, i].permute(1, 0, 2).unsqueeze(0) for i in (0, 1))
            outputs.append(torch.nn.functional.scaled_dot_product_attention(query, k, v))
        difference = (outputs[0].float() - outputs[1].float()).abs().max().item()
        most = outputs[1].float().abs().max().item()
        exact = exact and torch.equal(outputs[0], outputs[1])
        check(difference <= most * 2.0 ** -7, what, "layer", layer, "differs by", difference)
    print("%s: %d tokens, %d waits, %d remaps, outputs %s" %
          (what, tokens, info.waits, info.remaps, "bit for bit" if exact else "within 1 ulp"))


def refused_copies(engine, seq, region, tokens):
    """Copies by the copy engines that were refused, as text; those that are made must be right."""
    torch, right = engine.torch, engine.gather(seq, tokens)
    view, copy, refused = engine.tensor(engine.info(region).base, tokens), engine.empty(tokens), []

    def from_space():
        for index, slot, at, count in engine.by_blocks(seq, 0, tokens):
            copy[at:at + count].copy_(engine.block(index)[slot:slot + count])

    def from_view():
        for _, _, at, count in engine.by_blocks(seq, 0, tokens):
            copy[at:at + count].copy_(view[at:at + count])

    def at_once():
        copy.copy_(view)

    for what, make in (("the space, block by block", from_space),
                       ("the view, block by block", from_view), ("the view at once", at_once)):
        copy.zero_()
        try:
            make()
        except RuntimeError as error:
            refused.append("%s: %s" % (what, str(error).split("\n", maxsplit=1)[0]))
            continue
        equal = torch.equal(copy.view(torch.int16), right.view(torch.int16))
        check(equal, "copies of", what, "have other bytes")
        print("copies of %s: equal" % what)
    return refused


def run(engine):
    library, space = engine.library, engine.space
    seq = engine.create()
    engine.append(seq, 0, 300)  # before there is a region
    region = engine.open_region(seq)
    base, tokens = engine.info(region).base, 300
    for i, step in enumerate((1, 211, 256, 700, 1, 3000, 31)):  # ends in the middle of a block
        engine.append(seq, tokens, step, region if i % 2 else None)
        tokens += step
    compare(engine, "a sequence that grew", seq, region, tokens)

    child = Seq()
    library.seq_fork(space, seq, byref(child))
    engine.append(seq, tokens, 5, region)
    child_region = engine.open_region(child)
    engine.append(child, tokens, 7, child_region)
    check(engine.info(region).base == base, "the region has moved")
    check(engine.info(region).remaps == 1, "the copy is not in the parent's view")
    compare(engine, "the parent of a fork", seq, region, tokens + 5)
    compare(engine, "the fork", child, child_region, tokens + 7)

    names = engine.publish(seq, tokens // BLOCK_TOKENS)
    other = engine.create()
    other_region = engine.open_region(other)
    engine.attach(other, names)
    prefix = len(names) * BLOCK_TOKENS
    compare(engine, "a published prefix", other, other_region, prefix)
    engine.append(other, prefix, 40, other_region)
    compare(engine, "and what follows it", other, other_region, prefix + 40)
    compare(engine, "its publisher", seq, region, tokens + 5)
    refused = refused_copies(engine, other, other_region, prefix + 40)
    check(not refused, "copies are refused:", *refused)

    library.region_close(other_region, engine.fence())
    for each in (other, child, seq):
        library.seq_free(space, each, engine.fence())
    engine.dispatch()
    library.client_check(engine.client)


def main():
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda:0"
    try:
        import torch
    except ImportError:
        skip("torch is not installed")
    if device != "host" and not torch.cuda.is_available():
        skip("torch sees no CUDA device")
    if device != "host":
        torch.zeros(1, device="cuda")  # the context that the library finds
    library = Library()
    engine = Engine(torch, library, device)
    run(engine)
    if device != "host":
        torch.cuda.synchronize()
    library.client_close(engine.client)


if __name__ == "__main__":
    main()
