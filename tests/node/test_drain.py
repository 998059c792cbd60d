"""A drained node: who is attached keeps its access for the grace that was stated, and no longer."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

import kvstore
from kvstore import errors
from kvstore.cluster.control import ControlClient
from tests.support.nodes import ROOT, NodeProcess, run_node, start_node

PATIENCE_S = 60.0
#: A grace that does not end by itself within a test.
LONG_S = 3600.0


@pytest.fixture
def node() -> Iterator[NodeProcess]:
    with start_node("16MiB", f"--grace={LONG_S}") as started:
        yield started


@pytest.fixture
def control(node: NodeProcess) -> Iterator[ControlClient]:
    with ControlClient(node.address) as client:
        yield client


@pytest.fixture(params=["kv", "tcp"], ids=["shm", "tcp"])
def store(node: NodeProcess, request: pytest.FixtureRequest) -> Iterator[kvstore.Store]:
    with kvstore.connect(f"{request.param}://{node.address}", timeout_s=PATIENCE_S) as opened:
        yield opened


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.01)


def is_drained(control: ControlClient) -> bool:
    return control.stats(timeout_s=PATIENCE_S)["draining"] == 2


def said(node: NodeProcess, event: str) -> bool:
    return any(line["event"] == event for line in node.events())


def has_access(store: kvstore.Store) -> bool:
    """False once a call says that the node is unreachable; any other error is one of the test."""
    try:
        store.get(b"key")
    except errors.NodeUnreachable:
        return False
    return True


def test_access_lasts_as_long_as_the_grace_and_no_longer(
    node: NodeProcess, control: ControlClient, store: kvstore.Store
) -> None:
    store.put(b"key", b"value")
    assert LONG_S - PATIENCE_S < control.drain() <= LONG_S
    assert control.stats()["draining"] == 1
    assert store.get(b"key") == b"value"
    store.put(b"key", b"changed")
    # Longer it does not get.
    assert control.drain(2 * LONG_S) <= LONG_S
    assert control.drain(0) == 0
    wait_until(lambda: is_drained(control))
    wait_until(lambda: not has_access(store))
    with pytest.raises((errors.NodeUnreachable, errors.OutcomeUnknown)):
        store.put(b"key", b"late")
    wait_until(lambda: store.members()[0].state != "up")
    wait_until(lambda: "draining" in store.members()[0].last_error)
    with pytest.raises(errors.NodeUnreachable, match="draining"):
        kvstore.connect(node.target)
    assert node.alive
    # Its line comes when the access is gone.
    wait_until(lambda: said(node, "access revoked"))
    assert [line["clients"] for line in node.events() if line["event"] == "access revoked"] == [1]


def test_a_node_that_nobody_uses_is_drained_at_once(control: ControlClient) -> None:
    control.drain()
    wait_until(lambda: is_drained(control))


def test_the_grace_is_not_begun_anew_by_sigterm(
    node: NodeProcess, control: ControlClient, store: kvstore.Store
) -> None:
    store.put(b"key", b"value")
    control.drain(0)
    wait_until(lambda: is_drained(control))
    # Whoever maps the region still does.
    assert node.stop(PATIENCE_S) == 0


def test_a_grace_that_is_shortened_shortens_the_wait_of_sigterm(
    node: NodeProcess, control: ControlClient, store: kvstore.Store
) -> None:
    store.put(b"key", b"value")
    node.process.send_signal(signal.SIGTERM)
    wait_until(lambda: said(node, "draining"))
    assert control.drain(0) == 0
    assert node.process.wait(PATIENCE_S) == 0


def test_a_grace_is_a_finite_number_of_seconds(control: ControlClient) -> None:
    with pytest.raises(errors.ConfigurationError, match="no number"):
        control.drain(math.nan)
    assert control.stats()["draining"] == 0
    # More than the wire can carry is cut to that.
    assert control.drain(math.inf) > LONG_S
    for given in ("inf", "nan"):
        refused = run_node("--capacity=16MiB", "--listen=127.0.0.1:0", f"--grace={given}")
        assert refused.returncode == 2
        assert "no number of seconds" in refused.stderr


CLIENT = """
import sys, kvstore
store = kvstore.connect(sys.argv[1])
store.put(b"key", b"value")
print("ready", flush=True)
sys.stdin.readline()
"""


def test_a_process_that_maps_the_region_is_not_killed_for_it() -> None:
    options = ("--membership-lease=2", "--fence-after=1.5")
    with (
        start_node("16MiB", *options) as node,
        ControlClient(node.address) as control,
        subprocess.Popen(
            [sys.executable, "-c", CLIENT, node.target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        ) as client,
    ):
        assert client.stdout is not None
        try:
            assert client.stdout.readline() == "ready\n"
            control.drain(0)
            wait_until(lambda: is_drained(control))
            # Silent for much longer than what would have it killed.
            wait_until(lambda: all(one.silent_ms > 5000 for one in control.clients()))
            (found,) = control.clients()
            assert found.fabric == "shm"
            assert found.state in ("live", "stalled")
            assert client.poll() is None
        finally:
            client.kill()
