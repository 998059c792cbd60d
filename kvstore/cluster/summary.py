"""What an SSD tier tells its clients of all that it holds: a Bloom filter (Bloom, CACM 1970).

A client whose filter says no need not ask. It is as old as the last answer that brought it up to
date, and a second later it counts for nothing; what went down to the SSD since then looks absent,
which is a miss. That hardly happens: what has just gone down is in memory as well, and clients look
there first. What the SSD has dropped may look as if it were there, until the node begins a new
filter: that costs a question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

#: One key in some eighty that is absent looks present.
_BITS_A_KEY: Final = 10
_PROBES: Final = 4
_BITS_MIN: Final = 1 << 13


def hash_of(key: bytes) -> int:
    """The 64 bits by which filters know a key, everywhere the same."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def filter_bytes(keys: int) -> int:
    """What a filter for so many keys takes, a power of two."""
    bits = max(_BITS_MIN, _BITS_A_KEY * keys)
    return 1 << (bits - 1).bit_length() >> 3


class Filter:
    """A set of hashes, some more of which seem to be in it. Not thread-safe."""

    def __init__(self, content: bytes | bytearray) -> None:
        """`content` of a power of two bytes, at most 512 MiB; an earlier one's, or zeros."""
        self.content = bytearray(content)
        self._mask = 8 * len(content) - 1

    def add(self, hashes: Iterable[int]) -> None:
        """Put hashes into it."""
        for number in hashes:
            place, step = number & 0xFFFFFFFF, number >> 32 | 1
            for _ in range(_PROBES):
                bit = place & self._mask
                self.content[bit >> 3] |= 1 << (bit & 7)
                place += step

    def may_have(self, number: int) -> bool:
        """False only if the hash was not put into it."""
        place, step = number & 0xFFFFFFFF, number >> 32 | 1
        for _ in range(_PROBES):
            bit = place & self._mask
            if not self.content[bit >> 3] >> (bit & 7) & 1:
                return False
            place += step
        return True
