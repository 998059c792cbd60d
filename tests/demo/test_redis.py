"""The same replay through Redis gives the same account."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvstore.bench.redis_server import RedisServer, is_installed
from kvstore.demo.replay import Replay, start_clients
from kvstore.demo.trace import workload_facts
from kvstore.demo.workload import generate

pytest.importorskip("redis")
pytestmark = pytest.mark.skipif(not is_installed(), reason="redis-server is not installed")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    started = RedisServer()
    yield started
    started.close()


def test_the_account(server: RedisServer) -> None:
    requests = generate(200, seed=9)
    facts = workload_facts(requests)
    target = f"redis://{server.socket_path}"
    clients, fabric = start_clients(target, count=2, block_bytes=512, seed=1)
    try:
        account = Replay(requests, clients).run()
    finally:
        for client in clients:
            client.stop()
    assert fabric == "unix"
    assert account.completed == 200
    assert account.hit_tokens == facts.ideal_hit_tokens
    assert account.blocks_written == facts.distinct_blocks
    assert account.blocks_read == facts.block_references - facts.distinct_blocks
    assert account.mismatches == 0
    assert not account.counters


def test_requests_can_be_held_to_their_arrival(server: RedisServer) -> None:
    # 20 requests at 3.4 a second, ten times faster: half a second at least.
    clients, _ = start_clients(f"redis://{server.socket_path}", count=2, block_bytes=64, seed=1)
    try:
        account = Replay(generate(20), clients, speed=10).run()
    finally:
        for client in clients:
            client.stop()
    assert account.seconds >= 0.5


def test_a_deadline_ends_a_replay_early(server: RedisServer) -> None:
    clients, _ = start_clients(f"redis://{server.socket_path}", count=2, block_bytes=64, seed=1)
    try:
        account = Replay(generate(100), clients, speed=1, deadline_s=0.5).run()
    finally:
        for client in clients:
            client.stop()
    assert account.stopped_early
    assert 0 < account.completed < 100
    assert account.seconds < 5
