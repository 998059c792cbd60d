"""How processes end and divide: forks, SIGTERM of nodes, Ctrl-C of commands."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvstore
from kvstore.cluster.control import ControlClient
from tests.multiprocess.conftest import (
    LEASE_S,
    StartWorker,
    calls_of,
    check_history,
    stats_of,
    target_on,
    wait_calls_after,
    wait_swept,
    wait_until,
)
from tests.support.clients import ClientProcess, start_command
from tests.support.nodes import NodeProcess, start_node
from tests.support.processes import is_running

LEASE = f"--membership-lease={LEASE_S}"
BENCH = [sys.executable, "-m", "kvstore.bench.main"]
CLI = [sys.executable, "-m", "kvstore.cli"]


def child_of(client: ClientProcess) -> int:
    return int(client.wait_line("parent").split()[1])


def count(client: ClientProcess, who: str) -> int:
    return sum(line.startswith(f"{who} ") for line in client.lines())


def wait_progress(client: ClientProcess, who: str, lines: int = 20) -> None:
    before = count(client, who)
    wait_until(f"{who} goes on: {client.errors()}", lambda: count(client, who) >= before + lines)


def test_a_fork_and_the_death_of_the_child(fabric: str, start_worker: StartWorker) -> None:
    """The child's death takes nothing from its parent, whose sockets it had too."""
    with start_node("64MiB", LEASE, "--eviction=none") as node:
        client = start_worker("fork", target_on(node, fabric))
        wait_progress(client, "child")
        told = [line for line in client.lines() if line.startswith("child told")]
        assert len(told) == 3
        assert all("kvstore.connect" in line for line in told)
        os.kill(child_of(client), signal.SIGKILL)
        wait_swept(node, clients_left=1)
        assert stats_of(node)["clients_fenced"] == 1
        wait_progress(client, "parent")
        client.kill()


def test_a_fork_and_the_death_of_the_parent(fabric: str, start_worker: StartWorker) -> None:
    """The node notices, though the child lives on with copies of the parent's sockets."""
    with start_node("64MiB", LEASE, "--eviction=none") as node:
        client = start_worker("fork", target_on(node, fabric))
        child = child_of(client)
        wait_progress(client, "child")
        client.kill_alone()
        wait_swept(node, clients_left=1)
        assert is_running(child)
        wait_progress(client, "child")
        client.kill()


def test_a_client_that_leaves_is_gone_before_its_lease(fabric: str) -> None:
    """And nobody takes it for one that died."""
    with start_node("64MiB", "--membership-lease=60") as node:
        with kvstore.connect(target_on(node, fabric)) as store:
            store.put("k", b"v")
            assert stats_of(node)["clients_live"] == 1
        wait_until("the client is gone", lambda: stats_of(node)["clients_live"] == 0)
        assert stats_of(node)["clients_fenced"] == 0


def is_refused(target: str) -> bool:
    try:
        kvstore.connect(target).close()
    except kvstore.NodeUnreachable:
        return True
    return False


def test_sigterm_serves_the_attached_until_the_grace_is_over(
    fabric: str, start_worker: StartWorker
) -> None:
    with start_node("64MiB", LEASE, "--grace=1") as node:
        target = target_on(node, fabric)
        client = start_worker("watch", target, "a,b,c", 1.0)
        client.wait_lines(100)
        told_at = time.monotonic()
        node.process.send_signal(signal.SIGTERM)
        wait_until("nobody else gets in", lambda: is_refused(target))
        assert node.process.wait(10) == 0
        ended_at = time.monotonic()
        wait_calls_after(client, ended_at)
        calls = calls_of(client.kill())
        check_history(calls)
        answered = [call for call in calls if call.is_answered]
        assert answered[-1].began > told_at + 0.8
        assert {call.outcome for call in calls if call.began > ended_at} == {"NodeUnreachable"}
        assert max(call.took for call in calls) < 1.5
        assert "clients still attached" in node.log()


def test_sigterm_ends_once_the_last_client_has_left(fabric: str, start_worker: StartWorker) -> None:
    with start_node("64MiB", LEASE, "--grace=30") as node:
        leaving = start_worker("put", target_on(node, fabric), "p", 2000, 1000)
        leaving.wait_lines(50)
        node.process.send_signal(signal.SIGTERM)
        assert leaving.finish()[-1] == "done"
        assert node.process.wait(10) == 0
        assert "clients still attached" not in node.log()


def interrupt(command: ClientProcess) -> float:
    """Ctrl-C; returns how long the command takes to end."""
    began = time.monotonic()
    command.interrupt()
    command.process.wait(10)
    return time.monotonic() - began


@pytest.mark.parametrize("words", [["get", "k"], ["put", "k", "v"], ["stat"], ["top"]])
def test_ctrl_c_ends_a_command_that_waits(node_stopped: NodeProcess, words: list[str]) -> None:
    target = f"tcp://{node_stopped.address}"
    with start_command([*CLI, "--target", target, "--timeout", "30", *words]) as command:
        wait_until("it waits for the node", lambda: is_connected(command.pid))
        assert interrupt(command) < 2
        assert command.process.returncode == 130
        assert command.errors().strip() == "kvstore: interrupted"
        assert command.lines() == []


@pytest.fixture(scope="module")
def node_stopped() -> Iterator[NodeProcess]:
    node = start_node("16MiB")
    node.pause()
    yield node
    node.kill()


def is_connected(pid: int) -> bool:
    """Whether a process has a tcp connection, or waits for one."""
    try:
        sockets = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
        tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    except OSError:
        return False  # a descriptor was closed meanwhile
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    return any(f"socket:[{row[9]}]" in sockets for row in rows if row[3] in ("01", "02"))


def test_ctrl_c_of_a_benchmark_leaves_nothing() -> None:
    with (
        start_node("64MiB", LEASE) as node,
        start_command(
            [*BENCH, "kv", "--target", node.target, "--processes", "2", "--seconds", "30"]
        ) as command,
    ):
        wait_until("its clients work", lambda: stats_of(node)["clients_live"] >= 2, 20.0)
        with ControlClient(node.address) as control:
            clients = [record.process_id for record in control.clients()]
        assert interrupt(command) < 5
        assert command.process.returncode != 0
        assert "Traceback" not in command.errors()
        wait_until("its processes end", lambda: not any(is_running(pid) for pid in clients if pid))
        wait_swept(node)
