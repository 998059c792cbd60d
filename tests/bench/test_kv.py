"""`kvstore-bench kv` with tiny durations: the document, and options that make no sense."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "kvstore.bench.main", "kv"]
TINY = ["--keys", "500", "--seconds", "0.1", "--json"]
COLUMNS = {
    *("system", "fabric", "operation", "value_bytes", "batch", "ops_per_s", "p50_us", "p99_us"),
    *("p999_us", "verbs_per_op", "round_trips_per_op", "threads", "processes", "keys"),
}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=150)


def rows_of(*words: str) -> list[dict[str, Any]]:
    finished = run(*words)
    assert finished.returncode == 0, finished.stderr
    document = json.loads(finished.stdout)
    assert set(document) == {"meta", "rows"}
    for row in document["rows"]:
        assert all(not isinstance(value, dict | list) for value in row.values())
    return list(document["rows"])


@pytest.mark.parametrize("fabric", ["shm", "tcp", "local"])
@pytest.mark.parametrize("operation", ["get", "put_many"])
def test_a_row_of_each_fabric(fabric: str, operation: str) -> None:
    (row,) = rows_of(*TINY, "--fabric", fabric, "--operation", operation)
    assert row.keys() >= COLUMNS
    assert (row["system"], row["fabric"], row["operation"]) == ("kvstore", fabric, operation)
    assert row["batch"] == (64 if operation == "put_many" else 1)
    assert row["ops_per_s"] > 0
    assert 0 < row["p50_us"] <= row["p99_us"] <= row["p999_us"]
    assert row["verbs_per_op"] >= row["round_trips_per_op"] > 0
    assert row["failures"] == 0


def test_get_costs_what_the_protocol_says() -> None:
    (row,) = rows_of(*TINY, "--fabric", "tcp")
    # Address cached: one round trip of two verbs; the first gets of a key are cold.
    assert row["verbs_per_op"] == pytest.approx(2, abs=0.2)
    assert row["round_trips_per_op"] == pytest.approx(1, abs=0.2)


def test_processes_threads_skew_mix_and_the_native_loop() -> None:
    python, native = rows_of(
        *TINY, "--processes", "2", "--threads", "2", "--zipf", "0.99", "--read-ratio", "0.5",
        "--native",
    )  # fmt: skip
    assert (python["processes"], python["threads"]) == (2, 2)
    assert python["distribution"] == "zipf 0.99"
    assert (python["variant"], native["variant"]) == ("python", "native")
    assert native["ops_per_s"] > 0


def test_a_table_and_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "latency.png"
    finished = run("--keys", "100", "--seconds", "0.1", "--plot", str(picture))
    assert finished.returncode == 0, finished.stderr
    assert "ops_per_s" in finished.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("figure", ["put-cost", "memory", "idle", "busy-thread"])
def test_figures_in_miniature(figure: str) -> None:
    rows = rows_of("--figure", figure, "--scale", "0.002", "--seconds", "0.1", "--json")
    judged = [row for row in rows if "target" in row]
    assert judged
    assert all(row["pass"] == (row["ratio"] <= row["target"]) for row in judged)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--zipf", "1", "--uniform"], "exclude"),
        (["--fabric", "local", "--processes", "2"], "local"),
        (["--batch", "8"], "get_many"),
        (["--operation", "get_into", "--native"], "--native"),
        (["--operation", "put", "--read-ratio", "0.5"], "--read-ratio"),
        (["--operation", "get_many", "--keys", "10"], "--keys"),
        (["--value-bytes", "some"], "some"),
        (["--target", "kv://127.0.0.1:1", "--keys", "10"], "127.0.0.1:1"),
    ],
)
def test_a_mistake_is_one_clear_line(words: list[str], reason: str) -> None:
    finished = run(*words)
    assert finished.returncode != 0
    assert reason in finished.stderr
    assert "Traceback" not in finished.stderr
