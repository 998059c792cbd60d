"""One process of `kvstore-bench lock` over a real fabric.

Reads its setting from the first line of stdin, says `ready` when it is attached, and starts when it
hears `go`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from kvstore.bench.document import Row
from kvstore.bench.keys import zipf_order
from kvstore.bench.locks.accounts import Bank
from kvstore.bench.measure import Sample, sample_of_latencies, time_calls

COUNTER_ZIPF: Final = 0.99
_ORDER_LENGTH: Final = 1 << 14
_FIRST_PAIRS: Final = 2_000
_PAIRS_MAX: Final = 4 << 20


def counter(number: int) -> str:
    """The key of a counter, and the name of its lock."""
    return f"counter/{number}"


class Worker:
    """What one process does with one kind of lock."""

    def __init__(self, setting: Row) -> None:
        self._setting = setting
        self.writers = 0
        self._store: Any = None
        self._bank: Bank | None = None
        if setting["lock"].startswith("kvstore"):
            import kvstore

            self._store = kvstore.connect(setting["target"])
            # The table and the connections are there before it begins.
            with self._store.lock(self._name()):
                pass

    def _name(self) -> str:
        return f"lock {self._setting['number']}"

    def measure(self) -> Row:
        """Runs for the wished time."""
        seconds = self._setting["seconds"]
        if self._setting["lock"] == "kvstore-native":
            sample = self._native(seconds)
        else:
            counters = None if self._store is None else self._verbs
            sample = time_calls(self._call(), seconds, counters=counters)
        bank = self._bank
        return {
            "ops_per_s": sample.ops_per_s,
            "p50_us": sample.p50_us,
            "p99_us": sample.p99_us,
            "verbs_per_op": sample.verbs_per_op,
            "writers": self.writers,
            "paid_in": 0 if bank is None else bank.paid_in,
        }

    def _verbs(self) -> dict[str, int]:
        stats = self._store.stats()
        return {"verbs": stats.reads + stats.writes + stats.cas + stats.faa}

    def _call(self) -> Callable[[int], object]:
        lock = self._setting["lock"]
        if lock == "redis-py":
            return self._redis()
        if lock == "fasteners":
            return self._file_lock()
        workload = self._setting["workload"]
        if workload == "bank":
            self._bank = Bank(self._store, self._setting["locks"], self._setting["number"])
            return self._bank.transact
        return self._pair() if workload == "pairs" else self._count()

    def _pair(self) -> Callable[[int], object]:
        take, name = self._store.lock, self._name()

        def call(_position: int) -> None:
            with take(name):
                pass

        return call

    def _count(self) -> Callable[[int], object]:
        store = self._store
        names = [counter(number) for number in range(self._setting["locks"])]
        order = zipf_order(len(names), _ORDER_LENGTH, COUNTER_ZIPF, self._setting["number"])

        def call(position: int) -> None:
            name = names[order[position % _ORDER_LENGTH]]
            if position % 2:
                with store.lock(name, shared=True):
                    int(store[name])
                return
            with store.lock(name) as held:
                store.put(name, b"%d" % (int(store[name]) + 1), fence=held.token)
            self.writers += 1

        return call

    def _redis(self) -> Callable[[int], object]:
        import redis

        client = redis.Redis(unix_socket_path=self._setting["socket"])
        name = self._name()

        def call(_position: int) -> None:
            with client.lock(name, timeout=30):
                pass

        return call

    def _file_lock(self) -> Callable[[int], object]:
        import fasteners

        path = str(Path(self._setting["folder"]) / self._name())

        def call(_position: int) -> None:
            with fasteners.InterProcessLock(path):
                pass

        return call

    def _native(self, seconds: float) -> Sample:
        from kvstore._native import ffi, lib

        name = self._name().encode()

        def run(pairs: int) -> tuple[int, Any]:
            latencies = ffi.new("uint32_t[]", pairs)
            with self._store._client.use() as client:
                elapsed_ns = lib.kv_bench_lock_loop(client, name, len(name), pairs, latencies)
            if elapsed_ns == 0:
                sys.exit("a call of the native loop failed")
            return int(elapsed_ns), ffi.unpack(latencies, pairs)

        elapsed_ns, _ = run(_FIRST_PAIRS)
        pairs = min(_PAIRS_MAX, max(_FIRST_PAIRS, int(seconds * 1e9 / elapsed_ns * _FIRST_PAIRS)))
        before = self._verbs()["verbs"]
        elapsed_ns, latencies = run(pairs)
        price = {"verbs_per_op": (self._verbs()["verbs"] - before) / pairs}
        return sample_of_latencies(latencies, elapsed_ns, 1, price)


def main() -> None:
    """Talks with the parent in lines."""
    worker = Worker(json.loads(sys.stdin.readline()))
    print(json.dumps({"event": "ready"}), flush=True)
    if sys.stdin.readline().strip() != '"go"':
        return
    print(json.dumps({"event": "done", **worker.measure()}), flush=True)


if __name__ == "__main__":
    main()
