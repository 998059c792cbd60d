"""The fixed experiments of `kvstore-bench kv --figure`: each a few rows and the targets they meet.

put-cost     a put at 10 million keys against one at 100 thousand, from Python and in native code
memory       what a node takes over key and value bytes, at ten fill sizes from 1 to 2 million keys
idle         processor time of a node and of a client that do nothing
busy-thread  a shm get beside a thread that computes in Python
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Final

from kvstore.bench.document import Row, median
from kvstore.bench.keys import KEY_BYTES, key_of, make_value, uniform_order
from kvstore.bench.kv import Setting, measure
from kvstore.bench.measure import Sample, Series, time_calls
from kvstore.bench.native_loop import PUT, NativeLoop
from kvstore.bench.processes import Child, start_node, target_of

_FILL_BATCH: Final = 512
_ORDER_LENGTH: Final = 1_000_000
_IDLE_S: Final = 10.0
_ROUNDS: Final = 5
Say = Callable[[str], None]


def run_figure(name: str, scale: float, seconds: float, say: Say) -> list[Row]:
    """Runs one experiment; `scale` shrinks its number of keys."""
    figures: dict[str, Callable[[float, float, Say], list[Row]]] = {
        "put-cost": put_cost,
        "memory": memory_overhead,
        "idle": idle,
        "busy-thread": busy_thread,
    }
    return figures[name](scale, seconds, say)


def put_cost(scale: float, seconds: float, say: Say) -> list[Row]:
    """Overwrites of random keys in a node that holds few keys and in one that holds many.

    Both nodes run side by side and are measured in turns; a ratio is the median of the ratios
    within a round.
    """
    few, many = (max(1000, round(keys * scale)) for keys in (100_000, 10_000_000))
    value = make_value(64)
    series: dict[tuple[str, int], Series] = {}
    with contextlib.ExitStack() as stack:
        measured = []
        for keys in (few, many):
            store = stack.enter_context(_connected(max(256 << 20, keys * 400)))
            say(f"filling to {keys:,} keys")
            _fill(store, 0, keys, value)
            # Long enough that hardly a key repeats while it is measured: a small working set in
            # a large node would be as warm as a small node.
            order = [key_of(number) for number in uniform_order(keys, _ORDER_LENGTH)]
            measured.append(
                (keys, store, order, NativeLoop(store, order, range(len(order)), value))
            )
        for number in range(_ROUNDS):
            say(f"round {number + 1} of {_ROUNDS}")
            for keys, store, order, loop in measured:
                python = _python_puts(store, order, value, seconds / _ROUNDS)
                native = loop.measure(PUT, seconds / _ROUNDS)
                for variant, sample in (("python", python), ("native", native)):
                    series.setdefault((variant, keys), Series()).samples.append(sample)
    rows = [_put_row(variant, keys, value, one) for (variant, keys), one in series.items()]
    for variant, target in (("python", 1.5), ("native", 2.5)):
        pairs = list(zip(series[variant, few].samples, series[variant, many].samples, strict=True))
        time_ratio = median(small.ops_per_s / large.ops_per_s for small, large in pairs)
        verbs = median(
            abs((large.verbs_per_op or 0) / (small.verbs_per_op or 1) - 1) for small, large in pairs
        )
        for what, ratio, limit in (("time", time_ratio, target), ("change of verbs", verbs, 0.02)):
            rows.append(
                _judgement("put-cost", f"{variant}: {what} a put", ratio, limit, "put", value)
            )
    return rows


def _python_puts(store: Any, order: list[bytes], value: bytes, seconds: float) -> Sample:
    from kvstore.demo.backend import verb_counters

    put = store.put
    return time_calls(
        lambda i: put(order[i % len(order)], value),
        seconds,
        counters=lambda: verb_counters(store),
    )


def _put_row(variant: str, keys: int, value: bytes, series: Series) -> Row:
    figures = series.row()
    return {
        "figure": "put-cost",
        "system": "kvstore",
        "fabric": "shm",
        "operation": "put",
        "variant": variant,
        "value_bytes": len(value),
        "batch": 1,
        "keys": keys,
        "us_per_op": 1e6 / (figures["ops_per_s"] or float("nan")),
        **figures,
    }


def _judgement(
    figure: str, what: str, ratio: float, target: float, operation: str, value: bytes
) -> Row:
    return {
        "figure": figure,
        "system": "kvstore",
        "fabric": "shm",
        "operation": operation,
        "variant": what,
        "value_bytes": len(value),
        "batch": 1,
        "ratio": ratio,
        "target": target,
        "comparison": "at_most",
        "pass": ratio <= target,
    }


def memory_overhead(scale: float, seconds: float, say: Say) -> list[Row]:
    """Allocated segments plus index over key and value bytes."""
    import kvstore

    low, high = (max(1000, round(keys * scale)) for keys in (1_000_000, 2_000_000))
    value = make_value(1024)
    rows: list[Row] = []
    capacity = max(64 << 20, round(high * (KEY_BYTES + len(value)) * 1.4))
    with kvstore.connect("embedded", capacity_bytes=capacity, eviction="none") as store:
        filled = 0
        for step in range(10):
            keys = low + (high - low) * step // 9
            say(f"filling to {keys:,} keys")
            _fill(store, filled, keys, value)
            filled = keys
            node = store._node
            assert node is not None
            stats = node.stats()
            taken = stats["object_bytes"] + stats["index_bytes"]
            used = keys * (KEY_BYTES + len(value))
            rows.append(
                {
                    "figure": "memory",
                    "system": "kvstore",
                    "fabric": "local",
                    "operation": "put",
                    "value_bytes": len(value),
                    "batch": _FILL_BATCH,
                    "keys": keys,
                    "key_and_value_bytes": used,
                    "object_bytes": stats["object_bytes"],
                    "index_bytes": stats["index_bytes"],
                    "overhead_ratio": taken / used - 1,
                }
            )
    mean = sum(row["overhead_ratio"] for row in rows) / len(rows)
    judgement = _judgement("memory", "mean overhead", mean, 0.15, "put", value)
    rows.append({**judgement, "fabric": "local"})
    return rows


def idle(scale: float, seconds: float, say: Say) -> list[Row]:
    """Processor time that a node and an attached client use while nothing is asked of them."""
    duration_s = max(1.0, _IDLE_S * scale)
    rows: list[Row] = []
    for fabric in ("shm", "tcp"):
        with contextlib.ExitStack() as stack:
            node = start_node(64 << 20)
            stack.callback(node.child.stop)
            setting = _setting(target_of([node], "auto" if fabric == "shm" else fabric), fabric)
            worker = Child("idle client", [sys.executable, "-m", "kvstore.bench.worker"])
            stack.callback(worker.stop)
            worker.send({**asdict(setting), "number": 0})
            worker.receive()
            time.sleep(1.0)
            say(f"watching an idle node and a {fabric} client for {duration_s:g} s")
            processes = {"idle node": node.child, "idle client": worker}
            before = {name: child.processor_seconds() for name, child in processes.items()}
            time.sleep(duration_s)
            for name, child in processes.items():
                share = (child.processor_seconds() - before[name]) / duration_s
                row = _judgement("idle", name, share, 0.01, "idle", b"")
                rows.append({**row, "fabric": fabric, "core_ratio": share})
    return rows


def busy_thread(scale: float, seconds: float, say: Say) -> list[Row]:
    """Gets of 1 KiB over shm, alone and beside a thread that computes."""
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        node = start_node(256 << 20)
        stack.callback(node.child.stop)
        for busy in (False, True):
            setting = _setting(target_of([node], "auto"), "shm", seconds, busy)
            row = measure(setting, say)
            rows.append({"figure": "busy-thread", **row})
    judgement = _judgement("busy-thread", "p99 in us", rows[1]["p99_us"], 50.0, "get", b"")
    return [*rows, {**judgement, "value_bytes": 1024}]


def _setting(target: str, fabric: str, seconds: float = 1.0, busy: bool = False) -> Setting:
    return Setting(
        target=target,
        fabric=fabric,
        operation="get",
        value_bytes=1024,
        batch=1,
        keys=10_000,
        threads=1,
        processes=1,
        read_ratio=1.0,
        zipf_theta=None,
        seconds=seconds,
        busy_thread=busy,
    )


@contextlib.contextmanager
def _connected(capacity_bytes: int) -> Iterator[Any]:
    """A store over shm on a node process of its own."""
    import kvstore

    node = start_node(capacity_bytes)
    try:
        with kvstore.connect(target_of([node], "auto")) as store:
            yield store
    finally:
        node.child.stop()


def _fill(store: Any, begin: int, end: int, value: bytes) -> None:
    for first in range(begin, end, _FILL_BATCH):
        items = [(key_of(n), value) for n in range(first, min(end, first + _FILL_BATCH))]
        for outcome in store.put_many(items):
            if isinstance(outcome, Exception):
                raise outcome
