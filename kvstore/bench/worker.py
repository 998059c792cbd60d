"""One client process of `kvstore-bench kv`: fills its share of the keys, then measures.

Reads its setting from the first line of stdin, says `ready` when the keys are there, and starts
when it hears `go`. Threads share one store, as threads of an application do.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import threading
import time
from typing import Any, Final

from kvstore.bench.keys import batches_of, make_keys, make_value, uniform_order, zipf_order
from kvstore.bench.native_loop import GET, PUT, NativeLoop
from kvstore.bench.processes import require_fabric

_ORDER_LENGTH: Final = 1 << 16
_LATENCIES_MAX: Final = 1 << 19
_FILL_BATCH: Final = 256


class Worker:
    """The store, the keys, and the loop of one process."""

    def __init__(self, setting: dict[str, Any]) -> None:
        import kvstore

        self._setting = setting
        self._fabric = setting["fabric"]
        local = self._fabric == "local"
        if local:
            from kvstore.bench.kv import capacity_for

            capacity = capacity_for(setting["keys"], setting["value_bytes"])
            self._store: Any = kvstore.connect("embedded", capacity_bytes=capacity)
        else:
            self._store = kvstore.connect(setting["target"], **setting["options"])
            self._fabric = require_fabric(self._store, self._fabric)
        self._keys = make_keys(setting["keys"])
        self._value = make_value(setting["value_bytes"])
        self._fill()

    def _fill(self) -> None:
        mine = self._keys[self._setting["number"] :: self._setting["processes"]]
        step = max(1, min(_FILL_BATCH, (64 << 20) // len(self._value)))
        for begin in range(0, len(mine), step):
            items = [(key, self._value) for key in mine[begin : begin + step]]
            for outcome in self._store.put_many(items):
                if isinstance(outcome, Exception):
                    sys.exit(f"filling failed: {outcome}")

    def measure(self) -> dict[str, Any]:
        """Runs the threads for the wished time and adds up."""
        before = self._store.stats()
        if self._setting["native"]:
            report = self._measure_native()
        else:
            report = self._measure_python()
        after = self._store.stats()
        # Price of everything since `before`, the warm-up too.
        operations = after.operations - before.operations
        share = report["operations"] / max(1, operations)
        for name, parts in (
            ("verbs", ("reads", "writes", "cas", "faa")),
            ("round_trips", ("round_trips",)),
        ):
            spent = sum(getattr(after, part) - getattr(before, part) for part in parts)
            report[name] = spent * share
        for name in ("cache_hits", "invalidations_sent", "cache_bypassed", "leases_waited"):
            report[name] = (getattr(after, name) - getattr(before, name)) * share
        report["fabric"] = self._fabric
        return report

    def _order(self, seed: int) -> list[int]:
        setting = self._setting
        seed += 1000 * setting["number"]
        if setting["zipf_theta"] is None:
            return uniform_order(len(self._keys), _ORDER_LENGTH, seed)
        return zipf_order(len(self._keys), _ORDER_LENGTH, setting["zipf_theta"], seed)

    def _measure_native(self) -> dict[str, Any]:
        loop = NativeLoop(self._store, self._keys, self._order(1), self._value)
        batch = self._setting["batch"]
        kind = GET if self._setting["operation"].startswith("get") else PUT
        elapsed_ns, first = loop.run(kind, 1024 // batch * batch or batch, batch)
        wanted = int(self._setting["seconds"] * 1e9 / elapsed_ns * len(first)) * batch
        operations = max(batch, min(4 << 20, wanted) // batch * batch)
        elapsed_ns, latencies = loop.run(kind, operations, batch)
        return {
            "operations": operations,
            "ops_per_s": operations / (elapsed_ns / 1e9),
            "latencies_ns": latencies[:_LATENCIES_MAX],
            "failures": 0,
        }

    def _measure_python(self) -> dict[str, Any]:
        reports: list[dict[str, Any]] = []
        threads = [
            threading.Thread(target=lambda n=number: reports.append(self._loop(n)))
            for number in range(self._setting["threads"])
        ]
        stop = threading.Event()
        if self._setting["busy_thread"]:
            threading.Thread(target=_compute, args=(stop,), daemon=True).start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        if len(reports) != len(threads):
            sys.exit("a thread failed")
        return {
            "operations": sum(report["operations"] for report in reports),
            "ops_per_s": sum(report["ops_per_s"] for report in reports),
            "latencies_ns": [n for report in reports for n in report["latencies_ns"]],
            "failures": sum(report["failures"] for report in reports),
        }

    def _loop(self, number: int) -> dict[str, Any]:
        setting = self._setting
        batch = setting["batch"]
        calls = itertools.cycle(self._calls(number))
        clock = time.perf_counter_ns
        warm_until = clock() + int(setting["seconds"] * setting["warm_up"] * 1e9)
        while clock() < warm_until:
            call, arguments = next(calls)
            call(*arguments)
        latencies: list[int] = []
        count = failures = 0
        started = finished = clock()
        end = started + int(setting["seconds"] * 1e9)
        while finished < end:
            call, arguments = next(calls)
            begun = clock()
            outcome = call(*arguments)
            finished = clock()
            count += 1
            if count <= _LATENCIES_MAX:
                latencies.append(finished - begun)
            failures += _failures(outcome)
        return {
            "operations": count * batch,
            "ops_per_s": count * batch / ((finished - started) / 1e9),
            "latencies_ns": latencies,
            "failures": failures,
        }

    def _calls(self, number: int) -> list[tuple[Any, tuple[Any, ...]]]:
        """The calls of a thread, prepared, so that the loop does little besides them."""
        setting, store, keys = self._setting, self._store, self._keys
        operation, batch, value = setting["operation"], setting["batch"], self._value
        order = self._order(number + 1)
        chooser = random.Random(number)
        buffers = [bytearray(len(value)) for _ in range(batch)]
        calls: list[tuple[Any, tuple[Any, ...]]] = []
        groups = batches_of(order, batch) if batch > 1 else [[n] for n in order]
        for numbers in groups:
            chosen = [keys[n] for n in numbers]
            reads = chooser.random() < setting["read_ratio"]
            items = [(key, value) for key in chosen]
            match operation if reads else ("put_many" if batch > 1 else "put"):
                case "get":
                    calls.append((store.get, (chosen[0],)))
                case "get_into":
                    calls.append((store.get_into, (chosen[0], buffers[0])))
                case "get_many":
                    calls.append((store.get_many, (chosen,)))
                case "get_many_into":
                    calls.append((store.get_many_into, (chosen, buffers)))
                case "put":
                    calls.append((store.put, items[0]))
                case "put_from":
                    calls.append((store.put_from, items[0]))
                case "put_many":
                    calls.append((store.put_many, (items,)))
        return calls

    def close(self) -> None:
        """Leaves the nodes."""
        self._store.close()


def _failures(outcome: object) -> int:
    if isinstance(outcome, list):
        return sum(one is None or isinstance(one, Exception) for one in outcome)
    return outcome is None


def _compute(stop: threading.Event) -> None:
    """Keeps the interpreter busy, as a serving engine's own Python does."""
    total = 0
    while not stop.is_set():
        for number in range(10_000):
            total += number * number % 7


def main() -> None:
    """Entry point of the process."""
    setting = json.loads(sys.stdin.buffer.readline())
    try:
        worker = Worker(setting)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(json.dumps({"event": "ready"}), flush=True)
    sys.stdin.buffer.readline()
    report = worker.measure()
    print(json.dumps(report), flush=True)
    worker.close()


if __name__ == "__main__":
    main()
