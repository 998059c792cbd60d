"""Copies of values in several processes: no read is older than what somebody saw before it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = Path(__file__).resolve().parents[2] / "bench" / "stale_read_probe.py"


APART = ("--apart", "--lost", "50000", "--late", "100000")
REGULAR = ("--consistency", "regular")


@pytest.mark.parametrize("fabric", ["shm", "tcp"])
@pytest.mark.parametrize("faults", [(), ("--apart",), APART, REGULAR, (*REGULAR, *APART)])
def test_no_read_is_stale(fabric: str, faults: tuple[str, ...]) -> None:
    reads = 12_000
    command = [sys.executable, str(PROBE), "--fabric", fabric, "--reads", str(reads), "--json"]
    finished = subprocess.run(
        [*command, "--writes", "0.02", *faults], stdout=subprocess.PIPE, text=True, timeout=200
    )
    row = json.loads(finished.stdout)
    assert row["reads"] == reads
    assert row["cache_hits"] > 0
    assert row["cache_invalidated"] > 0
    assert row["absent_reads"] > 0
    assert row["deleted"] > 0
    assert row["inserted"] > 0
    assert row["failed"] == 0
    assert row["stale_reads"] == 0, row["examples"]
    assert finished.returncode == 0


@pytest.mark.parametrize("fabric", ["shm", "tcp"])
def test_no_read_is_stale_beside_writes_of_one_round_trip(fabric: str) -> None:
    reads = 60_000
    command = [sys.executable, str(PROBE), "--fabric", fabric, "--reads", str(reads), "--json"]
    finished = subprocess.run(
        [*command, "--writes", "0.02", "--one-writer"],
        stdout=subprocess.PIPE,
        text=True,
        timeout=200,
    )
    row = json.loads(finished.stdout)
    assert row["reads"] == reads
    assert row["writes_at_once"] > 0
    assert row["cache_handed"] > 0
    assert row["failed"] == 0
    assert row["stale_reads"] == 0, row["examples"]
    assert finished.returncode == 0
