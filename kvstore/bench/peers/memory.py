"""memcpy, and memcpy followed by one CRC32C pass: the floor of the shm fabric."""

from __future__ import annotations

import ctypes
from typing import Any

from kvstore.bench.measure import Sample, time_calls
from kvstore.bench.peers.case import LARGE_KEYS, Case, Work


class MemorySystem:
    """Copies between warm buffers; as many large ones as the stores hold large values."""

    name = "memcpy"

    def __init__(self, work: Work) -> None:
        from kvstore._native import ffi, lib

        self._lib: Any = lib
        size = len(work.large_value)
        self._one = bytearray(work.large_value)
        self._many = [bytearray(work.large_value) for _ in range(LARGE_KEYS)]
        self._views = [ffi.from_buffer(buffer) for buffer in [self._one, *self._many]]
        address = [int(ffi.cast("uintptr_t", view)) for view in self._views]
        self._one_address, self._many_addresses = address[0], address[1:]
        self._size = size

    def measure(self, case: Case, seconds: float) -> Sample:
        """See System. A get copies from many places to one, a put from one to many."""
        move, crc, size = ctypes.memmove, self._lib.kv_crc32c, self._size
        one, many = self._one_address, self._many_addresses
        is_get = case.operation == "get_into"

        def copy(i: int) -> None:
            other = many[i % LARGE_KEYS]
            move(*((one, other) if is_get else (other, one)), size)

        def copy_and_check(i: int) -> None:
            copy(i)
            # The pass reads what was just written, as a reader that checks afterwards would.
            crc(0, self._views[0 if is_get else 1 + i % LARGE_KEYS], size)

        return time_calls(copy_and_check if case.variant == "crc32c" else copy, seconds)

    def close(self) -> None:
        """See System."""
