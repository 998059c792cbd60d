"""The filter over all keys of a log that clients keep, and what is new in it since they asked.

A filter only grows: when as many keys were added as it was made with, another one is begun, of what
the log holds then. A client that has an earlier version of the same filter is told the hashes that
came since, one that has none the filter as a whole.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from kvstore.cluster.summary import Filter, filter_bytes, hash_of

#: What an answer may carry; gRPC takes 4 MiB. A log of more than 800,000 records has no summary.
BYTES_MAX: Final = 2 << 20
_KEYS_MIN: Final = 512
#: Hashes that are remembered for clients with an earlier version.
_JOURNAL_MAX: Final = 8192


@dataclass(frozen=True, slots=True)
class Change:
    """What makes a client's filter current.

    Attributes:
        epoch: Which filter it is.
        version: How many keys have been added to it.
        content: All of it; empty: only `added` is new.
        added: Hashes.
    """

    epoch: int
    version: int
    content: bytes = b""
    added: tuple[int, ...] = ()


class TierSummary:
    """The filter of one log; there is none before `begin`. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._filter: Filter | None = None
        self._epoch = self._version = self._room = 0
        self._journal: deque[int] = deque(maxlen=_JOURNAL_MAX)

    def begin(self, keys: Sequence[bytes]) -> None:
        """Begins a filter of these keys, with room for as many more."""
        capacity = 2 * max(len(keys), _KEYS_MIN)
        size = filter_bytes(capacity)
        begun: Filter | None = None
        if size <= BYTES_MAX:
            begun = Filter(bytes(size))
            begun.add(map(hash_of, keys))
        with self._lock:
            self._filter = begun
            self._epoch = secrets.randbits(63) | 1
            self._version = 0
            self._room = capacity - len(keys)
            self._journal.clear()

    @property
    def is_full(self) -> bool:
        """Whether it is time to begin another one."""
        return self._version >= self._room

    def add(self, key: bytes) -> None:
        """Adds a key that the log holds from now on."""
        number = hash_of(key)
        with self._lock:
            self._version += 1
            if self._filter is not None:
                self._filter.add((number,))
                self._journal.append(number)

    def since(self, epoch: int, version: int) -> Change | None:
        """What is new for a client that has this version; None: there is no filter."""
        with self._lock:
            if self._filter is None:
                return None
            missed = self._version - version
            if epoch == self._epoch and 0 <= missed <= len(self._journal):
                first = len(self._journal) - missed
                added = tuple(islice(self._journal, first, None))
                return Change(self._epoch, self._version, added=added)
            return Change(self._epoch, self._version, content=bytes(self._filter.content))
