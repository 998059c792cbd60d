"""Locks over a real fabric: processes, a node, and the figures of each kind of lock."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import fmean
from typing import Any, Final

from kvstore.bench.document import Row
from kvstore.bench.locks.accounts import INITIAL, open_accounts, total
from kvstore.bench.locks.worker import COUNTER_ZIPF, counter
from kvstore.bench.processes import START_TIMEOUT_S, Child, ProcessError, start_node, target_of
from kvstore.bench.redis_server import RedisServer

_CAPACITY: Final = 256 << 20
_COUNTERS: Final = 16
_ACCOUNTS: Final = 1_000
_LOCKS: Final = {"pairs": 0, "counter": _COUNTERS, "bank": _ACCOUNTS}
_PEERS: Final = ("redis-py", "fasteners")


def measure_real(
    fabric: str, workload: str, processes: int, seconds: float
) -> tuple[list[Row], list[str]]:
    """One row a kind of lock, and a line for each that could not be measured."""
    kinds = ["kvstore"]
    missing: list[str] = []
    if workload == "pairs":
        kinds += ["kvstore-native", *_PEERS]
    rows = []
    with ExitStack() as stack:
        node = start_node(_CAPACITY, verbs=fabric == "verbs")
        stack.callback(node.child.stop)
        setting: Row = {
            "target": target_of([node], fabric),
            "workload": workload,
            "seconds": seconds,
            "processes": processes,
            "locks": _LOCKS[workload],
            "folder": stack.enter_context(tempfile.TemporaryDirectory(prefix="kvstore-locks-")),
        }
        for kind in kinds:
            why = _prepare(kind, setting, stack)
            if why:
                missing.append(f"{kind} was left out: {why}")
                continue
            rows.append(_measure(kind, fabric, setting))
    return rows, missing


def _prepare(kind: str, setting: Row, stack: ExitStack) -> str:
    """Starts what a kind needs. Returns why it can't be measured, or nothing."""
    module = {"redis-py": "redis", "fasteners": "fasteners"}.get(kind)
    if module is not None and importlib.util.find_spec(module) is None:
        return f"Python package missing: {module}"
    if kind == "redis-py":
        try:
            server = RedisServer()
        except ProcessError as error:
            return str(error)
        stack.callback(server.close)
        setting["socket"] = server.socket_path
    return ""


def _measure(kind: str, fabric: str, setting: Row) -> Row:
    workload, processes = setting["workload"], setting["processes"]
    with ExitStack() as stack:
        store: Any = None
        if kind == "kvstore" and workload != "pairs":
            import kvstore

            store = stack.enter_context(kvstore.connect(setting["target"]))
            _fill(store, workload)
        children = []
        for number in range(processes):
            child = Child(f"worker {number}", [sys.executable, "-m", "kvstore.bench.locks.worker"])
            stack.callback(child.stop)
            child.send({**setting, "lock": kind, "number": number})
            children.append(child)
        for child in children:
            child.receive()
        for child in children:
            child.send("go")
        reports = [child.receive(START_TIMEOUT_S + 4 * setting["seconds"]) for child in children]
        checked = _check(store, workload, reports)
    rates = [report["ops_per_s"] for report in reports]
    return {
        "lock": kind,
        "fabric": fabric if kind.startswith("kvstore") else "unix" if "redis" in kind else "file",
        "profile": None,
        "workload": workload,
        "compute_nodes": processes,
        "clients": processes,
        "locks": setting["locks"] or processes,
        "zipf": COUNTER_ZIPF if workload == "counter" else 0.0,
        "read_ratio": {"pairs": 0.0, "counter": 0.5, "bank": 0.15}[workload],
        "accesses": {"pairs": 0, "counter": 1, "bank": 2}[workload],
        "ops_per_s": sum(rates),
        "p50_us": fmean(report["p50_us"] for report in reports),
        "p99_us": max(report["p99_us"] for report in reports),
        "jain": sum(rates) ** 2 / (len(rates) * sum(rate**2 for rate in rates)),
        "verbs_per_op": reports[0]["verbs_per_op"],
        "messages_per_op": None,
        "checked": checked,
    }


def _fill(store: Any, workload: str) -> None:
    if workload == "bank":
        open_accounts(store, _ACCOUNTS)
        return
    for outcome in store.put_many({counter(number): b"0" for number in range(_COUNTERS)}):
        if isinstance(outcome, Exception):
            raise ProcessError(f"filling failed: {outcome}")


def _check(store: Any, workload: str, reports: Sequence[Row]) -> str | None:
    """Says what was found in order; ProcessError if the locks did not hold."""
    if store is None:
        return None
    if workload == "bank":
        found = total(store, _ACCOUNTS)
        expected = 2 * INITIAL * _ACCOUNTS + sum(report["paid_in"] for report in reports)
    else:
        found = sum(int(store[counter(number)]) for number in range(_COUNTERS))
        expected = sum(report["writers"] for report in reports)
    if found != expected:
        raise ProcessError(f"the locks did not hold: {found} where {expected} is due")
    return f"{found:,} as expected"
