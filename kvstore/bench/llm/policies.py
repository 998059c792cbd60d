"""Caches of blocks as bookkeeping alone: what a policy would hit, without a byte moved.

Each takes the requests of a trace in order. A request's hit is its longest prefix that is cached
when it arrives; then all of its blocks are used, those that are missing enter.

    lru      exact: the yardstick of every other policy
    belady   knows the future: the block whose next use is farthest goes, be it the new one
    none     unlimited
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from typing import Final, Protocol

Blocks = Sequence[int]
_NEVER: Final = 1 << 62


class Policy(Protocol):
    """A cache that is asked request by request."""

    def request(self, blocks: Blocks) -> int:
        """Return how many leading blocks are hits, and use all blocks."""


class Lru:
    """Exact least-recently-used."""

    def __init__(self, requests: Sequence[Blocks], capacity_blocks: int) -> None:
        self._capacity = capacity_blocks
        self._cached: OrderedDict[int, None] = OrderedDict()

    def request(self, blocks: Blocks) -> int:
        """See Policy."""
        cached = self._cached
        matched = _leading(blocks, cached)
        # A prefix is of no use without its beginning: that is used last, and leaves last.
        for block in reversed(blocks):
            if block in cached:
                cached.move_to_end(block)
            else:
                cached[block] = None
        while len(cached) > self._capacity:
            cached.popitem(last=False)
        return matched


class Belady:
    """The offline optimum for single blocks (MIN): evict what is used again last of all."""

    def __init__(self, requests: Sequence[Blocks], capacity_blocks: int) -> None:
        self._capacity = capacity_blocks
        self._next_use = next_uses(requests)
        self._at = -1
        #: Block -> (minus its next use, minus its place in the prompt): the smallest goes first.
        self._cached: dict[int, tuple[int, int]] = {}
        #: The same, with the block; entries that are out of date are skipped.
        self._heap: list[tuple[tuple[int, int], int]] = []

    def request(self, blocks: Blocks) -> int:
        """See Policy."""
        self._at += 1
        cached, heap = self._cached, self._heap
        matched = _leading(blocks, cached)
        # Later blocks go first among equals, for the same reason as in Lru.
        for place, (block, following) in enumerate(
            zip(blocks, self._next_use[self._at], strict=True)
        ):
            if following == _NEVER:
                cached.pop(block, None)
                continue
            cached[block] = (-following, -place)
            heapq.heappush(heap, (cached[block], block))
        while len(cached) > self._capacity:
            rank, block = heapq.heappop(heap)
            if cached.get(block) == rank:
                del cached[block]
        if len(heap) > 4 * self._capacity + 65_536:
            self._heap = [(rank, block) for block, rank in cached.items()]
            heapq.heapify(self._heap)
        return matched


class Unlimited:
    """Keeps everything."""

    def __init__(self, requests: Sequence[Blocks], capacity_blocks: int) -> None:
        self._cached: dict[int, None] = {}

    def request(self, blocks: Blocks) -> int:
        """See Policy."""
        matched = _leading(blocks, self._cached)
        self._cached.update(dict.fromkeys(blocks))
        return matched


#: Name -> what makes it from all requests and a capacity.
POLICIES: Final[dict[str, Callable[[Sequence[Blocks], int], Policy]]] = {
    "lru": Lru,
    "belady": Belady,
    "none": Unlimited,
}


def next_uses(requests: Sequence[Blocks]) -> list[list[int]]:
    """Return for each block of each request the number of the request that uses it next."""
    later: dict[int, int] = {}
    uses: list[list[int]] = [[] for _ in requests]
    for number in range(len(requests) - 1, -1, -1):
        uses[number] = [later.get(block, _NEVER) for block in requests[number]]
        for block in requests[number]:
            later[block] = number
    return uses


def _leading(blocks: Blocks, cached: Container[int]) -> int:
    for count, block in enumerate(blocks):
        if block not in cached:
            return count
    return len(blocks)
