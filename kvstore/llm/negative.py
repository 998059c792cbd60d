"""Blocks that failed to load lately: they are not offered again at once.

A tier that goes on saying "hit" for a block that it cannot deliver makes an engine look up and load
it for ever. So a block whose load failed is a miss from then on, for a second at first and twice as
long after each further failure. A store by this process or a good load forgives it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

BLOCKS_MAX: Final = 65_536
#: A block that has not failed for so many of its own back-offs starts anew.
_FORGET_AFTER: Final = 4


class NegativeCache:
    """Remembers failed keys with exponential back-off. Thread-safe; bounded."""

    def __init__(
        self,
        *,
        first_s: float = 1.0,
        longest_s: float = 60.0,
        blocks_max: int = BLOCKS_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A key is refused for `first_s` after its first failure, at most `longest_s`."""
        self._first_s = first_s
        self._longest_s = longest_s
        self._blocks_max = blocks_max
        self._clock = clock
        self._lock = threading.Lock()
        #: Key -> (refused until, length of that back-off); the oldest failure first.
        self._failed: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._failed)

    def leading(self, keys: Sequence[bytes]) -> int:
        """Return how many keys from the first on may be offered."""
        if not self._failed:
            return len(keys)
        now = self._clock()
        with self._lock:
            for place, key in enumerate(keys):
                entry = self._failed.get(key)
                if entry is not None and now < entry[0]:
                    return place
        return len(keys)

    def refused(self, keys: Sequence[bytes]) -> set[int]:
        """Return the places of keys that may not be offered."""
        if not self._failed:
            return set()
        now = self._clock()
        with self._lock:
            entries = [self._failed.get(key) for key in keys]
        return {i for i, entry in enumerate(entries) if entry is not None and now < entry[0]}

    def refused_for_s(self, key: bytes) -> float:
        """Return for how long `key` is not offered; 0 if it is."""
        with self._lock:
            entry = self._failed.get(key)
        return max(0.0, entry[0] - self._clock()) if entry is not None else 0.0

    def add(self, keys: Iterable[bytes]) -> None:
        """Refuse keys whose load has just failed."""
        now = self._clock()
        with self._lock:
            for key in keys:
                until, back_off_s = self._failed.pop(key, (0.0, 0.0))
                if back_off_s and now < until + _FORGET_AFTER * back_off_s:
                    back_off_s = min(2 * back_off_s, self._longest_s)
                else:
                    back_off_s = self._first_s
                self._failed[key] = (now + back_off_s, back_off_s)
            while len(self._failed) > self._blocks_max:
                self._failed.popitem(last=False)

    def forgive(self, keys: Iterable[bytes]) -> None:
        """Offer keys again: they were stored or loaded."""
        if not self._failed:
            return
        with self._lock:
            for key in keys:
                self._failed.pop(key, None)
