"""kvstore itself: a real node process, clients over shm and tcp, in Python and in native code."""

from __future__ import annotations

from typing import Any

from kvstore.bench.measure import Sample, time_calls
from kvstore.bench.native_loop import GET, NativeLoop
from kvstore.bench.peers.case import LARGE_KEYS, Case, Unavailable, Work
from kvstore.bench.processes import ProcessError, require_fabric, start_node, target_of

_CAPACITY_BYTES = 1 << 30
#: `address_cache_entries` that remembers nothing, so that every get is a cold one.
_NO_ADDRESSES = 1


class KvstoreSystem:
    """One node; a client over each fabric, and one over tcp that remembers no address."""

    name = "kvstore"

    def __init__(self, work: Work) -> None:
        import kvstore
        from kvstore.demo.backend import verb_counters

        self._work = work
        self._counters = verb_counters
        self._stores: dict[tuple[str, str], Any] = {}
        try:
            self._node = start_node(_CAPACITY_BYTES)
        except ProcessError as error:
            raise Unavailable(str(error)) from error
        try:
            for fabric, variant in (("shm", ""), ("tcp", ""), ("tcp", "cold")):
                store = kvstore.connect(
                    target_of([self._node], "auto" if fabric == "shm" else fabric),
                    address_cache_entries=_NO_ADDRESSES if variant == "cold" else 0,
                )
                self._stores[fabric, variant] = store
                require_fabric(store, fabric)
            self._fill(self._stores["shm", ""])
        except (ProcessError, kvstore.KvError) as error:
            self.close()
            raise Unavailable(str(error)) from error
        self._buffers = [bytearray(len(work.value)) for _ in range(64)]
        self._large = bytearray(work.large_value)

    def _fill(self, store: Any) -> None:
        for key in self._work.keys:
            store.put(key, self._work.value)
        # Once round the region, so that a later put finds its pages mapped and warm, as the buffers
        # of the systems beside it are.
        for number in range(_CAPACITY_BYTES // len(self._work.large_value)):
            store.put_from(self._work.large_keys[number % LARGE_KEYS], self._work.large_value)

    def measure(self, case: Case, seconds: float) -> Sample:
        """See System."""
        variant = "cold" if "cold" in case.variant else ""
        store = self._stores[case.fabric, variant]
        if "native" in case.variant:
            loop = NativeLoop(store, self._work.keys, self._work.numbers, self._work.value)
            return loop.measure(GET, seconds, batch=case.batch)
        call = self._call(store, case)
        return time_calls(
            call,
            seconds,
            operations_per_call=case.batch,
            counters=lambda: self._counters(store),
        )

    def _call(self, store: Any, case: Case) -> Any:
        order, batches, buffers = self._work.order, self._work.batches, self._buffers
        large_keys, large = self._work.large_keys, self._large
        if case.is_large:
            operate = getattr(store, case.operation)
            return lambda i: operate(large_keys[i % LARGE_KEYS], large)
        if case.operation == "get":
            get = store.get
            assert get(order[0]) == self._work.value
            return lambda i: get(order[i % len(order)])
        if case.operation == "get_many":
            get_many = store.get_many
            assert get_many(batches[0]) == [self._work.value] * case.batch
            return lambda i: get_many(batches[i % len(batches)])
        get_many_into = store.get_many_into
        assert get_many_into(batches[0], buffers) == [len(self._work.value)] * case.batch
        return lambda i: get_many_into(batches[i % len(batches)], buffers)

    def close(self) -> None:
        """See System."""
        for store in self._stores.values():
            store.close()
        self._node.child.stop()
