"""`PrefixCache`: KV blocks of a serving engine in a `Store`, found by the hashes of their tokens.

    namespace = Namespace(model="m", dtype="bfloat16", layout="...", block_tokens=16)
    cache = PrefixCache(store, namespace)
    hashes = block_hashes(tokens, 16)
    matched = cache.match(hashes)
    result = cache.get(hashes[:matched], buffers[:matched])
    cache.put(hashes[result.leading:], computed_blocks)

The rule of failure: nothing here makes a request fail. What cannot be had in time is a miss, is
counted and logged once, and is not offered again at once.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from kvstore.errors import KvError, NodeUnreachable
from kvstore.llm import directory, results, tiers
from kvstore.llm.chains import Prompt, Reuse
from kvstore.llm.codecs import Codec
from kvstore.llm.core import (
    BATCH_BLOCKS_MAX,
    Core,
    Limits,
    batches,
    left_s,
    size_of,
)
from kvstore.llm.explain import BlockVerdict, Explanation, Verdict
from kvstore.llm.keys import KeyMaker
from kvstore.llm.namespace import Namespace
from kvstore.llm.prefetch import Prefetcher
from kvstore.llm.results import CacheStats, LoadResult, StoreResult
from kvstore.llm.single_flight import Flight, Flights
from kvstore.llm.tiers import Tiers
from kvstore.types import Buffer, Value

if TYPE_CHECKING:
    from kvstore.client.store import Store

#: The longest pin, in seconds; it can be renewed.
PIN_S_MAX: Final = 4000
#: For a node to forget what it has on its SSD.
_FORGET_S: Final = 30.0
#: Walks of one `clear`, while blocks go to SSDs and come back.
_CLEAR_ROUNDS: Final = 5
_HITS: Final = (Verdict.HIT, Verdict.ON_SSD)


class PrefixCache:
    """The blocks of one namespace in a store. All threads of a process may share one.

    Blocks are immutable: a hash stands for one content for ever, so whoever comes first stores it.
    The store stays the caller's: `close` ends the prefetching only.
    """

    def __init__(
        self,
        store: Store,
        namespace: Namespace,
        *,
        codec: Codec | None = None,
        limits: Limits | None = None,
        prefetch_bytes: int = 64 << 20,
    ) -> None:
        """Wrap a store.

        Args:
            store: An open store.
            namespace: What the blocks have in common; see `Namespace`.
            codec: How blocks are stored; None: as they are. One that loses precision is added to
                the namespace.
            limits: How long calls may take.
            prefetch_bytes: Memory of this process for blocks that `prefetch` has fetched.
        """
        self._store = store
        self._core = Core(namespace, codec=codec, limits=limits)
        self._tiers = Tiers(store, self._core.warn)
        self._prefetcher = Prefetcher(store, prefetch_bytes, self._tiers)
        self._flights = Flights(store)
        self._registered = False
        self._register_lock = threading.Lock()

    @property
    def namespace(self) -> Namespace:
        """The namespace, with the codec where that loses precision."""
        return self._core.namespace

    # ---- matching and loading ----

    def match(self, hashes: Sequence[bytes], *, timeout_s: float | None = None) -> int:
        """Return how many blocks from the first on can be loaded, in one batch.

        It renews no lease and keeps nothing from eviction: a block may be gone when it is loaded.
        """
        keys = self._core.keys.blocks(hashes)
        found, on_ssd = self._matched(keys[: self._core.offered(keys)], timeout_s)
        self._core.serving.matched(keys, found)
        return self._core.matched(len(keys), found, on_ssd)

    def _matched(self, keys: list[bytes], timeout_s: float | None) -> tuple[int, int]:
        """Return how many leading keys can be loaded, and how many of them from an SSD only."""
        limit_s = self._core.limits.match_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit_s
        if not keys:
            return 0, 0
        try:
            found = self._store.match_prefix(keys, timeout_s=limit_s)
        except KvError as error:
            self._core.warn(error)
            return 0, 0
        if found == len(keys) or not self._tiers.present:
            return found, 0
        return tiers.extend(self._store, self._tiers, keys, found, deadline)

    def contains(self, hashes: Sequence[bytes], *, timeout_s: float | None = None) -> list[bool]:
        """Say of each block, not only of a prefix, whether it can be loaded. See `match`."""
        core = self._core
        keys = core.keys.blocks(hashes)
        refused = core.negative.refused(keys)
        limit_s = core.limits.match_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit_s
        try:
            outcomes: Sequence[bool | KvError] = self._store._look_many(keys, timeout_s=limit_s)
        except KvError as error:
            outcomes = [error] * len(keys)
        for outcome in outcomes:
            if isinstance(outcome, KvError):
                core.warn(outcome)
        on_ssd = self._on_ssd(keys, outcomes, deadline)
        found = [
            (here is True or i in on_ssd) and i not in refused for i, here in enumerate(outcomes)
        ]
        core.matched(len(keys), sum(found), len(on_ssd - refused))
        return found

    def _on_ssd(
        self, keys: Sequence[bytes], outcomes: Sequence[bool | KvError], deadline: float
    ) -> set[int]:
        """Return the places of keys that are not in memory and on an SSD."""
        absent = [place for place, here in enumerate(outcomes) if here is False]
        if not absent or not self._tiers.present:
            return set()
        found = self._tiers.found([keys[place] for place in absent], left_s(deadline))
        return {place for place, there in zip(absent, found, strict=True) if there}

    def get(
        self,
        hashes: Sequence[bytes],
        buffers: Sequence[Buffer],
        *,
        timeout_s: float | None = None,
        prompt: Prompt | None = None,
        first: int = 0,
    ) -> LoadResult:
        """Load each block into its buffer, which has exactly the block's size.

        Blocks are loaded in batches from the first on; after a batch with a failure the rest is not
        tried, for a prefix ends there. What a failed block's buffer holds is unspecified.

        Args:
            hashes: Blocks to load, those of a prefix first.
            buffers: One a block: bytearray, memoryview, numpy array, torch tensor on the CPU.
            timeout_s: For all of them. Default: `Limits.load_s`, and not longer than computing them
                takes where `Limits.prefill_tokens_per_s` is known.
            prompt: What eviction is told of this use; None: what the last `match` made of it.
            first: The place of the first block in the prompt, where that is given.
        """
        if len(hashes) != len(buffers):
            raise ValueError(f"{len(hashes)} hashes but {len(buffers)} buffers")
        core = self._core
        deadline = time.monotonic() + core.load_timeout_s(len(hashes), timeout_s)
        keys = core.keys.blocks(hashes)
        sizes = [size_of(buffer) for buffer in buffers]
        reasons: dict[int, str] = {}
        reuse = core.reuse(keys, prompt, first)
        from_ssd = 0
        prefetched = self._prefetcher.take(keys, buffers, sizes, core, deadline)
        for batch in batches(sizes):
            if reasons:
                reasons.update((i, results.NOT_TRIED) for i in batch if i not in prefetched)
                continue
            wanted = [i for i in batch if i not in prefetched]
            if not wanted:
                continue
            outcomes, promoted = tiers.read(
                self._store,
                self._tiers,
                [keys[i] for i in wanted],
                [buffers[i] for i in wanted],
                deadline,
                reuse.at(wanted),
                keys[batch.stop :],
            )
            for number, (place, outcome) in enumerate(zip(wanted, outcomes, strict=True)):
                why = core.read_outcome(outcome, buffers[place], sizes[place])
                if why:
                    reasons[place] = why
                else:
                    from_ssd += int(number in promoted)
        return core.loaded(keys, reasons, sizes, len(prefetched), from_ssd)

    def load_timeout_s(self, blocks: int) -> float:
        """Return how long a `get` of so many blocks may take unless it is told."""
        return self._core.load_timeout_s(blocks, None)

    def refuse(self, hashes: Sequence[bytes]) -> None:
        """Do not offer blocks for a while: another process of this engine failed to load them."""
        self._core.negative.add(self._core.keys.blocks(hashes))

    def prefetch(self, hashes: Sequence[bytes], block_bytes: int) -> int:
        """Begin to fetch blocks into this process's memory, where the next `get` finds them.

        Returns how many were begun: those that are there already, or for which there is no room,
        are not.
        """
        core = self._core
        keys = core.keys.blocks(hashes)
        return self._prefetcher.begin(keys[: core.offered(keys)], block_bytes, core)

    # ---- computing once ----

    def flight(self, hashes: Sequence[bytes], *, timeout_s: float | None = None) -> Flight:
        """Match, and wait where another engine is computing the first block that is missing.

            with cache.flight(hashes) as flight:
                result = cache.get(hashes[: flight.matched], buffers[: flight.matched])
                cache.put(hashes[result.leading :], compute(result.leading))

        Of the engines that miss the same chain at the same moment one computes, inside the `with`,
        and the others find its blocks. Who waited in vain, because the deadline passed or locks
        cannot be had, computes for itself: a flight is no mutual exclusion.

        Args:
            hashes: The blocks of a prompt.
            timeout_s: How long to wait at most. Default: `Limits.flight_s`, and not longer than
                computing takes where `Limits.prefill_tokens_per_s` is known.
        """
        flight = self._flights.join(
            lambda: self._look(hashes), self._core.flight_timeout_s(len(hashes), timeout_s)
        )
        return self._core.flown(flight)

    def count_flight(self, flight: Flight) -> None:
        """Count a flight that an engine's adapter began by itself."""
        self._core.flown(flight)

    def key_of(self, block_hash: bytes) -> bytes:
        """Return the key under which the store has a block."""
        return self._core.keys.blocks([block_hash])[0]

    def holds(self, block_hash: bytes) -> bool:
        """Say whether the store has a block, refused or not, and count nothing."""
        try:
            return self._store.contains(
                self.key_of(block_hash), timeout_s=self._core.limits.match_s
            )
        except KvError:
            return False

    def _look(self, hashes: Sequence[bytes]) -> tuple[int, bytes | None]:
        matched = self.match(hashes)
        missing = hashes[matched : matched + 1]
        return matched, self._core.keys.blocks(missing)[0] if missing else None

    # ---- storing ----

    def put(
        self,
        hashes: Sequence[bytes],
        blocks: Sequence[Value],
        *,
        timeout_s: float | None = None,
        prompt: Prompt | None = None,
        first: int = 0,
    ) -> StoreResult:
        """Store each block that is not there yet; the blocks must not change meanwhile.

        A block that is there but was found unusable by this process is replaced. `prompt` and
        `first` as in `get`.
        """
        if len(hashes) != len(blocks):
            raise ValueError(f"{len(hashes)} hashes but {len(blocks)} blocks")
        core = self._core
        limit_s = core.limits.store_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit_s
        keys = core.keys.blocks(hashes)
        sizes = [size_of(block) for block in blocks]
        reuse = core.reuse(keys, prompt, first)
        self._register(left_s(deadline))
        outcomes: dict[int, int | KvError] = {}
        raw_bytes = stored_bytes = 0
        for batch in batches(sizes):
            some = reuse.at(batch)
            absent = self._absent([keys[i] for i in batch], batch.start, deadline, some)
            for (number, replace), items in core.encoded(absent, keys, blocks).items():
                places = [place for place, _, _ in items]
                written = self._write(number, items, replace, deadline, reuse.at(places))
                for (place, _, stored), outcome in zip(items, written, strict=True):
                    outcomes[place] = outcome
                    if not isinstance(outcome, KvError):
                        raw_bytes += sizes[place]
                        stored_bytes += size_of(stored)
        return core.stored(keys, outcomes, raw_bytes, stored_bytes)

    def _absent(self, keys: list[bytes], begin: int, deadline: float, reuse: Reuse) -> list[int]:
        """Return the places of keys that are not there for certain, or of no use.

        Those that are there are used by this prompt as well, and eviction is told so; as of now,
        for others may have used them since the prompt was matched.
        """
        try:
            found = self._store._look_many(
                keys,
                timeout_s=left_s(deadline),
                reuse=reuse.numbers,
            )
        except KvError:
            return list(range(begin, begin + len(keys)))
        return self._core.to_store(keys, found, begin)

    def _write(
        self,
        codec: int,
        items: list[tuple[int, bytes, Any]],
        replace: bool,
        deadline: float,
        reuse: Reuse,
    ) -> list[int | KvError]:
        try:
            return self._store._put_many_coded(
                [(key, stored) for _, key, stored in items],
                codec,
                if_absent=not replace,
                timeout_s=left_s(deadline),
                reuse=reuse.numbers,
                used_ns=reuse.used_ns,
            )
        except KvError as error:
            return [error] * len(items)

    def _register(self, timeout_s: float) -> None:
        """Once: list the namespace, so that `explain` of others can name it."""
        if self._registered:
            return
        with self._register_lock:
            if not self._registered:
                self._registered = True
                directory.register(self._store, self.namespace, timeout_s=min(timeout_s, 1.0))

    def clear(self) -> int:
        """Delete the blocks of this namespace and return how many there were in memory.

        Those on SSDs go too. It walks over the keys of all nodes: seconds for millions. Raises what
        `Store.keys` does, and NodeUnreachable if a node does not say that its SSD forgot them.
        """
        prefix = self._core.keys.block_prefix
        self._tiers.forget(prefix, _FORGET_S)
        deleted = 0
        for _ in range(_CLEAR_ROUNDS):
            deleted += self._delete_from_memory(prefix)
            # What went down meanwhile may have come up again, behind the walk.
            if self._tiers.forget(prefix, _FORGET_S) == 0:
                break
        return deleted

    def _delete_from_memory(self, prefix: bytes) -> int:
        deleted = 0
        ours: list[bytes] = []
        for key in self._store:
            if key.startswith(prefix):
                ours.append(key)
            if len(ours) == BATCH_BLOCKS_MAX:
                deleted += self._store.delete_many(ours).count(True)
                ours = []
        return deleted + self._store.delete_many(ours).count(True)

    # ---- keeping ----

    def pin(
        self, hashes: Sequence[bytes], ttl_s: float, *, timeout_s: float | None = None
    ) -> list[bool]:
        """Keep blocks from eviction for `ttl_s` seconds; say of each whether it was there.

        A pin is a lease: it ends by itself, and pinning again renews it. The nodes learn of it with
        this client's next heartbeat. Where more than half of a node is pinned its pins count for
        nothing, so that it goes on taking blocks. A block that is absent is not pinned, and a
        restart of the node loses it with its pin.

        Args:
            hashes: Blocks to keep.
            ttl_s: From now on, rounded up to seconds, at most 4,000.
            timeout_s: For the call. Default: `Limits.match_s`.
        """
        seconds = math.ceil(ttl_s)
        if not 0 < seconds <= PIN_S_MAX:
            raise ValueError(f"a pin holds for up to {PIN_S_MAX} seconds, not {ttl_s}")
        core = self._core
        limit_s = core.limits.match_s if timeout_s is None else timeout_s
        keys = core.keys.blocks(hashes)
        try:
            outcomes: Sequence[bool | KvError] = self._store._pin_many(
                keys, seconds, timeout_s=limit_s
            )
        except KvError as error:
            outcomes = [error] * len(keys)
        for outcome in outcomes:
            if isinstance(outcome, KvError):
                core.warn(outcome)
        pinned = [outcome is True for outcome in outcomes]
        core.counters.add(pinned=sum(pinned))
        return pinned

    # ---- telling ----

    def explain(self, hashes: Sequence[bytes], *, timeout_s: float = 5.0) -> Explanation:
        """Say of each block why it is a hit or a miss. For people: it costs several batches.

        "Evicted" and "never stored" are told apart by what this process stored or loaded itself,
        the last 65,536 blocks; another process may see it differently.
        """
        deadline = time.monotonic() + timeout_s
        keys = self._core.keys.blocks(hashes)
        try:
            found: Sequence[bool | KvError] = self._store._look_many(
                keys, timeout_s=left_s(deadline)
            )
        except KvError as error:
            found = [error] * len(keys)
        on_ssd = self._on_ssd(keys, found, deadline)
        verdicts = [self._verdict(key, found[i], i in on_ssd) for i, key in enumerate(keys)]
        matched = next((i for i, (v, _) in enumerate(verdicts) if v not in _HITS), len(keys))
        missing = [i for i, (v, _) in enumerate(verdicts) if v is Verdict.NEVER_STORED]
        elsewhere = self._elsewhere([hashes[i] for i in missing], deadline)
        for place, others in zip(missing, elsewhere, strict=True):
            if others:
                verdicts[place] = (Verdict.OTHER_NAMESPACE, others)
        for place in range(matched, len(keys)):
            if verdicts[place][0] in _HITS:
                verdicts[place] = (Verdict.BEHIND_A_GAP, "")
        blocks = [BlockVerdict(i, verdict, detail) for i, (verdict, detail) in enumerate(verdicts)]
        return Explanation(matched, tuple(blocks))

    def _verdict(self, key: bytes, is_there: bool | KvError, on_ssd: bool) -> tuple[Verdict, str]:
        if isinstance(is_there, KvError):
            kind = type(is_there).__name__
            return Verdict.NODE_DOWN, "" if isinstance(is_there, NodeUnreachable) else kind
        wait_s = self._core.negative.refused_for_s(key)
        if wait_s > 0:
            return Verdict.LOAD_FAILED, f"{wait_s:.1f} s left"
        if is_there:
            return Verdict.HIT, ""
        if on_ssd:
            return Verdict.ON_SSD, ""
        return (Verdict.EVICTED if self._core.was_seen(key) else Verdict.NEVER_STORED), ""

    def _elsewhere(self, hashes: list[bytes], deadline: float) -> list[str]:
        """For each hash the fields by which the namespaces that hold it differ from ours."""
        differences = [""] * len(hashes)
        if not hashes:
            return differences
        ours = self.namespace.describe()
        for digest, theirs in directory.listed(self._store, timeout_s=left_s(deadline)).items():
            if digest == self.namespace.digest():
                continue
            keys = KeyMaker.of_digest(digest).blocks(hashes)
            try:
                found = self._store._look_many(keys, timeout_s=left_s(deadline))
            except KvError:
                break
            fields = [name for name in ours if theirs.get(name) != ours[name]]
            text = ", ".join(f"{name} {theirs.get(name)!r}" for name in fields) or "another salt"
            for place, is_there in enumerate(found):
                if is_there is True and not differences[place]:
                    differences[place] = text
        return differences

    def stats(self) -> CacheStats:
        """Return what this cache has done."""
        return self._core.stats()

    # ---- the end ----

    def close(self) -> None:
        """End the prefetching. The store stays open."""
        self._prefetcher.close()
        self._tiers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
