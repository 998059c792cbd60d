"""The daemon as a process: how it starts, refuses to start, and ends."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kvstore import errors
from kvstore.cluster.control import ControlClient
from tests.support.nodes import NodeProcess, node_command, run_node, start_node


def _health(node: NodeProcess) -> int:
    with grpc.insecure_channel(node.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="")
        return int(stub.Check(request, timeout=5).status)


def _wait_for_event(node: NodeProcess, event: str, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not any(record["event"] == event for record in node.events()):
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.02)


def test_ready_line_names_places_that_answer(node: NodeProcess) -> None:
    assert node.ready["event"] == "ready"
    assert node.ready["pid"] == node.pid
    assert node.shm
    with socket.create_connection(("127.0.0.1", node.data_port), timeout=5):
        pass
    with ControlClient(node.address) as control:
        assert control.describe().data_port == node.data_port
        assert control.describe().shm_name == node.shm
    assert _health(node) == health_pb2.HealthCheckResponse.SERVING


def _two_free_ports() -> int:
    """The first of two neighbours that nobody has, below those that the kernel hands out."""
    for port in random.sample(range(10_000, 32_000, 2), 100):
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise AssertionError("no two neighbouring ports are free")


def test_data_port_is_the_next_one_by_default() -> None:
    port = _two_free_ports()
    with start_node("16MiB", listen=f"127.0.0.1:{port}") as node:
        assert node.data_port == port + 1


def test_shm_none_has_no_shm() -> None:
    with start_node("16MiB", "--shm=none") as node:
        assert node.shm == ""


def test_two_nodes_have_names_of_their_own() -> None:
    with start_node("16MiB") as one, start_node("16MiB") as other:
        assert one.shm != other.shm
        with ControlClient(one.address) as a, ControlClient(other.address) as b:
            assert a.describe().node_id != b.describe().node_id


def test_refusal_of_the_process() -> None:
    ended = run_node("--capacity=900TiB", "--listen=127.0.0.1:0")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("kvstore-node: --capacity 900.0 TiB is more than can be had")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--listen=127.0.0.1:", "--data-port=", "--metrics-port="])
def test_taken_port_is_one_line(option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_node("--capacity=16MiB", "--listen=127.0.0.1:0", f"{option}{port}")
    assert ended.returncode == 2
    assert f"127.0.0.1:{port}: Address already in use" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_node_that_does_not_start_leaves_no_ssd_file_behind(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_node(
            *("--capacity=16MiB", f"--listen=127.0.0.1:{port}", "--data-port=0"),
            *(f"--ssd={path}", "--ssd-bytes=32MiB"),
        )
    assert ended.returncode == 2
    assert "Address already in use" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_second_node_on_the_same_port_is_refused(node: NodeProcess) -> None:
    ended = run_node("--capacity=16MiB", f"--listen={node.address}", "--data-port=0")
    assert ended.returncode == 2
    assert "Address already in use" in ended.stderr


def test_insecure_listens_to_everyone_and_warns() -> None:
    with start_node("16MiB", "--insecure", listen="0.0.0.0:0") as node:
        assert "no token" in node.log()


def test_config_file_is_overridden_by_options(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(
        'eviction = "none"\nshm = "none"\nmembers = ["b:1", "a:1"]\ncapacity = "1TiB"\n'
    )
    with (
        start_node("16MiB", f"--config={config}") as node,
        ControlClient(node.address) as control,
    ):
        described = control.describe()
        assert described.eviction == "none"
        assert described.members == ("a:1", "b:1")
        assert described.region_bytes <= 16 << 20
        assert node.shm == ""


def test_sigterm_ends_at_once_without_clients(node: NodeProcess) -> None:
    began = time.monotonic()
    assert node.stop() == 0
    assert time.monotonic() - began < 5
    assert [record["event"] for record in node.events()][-2:] == ["draining", "ended"]


def test_sigterm_drains_first(node: NodeProcess) -> None:
    with ControlClient(node.address) as control:
        attachment = control.attach(cluster_id="", members=[node.address], peer="test")
        node.process.send_signal(signal.SIGTERM)
        _wait_for_event(node, "draining")
        assert _health(node) == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(errors.NodeUnreachable):
            control.attach(cluster_id="", members=[node.address], peer="late")
        assert node.alive
        control.detach(attachment.registration, attachment.token)
    assert node.process.wait(10) == 0


def test_second_signal_ends_at_once() -> None:
    with start_node("16MiB", "--grace=60") as node, ControlClient(node.address) as control:
        control.attach(cluster_id="", members=[node.address], peer="stays")
        node.process.send_signal(signal.SIGTERM)
        _wait_for_event(node, "draining")
        node.process.send_signal(signal.SIGTERM)
        assert node.process.wait(5) == 1


def test_kill_leaves_nothing_behind(tmp_path: Path) -> None:
    before = _shared_files()
    with start_node("16MiB", env={"TMPDIR": str(tmp_path)}) as node:
        assert f"@kvstore/{node.shm}" in Path("/proc/net/unix").read_text()
        node.kill()
        assert f"@kvstore/{node.shm}" not in Path("/proc/net/unix").read_text()
        assert _shared_files() <= before
        assert os.listdir(tmp_path) == []
        with start_node("16MiB", f"--data-port={node.data_port}", listen=node.address) as again:
            assert again.address == node.address


def _shared_files() -> set[str]:
    """Ours in /dev/shm, which others use too."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("kvstore")}


def test_idle_node_sleeps(node: NodeProcess) -> None:
    time.sleep(0.5)
    before, began = node.cpu_s(), time.monotonic()
    time.sleep(4)
    share = (node.cpu_s() - before) / (time.monotonic() - began)
    # The clock of processor time ticks in hundredths of a second: 1 % is four ticks.
    assert share < 0.01


def test_text_format_and_version() -> None:
    process = subprocess.Popen(
        [*node_command(), "--capacity=16MiB", "--listen=127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=10)
    assert line.startswith("ready listen=127.0.0.1:")
    assert process.returncode == 0
    assert "signal=SIGINT" in log
    assert run_node("--version").stdout.startswith("kvstore-node")
