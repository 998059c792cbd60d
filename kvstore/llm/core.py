"""What the synchronous and the asynchronous prefix cache have in common: everything but the calls.

It makes keys, decides what may be offered, cuts batches, reads outcomes, and counts. It never waits
and never touches a store.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from kvstore.client.buffers import export_buffer
from kvstore.errors import CodecMismatch, ConditionFailed, ConfigurationError, KvError
from kvstore.llm import codecs, results
from kvstore.llm.chains import Prompt, Reuse, Serving
from kvstore.llm.codecs import Codec
from kvstore.llm.keys import KeyMaker
from kvstore.llm.namespace import Namespace
from kvstore.llm.negative import NegativeCache
from kvstore.llm.results import CacheStats, Counters, LoadResult, StoreResult
from kvstore.llm.single_flight import Flight
from kvstore.types import Buffer

BATCH_BYTES_MAX: Final = 32 << 20
BATCH_BLOCKS_MAX: Final = 512
#: Blocks that this process remembers to have stored or loaded; `explain` tells by them what was
#: evicted from what never was there.
_SEEN_MAX: Final = 65_536
#: Reasons that speak against the stored object, not against the node or the way to it.
_UNUSABLE: Final = (results.WRONG_LENGTH, "BufferTooSmall", "CorruptObject")
_log = logging.getLogger("kvstore.llm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a prefix cache may keep an engine waiting.

    Attributes:
        match_s: For one `match`.
        load_s: For one `get`, whatever its size.
        store_s: For one `put`.
        flight_s: For one `flight`, which waits for another engine. 0: it does not wait.
        prefill_tokens_per_s: How fast the engine computes; a load of n tokens, or the wait for
            another engine that computes them, is then given at most the n / prefill_tokens_per_s
            seconds that computing them takes. 0: not known.
        back_off_s: For how long a block that failed to load is not offered again, the first time.
        back_off_s_max: And at most.
    """

    match_s: float = 0.5
    load_s: float = 5.0
    store_s: float = 10.0
    flight_s: float = 5.0
    prefill_tokens_per_s: float = 0.0
    back_off_s: float = 1.0
    back_off_s_max: float = 60.0


