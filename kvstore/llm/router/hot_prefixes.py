"""How much of a prompt decides where it goes: longer where a short prefix would draw a crowd.

A prefix that many requests share, such as a common system prompt, would send them all to the same
two instances. So prefixes are counted over the last requests: one that more than 2/n of them begin
with, among n instances, is *hot*, and what begins with it is told apart by one block more; it cools
where its share falls below 1/n (DualMap, section on the hotness tree). What lies between keeps its
state, so that prefixes do not flap.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Final

#: Shares are taken of at least so many requests: the first few say nothing.
_REQUESTS_MIN: Final = 64
#: Blocks that may decide at most, which bounds the memory of a request.
_DEPTH_MAX: Final = 64


class HotPrefixes:
    """Counts prefixes of the last requests. Not safe among threads.

    Args:
        window_requests: How many requests are looked back on.
    """

    def __init__(self, window_requests: int = 1024) -> None:
        self._window_requests = window_requests
        self._window: deque[tuple[bytes, ...]] = deque()
        self._counts: Counter[bytes] = Counter()
        self._hot: set[bytes] = set()

    def __len__(self) -> int:
        """How many prefixes are hot."""
        return len(self._hot)

    def observe(self, hashes: Sequence[bytes], instances: int) -> int:
        """Count a prompt of at least one block; return how many leading blocks decide for it.

        Args:
            hashes: Chained hashes of the prompt's blocks.
            instances: How many instances there are to spread requests over.
        """
        depth = 1
        while depth < min(len(hashes), _DEPTH_MAX) and hashes[depth - 1] in self._hot:
            depth += 1
        path = tuple(hashes[:depth])
        self._window.append(path)
        self._counts.update(path)
        if len(self._window) > self._window_requests:
            self._forget(self._window.popleft(), instances)
        limit = 2 * self._requests() / instances
        self._hot.update(prefix for prefix in path if self._counts[prefix] > limit)
        return depth

    def _forget(self, path: tuple[bytes, ...], instances: int) -> None:
        limit = self._requests() / instances
        for prefix in path:
            self._counts[prefix] -= 1
            if self._counts[prefix] < limit:
                self._hot.discard(prefix)
            if not self._counts[prefix]:
                del self._counts[prefix]

    def _requests(self) -> int:
        return max(len(self._window), min(_REQUESTS_MIN, self._window_requests))
