"""A node in one machine and its client in another, over RoCE v2 between them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.rxe.machine import Job, Machine, machines
from tests.rxe.conftest import ENVIRONMENT

PYTHON = ".venv/bin/python"
NODE = (
    f"{PYTHON} -m kvstore.node --capacity 16MiB --fabric verbs --listen 10.77.0.1:7400 --insecure"
)
READY_S = 200.0


@pytest.fixture
def pair() -> Iterator[tuple[Machine, Machine]]:
    """Two machines, for one test: it breaks them."""
    with machines(2) as (first, second):
        yield first, second


def start(first: Machine, second: Machine) -> Job:
    """A node in the first machine and load in the second; the node's device is found by address."""
    node = first.begin(NODE, ENVIRONMENT)
    node.wait_for_output("ready ", READY_S)
    load = second.begin(f"{PYTHON} -m tests.rxe.guest.load verbs://10.77.0.1:7400", ENVIRONMENT)
    load.wait_for_output("progress", READY_S)
    return load


def test_network_cut_and_restored_then_machine_killed(pair: tuple[Machine, Machine]) -> None:
    first, second = pair
    load = start(first, second)
    second.set_link(up=False)
    load.wait_for_output("down ", READY_S)
    seen = len(load.output)
    second.set_link(up=True)
    load.wait_for_output("up after", READY_S, after=seen)
    load.wait_for_output("progress", READY_S, after=seen)
    seen = len(load.output)
    first.kill()
    load.wait_for_output("down ", READY_S, after=seen)
    print(load.output)
    # A call took too long, or something was read that nobody had written.
    assert "wrong" not in load.output
