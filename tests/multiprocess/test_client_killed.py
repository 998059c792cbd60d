"""kill -9 of clients amid puts and index growth: nothing acknowledged is lost, nothing leaks."""

from __future__ import annotations

import os
import random

import pytest

import kvstore
from tests.multiprocess.conftest import (
    LEASE_S,
    StartWorker,
    stats_of,
    target_on,
    wait_swept,
    wait_until,
)
from tests.multiprocess.content import check_value
from tests.support.clients import ClientProcess
from tests.support.nodes import NodeProcess, start_node

SEEDS = range(int(os.environ.get("KVSTORE_TEST_SEEDS", "1")))
LEASE = f"--membership-lease={LEASE_S}"


def acknowledged(lines: list[str]) -> dict[str, int]:
    """The last acknowledged sequence of each key."""
    found = {}
    for line in lines:
        if line.startswith("+"):
            key, sequence = line[1:].split()
            found[key] = int(sequence)
    return found


def test_acknowledged_puts_outlive_their_client(fabric: str, start_worker: StartWorker) -> None:
    with start_node("64MiB", LEASE) as node:
        target = target_on(node, fabric)
        other = start_worker("put", target, "other", 0, 3000)
        doomed = start_worker("put", target, "doomed", 100000, 3000)
        doomed.wait_lines(500)
        there = acknowledged(doomed.kill())
        progress = len(other.lines())
        other.wait_lines(progress + 500, 5.0)
        with kvstore.connect(target) as store:
            for key, sequence in there.items():
                value = store.get(key)
                assert value is not None, key
                assert check_value(key, value) == sequence
        assert len(there) >= 499
        wait_swept(node, clients_left=1)
        assert stats_of(node)["clients_fenced"] >= 1


def test_overwritten_keys_show_the_last_acknowledged_value(
    fabric: str, start_worker: StartWorker
) -> None:
    """The put under way at the kill may have happened or not; nothing older comes back."""
    with start_node("32MiB", LEASE) as node:
        target = target_on(node, fabric)
        for _ in range(2):
            doomed = start_worker("put", target, "over", 0, 2000)
            doomed.wait_lines(900)
            there = acknowledged(doomed.kill())
            newest = max(there.values())
            with kvstore.connect(target) as store:
                for key, sequence in there.items():
                    value = store.get(key)
                    assert value is not None, key
                    seen = check_value(key, value)
                    assert seen == sequence or (seen == newest + 1 and seen % 200 == sequence % 200)


def test_memory_of_killed_clients_is_used_again(fabric: str, start_worker: StartWorker) -> None:
    with start_node("8MiB", LEASE, "--eviction=none") as node:
        target = target_on(node, fabric)

        def full() -> int:
            line = start_worker("fill", target, "fill", 3000).finish()[-1]
            empty(node, target)
            return int(line.split()[1])

        fresh = full()
        assert fresh > 1500
        doomed = [
            start_worker("put", target, "small", 0, 3000),
            start_worker("put", target, "big", 0, 5000),
        ]
        for client in doomed:
            client.wait_lines(50)
        for client in doomed:
            client.kill()
        empty(node, target)
        assert stats_of(node)["blocks_swept"] > 0
        after = full()
        print("fresh", fresh, "after kills", after, stats_of(node))
        assert after >= 0.98 * fresh


def test_nothing_is_left_of_clients_killed_amid_filling(
    fabric: str, start_worker: StartWorker
) -> None:
    """Segments, claims, blocks in limbo, objects that were not published yet: all come back."""
    with start_node("8MiB", LEASE, "--eviction=none") as node:
        target = target_on(node, fabric)
        before = stats_of(node)["segments_free"]
        doomed = [start_worker("fill", target, f"{size}", size) for size in (200, 3000, 40000)]
        for client in doomed:
            client.wait_line("ready")
        wait_until("half full", lambda: stats_of(node)["segments_free"] < before / 2)
        for client in doomed:
            client.kill()
        wait_swept(node)
        empty(node, target)
        stats = stats_of(node)
        assert stats["keys"] == 0
        assert stats["object_bytes"] == 0, stats


def empty(node: NodeProcess, target: str) -> None:
    """Deletes all keys; returns once the memory has been given back."""
    with kvstore.connect(target) as store:
        assert store.clear() > 0
    wait_swept(node)


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_amid_index_growth(fabric: str, seed: int, start_worker: StartWorker) -> None:
    print("seed", seed)
    order = random.Random(seed)
    with start_node("256MiB", LEASE, "--eviction=none") as node:
        target = target_on(node, fabric)
        expected: set[str] = set()
        for round_number in range(3):
            doomed: list[ClientProcess] = [
                start_worker(
                    "put_batches", target, f"{round_number}-{i}", order.randrange(1000), 64
                )
                for i in range(2)
            ]
            # Batches of 32 keys on average: with the fewest of them too the index grows twice.
            for client in doomed:
                client.wait_lines(order.randrange(75, 150))
            for client in doomed:
                for line in client.kill():
                    if line.startswith("+"):
                        expected.update(line[1:].split())
        with kvstore.connect(target) as store:
            depth = stats_of(node)["global_depth"]
            late = {f"late-{i}": b"%d" % i for i in range(5000)}
            items = list(late.items())
            for at in range(0, len(items), 500):
                outcomes = store.put_many(items[at : at + 500], timeout_s=5.0)
                refused = [repr(outcome) for outcome in outcomes if type(outcome) is not int]
                assert not refused, f"{len(refused)} puts failed at {at}: {refused[:3]}"
            print("expected", len(expected), "depth", depth, stats_of(node)["global_depth"])
            assert depth >= 2
            keys = sorted(expected)
            for at in range(0, len(keys), 500):
                some = keys[at : at + 500]
                for key, value in zip(some, store.get_many(some), strict=True):
                    assert value is not None, key
                    check_value(key, value)
            assert store.get_many(list(late)) == list(late.values())
            # Not by `keys`, which would hide a key that comes twice.
            walked = [key for page in store._client.scan(0, 30.0) for key in page]
            present = {key.decode() for key in walked}
            assert expected | set(late) <= present
            # One put_many of each killed client, at most 63 keys, was under way.
            assert len(present) <= len(expected) + len(late) + 6 * 63
            assert len(walked) == len(present), "a key stands in the index twice"
            assert store.size() == len(present)
        wait_swept(node)
        assert stats_of(node)["keys"] == len(present)
