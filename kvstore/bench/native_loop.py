"""A closed loop in native code through the C ABI: what the store does without Python's speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from kvstore.bench.measure import Sample, sample_of_latencies

GET: Final = 1
PUT: Final = 2
_FIRST_OPERATIONS: Final = 1024
_OPERATIONS_MAX: Final = 4 << 20


class NativeLoopError(Exception):
    """A call of the native loop failed."""


class NativeLoop:
    """Runs `kv_bench_loop` on a store's client, over keys of one length."""

    def __init__(
        self, store: Any, keys: Sequence[bytes], order: Sequence[int], value: bytes
    ) -> None:
        from kvstore._native import ffi, lib

        self._ffi: Any = ffi
        self._lib: Any = lib
        self._store = store
        self._order = order
        self._key_bytes = len(keys[0])
        assert all(len(key) == self._key_bytes for key in keys)
        self._keys = ffi.from_buffer(b"".join(keys))
        self._value = ffi.from_buffer(value)

    def measure(self, kind: int, seconds: float, *, batch: int = 1) -> Sample:
        """One sample of about `seconds`; the first, short run is the warm-up and sets the count."""
        if kind == GET:
            # Every key once: what is measured is not the first meeting with a key.
            count = len(self._keys) // self._key_bytes
            self.run(kind, count, batch, range(count))
        elapsed_ns, latencies = self.run(kind, _FIRST_OPERATIONS // batch * batch, batch)
        wanted = int(seconds * 1e9 / max(1, elapsed_ns) * len(latencies) * batch)
        operations = max(batch, min(_OPERATIONS_MAX, wanted) // batch * batch)
        before = self._store.stats()
        elapsed_ns, latencies = self.run(kind, operations, batch)
        after = self._store.stats()
        verbs = sum(
            getattr(after, name) - getattr(before, name)
            for name in ("reads", "writes", "cas", "faa")
        )
        price = {
            "verbs_per_op": verbs / operations,
            "round_trips_per_op": (after.round_trips - before.round_trips) / operations,
        }
        return sample_of_latencies(latencies, elapsed_ns, batch, price)

    def run(
        self, kind: int, operations: int, batch: int = 1, numbers: Sequence[int] | None = None
    ) -> tuple[int, list[int]]:
        """Runs `operations`; returns the elapsed nanoseconds and the latency of each call."""
        ffi = self._ffi
        source = self._order if numbers is None else numbers
        repeats = -(-operations // len(source))
        order = ffi.new("uint32_t[]", (list(source) * repeats)[:operations])
        latencies = ffi.new("uint32_t[]", operations)
        with self._store._client.use() as client:
            elapsed_ns = self._lib.kv_bench_loop(
                client,
                kind,
                self._keys,
                self._key_bytes,
                order,
                operations,
                self._value,
                len(self._value),
                batch,
                latencies,
            )
        if elapsed_ns == 0:
            raise NativeLoopError("a call of the native loop failed")
        # Each operation of a batch carries its share of the call, so the call took `batch` of them.
        return elapsed_ns, [batch * share for share in ffi.unpack(latencies, operations)[::batch]]
