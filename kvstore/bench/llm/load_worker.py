"""One process that loads blocks: through the prefix cache, or by copying them from its own memory.

    python -m kvstore.bench.llm.load_worker kvstore TARGET BLOCK_BYTES BLOCKS
    python -m kvstore.bench.llm.load_worker memcpy - BLOCK_BYTES BLOCKS

Speaks the JSON lines of the others' workers, see `kvstore/bench/peers/lmcache_worker.py`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy

import kvstore
from kvstore.llm import Limits, Namespace, PrefixCache, block_hashes

_TOKENS = 16


def say(message: dict[str, Any]) -> None:
    """Prints one JSON line."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def prefix_cache_load(target: str, source: Any, loaded: Any) -> Callable[[], None]:
    """Store the blocks; return what matches and loads them."""
    namespace = Namespace(model="bench", dtype="uint8", layout="bytes", block_tokens=_TOKENS)
    limits = Limits(match_s=30, load_s=30, store_s=60)
    cache = PrefixCache(kvstore.connect(target), namespace, limits=limits)
    hashes = block_hashes(range(_TOKENS * len(source)), _TOKENS)
    buffers = list(loaded)
    if cache.put(hashes, list(source)).stored != len(hashes):
        raise SystemExit("the blocks could not be stored")

    def load() -> None:
        matched = cache.match(hashes)
        if not cache.get(hashes[:matched], buffers[:matched]).all_ok or matched != len(hashes):
            raise SystemExit("the blocks could not be loaded")

    return load


def copies(source: Any, loaded: Any) -> Callable[[], None]:
    """Return what copies the blocks one by one."""
    pairs = list(zip(source, loaded, strict=True))

    def load() -> None:
        for from_row, to_row in pairs:
            to_row[:] = from_row

    return load


def main() -> None:
    """Entry point of the process."""
    role, target, block_bytes, blocks = sys.argv[1:5]
    shape = (int(blocks), int(block_bytes))
    source = numpy.random.default_rng(1).integers(0, 256, shape, numpy.uint8)
    loaded = numpy.zeros_like(source)
    if role == "memcpy":
        load = copies(source, loaded)
    else:
        load = prefix_cache_load(target, source, loaded)
    say({"event": "ready"})
    for _ in sys.stdin:
        begin = time.perf_counter()
        load()
        seconds = time.perf_counter() - begin
        if not numpy.array_equal(source, loaded):
            raise SystemExit("other bytes were loaded than were stored")
        loaded[:] = 0
        say({"event": "loaded", "seconds": seconds})


if __name__ == "__main__":
    main()