class Core:
    """The state of one prefix cache. Thread-safe."""

    def __init__(
        self,
        namespace: Namespace,
        *,
        codec: Codec | None = None,
        limits: Limits | None = None,
    ) -> None:
        lossy = codec.lossy_name if codec is not None else ""
        if lossy and namespace.codec not in ("", lossy):
            raise ConfigurationError(
                f"the namespace is for the codec {namespace.codec}, the cache for {lossy}"
            )
        self.namespace = replace(namespace, codec=lossy) if lossy else namespace
        self.limits = limits or Limits()
        self.keys = KeyMaker(self.namespace)
        self.codec = codec
        self.counters = Counters()
        self.negative = NegativeCache(
            first_s=self.limits.back_off_s, longest_s=self.limits.back_off_s_max
        )
        self.serving = Serving()
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        #: Keys whose stored object was read and is of no use.
        self._unusable: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()
        self._warned: set[str] = set()

    # ---- matching ----

    def offered(self, keys: Sequence[bytes]) -> int:
        """Return how many leading keys may be asked for at all."""
        offered = self.negative.leading(keys)
        if offered < len(keys):
            self.counters.add(negative_hits=1)
        return offered

    def matched(self, asked: int, found: int, on_ssd: int = 0) -> int:
        """Count a match."""
        self.counters.add(matches=1, match_blocks=asked, matched_blocks=found, matched_ssd=on_ssd)
        return found

    def reuse(self, keys: Sequence[bytes], prompt: Prompt | None, first: int) -> Reuse:
        """Return what eviction is told of a use of blocks."""
        if prompt is not None:
            return prompt.reuse(first, len(keys))
        return self.serving.reuse(keys)

    # ---- loading ----

    def load_timeout_s(self, blocks: int, timeout_s: float | None) -> float:
        """Return how long a load may take: never longer than computing would."""
        if timeout_s is not None:
            return timeout_s
        return self._not_above_computing(self.limits.load_s, blocks)

    def flight_timeout_s(self, blocks: int, timeout_s: float | None) -> float:
        """Return how long a flight may wait: never longer than computing would take."""
        if timeout_s is not None:
            return timeout_s
        return self._not_above_computing(self.limits.flight_s, blocks)

    def _not_above_computing(self, limit_s: float, blocks: int) -> float:
        if self.limits.prefill_tokens_per_s <= 0:
            return limit_s
        tokens = blocks * self.namespace.block_tokens
        return min(limit_s, tokens / self.limits.prefill_tokens_per_s)

    def flown(self, flight: Flight) -> Flight:
        """Count a flight that has begun, or has ended already."""
        self.counters.add(
            flights_led=int(flight.leads),
            flights_joined=int(flight.waited and not flight.leads and not flight.late),
            flights_late=int(flight.late),
        )
        return flight

    def read_outcome(
        self, outcome: tuple[int, int] | KvError | None, buffer: Buffer, size: int
    ) -> str:
        """Finish one block whose read has ended; return "" or why it failed."""
        if outcome is None:
            return results.ABSENT
        if isinstance(outcome, KvError):
            self.warn(outcome)
            return type(outcome).__name__
        length, number = outcome
        if number == codecs.NONE:
            return "" if length == size else results.WRONG_LENGTH
        try:
            block = byte_view(buffer)
            codecs.decode(number, bytes(block[:length]), block)
        except (CodecMismatch, ConfigurationError) as error:
            self.warn(error)
            return results.REFUSED_CODEC
        return ""

    def loaded(
        self,
        keys: Sequence[bytes],
        reasons: dict[int, str],
        sizes: Sequence[int],
        prefetched: int,
        from_ssd: int,
    ) -> LoadResult:
        """Count a load, and remember what failed and what did not."""
        ok = tuple(place not in reasons for place in range(len(keys)))
        good = [key for key, fine in zip(keys, ok, strict=True) if fine]
        if reasons:
            self.serving.fell_short(keys, min(reasons))
            failed = [keys[i] for i, why in reasons.items() if why != results.NOT_TRIED]
            self.negative.add(failed)
            self._remember(
                self._unusable, [keys[i] for i, why in reasons.items() if why in _UNUSABLE]
            )
        self.negative.forgive(good)
        self.see(good)
        self.counters.add(
            loads=1,
            loaded_prefetched=prefetched,
            loaded_remote=len(good) - prefetched - from_ssd,
            loaded_ssd=from_ssd,
            loaded_bytes=sum(size for size, fine in zip(sizes, ok, strict=True) if fine),
            failed_loads=len(reasons),
            reasons=reasons,
        )
        return LoadResult(ok, reasons)

    # ---- storing ----

    def to_store(
        self, keys: Sequence[bytes], found: Sequence[bool | KvError], begin: int
    ) -> list[int]:
        """Return the places, from `begin` on, of keys that are not there or of no use."""
        return [
            begin + place
            for place, (key, here) in enumerate(zip(keys, found, strict=True))
            if here is not True or key in self._unusable
        ]

    def encoded(
        self, places: Iterable[int], keys: Sequence[bytes], blocks: Sequence[Any]
    ) -> dict[tuple[int, bool], list[tuple[int, bytes, Any]]]:
        """Return (codec number, replace) -> (place, key, stored form) of the named blocks."""
        by_codec: dict[tuple[int, bool], list[tuple[int, bytes, Any]]] = {}
        for place in places:
            replace = keys[place] in self._unusable
            stored: Any = None
            if self.codec is not None:
                stored = self.codec.encode(byte_view(blocks[place]))
            if stored is None:
                number, stored = codecs.NONE, blocks[place]
            else:
                assert self.codec is not None
                number = self.codec.number
            by_codec.setdefault((number, replace), []).append((place, keys[place], stored))
        return by_codec

    def stored(
        self,
        keys: Sequence[bytes],
        outcomes: dict[int, int | KvError],
        raw_bytes: int,
        stored_bytes: int,
    ) -> StoreResult:
        """Count a store; keys without an outcome were there already."""
        failed: dict[int, str] = {}
        present = len(keys) - len(outcomes)
        for place, outcome in outcomes.items():
            if isinstance(outcome, ConditionFailed):
                present += 1
            elif isinstance(outcome, KvError):
                self.warn(outcome)
                failed[place] = type(outcome).__name__
        good = [key for place, key in enumerate(keys) if place not in failed]
        with self._lock:
            for key in good if self._unusable else ():
                self._unusable.pop(key, None)
        self.negative.forgive(good)
        self.see(good)
        stored = len(keys) - present - len(failed)
        self.counters.add(
            stores=1,
            stored=stored,
            present=present,
            failed_stores=len(failed),
            stored_bytes=stored_bytes,
            stored_raw_bytes=raw_bytes,
            reasons=failed,
        )
        return StoreResult(stored, present, failed)

    # ---- what was there ----

    def see(self, keys: Iterable[bytes]) -> None:
        """Remember keys that are in the store now."""
        self._remember(self._seen, keys)

    def _remember(self, memory: OrderedDict[bytes, None], keys: Iterable[bytes]) -> None:
        with self._lock:
            for key in keys:
                memory[key] = None
                memory.move_to_end(key)
            while len(memory) > _SEEN_MAX:
                memory.popitem(last=False)

    def was_seen(self, key: bytes) -> bool:
        """Whether this process stored or loaded `key`, as far as it remembers."""
        return key in self._seen

    # ---- telling ----

    def stats(self) -> CacheStats:
        """Return the counters."""
        return self.counters.read()

    def warn(self, error: KvError) -> None:
        """Log the first error of each kind: an engine's log must not fill with the same line."""
        kind = type(error).__name__
        if kind not in self._warned:
            self._warned.add(kind)
            _log.warning("a block counts as a miss: %s (logged once for %s)", error, kind)


