"""The node inside a process: what an embedded store uses."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from kvstore import errors
from kvstore.node.memory_node import MemoryNode


def test_describes_itself() -> None:
    with MemoryNode(capacity_bytes=16 << 20, eviction="none") as node:
        described = node.describe()
        assert 0 < described.region_bytes <= 16 << 20
        assert described.domain == "cpu"
        assert described.eviction == "none"
        assert described.shm_name == ""
        assert described.data_port == 0
        assert described.members == ()
        assert node.stats()["keys"] == 0
        assert node.clients() == []


def test_loads_no_grpc_and_no_numpy() -> None:
    program = (
        "import sys\n"
        "from kvstore.node.memory_node import MemoryNode\n"
        "with MemoryNode(capacity_bytes=16 << 20) as node: node.stats()\n"
        "loaded = {'grpc', 'numpy', 'google.protobuf', 'click', 'prometheus_client'}\n"
        "sys.exit(str(loaded & set(sys.modules)) if loaded & set(sys.modules) else 0)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        {"capacity_bytes": 0},
        {"capacity_bytes": (8 << 20) - 1},
        {"capacity_bytes": 16 << 20, "eviction": "mru"},
        {"capacity_bytes": 16 << 20, "consistency": "eventual"},
        {"capacity_bytes": 16 << 20, "tcp_host": "127.0.0.1", "tcp_port": 65536},
        {"capacity_bytes": 16 << 20, "members": ["a", "a"]},
        {"capacity_bytes": 16 << 20, "members": ["x" * 5000]},
        {"capacity_bytes": 16 << 20, "cluster_id": "x" * 256},
        {"capacity_bytes": 16 << 20, "shm_name": "a\0b"},
    ],
)
def test_refuses_what_makes_no_sense(arguments: dict[str, object]) -> None:
    with pytest.raises(errors.ConfigurationError):
        MemoryNode(**arguments)  # type: ignore[arg-type]


def test_membership_is_fixed_once() -> None:
    with MemoryNode(capacity_bytes=16 << 20) as node:
        node.set_members("c", ["b", "a"])
        node.set_members("c", ["a", "b"])
        assert node.describe().members == ("a", "b")
        with pytest.raises(errors.MembershipMismatch) as refused:
            node.set_members("c", ["a"])
        assert refused.value.theirs == ("a", "b")
        assert refused.value.ours == ("a",)


def test_admission_and_dismissal() -> None:
    with MemoryNode(capacity_bytes=16 << 20) as node:
        admissions = [node.admit(f"peer {number}") for number in range(3)]
        assert len({admission.registration for admission in admissions}) == 3
        assert all(len(admission.token) == 16 for admission in admissions)
        assert [record.peer for record in node.clients()] == ["peer 0", "peer 1", "peer 2"]
        first, second, _ = admissions
        assert not node.dismiss(first.registration, second.token)
        assert not node.dismiss(first.registration, b"")
        assert node.dismiss(first.registration, first.token)
        assert not node.dismiss(0, first.token)
        assert not node.dismiss(-1, first.token)
        node.admit("x" * 5000)
        node.drain()
        with pytest.raises(errors.NodeUnreachable):
            node.admit("late")


def test_closed_node_says_so() -> None:
    node = MemoryNode(capacity_bytes=16 << 20)
    node.close()
    node.close()
    for call in (node.describe, node.stats, node.clients, node.drain, lambda: node.admit("x")):
        with pytest.raises(errors.StoreClosed):
            call()


def test_calls_from_many_threads_survive_a_close() -> None:
    node = MemoryNode(capacity_bytes=16 << 20)
    ended: list[BaseException | None] = []

    def call() -> None:
        try:
            while True:
                node.stats()
        except errors.StoreClosed as error:
            ended.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    node.close()
    for thread in threads:
        thread.join(10)
    assert len(ended) == 4


def test_forked_child_is_told_so_and_leaves_the_node_alone() -> None:
    with MemoryNode(capacity_bytes=16 << 20) as node:
        child = os.fork()
        if child == 0:
            calls = (node.describe, node.stats, node.clients, node.drain, lambda: node.admit("x"))
            told = 0
            for call in calls:
                try:
                    call()
                except errors.ForkedError:
                    told += 1
            node.close()
            os._exit(0 if told == len(calls) else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert node.admit("after the fork").registration > 0
