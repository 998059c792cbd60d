"""What calls cost over real verbs, beside the table of ARCHITECTURE and beside the simulator."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import kvstore
from tests.support.nodes import ROOT, NodeProcess

BENCH = [sys.executable, "-m", "kvstore.bench.main"]
KEYS = 16
CALLS = 10
#: Call, and its READs, WRITEs, CASs and round trips: without conflict, the address remembered or
#: not there.
PRICES: list[tuple[str, Callable[[kvstore.Store, bytes], object], tuple[int, int, int, int]]] = [
    ("get", lambda store, key: store.get(key), (2, 0, 0, 1)),
    ("contains", lambda store, key: store.contains(key), (2, 0, 0, 1)),
    ("put, replacing", lambda store, key: store.put(key, b"other"), (3, 1, 1, 2)),
    ("get, absent", lambda store, key: store.get(b"no" + key), (6, 0, 0, 2)),
    ("put, new key", lambda store, key: store.put(b"new" + key, b"value"), (7, 1, 2, 3)),
    ("delete", lambda store, key: store.delete(key), (3, 0, 1, 2)),
]


@pytest.fixture(scope="module")
def known(node: NodeProcess, store: kvstore.Store) -> list[bytes]:
    """Keys whose addresses the client remembers; blocks of their size are at hand."""
    keys = [b"price-%d" % index for index in range(CALLS)]
    for _ in range(3):
        for key in keys:
            store.put(key, b"value")
            store.get(key)
    return keys


@pytest.mark.parametrize(("name", "call", "price"), PRICES, ids=[name for name, *_ in PRICES])
def test_a_call_costs_what_the_table_says(
    store: kvstore.Store,
    known: list[bytes],
    name: str,
    call: Callable[[kvstore.Store, bytes], object],
    price: tuple[int, int, int, int],
) -> None:
    before = store.stats()
    for key in known:
        call(store, key)
    after = store.stats()
    parts = ("reads", "writes", "cas", "round_trips")
    spent = tuple(getattr(after, part) - getattr(before, part) for part in parts)
    assert spent == tuple(CALLS * count for count in price), name


def answer_of(*words: str) -> dict[str, Any]:
    finished = subprocess.run(
        [*BENCH, *words, "--json"], capture_output=True, text=True, timeout=240, cwd=ROOT
    )
    assert finished.returncode == 0, finished.stderr
    row: dict[str, Any] = json.loads(finished.stdout)["rows"][0]
    return row


def test_the_simulator_reports_what_real_verbs_cost(node: NodeProcess) -> None:
    # Half gets, half puts; one client, addresses remembered.
    target = ("--target", node.target.replace("kv://", "verbs://"))
    words = (*target, "--fabric", "verbs", "--keys", str(KEYS), "--read-ratio", "0.5")
    real = answer_of("kv", *words, "--seconds", "2")
    assert real["fabric"] == "verbs"
    settings = {"clients": 1, "lanes": 1, "keys": KEYS, "operations": 2000}
    settings |= {"get_percent": 50, "put_percent": 50}
    chosen = [word for name, n in settings.items() for word in ("--set", f"{name}={n}")]
    simulated = answer_of("sim", "scale", "--profile", "rxe", "--seeds", "1-1", *chosen)
    paid, expected = real["verbs_per_op"], simulated["verbs_per_op"]
    print(f"verbs per operation: {paid:.2f} over the device, {expected:.2f} simulated")
    # The simulator counts at the node, so heartbeats too; a real client's first calls are cold.
    assert expected == pytest.approx(paid, rel=0.05)
