"""What the calls of a prefix cache return, and its counters."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field, fields

#: Reasons of a failed load that are no typed error of the store.
ABSENT = "absent"
WRONG_LENGTH = "wrong length"
REFUSED_CODEC = "refused codec"
NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The outcome of each block of a `get`, in order."""

    ok: tuple[bool, ...]
    #: Place of each block that is not there -> why: the name of an error of `kvstore.errors`, or
    #: `absent`, `wrong length`, `refused codec`, `not tried` (an earlier block had failed).
    reasons: dict[int, str] = field(default_factory=dict)

    @property
    def leading(self) -> int:
        """How many blocks from the first on are loaded without a gap."""
        return next((i for i, good in enumerate(self.ok) if not good), len(self.ok))

    @property
    def all_ok(self) -> bool:
        """Whether every block is loaded."""
        return not self.reasons


@dataclass(frozen=True, slots=True)
class StoreResult:
    """The outcome of a `put`."""

    #: Blocks that this call stored.
    stored: int
    #: Blocks that were there already.
    present: int
    #: Place of each block that could not be stored -> the name of the error.
    failed: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What a prefix cache has done since it was made. Blocks are counted unless a name says else.

    Hits of tiers: `loaded_prefetched` came from this process's own memory, `loaded_remote` from the
    memory of the nodes, `loaded_ssd` from their SSDs.
    """

    matches: int = 0
    match_blocks: int = 0
    matched_blocks: int = 0
    #: Of these, blocks that only an SSD had.
    matched_ssd: int = 0
    #: Matches that were cut short because a block had failed to load lately.
    negative_hits: int = 0
    loads: int = 0
    loaded_prefetched: int = 0
    loaded_remote: int = 0
    loaded_ssd: int = 0
    loaded_bytes: int = 0
    failed_loads: int = 0
    stores: int = 0
    stored: int = 0
    stored_bytes: int = 0
    #: Bytes that `stored_bytes` was before the codec.
    stored_raw_bytes: int = 0
    present: int = 0
    failed_stores: int = 0
    #: Blocks kept from eviction for a while, each time that they were.
    pinned: int = 0
    #: Prompts that this process computed while others might wait for it; that it did not compute,
    #: because another process did; and that it waited for in vain.
    flights_led: int = 0
    flights_joined: int = 0
    flights_late: int = 0
    #: Failed loads and stores by reason.
    reasons: dict[str, int] = field(default_factory=dict)


class Counters:
    """Adds up `CacheStats` for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    def add(self, *, reasons: dict[int, str] | None = None, **counts: int) -> None:
        """Add to the named counters."""
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count
            if reasons:
                self._reasons.update(reasons.values())

    def read(self) -> CacheStats:
        """Return the counters as they are now."""
        with self._lock:
            names = {f.name for f in fields(CacheStats)} - {"reasons"}
            return CacheStats(
                **{name: self._counts[name] for name in names}, reasons=dict(self._reasons)
            )
