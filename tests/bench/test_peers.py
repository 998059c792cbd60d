"""`kvstore-bench peers` with tiny durations, on what is here without fetching anything."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest

from kvstore.bench.peers.measures import MEASURES

COMMAND = [sys.executable, "-m", "kvstore.bench.main", "peers"]
TINY = ["--rounds", "2", "--seconds", "0.05", "--json"]
COLUMNS = {
    *("system", "fabric", "operation", "value_bytes", "batch", "ops_per_s", "p50_us", "p99_us"),
    *("verbs_per_op", "round_trips_per_op"),
}


def rows_of(*words: str) -> list[dict[str, Any]]:
    finished = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=150)
    assert finished.returncode == 0, finished.stderr
    document = json.loads(finished.stdout)
    assert set(document) == {"meta", "rows"}
    assert all(row.keys() >= COLUMNS for row in document["rows"])
    return list(document["rows"])


def test_kvstore_beside_lmdb_a_socket_and_memcpy() -> None:
    pytest.importorskip("lmdb")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler for the bare socket")
    rows = rows_of(*TINY, "--only", "lmdb", "--only", "socket", "--only", "memcpy")
    for row in rows:
        if row["kind"] == "measurement":
            measured = row["system"] in ("kvstore", "lmdb", "socket", "memcpy")
            assert (row["ops_per_s"] is not None) == measured
            # Who did not run says why.
            assert ("reason" in row) != measured
    judged = {
        (row["measure"], row["variant"], row["against"]): row
        for row in rows
        if row["kind"] == "ratio" and row["ratio"] is not None
    }
    assert ("shm-get", "", "lmdb local get") in judged
    assert ("tcp-get", "cold native", "socket tcp get") in judged
    assert ("shm-put-from", "", "memcpy local put_from crc32c") in judged
    for row in judged.values():
        met = row["ratio"] >= row["target"]
        if row["comparison"] == "at_most":
            met = row["ratio"] <= row["target"]
        assert row["pass"] == met
        assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"]


def test_price_of_a_get() -> None:
    rows = rows_of(*TINY, "--only", "kvstore", "--only", "tcp-get")
    price = {
        row["variant"]: (row["verbs_per_op"], row["round_trips_per_op"])
        for row in rows
        if row["kind"] == "measurement" and row["system"] == "kvstore"
    }
    assert price["cold native"] == pytest.approx((3, 2), abs=0.1)
    assert price["native"] == pytest.approx((2, 1), abs=0.1)


def test_the_measures_are_those_of_the_docs() -> None:
    ratios = {(ratio.case.fabric, ratio.case.operation, ratio.target)
              for measure in MEASURES for ratio in measure.ratios}  # fmt: skip
    assert ratios >= {
        ("shm", "get", 40.0),
        ("shm", "get", 1.0),
        ("shm", "get_many", 5.0),
        ("shm", "get_many_into", 10.0),
        ("tcp", "get", 2.6),
        ("tcp", "get", 1.4),
        ("tcp", "get_many", 3.0),
        ("tcp", "get_into", 0.8),
        ("tcp", "get_into", 1.5),
        ("tcp", "put_from", 0.8),
        ("tcp", "put_from", 1.5),
        ("shm", "get_into", 0.9),
        ("shm", "get_into", 0.55),
        ("shm", "put_from", 0.9),
        ("shm", "put_from", 0.55),
    }
    for measure in MEASURES:
        for ratio in measure.ratios:
            assert {ratio.case, ratio.against} <= set(measure.cases)


def test_an_unknown_name_is_one_clear_line() -> None:
    finished = subprocess.run([*COMMAND, "--only", "etcd"], capture_output=True, text=True)
    assert finished.returncode == 2
    assert "etcd" in finished.stderr
    assert "Traceback" not in finished.stderr
