"""Loading blocks that only a node's SSD has, beside reading its file and beside its memory.

Three ways to load the same 64 MiB take turns: reading the blocks' bytes from the node's own file
into the same buffers, `PrefixCache.get` of blocks that are on the SSD only, and of blocks that are
in memory. `warm`: the file's pages are in the kernel's cache. `cold`: they were dropped before each
load, so the device is read.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import kvstore
from kvstore.bench.document import Row, median
from kvstore.bench.llm.replay import Say
from kvstore.bench.processes import start_node, target_of
from kvstore.llm import Limits, Namespace, PrefixCache, block_hashes
from kvstore.node.ssd import format as form

BLOCK_BYTES: Final = 1 << 20
BLOCKS: Final = 64
_CAPACITY_BYTES: Final = 256 << 20
_DOWN_S: Final = 60.0
_PATIENT: Final = Limits(match_s=30, load_s=30, store_s=60)


def measure(fabric: str, seconds: float, directory: Path | None, say: Say) -> list[Row]:
    """A row for the warm and one for the cold file, and one for the memory."""
    with tempfile.TemporaryDirectory(prefix="kvstore-ssd-", dir=directory) as scratch:
        path = Path(scratch) / "log"
        say(f"an SSD tier in {scratch}, {BLOCKS} blocks of 1 MiB over {fabric}")
        with _store(fabric, path) as store:
            return _measure(store, fabric, path, seconds)


@contextmanager
def _store(fabric: str, path: Path) -> Iterator[kvstore.Store]:
    size = str(2 * _CAPACITY_BYTES)
    node = start_node(_CAPACITY_BYTES, options=("--ssd", str(path), "--ssd-bytes", size))
    try:
        # The tier is reached through the control plane, which a target of shm does not name.
        target = target_of([node], "auto" if fabric == "shm" else fabric)
        with kvstore.connect(target) as store:
            yield store
    finally:
        node.child.stop()


def _measure(store: Any, fabric: str, path: Path, seconds: float) -> list[Row]:
    import numpy

    namespace = Namespace(model="bench", dtype="uint8", layout="bytes", block_tokens=16)
    cache = PrefixCache(store, namespace, limits=_PATIENT)
    source = numpy.random.default_rng(1).integers(0, 256, (BLOCKS, BLOCK_BYTES), numpy.uint8)
    target = numpy.zeros_like(source)
    hashes, buffers = block_hashes(range(16 * BLOCKS), 16), list(target)
    keys = [cache.key_of(item) for item in hashes]
    if cache.put(hashes, list(source)).stored != BLOCKS:
        raise RuntimeError("the blocks could not be stored")
    places = _places(path, keys)

    def load() -> None:
        if not cache.get(hashes, buffers).all_ok:
            raise RuntimeError(f"the blocks could not be loaded: {cache.stats().reasons}")

    def read_file() -> None:
        descriptor = os.open(path, os.O_RDONLY)
        for place, buffer in zip(places, buffers, strict=True):
            os.preadv(descriptor, [buffer], place)
        os.close(descriptor)

    rows = []
    for state in ("warm", "cold"):
        times: dict[str, list[float]] = {"file": [], "ssd": [], "remote": []}
        end = time.perf_counter() + seconds / 2
        while time.perf_counter() < end or len(times["file"]) < 3:
            for way in times:
                target[:] = 0
                if way == "ssd":
                    store.delete_many(keys)
                if state == "cold":
                    _drop_pages(path)
                begin = time.perf_counter()
                read_file() if way == "file" else load()
                times[way].append(time.perf_counter() - begin)
                if not (target == source).all():
                    raise RuntimeError("what was loaded is not what was stored")
        rows += [_row(fabric, "ssd", state, times["ssd"], times["file"])]
    return [*rows, _row(fabric, "remote", "", times["remote"], times["file"])]


def _row(fabric: str, tier: str, state: str, taken: list[float], file_taken: list[float]) -> Row:
    size = BLOCKS * BLOCK_BYTES
    row: Row = {
        "figure": "ssd",
        "fabric": fabric,
        "tier": tier,
        "block_bytes": BLOCK_BYTES,
        "blocks": BLOCKS,
        "bytes_per_s": size / median(taken),
        "p50_ms": 1e3 * median(taken),
    }
    if state:
        row["file"] = state
        row["file_bytes_per_s"] = size / median(file_taken)
        row["ratio"] = median(b / a for a, b in zip(taken, file_taken, strict=True))
    return row


def _places(path: Path, keys: list[bytes]) -> list[int]:
    """Where in the file the values are, once the node has written all of them."""
    deadline = time.monotonic() + _DOWN_S
    while time.monotonic() < deadline:
        found = dict(_records(path))
        if found.keys() >= set(keys):
            return [found[key] for key in keys]
        time.sleep(0.2)
    raise RuntimeError(f"the node did not write all blocks within {_DOWN_S:.0f} s")


def _records(path: Path) -> Iterator[tuple[bytes, int]]:
    """The keys in a log that no segment of was written over yet, and where their values are."""
    with path.open("rb") as file:
        superblock = form.parse_superblock(file.read(form.PAGE_BYTES))
        if superblock is None:
            return
        for begin in range(form.PAGE_BYTES, path.stat().st_size, superblock.segment_bytes):
            offset = begin + form.PAGE_BYTES
            while offset < begin + superblock.segment_bytes:
                file.seek(offset)
                record = form.parse_record(file.read(form.RECORD_HEADER_BYTES + form.KEY_BYTES_MAX))
                if record is None:
                    break
                header, key = record
                yield key, offset + form.RECORD_HEADER_BYTES + len(key)
                offset += header.record_bytes


def _drop_pages(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
