"""Loads of 64 MiB in blocks of 1 MiB into a buffer: the prefix cache beside others, in turns.

Whoever loads is a process of its own that sleeps while the others load, so that all are scheduled
alike, and verifies what it loaded, outside the timing. The floor is what moves the same bytes and
does nothing else: a copy from memory over shm, a loopback socket over tcp.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from kvstore.bench.document import Row, median
from kvstore.bench.llm.replay import Say
from kvstore.bench.peers.case import Unavailable
from kvstore.bench.processes import Child, load_once, start_node, target_of

BLOCK_BYTES: Final = 1 << 20
BLOCKS: Final = 64
_BYTES: Final = BLOCK_BYTES * BLOCKS
_TARGET_RATIO: Final = 0.8
_ROUNDS_MIN: Final = 5
_START_S: Final = 60.0

_LABELS: Final = {
    ("floor", "shm"): "memcpy",
    ("floor", "tcp"): "loopback socket",
    ("mooncake", "shm"): "mooncake, own memory",
}

#: Loads everything once and returns the seconds that it took.
Load = Callable[[], float]


def measure(fabric: str, seconds: float, say: Say) -> list[Row]:
    """One row a system; one that can't run says why."""
    with contextlib.ExitStack() as stack:
        loads: dict[str, Load] = {}
        rows: list[Row] = []
        for name, start in _SYSTEMS.items():
            say(f"starting {name} over {fabric}")
            try:
                loads[name] = start(stack, fabric)
            except Unavailable as error:
                rows.append(_row(name, fabric) | {"reason": f"not run: {error}"})
        times = _rounds(loads, seconds)
    return [_measured(name, fabric, times) for name in times] + rows


def _rounds(loads: dict[str, Load], seconds: float) -> dict[str, list[float]]:
    """Times of each, taking turns for so long in all, and some times at least."""
    times: dict[str, list[float]] = {name: [] for name in loads}
    for load in loads.values():
        load()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["kvstore"]) < _ROUNDS_MIN:
        for name, load in loads.items():
            times[name].append(load())
    return times


def _row(name: str, fabric: str) -> Row:
    return {
        "figure": "load",
        "engine": _LABELS.get((name, fabric), name),
        "fabric": fabric,
        "tier": None if name == "floor" else "remote",
        "block_bytes": BLOCK_BYTES,
        "blocks": BLOCKS,
    }


def _measured(name: str, fabric: str, times: dict[str, list[float]]) -> Row:
    taken = median(times[name])
    row = _row(name, fabric) | {"bytes_per_s": _BYTES / taken, "p50_ms": 1e3 * taken}
    if name == "kvstore":
        return row
    # Compared round by round: both sides then have the same machine.
    ratio = median(other / ours for other, ours in zip(times[name], times["kvstore"], strict=True))
    target = _TARGET_RATIO if name == "floor" else 1.0
    return row | {"ratio": ratio, "target": target, "pass": ratio >= target}


def _start_kvstore(stack: contextlib.ExitStack, fabric: str) -> Load:
    node = start_node(4 * _BYTES)
    stack.callback(node.child.stop)
    return _worker(stack, "kvstore", target_of([node], fabric))


def _start_floor(stack: contextlib.ExitStack, fabric: str) -> Load:
    if fabric != "tcp":
        return _worker(stack, "memcpy", "-")
    from kvstore.bench.peers.socket import compiled

    return _started(stack, "loopback socket", [compiled(), "loads", str(_BYTES)])


def _worker(stack: contextlib.ExitStack, role: str, target: str) -> Load:
    words = [role, target, str(BLOCK_BYTES), str(BLOCKS)]
    return _started(stack, role, [sys.executable, "-m", "kvstore.bench.llm.load_worker", *words])


def _started(stack: contextlib.ExitStack, name: str, command: list[str]) -> Load:
    child = Child(name, command)
    stack.callback(child.stop)
    child.receive(_START_S)
    return partial(load_once, child)


def _start_lmcache(stack: contextlib.ExitStack, fabric: str) -> Load:
    from kvstore.bench.peers.lmcache import LMCacheLoads

    started = LMCacheLoads(fabric, BLOCK_BYTES, BLOCKS)
    stack.callback(started.close)
    return started.load


def _start_mooncake(stack: contextlib.ExitStack, fabric: str) -> Load:
    from kvstore.bench.peers.mooncake import MooncakeLoads

    started = MooncakeLoads(fabric, BLOCK_BYTES, BLOCKS)
    stack.callback(started.close)
    return started.load


_SYSTEMS: Final[dict[str, Callable[[contextlib.ExitStack, str], Load]]] = {
    "kvstore": _start_kvstore,
    "floor": _start_floor,
    "lmcache": _start_lmcache,
    "mooncake": _start_mooncake,
}
