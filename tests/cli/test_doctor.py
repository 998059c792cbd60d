"""`kvstore doctor`: on this machine, on machines made of files, and against nodes."""

from __future__ import annotations

import importlib.util
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvstore.cli.checks import NOTE, OK, PROBLEM, WARNING, Check, machine, rdma, software
from kvstore.cli.rdma_ports import rdma_ports
from tests.cli.conftest import Outcome, run_cli
from tests.support.nodes import ROOT, NodeProcess, start_node


def _checks(outcome: Outcome) -> dict[str, dict[str, str]]:
    return {row["check"]: row for row in outcome.rows}


def test_this_machine_can_run_a_store() -> None:
    ended = run_cli("doctor", "--json")
    checks = _checks(ended)
    problems = [row for row in checks.values() if row["status"] == PROBLEM]
    assert ended.code == 0, problems
    assert problems == []
    assert checks["embedded store"]["status"] == OK
    assert checks["crc32c"]["detail"]
    for name in ("memory", "open files", "huge pages", "libibverbs", "RDMA devices", "port 7400"):
        assert name in checks
    assert not any(name.startswith("node ") for name in checks)


def test_text_has_a_line_for_each_check_and_a_summary() -> None:
    ended = run_cli("doctor")
    assert ended.code == 0
    assert "crc32c: " in ended.text
    assert "checks: 0 problems" in ended.text


def test_a_healthy_node(node: NodeProcess) -> None:
    ended = run_cli("--target", node.target, "doctor", "--json")
    found = {name: row for name, row in _checks(ended).items() if name.startswith("node ")}
    assert ended.code == 0
    assert len(found) == 4
    assert {row["status"] for row in found.values()} == {OK}


def test_a_dead_node_is_a_problem_with_a_remedy() -> None:
    ended = run_cli("--target", "kv://127.0.0.1:1", "--timeout", "1", "doctor", "--json")
    row = _checks(ended)["node 127.0.0.1:1"]
    assert ended.code == 1
    assert row["status"] == PROBLEM
    assert "127.0.0.1 1" in row["remedy"]


def test_another_member_list_is_a_problem() -> None:
    with start_node("16MiB", "--members=a:1,b:1") as node:
        ended = run_cli("--target", node.target, "doctor", "--json")
        row = _checks(ended)[f"node {node.address}, members"]
    assert ended.code == 1
    assert row["remedy"] == "export KVSTORE_TARGET=kv://a:1,b:1"


