"""Replays of a trace: by policies that only count, and by the real `PrefixCache` on a store.

The real one does what an engine does: match the longest prefix, load the hits into buffers, store
the rest. Its blocks are small, for the trace's would be gigabytes; hits do not depend on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import kvstore
from kvstore.bench.document import Row, percentile
from kvstore.bench.llm.policies import POLICIES
from kvstore.bench.llm.traces import Prompt, Trace
from kvstore.bench.processes import require_fabric, start_node, target_of
from kvstore.llm import Namespace, PrefixCache, directory

Say = Callable[[str], None]
#: Capacities are found to within this share of what was asked for.
_CALIBRATION: Final = 0.02
_CALIBRATIONS_MAX: Final = 6
_CAPACITY_BYTES_MIN: Final = 8 << 20
_REPORT_S: Final = 5.0


def count(trace: Trace, policy: str, capacity_blocks: int, say: Say) -> Row:
    """Replay by bookkeeping; `policy` is one of `POLICIES`."""
    requests = [prompt.blocks for prompt in trace.prompts]
    cache = POLICIES[policy](requests, capacity_blocks)
    progress = _Progress(say, f"{policy} with {capacity_blocks:,} blocks", len(requests))
    hits = 0
    for number, prompt in enumerate(trace.prompts):
        hits += trace.hit_tokens(prompt, cache.request(prompt.blocks))
        progress.show(number)
    return {
        "trace": trace.name,
        "policy": policy,
        "capacity_blocks": capacity_blocks if policy != "none" else None,
        "token_hit_ratio": hits / trace.input_tokens,
    }


class _Progress:
    """Says every few seconds how far a replay is."""

    def __init__(self, say: Say, what: str, total: int) -> None:
        self._say, self._what, self._total = say, what, total
        self._next = time.monotonic() + _REPORT_S

    def show(self, done: int) -> None:
        if time.monotonic() > self._next:
            self._say(f"{self._what}: {done:,} of {self._total:,} requests")
            self._next = time.monotonic() + _REPORT_S


@contextmanager
def open_store(fabric: str, capacity_bytes: int, eviction: str) -> Iterator[kvstore.Store]:
    """An embedded node (`local`), or a node process over `shm` or `tcp`."""
    if fabric == "local":
        with kvstore.connect("embedded", capacity_bytes=capacity_bytes, eviction=eviction) as store:
            yield store
        return
    node = start_node(capacity_bytes, eviction=eviction)
    try:
        target = target_of([node], fabric)
        with kvstore.connect(target) as store:
            require_fabric(store, fabric)
            yield store
    finally:
        node.child.stop()


def capacity_bytes_for(blocks: int, block_bytes: int, say: Say) -> int:
    """Find by trial the node capacity that holds `blocks` blocks once it is full.

    A node's memory holds its index and slack too, and what that takes is no simple figure.
    """
    capacity_bytes = max(_CAPACITY_BYTES_MIN, int(1.1 * blocks * (block_bytes + 128)))
    for _ in range(_CALIBRATIONS_MAX):
        held = _blocks_held(capacity_bytes, block_bytes, 2 * blocks)
        if abs(held - blocks) <= _CALIBRATION * blocks:
            break
        say(f"a node of {capacity_bytes >> 20} MiB holds {held:,} blocks, {blocks:,} are wanted")
        step = (blocks - held) * (block_bytes + 128)
        if capacity_bytes + step < _CAPACITY_BYTES_MIN:
            break
        capacity_bytes += step
    return capacity_bytes


def _blocks_held(capacity_bytes: int, block_bytes: int, blocks: int) -> int:
    value = bytes(block_bytes)
    with open_store("local", capacity_bytes, "sampled-lru") as store:
        for begin in range(0, blocks, 256):
            store.put_many((b"%d" % i, value) for i in range(begin, min(blocks, begin + 256)))
        return store.size()


def replay(
    trace: Trace, store: kvstore.Store, *, fabric: str, eviction: str, block_bytes: int, say: Say
) -> Row:
    """Replay through a real prefix cache; `capacity_blocks` is what was held at the end."""
    namespace = Namespace(
        model="replay", dtype="bytes", layout="bytes", block_tokens=trace.block_tokens
    )
    cache = PrefixCache(store, namespace)
    longest = max(len(prompt.blocks) for prompt in trace.prompts)
    memory = memoryview(bytearray(longest * block_bytes))
    buffers = [memory[i * block_bytes : (i + 1) * block_bytes] for i in range(longest)]
    content = memoryview(bytes(range(256)) * (block_bytes // 256 + 1))[:block_bytes]
    progress = _Progress(say, f"{eviction} over {fabric}", len(trace.prompts))
    hit_tokens = 0
    latencies: list[float] = []
    begin = time.perf_counter()
    for number, prompt in enumerate(trace.prompts):
        started = time.perf_counter()
        hit_tokens += trace.hit_tokens(prompt, _serve(cache, prompt, buffers, content))
        latencies.append(time.perf_counter() - started)
        progress.show(number)
    seconds = time.perf_counter() - begin
    stats = cache.stats()
    latencies.sort()
    held = store.size() - int(directory.KEY in store)
    return {
        "trace": trace.name,
        "policy": eviction if eviction != "none" else "store",
        "capacity_blocks": held if eviction != "none" else None,
        "token_hit_ratio": hit_tokens / trace.input_tokens,
        "tier": "remote",
        "fabric": fabric,
        "block_bytes": block_bytes,
        "bytes_per_s": (stats.loaded_bytes + stats.stored_raw_bytes) / seconds,
        "p50_ms": 1e3 * percentile(latencies, 0.5),
        "p99_ms": 1e3 * percentile(latencies, 0.99),
        "loaded_blocks": stats.loaded_remote,
        "stored_blocks": stats.stored,
        "failed_blocks": stats.failed_loads + stats.failed_stores,
        "uses_dropped": store.stats().uses_dropped,
    }


def _serve(
    cache: PrefixCache, prompt: Prompt, buffers: list[memoryview], content: memoryview
) -> int:
    hashes = [block.to_bytes(16, "little") for block in prompt.blocks]
    matched = cache.match(hashes)
    loaded = cache.get(hashes[:matched], buffers[:matched]).leading if matched else 0
    if loaded < len(hashes):
        cache.put(hashes[loaded:], [content] * (len(hashes) - loaded))
    return loaded
