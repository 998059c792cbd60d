"""What a user does on a host with RDMA before and beside the store: set up, look, meet a limit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kvstore.cli.checks import NOTE, OK
from kvstore.cli.checks.rdma import check_rdma
from tests.cli.conftest import run_cli
from tests.support.nodes import ROOT, node_command


def test_the_doctor_finds_nothing_to_mend() -> None:
    checks = {check.name: check for check in check_rdma()}
    for name, check in checks.items():
        print(name, check.status, check.detail)
        assert check.status in (OK, NOTE), name
    assert "rxe0 port 1: active" in checks["RDMA devices"].detail
    assert "10.77.0.1" in checks["RDMA addresses"].detail
    assert "4096 bytes a packet (MTU 4200 of v0)" in checks["RDMA MTU"].detail
    for name in ("verbs fabric", "libibverbs", "RDMA access", "RDMA namespace", "locked memory"):
        assert checks[name].status == OK, name


def test_the_doctor_asks_the_devices_through_pyverbs(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where Debian's packages are, which the tests' own interpreter does not look at.
    monkeypatch.setattr(sys, "path", [*sys.path, "/usr/lib/python3/dist-packages"])
    limits = {check.name: check for check in check_rdma()}["RDMA limits"]
    print(limits.detail)
    assert limits.status == OK, limits
    assert "rxe0: a region of any size" in limits.detail
    assert " READs at once" in limits.detail


def test_soft_roce_is_set_up_listed_and_taken_down() -> None:
    assert run_cli("rxe", "up", "--netdev", "v1", "--name", "rxe7").code == 0
    try:
        again = run_cli("rxe", "up", "--netdev", "v1", "--name", "rxe7")
        assert (again.code, "rxe7 on v1: active" in again.text) == (0, True)
        listed = run_cli("rxe", "status", "--json")
        rows = {row["device"]: row for row in listed.rows}
        assert listed.code == 0
        assert rows["rxe0"]["active"] is rows["rxe7"]["active"] is True
        assert (rows["rxe7"]["netdev"], rows["rxe7"]["payload_bytes"]) == ("v1", 4096)
    finally:
        assert run_cli("rxe", "down", "--name", "rxe7").code == 0
    assert run_cli("rxe", "down", "--name", "rxe7").code == 1


def test_a_region_above_the_memory_lock_is_refused_with_the_remedy() -> None:
    # Root is not limited while it has this capability.
    limited = ["setpriv", "--bounding-set=-ipc_lock", "prlimit", "--memlock=4194304"]
    options = ["--capacity=16MiB", "--listen=127.0.0.1:0", "--fabric=verbs", "--device=rxe0"]
    ended = subprocess.run(
        [*limited, *node_command(), *options, "--insecure"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ},
    )
    assert ended.returncode not in (0, -6, -11)
    for said in ("16 MiB", "4096 KiB", "ulimit -l unlimited", "LimitMEMLOCK=infinity"):
        assert said in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr
