"""What runs in one machine, where the device talks to itself."""

from __future__ import annotations

import re

from deploy.rxe.machine import Machine
from tests.rxe.conftest import ENVIRONMENT

NATIVE = "build/editable/kvstore_native_tests"
PYTEST = ".venv/bin/python -m pytest -q -p no:cacheprovider -p no:xdist --timeout 300"


def test_native(machine: Machine) -> None:
    """The rules that every fabric obeys, and the store's native tests."""
    result = machine.run(f"{NATIVE} -tc='verbs*'", timeout_s=300, environment=ENVIRONMENT)
    print(result.output)
    assert result.exit_code == 0
    # Tests that did not find a device would have been skipped.
    counts = re.search(r"test cases:\s+(\d+) \|\s+(\d+) passed", result.output)
    assert counts is not None
    assert int(counts[1]) >= 7


def test_python(machine: Machine) -> None:
    """The store's property tests and tests of processes that are killed."""
    result = machine.run(f"{PYTEST} tests/rxe/guest", timeout_s=600, environment=ENVIRONMENT)
    print(result.output)
    assert result.exit_code == 0
