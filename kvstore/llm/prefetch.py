"""Blocks that are on their way into this process before an engine asks for them.

One thread fetches, in the order of `begin`, into memory of its own; `take` waits for those under
way and copies. Blocks never change, so a fetched one stays right; the oldest go to make room.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvstore.llm.chains import Reuse
from kvstore.llm.core import Core, batches, byte_view
from kvstore.llm.tiers import Tiers, read
from kvstore.types import Buffer

if TYPE_CHECKING:
    from kvstore.client.store import Store


@dataclass(slots=True)
class _Fetch:
    """A block under way; `good` is set before `done`."""

    memory: bytearray
    done: threading.Event = field(default_factory=threading.Event)
    good: bool = False


class Prefetcher:
    """Holds at most `bytes_max` of fetched blocks. Thread-safe."""

    def __init__(self, store: Store, bytes_max: int, tiers: Tiers) -> None:
        self._store = store
        self._tiers = tiers
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._fetches: OrderedDict[bytes, _Fetch] = OrderedDict()
        self._bytes = 0
        self._executor: ThreadPoolExecutor | None = None
        self._closed = False

    def begin(self, keys: Sequence[bytes], block_bytes: int, core: Core) -> int:
        """Fetch the keys that are not here; return how many."""
        begun: list[tuple[bytes, _Fetch]] = []
        with self._lock:
            if self._closed:
                return 0
            for key in keys:
                if key in self._fetches:
                    continue
                if not self._make_room(block_bytes):
                    break
                fetch = _Fetch(bytearray(block_bytes))
                self._fetches[key] = fetch
                self._bytes += block_bytes
                begun.append((key, fetch))
            if begun:
                if self._executor is None:
                    self._executor = ThreadPoolExecutor(1, "kvstore-prefetch")
                self._executor.submit(self._fetch, begun, core)
        return len(begun)

    def _make_room(self, size: int) -> bool:
        """Drop the oldest finished fetches until `size` bytes fit; false if they cannot."""
        if size > self._bytes_max:
            return False
        while self._bytes + size > self._bytes_max:
            oldest = next(iter(self._fetches), None)
            if oldest is None or not self._fetches[oldest].done.is_set():
                return False
            self._drop(oldest)
        return True

    def _drop(self, key: bytes) -> None:
        self._bytes -= len(self._fetches.pop(key).memory)

    def _fetch(self, begun: list[tuple[bytes, _Fetch]], core: Core) -> None:
        """Runs on the thread; every fetch is done at its end, come what may."""
        deadline = time.monotonic() + core.load_timeout_s(len(begun), None)
        try:
            for batch in batches([len(fetch.memory) for _, fetch in begun]):
                part = [begun[i] for i in batch]
                if self._closed or time.monotonic() >= deadline:
                    return
                outcomes, _ = read(
                    self._store,
                    self._tiers,
                    [key for key, _ in part],
                    [fetch.memory for _, fetch in part],
                    deadline,
                    Reuse.unknown(len(part)),
                )
                for (_, fetch), outcome in zip(part, outcomes, strict=True):
                    why = core.read_outcome(outcome, fetch.memory, len(fetch.memory))
                    fetch.good = not why
                    fetch.done.set()
        finally:
            for _, fetch in begun:
                fetch.done.set()

    def take(
        self,
        keys: Sequence[bytes],
        buffers: Sequence[Buffer],
        sizes: Sequence[int],
        core: Core,
        deadline: float,
    ) -> set[int]:
        """Copy what was fetched into its buffers; return the places of those blocks.

        A fetch under way is waited for until half of the time is over: the rest is for asking the
        nodes. A block that was not fetched well is left to the caller.
        """
        if not self._fetches:
            return set()
        taken: set[int] = set()
        wait_until = time.monotonic() + (deadline - time.monotonic()) / 2
        for place, key in enumerate(keys):
            fetch = self._fetches.get(key)
            if fetch is None:
                continue
            if not fetch.done.wait(max(0.0, wait_until - time.monotonic())):
                continue
            with self._lock:
                if self._fetches.get(key) is fetch:
                    self._drop(key)
            if fetch.good and len(fetch.memory) == sizes[place]:
                byte_view(buffers[place])[:] = fetch.memory
                taken.add(place)
        return taken

    def close(self) -> None:
        """Refuse new fetches and wait for the one under way, which ends by its deadline."""
        with self._lock:
            self._closed = True
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for fetch in self._fetches.values():
                fetch.done.set()
            self._fetches.clear()
            self._bytes = 0
