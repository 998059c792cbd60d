"""A node and its clients on two RDMA devices at once."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator

import pytest

import kvstore
from kvstore.cluster.control import ControlClient
from tests.cli.conftest import run_cli
from tests.rxe.guest.conftest import READY_S, TIMEOUT_S
from tests.support.nodes import NodeProcess, start_node

DEVICES = ("rxe0", "rxe1")
ADDRESS = "10.77.1.1/24"
THREADS = 6


def shell(*words: str) -> str:
    finished = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def both() -> Iterator[None]:
    """Soft-RoCE over the other end of the pair of network cards too."""
    shell("ip", "address", "add", ADDRESS, "dev", "v1")
    shell("rdma", "link", "add", "rxe1", "type", "rxe", "netdev", "v1")
    try:
        yield
    finally:
        run_cli("rxe", "down", "--name", "rxe1")
        shell("ip", "address", "del", ADDRESS, "dev", "v1")


@pytest.fixture(scope="module")
def node(both: None) -> Iterator[NodeProcess]:
    options = ("--fabric=verbs", f"--device={','.join(DEVICES)}", "--insecure")
    with start_node("16MiB", *options, ready_s=READY_S) as started:
        yield started


@pytest.fixture
def any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that nobody told which device to take."""
    monkeypatch.delenv("KVSTORE_VERBS_DEVICE", raising=False)


def queue_pairs() -> dict[str, int]:
    """How many reliable connections begin or end on each device, of the node to itself too."""
    counts = dict.fromkeys(DEVICES, 0)
    for pair in json.loads(shell("rdma", "-j", "resource", "show", "qp")):
        if pair["type"] == "RC":
            counts[str(pair["ifname"])] += 1
    return counts


def load(store: kvstore.Store, prefix: bytes) -> list[BaseException]:
    """Threads that write and read keys of their own; what went wrong."""
    wrong: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(20):
                key = prefix + b"%d-%d" % (number, step % 4)
                value = b"%d" % step * 300
                store.put(key, value)
                assert store.get(key) == value
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


@pytest.mark.usefixtures("any_device")
def test_connections_are_spread_over_both(node: NodeProcess) -> None:
    before = queue_pairs()
    assert node.ready["device"] == "rxe0,rxe1"
    with ControlClient(node.address) as control:
        first, second = control.describe().verbs_gids
    assert (first[-4:], second[-4:]) == (bytes([10, 77, 0, 1]), bytes([10, 77, 1, 1]))
    with kvstore.connect(node.target, timeout_s=TIMEOUT_S) as store:
        registered = bytearray(200_000)
        with store.register(registered):
            assert load(store, b"spread-") == []
            store.put(b"large", bytes(range(250)) * 800)
            for _ in range(4):
                registered[:] = bytes(len(registered))
                assert store.get_into(b"large", registered) == len(registered)
                assert registered == bytes(range(250)) * 800
        # Each connection has two ends.
        after = queue_pairs()
        assert all(after[device] >= before[device] + 4 for device in DEVICES), (before, after)
        # Whoever wrote over one reads it over the other, and counts are exact over both.
        with kvstore.connect(node.target, timeout_s=TIMEOUT_S) as other:
            assert other.get(b"spread-0-3") == b"19" * 300


def test_a_client_that_names_one_takes_that(
    node: NodeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVSTORE_VERBS_DEVICE", "rxe1")
    before = queue_pairs()
    with kvstore.connect(node.target, timeout_s=TIMEOUT_S) as store:
        assert load(store, b"one-") == []
        after = queue_pairs()
    assert after["rxe0"] == before["rxe0"]
    assert after["rxe1"] > before["rxe1"]


@pytest.mark.usefixtures("any_device")
def test_a_rail_that_fails_leaves_the_other(node: NodeProcess) -> None:
    with kvstore.connect(node.target, timeout_s=TIMEOUT_S) as store:
        assert load(store, b"before-") == []
        # Soft-RoCE finds no way any more, neither there nor back.
        shell("ip", "address", "del", ADDRESS, "dev", "v1")
        try:
            # What was under way may be told as lost; after that, no call notices.
            load(store, b"under-way-")
            assert load(store, b"after-") == []
            assert store.get(b"before-0-3") == b"19" * 300
        finally:
            shell("ip", "address", "add", ADDRESS, "dev", "v1")