def byte_view(buffer: Any) -> memoryview:
    """Return the bytes of a contiguous buffer, numpy array or torch tensor on the CPU, in place."""
    if callable(getattr(buffer, "data_ptr", None)):
        # Also says what is wrong with tensors that are elsewhere or not contiguous.
        export_buffer(buffer, False)
        import torch

        return memoryview(buffer.detach().reshape(-1).view(torch.uint8).numpy())
    view = memoryview(buffer)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def size_of(buffer: Any) -> int:
    """Return the bytes of a buffer, a numpy array or a torch tensor."""
    nbytes = getattr(buffer, "nbytes", None)
    if isinstance(nbytes, int):
        return nbytes
    if isinstance(buffer, bytes | bytearray):
        return len(buffer)
    return byte_view(buffer).nbytes


def batches(
    sizes: Sequence[int],
    *,
    blocks_max: int = BATCH_BLOCKS_MAX,
    bytes_max: int = BATCH_BYTES_MAX,
) -> Iterator[range]:
    """Cut blocks of these sizes into ranges that bound what one call moves.

    A block that is larger than `bytes_max` is a range of its own.
    """
    begin = moved = 0
    for place, size in enumerate(sizes):
        count = place - begin
        if count == blocks_max or (count and moved + size > bytes_max):
            yield range(begin, place)
            begin, moved = place, 0
        moved += size
    if begin < len(sizes):
        yield range(begin, len(sizes))


def left_s(deadline: float) -> float:
    """Return the time until `deadline` (of time.monotonic), at least a millisecond."""
    return max(0.001, deadline - time.monotonic())
