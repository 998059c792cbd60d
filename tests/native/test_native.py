"""Runs the native test binaries, one pytest test for each of their source files.

A file whose tests are not in the binary fails, so a stale binary or an unregistered file shows.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "editable"


def is_run_here(path: Path) -> bool:
    """Other files are what several tests share, or have tests of the lab alone (`make rxe`)."""
    text = path.read_text()
    cases = text.count("TEST_CASE(")
    return path.parent.name != "fuzz" and (
        cases > text.count("* needs_lab) {") or (cases == 0 and path.name.endswith("_test.cpp"))
    )


SOURCES = sorted(path for path in (ROOT / "tests").glob("*/*.cpp") if is_run_here(path))
TIMEOUT_S = 900  # far beyond what it takes on a machine that is busy with other things
SUMMARY = re.compile(r"test cases:\s+(\d+) \|\s+(\d+) passed \|\s+(\d+) failed")


def test_there_are_native_tests() -> None:
    assert SOURCES


@pytest.mark.timeout(TIMEOUT_S + 30)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_native(source: Path) -> None:
    simulated = source.parent.name == "sim"
    binary = BUILD / ("kvstore_simulation_tests" if simulated else "kvstore_native_tests")
    assert binary.exists(), "run `make native-tests` first"
    newest = max(source.stat().st_mtime, binary.stat().st_mtime)
    assert newest == binary.stat().st_mtime, "the binary is stale: run `make native-tests`"
    completed = subprocess.run(
        [binary, f"--source-file=*/tests/{source.parent.name}/{source.name}", "--no-colors=true"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    summary = SUMMARY.search(completed.stdout)
    assert summary is not None, completed.stdout
    assert int(summary[1]) > 0, f"{source.name} registers no test case"
    assert summary[1] == summary[2]
