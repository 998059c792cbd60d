"""Fixtures that every layer of tests may use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What a test takes says something of the machine. Environments of engines have no hypothesis.
with contextlib.suppress(ImportError):
    import hypothesis

    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def traces() -> Path | None:
    """The folder of real traces, or `None`: then a test runs on its generated miniature."""
    folder = os.environ.get("KVSTORE_TRACES")
    return Path(folder) if folder else None


#: Run with their engines, by `make test-engines`.
_OF_ENGINES = ("tests/engines/", "tests/client/test_values.py::test_torch")


def _refuse_skip(report: Any) -> None:
    """With KVSTORE_NO_SKIPS set a test that cannot run fails, unless an engine is what it lacks."""
    if not report.skipped or hasattr(report, "wasxfail") or not os.environ.get("KVSTORE_NO_SKIPS"):
        return
    if report.nodeid.startswith(_OF_ENGINES):
        return
    report.outcome = "failed"
    reason = report.longrepr[2]
    report.longrepr = f"{report.nodeid} did not run, which KVSTORE_NO_SKIPS forbids: {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    outcome: Any = yield
    _refuse_skip(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    outcome: Any = yield
    _refuse_skip(outcome.get_result())
