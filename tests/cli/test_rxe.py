"""`kvstore rxe` where there is no RDMA; tests/rxe runs it where there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import run_cli

pytestmark = pytest.mark.skipif(
    Path("/sys/class/infiniband").exists(), reason="this machine has RDMA devices"
)


def test_status_says_how_to_get_one() -> None:
    ended = run_cli("rxe", "status")
    assert ended.code == 1
    assert "kvstore rxe up" in ended.text
    assert run_cli("rxe", "status", "--json").rows == []


def test_down_without_a_device() -> None:
    ended = run_cli("rxe", "down", "--name", "absent0")
    assert ended.code == 1
    assert "absent0" in ended.text