def test_a_wrong_token_is_a_problem(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("right")
    with start_node("16MiB", f"--token-file={token}") as node:
        ended = run_cli("--target", node.target, "doctor", "--json")
    assert ended.code == 1
    assert "--token-file" in _checks(ended)[f"node {node.address}"]["remedy"]


def test_a_stopped_client_is_named(node: NodeProcess) -> None:
    program = (
        "import kvstore, sys\n"
        f"store = kvstore.connect({node.target!r})\n"
        "store.put(b'k', b'v')\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with start_node("16MiB", "--membership-lease=0.5") as stalling:
        client = subprocess.Popen(
            [sys.executable, "-c", program.replace(node.target, stalling.target)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == b"ready\n"
            client.send_signal(signal.SIGSTOP)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                ended = run_cli("--target", stalling.target, "doctor", "--json")
                row = _checks(ended)[f"node {stalling.address}, clients"]
                if row["status"] == WARNING:
                    break
            assert row["status"] == WARNING
            assert str(client.pid) in row["remedy"]
            assert ended.code == 0
        finally:
            client.kill()
            client.wait(10)


def test_a_taken_port_is_a_note() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        found = machine.port(number, "control plane")
    assert found.status == NOTE
    assert str(number) in found.remedy
    assert machine.port(number, "control plane").status == OK


def _write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("available_kib", "status"), [(32 << 10, PROBLEM), (512 << 10, WARNING), (4 << 20, OK)]
)
def test_memory(tmp_path: Path, available_kib: int, status: str) -> None:
    text = f"MemTotal: 8388608 kB\nMemAvailable: {available_kib} kB\n"
    found = machine.memory(_write(tmp_path, proc__meminfo=text))
    assert found.status == status
    assert bool(found.remedy) == (status != OK)


@pytest.mark.parametrize(
    ("current", "available", "status"),
    [("tsc", "tsc hpet", OK), ("hpet", "tsc hpet", WARNING), ("acpi_pm", "acpi_pm", WARNING)],
)
def test_clock_source(tmp_path: Path, current: str, available: str, status: str) -> None:
    folder = tmp_path / "sys/devices/system/clocksource/clocksource0"
    folder.mkdir(parents=True)
    (folder / "current_clocksource").write_text(current)
    (folder / "available_clocksource").write_text(available)
    found = machine.clock_source(tmp_path)
    assert found.status == status
    assert ("echo tsc" in found.remedy) == (status == WARNING and "tsc" in available)


def test_strict_overcommit_and_missing_huge_pages(tmp_path: Path) -> None:
    info = "CommitLimit: 100 kB\nCommitted_AS: 200 kB\nHugePages_Total: 0\nHugepagesize: 2048 kB\n"
    root = _write(tmp_path, proc__meminfo=info, proc__sys__vm__overcommit_memory="2\n")
    assert machine.overcommit(root).status == WARNING
    assert machine.hugepages(root).remedy.startswith("sudo sysctl vm.nr_hugepages=2048")


def test_few_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        found = machine.open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found.status == WARNING
    assert "256" in found.detail


def test_rdma_tells_three_reasons_apart(tmp_path: Path) -> None:
    assert rdma.libibverbs("libnosuchverbs.so.9").detail == "the library is missing"
    assert rdma.libibverbs("libc.so.6").status == OK
    assert rdma.rdma_devices(rdma_ports(tmp_path)).detail == "none"
    for state, status in (("1: DOWN", WARNING), ("4: ACTIVE", OK)):
        found = rdma.rdma_devices(rdma_ports(_rdma_port(tmp_path, state=state)))
        assert found.status == status
        assert "rxe0" in found.detail
        assert bool(found.remedy) == (status != OK)
    assert rdma.fabric().status in (OK, NOTE)


def _rdma_port(root: Path, *, state: str = "4: ACTIVE", mtu: int = 1500, address: str = "") -> Path:
    """A machine with one port of RoCE, made of files."""
    port = root / "sys/class/infiniband/rxe0/ports/1"
    gids = ["fe80:0000:0000:0000:0000:00ff:fe00:0001", address, ":".join(["0000"] * 8)]
    for index, gid in enumerate(gids):
        for folder, text in (
            ("gids", gid or ":".join(["0000"] * 8)),
            ("gid_attrs/types", "RoCE v2"),
            ("gid_attrs/ndevs", "eth0"),
        ):
            (port / folder).mkdir(parents=True, exist_ok=True)
            (port / folder / str(index)).write_text(text + "\n")
    (port / "state").write_text(state + "\n")
    (port / "link_layer").write_text("Ethernet\n")
    card = root / "sys/class/net/eth0"
    card.mkdir(parents=True, exist_ok=True)
    (card / "mtu").write_text(f"{mtu}\n")
    return root


MAPPED = "0000:0000:0000:0000:0000:ffff:c000:0207"


def test_rdma_addresses_and_mtu(tmp_path: Path) -> None:
    found = rdma.addresses(rdma_ports(_rdma_port(tmp_path)))
    assert found.status == WARNING
    assert "dev eth0" in found.remedy
    ports = rdma_ports(_rdma_port(tmp_path, address=MAPPED))
    assert rdma.addresses(ports).status == OK
    assert ports[0].addresses == ("192.0.2.7",)
    assert rdma.mtu(ports).status == NOTE
    assert "1024 bytes" in rdma.mtu(ports).detail
    ports = rdma_ports(_rdma_port(tmp_path, address=MAPPED, mtu=4176))
    assert ports[0].payload_bytes == 4096
    assert rdma.mtu(ports).status == OK


def test_rdma_limits_need_pyverbs(tmp_path: Path) -> None:
    if importlib.util.find_spec("pyverbs") is not None:
        pytest.skip("pyverbs is installed; the lab's tests have it ask a device")
    found = rdma.device_limits(rdma_ports(_rdma_port(tmp_path)))
    assert found.status == NOTE
    assert "kvstore-dm[verbs]" in found.remedy


def test_rdma_in_a_container(tmp_path: Path) -> None:
    ports = rdma_ports(_rdma_port(tmp_path))
    assert "--device /dev/infiniband" in rdma.access(tmp_path, ports).remedy
    (tmp_path / "dev/infiniband").mkdir(parents=True)
    (tmp_path / "dev/infiniband/uverbs0").touch()
    assert rdma.access(tmp_path, ports).status == OK
    for who, namespace in (("self", "net:[1]"), ("1", "net:[2]")):
        link = tmp_path / f"proc/{who}/ns/net"
        link.parent.mkdir(parents=True)
        link.symlink_to(namespace)
    assert "--network host" in rdma.network_namespace(tmp_path, ports).remedy
    (tmp_path / "proc/1/ns/net").unlink()
    (tmp_path / "proc/1/ns/net").symlink_to("net:[1]")
    assert rdma.network_namespace(tmp_path, ports).status == OK


def test_soft_roce_module(tmp_path: Path) -> None:
    assert rdma.soft_roce(tmp_path).status == NOTE
    release = os.uname().release
    module = tmp_path / f"lib/modules/{release}/kernel/drivers/infiniband/sw/rxe/rdma_rxe.ko"
    module.parent.mkdir(parents=True)
    module.touch()
    assert "can be loaded" in rdma.soft_roce(tmp_path).detail
    (tmp_path / "sys/module/rdma_rxe").mkdir(parents=True)
    assert rdma.soft_roce(tmp_path).detail == "rdma_rxe is loaded"


def test_modules_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kvstore._native", None)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    found = {check.name: check for check in software.check_software()}
    assert found["kvstore._native"].status == PROBLEM
    assert "make setup" in found["kvstore._native"].remedy
    assert "embedded store" not in found
    assert "prometheus-client" in found["prometheus_client"].remedy


def test_every_problem_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", refuse)
    monkeypatch.setattr(os, "pidfd_open", refuse)
    for found in (machine.memfd(), machine.process_handles()):
        assert isinstance(found, Check)
        assert found.status == PROBLEM
        assert found.remedy
