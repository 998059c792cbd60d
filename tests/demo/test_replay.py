"""The account of a replay, against real nodes, client processes and figures computed apart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import kvstore
from kvstore.bench.processes import Child, Node, ProcessError, start_node, target_of
from kvstore.demo.content import Blocks
from kvstore.demo.replay import Replay, start_clients
from kvstore.demo.trace import Request
from kvstore.demo.workload import generate

BLOCK_BYTES = 1024
SEED = 77

#: Each request with the blocks that hit: found by hand.
TINY = [
    (Request(0, 1024, 1, (0, 1)), 0),
    (Request(1, 1500, 1, (0, 1, 2)), 2),
    (Request(2, 600, 1, (0, 3)), 1),
    (Request(3, 1500, 1, (0, 1, 2)), 3),
    (Request(4, 100, 1, (9,)), 0),
    (Request(5, 512 * 4, 1, (0, 3, 4, 5)), 2),
]
TINY_HIT_TOKENS = 0 + 1024 + 512 + 1500 + 0 + 1024


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    started: list[Node] = []
    try:
        for number in range(2):
            started.append(start_node(64 << 20, name=f"node {number}"))
        yield started
    finally:
        for node in started:
            node.child.stop()


@pytest.fixture(params=["auto", "tcp"])
def clients(request: pytest.FixtureRequest, nodes: list[Node]) -> Iterator[list[Child]]:
    target = target_of(nodes, request.param)
    started, fabric = start_clients(
        target, count=2, block_bytes=BLOCK_BYTES, seed=SEED, fabric=request.param
    )
    assert fabric == ("shm" if request.param == "auto" else "tcp")
    yield started
    for child in started:
        child.stop()


def test_the_account_of_a_tiny_trace(clients: list[Child]) -> None:
    account = Replay([request for request, _ in TINY], clients).run()
    assert account.completed == len(TINY)
    assert account.hit_tokens == TINY_HIT_TOKENS
    assert account.input_tokens == 1024 + 1500 + 600 + 1500 + 100 + 2048
    assert account.blocks_read == sum(matched for _, matched in TINY)
    assert account.blocks_written == 7
    assert account.keys_acknowledged == 7
    assert account.mismatches == 0
    assert not account.failed_writes
    assert len(account.request_us) == len(TINY)
    assert account.counters["verbs"] >= account.counters["round_trips"] > 0


def test_wrong_bytes_are_found(clients: list[Child], nodes: list[Node]) -> None:
    blocks = Blocks(BLOCK_BYTES, SEED)
    wrong = bytearray(blocks.content(1))
    wrong[-1] ^= 1
    with kvstore.connect(target_of(nodes, "auto")) as store:
        store.put(blocks.key(0), blocks.content(0))
        store.put(blocks.key(1), wrong)
    account = Replay([Request(0, 1024, 1, (0, 1))], clients).run()
    assert account.blocks_read == 2
    assert account.mismatches == 1


def test_requests_see_what_earlier_ones_wrote(clients: list[Child]) -> None:
    # Every request repeats the one before: whatever runs at once, each must wait for it.
    requests = [Request(0, 512 * n, 1, tuple(range(n))) for n in range(1, 60)]
    account = Replay(requests, clients).run()
    assert account.blocks_written == 59
    assert account.blocks_read == sum(range(59))


def test_a_kill_loses_only_what_was_on_the_node(clients: list[Child], nodes: list[Node]) -> None:
    requests = generate(150, seed=3)

    def kill() -> list[Child]:
        nodes[1].child.kill()
        clients[1].kill()
        return [clients[1]]

    account = Replay(requests, clients, kill_after=100, kill=kill).run()
    assert account.completed == len(requests)
    assert account.mismatches == 0
    assert account.keys_missing == 0
    assert 0 < account.keys_lost < account.keys_acknowledged
    # A put whose answer the node took along may have been applied or not.
    assert "NodeUnreachable" in account.failed_writes
    assert account.failed_writes.keys() <= {"NodeUnreachable", "OutcomeUnknown"}
    assert account.resume_ms is not None
    assert account.resume_ms < 10_000


def test_a_dead_client_that_nobody_killed_is_an_error(clients: list[Child]) -> None:
    clients[0].process.kill()
    with pytest.raises(ProcessError):
        Replay(generate(50), clients).run()
