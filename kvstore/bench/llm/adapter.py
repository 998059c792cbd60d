"""What the prefix cache itself costs: beside copying the same bytes, and beside the bare store.

Three ways to load the same blocks into one numpy buffer take turns, so that the machine's moods hit
them alike: copying them from memory, the store's own batch call, and `PrefixCache.match` and `get`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from kvstore.bench.document import Row, median
from kvstore.bench.llm.replay import Say, open_store
from kvstore.llm import Limits, Namespace, PrefixCache, block_hashes

#: Bytes of a block, blocks of a load: the last is the 64 MiB load that the targets speak of.
SHAPES: Final = ((4096, 256), (65_536, 256), (1 << 20, 64))
_TARGET_US: Final = 10.0
_TARGET_RATIO: Final = 0.8


def measure(fabric: str, seconds: float, say: Say) -> list[Row]:
    """One row a shape."""
    rows = []
    for block_bytes, blocks in SHAPES:
        say(f"loads of {blocks} blocks of {block_bytes:,} bytes over {fabric}")
        with open_store(fabric, 4 * block_bytes * blocks + (64 << 20), "none") as store:
            rows.append(_measure(store, fabric, block_bytes, blocks, seconds))
    return rows


def _measure(store: Any, fabric: str, block_bytes: int, blocks: int, seconds: float) -> Row:
    import numpy

    namespace = Namespace(model="bench", dtype="uint8", layout="bytes", block_tokens=16)
    cache = PrefixCache(store, namespace, limits=Limits(match_s=30, load_s=30, store_s=60))
    source = numpy.random.default_rng(1).integers(0, 256, (blocks, block_bytes), numpy.uint8)
    target = numpy.zeros_like(source)
    hashes = block_hashes(range(16 * blocks), 16)
    buffers = list(target)
    keys = cache._core.keys.blocks(hashes)
    if cache.put(hashes, list(source)).stored != blocks:
        raise RuntimeError("the blocks could not be stored")

    def copy() -> None:
        for from_row, to_row in zip(source, buffers, strict=True):
            to_row[:] = from_row

    def bare() -> None:
        store.match_prefix(keys)
        store.get_many_into(keys, buffers)

    def cached() -> None:
        matched = cache.match(hashes)
        if not cache.get(hashes[:matched], buffers[:matched]).all_ok or matched != blocks:
            raise RuntimeError("the blocks could not be loaded")

    times = _rounds([copy, bare, cached], seconds)
    # What the cache itself takes is the difference of the least times: a call of milliseconds is
    # interrupted by whatever else the machine does, which drowns a few microseconds. Against
    # copying, the rounds are compared one by one, so that both sides have the same machine.
    copy_s, bare_s, cached_s = (min(taken) for taken in times)
    ratio = median(copy / load for copy, load in zip(times[0], times[2], strict=True))
    if not (target == source).all():
        raise RuntimeError("what was loaded is not what was stored")
    size = blocks * block_bytes
    own_us = 1e6 * (cached_s - bare_s) / blocks
    row: Row = {
        "figure": "adapter",
        "fabric": fabric,
        "tier": "remote",
        "block_bytes": block_bytes,
        "blocks": blocks,
        "bytes_per_s": size / cached_s,
        "store_bytes_per_s": size / bare_s,
        "copy_bytes_per_s": size / copy_s,
        "adapter_us_per_block": own_us,
        "target_us": _TARGET_US,
        "pass": own_us < _TARGET_US,
    }
    if fabric != "tcp" and size >= 64 << 20:
        row |= {"ratio": ratio, "target": _TARGET_RATIO}
        row["pass"] = row["pass"] and ratio >= _TARGET_RATIO
    return row


def _rounds(ways: list[Callable[[], None]], seconds: float) -> list[list[float]]:
    """Times of each, taking turns for so long in all and three times at least."""
    times: list[list[float]] = [[] for _ in ways]
    for way in ways:
        way()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for way, taken in zip(ways, times, strict=True):
            begin = time.perf_counter()
            way()
            taken.append(time.perf_counter() - begin)
    return times
