"""Engines that miss one prompt at one moment: one computes, whoever of them is killed or fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import kvstore
from tests.multiprocess.conftest import LEASE_S, target_on, wait_until
from tests.support.clients import ClientProcess, start_client
from tests.support.nodes import start_node

ENGINES = 4
LED, JOINED = "led 1 joined 0 late 0", "led 0 joined 1 late 0"


@pytest.fixture
def target(fabric: str) -> Iterator[str]:
    with start_node("32MiB", f"--membership-lease={LEASE_S}") as node:
        yield target_on(node, fabric)


def start_engines(target: str) -> list[ClientProcess]:
    engines = [
        start_client("tests.multiprocess.engine_worker", f"engine{i}", target)
        for i in range(ENGINES)
    ]
    for engine in engines:
        engine.wait_lines(1)
    return engines


def wait_leader(engines: list[ClientProcess]) -> ClientProcess:
    def leading() -> list[ClientProcess]:
        return [engine for engine in engines if "leads" in engine.lines()]

    wait_until("one leads", lambda: len(leading()) == 1, 15.0)
    return leading()[0]


def finish(engines: list[ClientProcess], leader: ClientProcess) -> None:
    """Lets the leader finish: it has computed all, and the others have loaded it."""
    assert leader.finish()[1:] == ["leads", "computed 8", LED]
    for engine in engines:
        if engine is not leader:
            lines = engine.finish()[1:]
            assert lines[0] == "loaded 8"
            # One that asked after the end has not waited.
            assert lines[1] in (JOINED, "led 0 joined 0 late 0")


def test_one_of_four_computes(target: str) -> None:
    with kvstore.connect(target) as store:
        engines = start_engines(target)
        leader = wait_leader(engines)
        for engine in engines:
            assert engine is leader or engine.wait_quiet() == ["asks"]
        store.put("go", b"")
        finish(engines, leader)


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_the_next_one_computes_for_one_that_does_not(target: str, how: str) -> None:
    with kvstore.connect(target) as store:
        engines = start_engines(target)
        first = wait_leader(engines)
        rest = [engine for engine in engines if engine is not first]
        if how == "killed":
            first.kill()
        else:
            store.put("fails", f"engine{engines.index(first)}".encode())
            assert first.finish()[2:] == ["the computation failed", LED]
        second = wait_leader(rest)
        store.put("go", b"")
        finish(rest, second)
