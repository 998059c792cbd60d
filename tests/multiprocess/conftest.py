"""Real nodes and clients, on every fabric that works on one machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import pytest

from kvstore.cluster.control import ControlClient
from tests.support.clients import ClientProcess, start_client
from tests.support.nodes import NodeProcess

WORKER = "tests.multiprocess.worker"
#: Seconds, for nodes whose clients die: short, so that tests need not wait long.
LEASE_S = 0.6

StartWorker = Callable[..., ClientProcess]


@dataclass(frozen=True)
class Call:
    """One call of a client: a line of its output. The clock is that of all processes."""

    began: float
    took: float
    key: str
    #: `put`, `get`, `miss`, or the class of an error.
    outcome: str
    #: The sequence of the value that was put or found; of a failed call, the turn.
    sequence: int

    @classmethod
    def parse(cls, line: str) -> Self:
        began, took, key, outcome, *sequence = line.split()
        return cls(float(began), float(took), key, outcome, int(sequence[0]) if sequence else -1)

    @property
    def ended(self) -> float:
        return self.began + self.took

    @property
    def is_answered(self) -> bool:
        return self.outcome in ("put", "get", "miss")


def calls_of(lines: list[str]) -> list[Call]:
    return [Call.parse(line) for line in lines if line[0].isdigit()]


def wait_call(
    client: ClientProcess, what: str, condition: Callable[[Call], bool], count: int = 1
) -> None:
    """Waits until a client has made a call like this, or so many."""
    seen, found = 0, 0

    def enough() -> bool:
        nonlocal seen, found
        lines = client.lines()
        fresh, seen = lines[seen:], len(lines)
        found += sum(condition(call) for call in calls_of(fresh))
        assert client.alive, client.errors()
        return found >= count

    wait_until(what, enough, 15.0)


def wait_calls_after(client: ClientProcess, time_s: float, count: int = 50) -> None:
    """Waits for calls that began later. Not by counting lines: some may be on their way to us."""
    wait_call(client, "calls after", lambda call: call.began > time_s, count)


def check_history(calls: list[Call], lost_at: float = -1.0) -> None:
    """Fails if a key shows what its only writer, one thread, cannot have left there.

    `lost_at` is a time at which all values were lost: nothing put before is seen by calls that
    begin later. A put that failed may have happened, and if it did then at any time until its call
    ended, so the value before it may be seen until the value of it is.
    """
    possible: dict[str, set[int]] = {}
    lost: set[str] = set()
    for call in calls:
        if lost_at >= 0 and call.began > lost_at and call.key not in lost:
            lost.add(call.key)
            possible[call.key] = {-1}
        there = possible.setdefault(call.key, {-1})
        if call.outcome == "put":
            possible[call.key] = {call.sequence}
        elif call.outcome in ("get", "miss"):
            assert call.sequence in there, f"{call}, possible: {there}"
            possible[call.key] = {call.sequence}
        elif call.sequence % 2:
            there.add(call.sequence)


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
