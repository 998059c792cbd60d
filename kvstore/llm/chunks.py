"""Position-independent chunks: KV of a piece of text, wherever it stands in a prompt.

After EPIC (ICML'25): a chunk is computed once, at its base position; whoever reuses it at another
one turns its keys by the difference and computes the first few tokens anew. That is the engine's
work. The cache keeps the bytes and says for which position they were made.

Chunks stand under keys of their own: a chunk is never taken for a block of a prefix.
Stored form: version (4 bytes), base position (8, little endian), the bytes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from kvstore.errors import ConditionFailed, KvError
from kvstore.llm.core import Core, Limits, byte_view, size_of
from kvstore.llm.namespace import Namespace
from kvstore.types import Buffer, Value

if TYPE_CHECKING:
    from kvstore.client.store import Store

_HEADER: Final = struct.Struct("<IQ")
_VERSION: Final = 1


class ChunkCache:
    """The chunks of one namespace in a store; see `kvstore.llm.chunk_hash`. Thread-safe."""

    def __init__(self, store: Store, namespace: Namespace, *, limits: Limits | None = None) -> None:
        self._store = store
        self._core = Core(namespace, limits=limits)

    def put(
        self, chunk: bytes, value: Value, *, base_position: int, timeout_s: float | None = None
    ) -> bool:
        """Store a chunk that was computed at `base_position`; false if it could not be.

        The first one stays, and its base position with it.
        """
        limit_s = self._core.limits.store_s if timeout_s is None else timeout_s
        stored = b"".join((_HEADER.pack(_VERSION, base_position), byte_view(value)))
        try:
            self._store.put(self._core.keys.chunk(chunk), stored, if_absent=True, timeout_s=limit_s)
        except ConditionFailed:
            return True
        except KvError as error:
            self._core.warn(error)
            return False
        return True

    def get(self, chunk: bytes, buffer: Buffer, *, timeout_s: float | None = None) -> int | None:
        """Load a chunk into a buffer of its size; return its base position, or None: a miss."""
        key = self._core.keys.chunk(chunk)
        if not self._core.negative.leading([key]):
            return None
        limit_s = self._core.limits.load_s if timeout_s is None else timeout_s
        try:
            stored = self._store.get(key, timeout_s=limit_s)
        except KvError as error:
            self._core.warn(error)
            self._core.negative.add([key])
            return None
        if stored is None:
            return None
        size = size_of(buffer)
        version, base_position = (
            _HEADER.unpack_from(stored) if len(stored) == _HEADER.size + size else (0, 0)
        )
        if version != _VERSION:
            self._core.negative.add([key])
            return None
        byte_view(buffer)[:] = memoryview(stored)[_HEADER.size :]
        return int(base_position)
