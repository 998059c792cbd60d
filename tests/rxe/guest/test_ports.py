"""A port that goes down under a node and its clients, and a device that is lost: who says so, and
how everything comes back.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kvstore
from kvstore.cluster.control import ControlClient
from kvstore.errors import KvError, NodeUnreachable
from tests.cli.conftest import run_cli
from tests.rxe.guest.conftest import READY_S, TIMEOUT_S, wait_until
from tests.rxe.guest.test_store import LEASE
from tests.support.nodes import ROOT, NodeProcess, start_node

LOST_DEVICE = ROOT / "build" / "editable" / "lost_device.so"


def set_card(state: str) -> None:
    """The network card under the device. Without a carrier alone it still answers itself."""
    subprocess.run(["ip", "link", "set", "v0", state], check=True, timeout=60)


@contextlib.contextmanager
def card_down() -> Iterator[None]:
    set_card("down")
    try:
        yield
    finally:
        set_card("up")


@pytest.fixture(params=["down", "lost"])
def fate(request: pytest.FixtureRequest) -> str:
    """What becomes of the port, in the node's eyes."""
    return str(request.param)


@pytest.fixture
def node(fate: str) -> Iterator[NodeProcess]:
    environment = {"LD_PRELOAD": str(LOST_DEVICE)} if fate == "lost" else {}
    assert fate == "down" or Path(LOST_DEVICE).exists()
    options = ("--fabric=verbs", "--device=rxe0", "--insecure", LEASE)
    with start_node("16MiB", *options, env=environment, ready_s=READY_S) as started:
        yield started


def outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except KvError as error:
        return type(error)


def test_what_was_held_is_there_again_when_the_port_is(node: NodeProcess, fate: str) -> None:
    said = {"down": "RDMA port down", "lost": "RDMA device lost"}[fate]
    with contextlib.ExitStack() as stack:
        control = stack.enter_context(ControlClient(node.address))
        store = stack.enter_context(kvstore.connect(node.target, timeout_s=TIMEOUT_S))

        def figure(name: str) -> int:
            return control.stats(timeout_s=TIMEOUT_S)[name]

        def is_said(event: str) -> bool:
            return any(record["event"] == event for record in node.events())

        store.put(b"key", b"value")
        assert (figure("verbs_ports_up"), figure("verbs_port_failures")) == (1, 0)
        with card_down():
            wait_until(lambda: is_said(said))
            # Why it is not served again is known, and said, once that has been tried.
            wait_until(
                lambda: fate == "down" or any(record.get("reason") for record in node.events())
            )
            assert figure("verbs_ports_down") == 1
            wait_until(lambda: outcome(lambda: store.get(b"key")) is NodeUnreachable)
            # Whoever comes is told before it takes a registration that nobody could sweep.
            with pytest.raises(NodeUnreachable, match="no RDMA port of the node is up"):
                kvstore.connect(node.target, timeout_s=TIMEOUT_S)
            doctor = run_cli("--target", node.target, "--timeout", f"{TIMEOUT_S:g}", "doctor")
            assert "1 of the 1 RDMA ports rxe0 down" in doctor.text
        wait_until(lambda: is_said("RDMA port up again"))
        assert (figure("verbs_ports_up"), figure("verbs_ports_down")) == (1, 0)
        assert figure("verbs_port_failures") >= 1
        wait_until(lambda: outcome(lambda: store.get(b"key")) == b"value")
        store.put(b"key", b"changed")
        assert store.get(b"key") == b"changed"
        # The node's own client is back as well: what this client was before is swept, and memory
        # is reclaimed.
        wait_until(lambda: len(control.clients(timeout_s=TIMEOUT_S)) == 1)
        epoch = figure("global_epoch")
        wait_until(lambda: figure("safe_epoch") > epoch)
