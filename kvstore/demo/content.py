"""What a block holds: a function of its id and the block size, cheap to make and to check.

A block is its id and its size (16 bytes), then a slice of one random pattern that begins where
the id says. Any other block, an older run's block, a torn or a shifted one differs from it.
"""

from __future__ import annotations

import random
import struct
from typing import Final

HEADER: Final = struct.Struct("<QQ")
_OFFSETS: Final = 1 << 20
_MIX: Final = 0x9E3779B97F4A7C15


class Blocks:
    """Makes and checks the blocks of one run; `seed` differs between runs."""

    def __init__(self, block_bytes: int, seed: int = 1) -> None:
        if block_bytes < HEADER.size:
            raise ValueError(f"a block needs at least {HEADER.size} bytes")
        self.block_bytes: Final = block_bytes
        self._seed = seed
        self._body_bytes = block_bytes - HEADER.size
        self._pattern = random.Random(seed).randbytes(self._body_bytes + _OFFSETS)

    def key(self, block: int) -> bytes:
        """The key of a block; the run's seed is part of it."""
        return b"demo/%x/%x" % (self._seed, block)

    def content(self, block: int) -> bytes:
        """The bytes of a block."""
        offset = self._offset(block)
        body = memoryview(self._pattern)[offset : offset + self._body_bytes]
        return b"".join((HEADER.pack(block, self.block_bytes), body))

    def is_right(self, block: int, value: memoryview | bytes) -> bool:
        """Whether every byte of `value` is what the block must hold."""
        if len(value) != self.block_bytes:
            return False
        view = memoryview(value)
        if view[: HEADER.size] != HEADER.pack(block, self.block_bytes):
            return False
        # startswith() compares the buffer in place, at memcmp's speed.
        return self._pattern.startswith(view[HEADER.size :], self._offset(block))

    def _offset(self, block: int) -> int:
        return (((block + 1) * _MIX) >> 20) % _OFFSETS
