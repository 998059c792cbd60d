"""Real nodes and clients, on every fabric that works on one machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from kvstore.cluster.control import ControlClient
from tests.support.clients import ClientProcess, start_client
from tests.support.nodes import NodeProcess

WORKER = "tests.multiprocess.worker"
#: Seconds, for nodes whose clients die: short, so that tests need not wait long.
LEASE_S = 1.0

StartWorker = Callable[..., ClientProcess]


@pytest.fixture(params=["shm", "tcp"])
def fabric(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start_worker() -> Iterator[StartWorker]:
    """Starts workers that are killed when the test ends, in whatever state they are."""
    started: list[ClientProcess] = []

    def start(name: str, *arguments: object) -> ClientProcess:
        started.append(start_client(WORKER, name, *arguments))
        return started[-1]

    yield start
    for client in started:
        client.kill()


def target_on(node: NodeProcess, fabric: str) -> str:
    """The target of a node over one fabric."""
    if fabric == "shm":
        return f"shm://{node.shm}"
    return f"{fabric}://{node.address}"


def stats_of(node: NodeProcess) -> dict[str, int]:
    with ControlClient(node.address) as control:
        return control.stats()


def wait_until(what: str, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Waits for a condition; fails, and says for what, when the time is over."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def wait_swept(node: NodeProcess, clients_left: int = 0, timeout_s: float = 10.0) -> None:
    """Waits until the node has nothing left of clients that are gone."""
    with ControlClient(node.address) as control:

        def swept() -> bool:
            outside = [record for record in control.clients() if record.fabric != "local"]
            return len(outside) == clients_left

        def there() -> str:
            return repr(control.clients())

        try:
            wait_until("dead clients swept", swept, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}: {there()}, {control.stats()}") from None
