"""The node's own client of its memory, through which blocks leave it and come back.

An ordinary client: what it reads was verified, what it puts is seen by everybody or by nobody, and
a put of its own never replaces what another client has put.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from kvstore.client.native import NativeClient, ffi, lib, plain_error
from kvstore.errors import ConditionFailed
from kvstore.node.memory_node import MemoryNode

_NS: Final = 1_000_000_000
_CALL_S: Final = 5.0
_WALK_S: Final = 60.0


class Held(NamedTuple):
    """An object in memory, as a walk sees it."""

    key: bytes
    value_bytes: int
    version: int


class Block(NamedTuple):
    """A value that was read."""

    value: memoryview
    codec: int
    version: int


class RegionClient:
    """Reads and writes one node of this process. Thread-safe, but for `close`."""

    def __init__(self, node: MemoryNode, threads: int) -> None:
        """Attaches. `threads`: how many may call at once without waiting for each other."""
        self._client = NativeClient("", ("self",), lanes=threads, address_cache_entries=1)
        try:
            self._client.attach_local(0, node.handle)
        except BaseException:
            self._client.close()
            raise

    def walk(self) -> Iterator[Held]:
        """The objects in memory, in no order; what changes meanwhile may be left out."""
        for page in self._client.scan_entries(0, _WALK_S):
            yield from (Held(*entry) for entry in page)

    def read(self, key: bytes, buffer: bytearray) -> Block | None:
        """Reads a value into `buffer`, which grows to its size; None: it is not there.

        It does not count as a use: what is copied to the SSD is not kept from eviction by that.
        """
        for _ in range(3):
            memory = ffi.from_buffer(buffer)
            call = self._call(lib.KV_GET, key, lib.KV_PROBE)
            call.buffer, call.buffer_bytes = memory, len(memory)
            status = self._run(call)
            ffi.release(memory)
            if status == lib.KV_OK:
                return Block(
                    memoryview(buffer)[: call.data_bytes], int(call.codec), int(call.version)
                )
            if status != lib.KV_BUFFER_TOO_SMALL:
                return None
            buffer.extend(bytes(int(call.data_bytes) - len(buffer)))
        return None

    def contains(self, key: bytes) -> bool:
        """Whether a key is there; it does not count as a use either."""
        return self._run(self._call(lib.KV_CONTAINS, key, lib.KV_PROBE)) == int(lib.KV_OK)

    def put_if_absent(self, key: bytes, value: memoryview, codec: int) -> int:
        """Puts a value and returns its version. ConditionFailed if the key is there."""
        memory = ffi.from_buffer(value)
        call = self._call(lib.KV_PUT, key, lib.KV_IF_ABSENT)
        call.value, call.value_bytes, call.codec = memory, len(memory), codec
        status = self._run(call)
        ffi.release(memory)
        if status == lib.KV_CONDITION_FAILED:
            raise ConditionFailed("the key is there", version=int(call.version))
        if status != lib.KV_OK:
            raise plain_error(status)
        return int(call.version)

    def delete(self, key: bytes, version: int) -> None:
        """Deletes this version of a key, if it is still there."""
        call = self._call(lib.KV_DELETE, key, lib.KV_IF_VERSION)
        call.if_version = version
        self._run(call)

    def close(self) -> None:
        """Leaves the node, once no call is under way."""
        self._client.close()

    def _call(self, kind: int, key: bytes, flags: int) -> Any:
        call = ffi.new("kv_call *")
        call.kind, call.flags = kind, flags
        call.key, call.key_bytes = ffi.from_buffer(key), len(key)
        return call

    def _run(self, call: Any) -> int:
        """Makes one call and returns its status."""
        with self._client.session(_CALL_S) as session:
            status = lib.kv_run(session, call, 1, int(_CALL_S * _NS), 0)
        return int(call.status if status == lib.KV_OK else status)
