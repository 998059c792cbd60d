"""The prefix cache for asyncio: `AsyncPrefixCache` over a `kvstore.aio.AsyncStore`.

The same rules and the same results as `PrefixCache`, which has the contracts. Batches overlap: a
load that runs does not keep the loop from anything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvstore.errors import KvError
from kvstore.llm import directory, results
from kvstore.llm.chains import Reuse
from kvstore.llm.codecs import Codec
from kvstore.llm.core import Core, Limits, batches, left_s, size_of
from kvstore.llm.namespace import Namespace
from kvstore.llm.results import CacheStats, LoadResult, StoreResult
from kvstore.llm.single_flight import Flight, Flights, abandon
from kvstore.llm.tiers import Tiers, extend, read_promoted
from kvstore.types import Buffer, Value

if TYPE_CHECKING:
    from kvstore.aio import AsyncStore


class AsyncPrefixCache:
    """The blocks of one namespace in an asynchronous store."""

    def __init__(
        self,
        store: AsyncStore,
        namespace: Namespace,
        *,
        codec: Codec | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._store = store
        self._core = Core(namespace, codec=codec, limits=limits)
        self._flights = Flights(store._store)
        self._tiers = Tiers(store._store, self._core.warn)
        self._registered = False

    @property
    def namespace(self) -> Namespace:
        """The namespace, with the codec where that loses precision."""
        return self._core.namespace

    async def match(self, hashes: Sequence[bytes], *, timeout_s: float | None = None) -> int:
        """Return how many blocks from the first on can be loaded."""
        keys = self._core.keys.blocks(hashes)
        offered = self._core.offered(keys)
        found = on_ssd = 0
        if offered:
            limit_s = self._core.limits.match_s if timeout_s is None else timeout_s
            deadline = time.monotonic() + limit_s
            try:
                found = await self._store.match_prefix(keys[:offered], timeout_s=limit_s)
                if found < offered and self._tiers.present:
                    found, on_ssd = await asyncio.to_thread(
                        extend, self._store._store, self._tiers, keys[:offered], found, deadline
                    )
            except KvError as error:
                self._core.warn(error)
        self._core.serving.matched(keys, found)
        return self._core.matched(len(keys), found, on_ssd)

    async def get(
        self, hashes: Sequence[bytes], buffers: Sequence[Buffer], *, timeout_s: float | None = None
    ) -> LoadResult:
        """Load each block into its buffer; see `PrefixCache.get`."""
        if len(hashes) != len(buffers):
            raise ValueError(f"{len(hashes)} hashes but {len(buffers)} buffers")
        core = self._core
        deadline = time.monotonic() + core.load_timeout_s(len(hashes), timeout_s)
        keys = core.keys.blocks(hashes)
        sizes = [size_of(buffer) for buffer in buffers]
        reasons: dict[int, str] = {}
        reuse = core.reuse(keys, None, 0)
        from_ssd = 0
        for batch in batches(sizes):
            if reasons:
                reasons.update((i, results.NOT_TRIED) for i in batch)
                continue
            outcomes = await self._read(keys, buffers, batch, deadline, reuse)
            absent = [i for i in batch if outcomes[i - batch.start] is None]
            if absent and self._tiers.present:
                promoted = await asyncio.to_thread(
                    read_promoted,
                    self._store._store,
                    self._tiers,
                    [keys[i] for i in absent],
                    [buffers[i] for i in absent],
                    deadline,
                    reuse.at(absent),
                    keys[batch.stop :],
                )
                for place, outcome in zip(absent, promoted, strict=True):
                    outcomes[place - batch.start] = outcome
            for place, outcome in zip(batch, outcomes, strict=True):
                why = core.read_outcome(outcome, buffers[place], sizes[place])
                if why:
                    reasons[place] = why
                else:
                    from_ssd += int(place in absent)
        return core.loaded(keys, reasons, sizes, 0, from_ssd)

    async def _read(
        self,
        keys: list[bytes],
        buffers: Sequence[Buffer],
        places: Sequence[int],
        deadline: float,
        reuse: Reuse,
    ) -> list[tuple[int, int] | KvError | None]:
        try:
            return await self._store._get_many_into_coded(
                [keys[i] for i in places],
                [buffers[i] for i in places],
                timeout_s=left_s(deadline),
                reuse=reuse.at(places).numbers,
                used_ns=reuse.used_ns,
            )
        except KvError as error:
            return [error] * len(places)

    async def flight(self, hashes: Sequence[bytes], *, timeout_s: float | None = None) -> Flight:
        """Match, and wait where another engine computes; see `PrefixCache.flight`."""
        core, store = self._core, self._store._store
        keys = core.keys.blocks(hashes)

        def look() -> tuple[int, bytes | None]:
            offered = core.offered(keys)
            deadline = time.monotonic() + core.limits.match_s
            found = on_ssd = 0
            try:
                found = store.match_prefix(keys[:offered], timeout_s=core.limits.match_s)
                if found < offered and self._tiers.present:
                    found, on_ssd = extend(store, self._tiers, keys[:offered], found, deadline)
            except KvError as error:
                core.warn(error)
            core.serving.matched(keys, found)
            matched = core.matched(len(keys), found, on_ssd)
            return matched, keys[matched] if matched < len(keys) else None

        timeout_s = core.flight_timeout_s(len(keys), timeout_s)
        begun = await asyncio.to_thread(self._flights.begin, look, timeout_s)
        try:
            return core.flown(await asyncio.shield(asyncio.wrap_future(begun)))
        except asyncio.CancelledError:
            abandon(begun)
            raise

    async def put(
        self, hashes: Sequence[bytes], blocks: Sequence[Value], *, timeout_s: float | None = None
    ) -> StoreResult:
        """Store each block that is not there yet; see `PrefixCache.put`."""
        if len(hashes) != len(blocks):
            raise ValueError(f"{len(hashes)} hashes but {len(blocks)} blocks")
        core = self._core
        limit_s = core.limits.store_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit_s
        keys = core.keys.blocks(hashes)
        sizes = [size_of(block) for block in blocks]
        if not self._registered:
            self._registered = True
            await asyncio.to_thread(
                directory.register, self._store._store, self.namespace, timeout_s=1.0
            )
        reuse = core.reuse(keys, None, 0)
        outcomes: dict[int, int | KvError] = {}
        raw_bytes = stored_bytes = 0
        for batch in batches(sizes):
            some = reuse.at(batch)
            absent = await self._absent([keys[i] for i in batch], batch.start, deadline, some)
            for (number, replace), items in core.encoded(absent, keys, blocks).items():
                places = [place for place, _, _ in items]
                written = await self._write(number, items, replace, deadline, reuse.at(places))
                for (place, _, stored), outcome in zip(items, written, strict=True):
                    outcomes[place] = outcome
                    if not isinstance(outcome, KvError):
                        raw_bytes += sizes[place]
                        stored_bytes += size_of(stored)
        return core.stored(keys, outcomes, raw_bytes, stored_bytes)

    async def _absent(
        self, keys: list[bytes], begin: int, deadline: float, reuse: Reuse
    ) -> list[int]:
        try:
            found = await self._store._look_many(
                keys,
                timeout_s=left_s(deadline),
                reuse=reuse.numbers,
            )
        except KvError:
            return list(range(begin, begin + len(keys)))
        return self._core.to_store(keys, found, begin)

    async def _write(
        self,
        codec: int,
        items: list[tuple[int, bytes, Any]],
        replace: bool,
        deadline: float,
        reuse: Reuse,
    ) -> list[int | KvError]:
        try:
            return await self._store._put_many_coded(
                [(key, stored) for _, key, stored in items],
                codec,
                if_absent=not replace,
                timeout_s=left_s(deadline),
                reuse=reuse.numbers,
                used_ns=reuse.used_ns,
            )
        except KvError as error:
            return [error] * len(items)

    def stats(self) -> CacheStats:
        """Return what this cache has done."""
        return self._core.stats()
