"""Fixtures for tests that run in a machine of the lab, which is many times slower than its host."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator

import pytest

import kvstore
from tests.support.nodes import NodeProcess, start_node

READY_S = 120.0
TIMEOUT_S = 60.0
_numbers = itertools.count(1)


def start_verbs_node(capacity: str = "16MiB", *options: str, listen: str = "") -> NodeProcess:
    """A node on the machine's RDMA device."""
    return start_node(
        capacity,
        *("--fabric=verbs", "--device=rxe0", "--insecure"),
        *options,
        listen=listen or "127.0.0.1:0",
        ready_s=READY_S,
    )


@pytest.fixture(scope="module")
def node() -> Iterator[NodeProcess]:
    """One node for the tests of a module; keys are told apart by `prefix`."""
    with start_verbs_node() as started:
        yield started


@pytest.fixture(scope="module")
def store(node: NodeProcess) -> Iterator[kvstore.Store]:
    with kvstore.connect(node.target, timeout_s=TIMEOUT_S) as opened:
        yield opened


@pytest.fixture
def prefix() -> bytes:
    return b"%d-" % next(_numbers)


def wait_until(condition: object, timeout_s: float = READY_S) -> None:
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        os.sched_yield()
        time.sleep(0.05)
