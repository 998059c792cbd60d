"""Two hash rings: which two instances are the candidates of a prefix.

An instance stands at many points of either ring, and the rings hash independently of each other. A
prefix's candidates are the next instances clockwise, on the first ring and on the second; where
these are the same one, the second ring goes on to the next other one. So an instance that leaves or
comes changes the pairs that it is a member of and no others, and of those pairs the other member
stays (DualMap, dual-hash-ring scaling).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from typing import Final

#: Points of an instance on a ring. Its share of the prefixes varies by about 1 / sqrt of this.
_POINTS: Final = 128
_SALTS: Final = (b"kvstore.ring.1", b"kvstore.ring.2")


class Rings:
    """The instances, by name, on both rings. Not safe among threads."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._rings: tuple[list[tuple[int, str]], ...] = tuple([] for _ in _SALTS)

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str) -> None:
        """Put an instance on the rings; one that is there already stays as it is."""
        if name in self._names:
            return
        self._names.add(name)
        for ring, salt in zip(self._rings, _SALTS, strict=True):
            for point in range(_POINTS):
                insort(ring, (_place(salt, b"%d:" % point + name.encode()), name))

    def remove(self, name: str) -> None:
        """Take an instance off the rings, if it is there."""
        self._names.discard(name)
        for ring in self._rings:
            ring[:] = [entry for entry in ring if entry[1] != name]

    def candidates(self, key: bytes, usable: Callable[[str], bool]) -> list[str]:
        """Return the two candidates of `key`, or as many as there are usable instances below two.

        Those that are not usable are passed over as if they were not on the rings.
        """
        found: list[str] = []
        for ring, salt in zip(self._rings, _SALTS, strict=True):
            for name in _clockwise(ring, _place(salt, key)):
                if name not in found and usable(name):
                    found.append(name)
                    break
        return found


def _place(salt: bytes, data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, salt=salt).digest(), "little")


def _clockwise(ring: list[tuple[int, str]], place: int) -> Iterator[str]:
    start = bisect_left(ring, (place, ""))
    for index in range(start, start + len(ring)):
        yield ring[index % len(ring)][1]
