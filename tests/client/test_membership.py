"""A store over several nodes, of which some die, stop, and come back."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kvstore
from tests.support.clients import start_client
from tests.support.nodes import ROOT, NodeProcess, start_again, start_node

WORKER = "tests.multiprocess.worker"
KEYS = [f"key-{index}" for index in range(64)]


@pytest.fixture
def nodes() -> Iterator[list[NodeProcess]]:
    with start_node("32MiB") as one, start_node("32MiB") as other:
        yield [one, other]


def target_of(nodes: list[NodeProcess], scheme: str = "kv") -> str:
    return f"{scheme}://" + ",".join(node.address for node in nodes)


def wait_until(condition: Callable[[], bool], within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


def some_unreachable(store: kvstore.Store) -> bool:
    return any(isinstance(o, kvstore.NodeUnreachable) for o in store.get_many(KEYS))


def probing() -> bool:
    return any(thread.name == "kvstore-membership" for thread in threading.enumerate())


def test_the_fabric_is_chosen(nodes: list[NodeProcess]) -> None:
    with kvstore.connect(target_of(nodes)) as store:
        assert {member.fabric for member in store.members()} == {"shm"}
        store.put("k", b"v")
        with kvstore.connect(target_of(nodes[::-1], "tcp")) as remote:
            assert {member.fabric for member in remote.members()} == {"tcp"}
            assert remote.get("k") == b"v"
        assert [member.address for member in store.members()] == sorted(
            node.address for node in nodes
        )
        assert not probing()


@pytest.mark.parametrize("scheme", ["kv", "tcp"])
def test_a_dead_node_takes_only_its_keys(nodes: list[NodeProcess], scheme: str) -> None:
    with kvstore.connect(target_of(nodes, scheme)) as store:
        store.put_many((key, key.encode()) for key in KEYS)
        assert store.get_many(KEYS) == [key.encode() for key in KEYS]
        nodes[0].kill()
        wait_until(lambda: some_unreachable(store))  # The first call may pay for finding out.
        begin = time.monotonic()
        outcomes = store.get_many(KEYS)
        assert time.monotonic() - begin < 0.5
        lost = [o for o in outcomes if isinstance(o, kvstore.NodeUnreachable)]
        kept = [o for o in outcomes if isinstance(o, bytes)]
        assert lost
        assert kept
        assert len(lost) + len(kept) == len(KEYS)
        assert nodes[0].address in str(lost[0])
        gone = KEYS[outcomes.index(lost[0])]
        begin = time.monotonic()
        for _ in range(20):
            with pytest.raises(kvstore.NodeUnreachable):
                store.put(gone, b"v")
        assert time.monotonic() - begin < 0.5
        states = {member.address: member.state for member in store.members()}
        assert states == {nodes[0].address: "down", nodes[1].address: "up"}
        with pytest.raises(kvstore.NodeUnreachable):
            store.size()


def test_a_restarted_node_is_attached_again(nodes: list[NodeProcess]) -> None:
    with kvstore.connect(target_of(nodes)) as store:
        store.put_many((key, b"v") for key in KEYS)
        nodes[0].kill()
        wait_until(lambda: some_unreachable(store))
        assert probing()
        with start_again(nodes[0], "32MiB"):
            wait_until(lambda: all(m.state == "up" for m in store.members()))
            outcomes = store.get_many(KEYS)
            assert set(outcomes) == {b"v", None}  # It came back empty.
            store.put_many((key, b"w") for key in KEYS)
            assert store.get_many(KEYS) == [b"w"] * len(KEYS)
            assert store.stats().node_restarts == 1
            wait_until(lambda: not probing())


def test_a_node_may_be_missing_at_the_beginning(nodes: list[NodeProcess]) -> None:
    nodes[0].kill()
    with kvstore.connect(target_of(nodes)) as store:
        outcomes = store.put_many((key, b"v") for key in KEYS)
        kinds = {type(outcome) for outcome in outcomes}
        assert kinds == {int, kvstore.NodeUnreachable}
        with start_again(nodes[0], "32MiB"):
            wait_until(lambda: all(m.state == "up" for m in store.members()))
            assert all(isinstance(o, int) for o in store.put_many((key, b"v") for key in KEYS))
    nodes[1].kill()
    with pytest.raises(kvstore.NodeUnreachable):
        kvstore.connect(target_of(nodes))


def test_another_member_list_is_refused(nodes: list[NodeProcess]) -> None:
    with kvstore.connect(target_of(nodes)):
        with pytest.raises(kvstore.MembershipMismatch) as caught:
            kvstore.connect(target_of(nodes[:1]))
        assert caught.value.ours == (nodes[0].address,)
        assert caught.value.theirs == tuple(sorted(node.address for node in nodes))
        for node in nodes:
            assert node.address in str(caught.value)


def test_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("right token\n")
    with start_node("32MiB", "--token-file", str(token_file)) as node:
        for token in (None, "wrong"):
            with pytest.raises(kvstore.AuthenticationFailed):
                kvstore.connect(node.target, token=token)
        monkeypatch.setenv("KVSTORE_TOKEN_FILE", str(token_file))
        with kvstore.connect(node.target) as store:
            store.put("k", b"v")
        monkeypatch.delenv("KVSTORE_TOKEN_FILE")
        with kvstore.connect(node.target, token="right token") as store:
            assert store.get("k") == b"v"


def test_shm_by_name_alone(nodes: list[NodeProcess]) -> None:
    with kvstore.connect(f"shm://{nodes[0].shm}") as store:
        store.put("k", b"v")
        assert store.get("k") == b"v"
        assert [member.fabric for member in store.members()] == ["shm"]


@pytest.mark.parametrize("operation", ["get", "put", "get_many"])
def test_a_signal_ends_a_wait(nodes: list[NodeProcess], operation: str) -> None:
    """Ctrl-C works while a call waits for a node that does not answer, and does the store no harm.

    The client is a process of its own: where the signal goes to the process that runs the tests, it
    may come when they are in the middle of something else.
    """
    node = nodes[0]
    with start_client(WORKER, "blocked", target_of([node], "tcp"), operation) as client:
        client.wait_lines(10)
        node.pause()
        try:
            client.wait_quiet()
            begin = time.monotonic()
            client.interrupt()
            ended = float(client.wait_line("interrupted").split()[1])
        finally:
            node.resume()
        assert ended - begin < 2
        client.wait_line("recovered")
        client.finish()


class Alarm(Exception):
    """Raised by a signal handler."""


def test_what_a_signal_handler_raises_goes_before_an_unknown_outcome(
    nodes: list[NodeProcess],
) -> None:
    """A put may be told in the middle of its deciding CAS that it ends here."""

    def ring(*_: object) -> None:
        raise Alarm

    def put_for_ever() -> None:
        while True:
            store.put("k", b"v", timeout_s=30.0)

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with kvstore.connect(target_of(nodes[:1], "tcp")) as store:
            for turn in range(12):
                pause = threading.Timer(0.01 + turn * 0.0007, nodes[0].pause)
                pause.start()
                signal.setitimer(signal.ITIMER_REAL, 0.2)
                with pytest.raises(Alarm):
                    put_for_ever()
                pause.join()
                nodes[0].resume()
                store.put("k", b"after")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_time_out_is_kept(nodes: list[NodeProcess]) -> None:
    with kvstore.connect(target_of(nodes[:1], "tcp"), timeout_s=0.3) as store:
        store.put("k", b"v")
        nodes[0].pause()
        begin = time.monotonic()
        try:
            with pytest.raises((kvstore.DeadlineExceeded, kvstore.NodeUnreachable)):
                store.get("k")
        finally:
            nodes[0].resume()
        assert 0.2 < time.monotonic() - begin < 1.5


CLOSE_IN_A_HANDLER = """
import signal, sys, kvstore

def close(*_: object) -> None:
    store.close()
    print("closed", flush=True)

store = kvstore.connect(sys.argv[1])
signal.signal(signal.SIGALRM, close)
print("ready", flush=True)
sys.stdin.readline()
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    store.get("k", timeout_s=2.0)
except kvstore.errors.KvError as error:
    print(type(error).__name__, flush=True)
"""


def test_a_signal_handler_may_close_the_store_that_it_interrupted(
    nodes: list[NodeProcess],
) -> None:
    """To wait for the end of the call that was interrupted would be to wait for ever."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLOSE_IN_A_HANDLER, target_of(nodes, "tcp")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for node in nodes:
            node.pause()
        told, _ = process.communicate("go\n", timeout=20)
    finally:
        for node in nodes:
            node.resume()
        process.kill()
    assert told.splitlines()[0] == "closed"
    assert process.returncode == 0
