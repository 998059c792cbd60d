"""What goes down to the SSD of a node in this process and comes back up."""

from __future__ import annotations

import errno
import io
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.errors import OutOfMemory
from kvstore.llm.keys import BLOCK_PREFIX
from kvstore.node.log import Log
from kvstore.node.memory_node import MemoryNode
from kvstore.node.ssd import tier as tiers
from kvstore.node.ssd.log import INDEX_BYTES_A_RECORD, SsdLog
from kvstore.node.ssd.region import RegionClient
from kvstore.node.ssd.tier import Outcome, SsdTier

KEYS = [BLOCK_PREFIX + b"%032d" % i for i in range(64)]


def block(number: int, size: int = 3000) -> memoryview:
    return memoryview(random.Random(number).randbytes(size))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Node:
    """A memory node, its tier, and a client."""

    def __init__(self, path: Path, records_max: int = sys.maxsize) -> None:
        self.node = MemoryNode(capacity_bytes=8 << 20)
        self.log = SsdLog.open(str(path), 16 << 20, records_max)
        self.events = io.StringIO()
        self.tier = SsdTier(self.node, self.log, Log("json", self.events))
        self.client = RegionClient(self.node, 2)

    def value(self, key: bytes) -> bytes | None:
        found = self.client.read(key, bytearray())
        return bytes(found.value) if found is not None else None

    def put_down(self, numbers: range) -> None:
        """Puts blocks, waits until they are on the SSD, and takes them out of memory."""
        versions = {i: self.client.put_if_absent(KEYS[i], block(i), 7) for i in numbers}
        wait_until(lambda: all(self.tier.lookup([KEYS[i] for i in numbers])))
        for i, version in versions.items():
            self.client.delete(KEYS[i], version)
            assert self.value(KEYS[i]) is None

    def close(self) -> None:
        self.client.close()
        self.tier.close()
        self.node.close()


def hold_reads(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> tuple[threading.Event, threading.Semaphore]:
    """Reads of the device wait for the event; the semaphore counts those that do."""
    answers, waiting = threading.Event(), threading.Semaphore(0)
    read = node.log.read

    def wait_for_device(*arguments: Any) -> memoryview | None:
        waiting.release()
        assert answers.wait(60)
        return read(*arguments)

    monkeypatch.setattr(node.log, "read", wait_for_device)
    return answers, waiting


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "log")
    yield made
    made.close()


def test_blocks_go_down_and_come_up_and_nothing_else_does(node: Node) -> None:
    node.client.put_if_absent(b"other", block(1), 0)
    node.put_down(range(8))
    assert node.log.held() != []
    assert node.log.find(b"other") is None
    assert node.tier.promote([*KEYS[:9], b"other"], 20) == [
        *[Outcome.IN_MEMORY] * 8,
        Outcome.ABSENT,
        Outcome.ABSENT,
    ]
    assert [node.value(KEYS[i]) for i in range(8)] == [bytes(block(i)) for i in range(8)]
    found = node.client.read(KEYS[0], bytearray())
    assert found is not None
    assert found.codec == 7
    stats = node.tier.stats()
    assert (stats["ssd_hits"], stats["ssd_hit_bytes"], stats["ssd_misses"]) == (8, 24_000, 2)
    # Those that are in memory are not read again.
    assert node.tier.promote(KEYS[:8], 20) == [Outcome.IN_MEMORY] * 8
    assert node.tier.stats()["ssd_hits"] == 8
    assert node.tier.stats()["ssd_demoted"] == 8


def test_a_block_that_was_replaced_is_written_again(node: Node) -> None:
    node.put_down(range(1))
    # The same bytes under another version are no reason to write.
    version = node.client.put_if_absent(KEYS[0], block(0), 7)

    def has_version(wanted: int) -> bool:
        entry = node.log.find(KEYS[0])
        return entry is not None and entry.version == wanted

    wait_until(lambda: has_version(version))
    assert node.tier.stats()["ssd_demoted"] == 1
    node.client.delete(KEYS[0], version)
    version = node.client.put_if_absent(KEYS[0], block(1), 7)
    wait_until(lambda: has_version(version))
    assert node.tier.stats()["ssd_demoted"] == 2
    node.client.delete(KEYS[0], version)
    assert node.tier.promote(KEYS[:1], 20) == [Outcome.IN_MEMORY]
    assert node.value(KEYS[0]) == bytes(block(1))


def test_what_is_forgotten_while_it_comes_up_does_not_stay(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.put_down(range(2))
    put = node.tier._region.put_if_absent

    def forget_then_put(key: bytes, value: memoryview, codec: int) -> int:
        node.tier.forget(key)
        return put(key, value, codec)

    monkeypatch.setattr(node.tier._region, "put_if_absent", forget_then_put)
    assert node.tier.promote(KEYS[:1], 20) == [Outcome.ABSENT]
    assert node.value(KEYS[0]) is None
    assert node.tier.lookup(KEYS[:2]) == [False, True]


def test_what_was_forgotten_and_went_down_again_does_not_stay(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.put_down(range(1))
    put = node.tier._region.put_if_absent

    def forget_put_and_demote(key: bytes, value: memoryview, codec: int) -> int:
        node.tier.forget(key)
        version = put(key, value, codec)
        # As the thread that writes does when its walk comes by just now.
        generation = node.log.generation
        node.log.append(key, value, codec, version=version, generation=generation)
        return version

    monkeypatch.setattr(node.tier._region, "put_if_absent", forget_put_and_demote)
    assert node.tier.promote(KEYS[:1], 20) == [Outcome.ABSENT]
    assert node.value(KEYS[0]) is None
    assert node.tier.lookup(KEYS[:1]) == [False]


@pytest.mark.parametrize("forgotten", [b"", BLOCK_PREFIX + b"of another namespace"])
def test_what_leaves_the_index_while_it_comes_up_is_a_hit(
    forgotten: bytes, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.put_down(range(1))
    put = node.tier._region.put_if_absent

    def drop_then_put(key: bytes, value: memoryview, codec: int) -> int:
        if forgotten:
            node.tier.forget(forgotten)
        # As an index does that is full, and a segment that is written over.
        with node.log._lock:
            node.log._remove(key)
        return put(key, value, codec)

    monkeypatch.setattr(node.tier._region, "put_if_absent", drop_then_put)
    assert node.tier.promote(KEYS[:1], 20) == [Outcome.IN_MEMORY]
    assert node.value(KEYS[0]) == bytes(block(0))
    assert node.tier.stats()["ssd_hits"] == 1


def test_a_promotion_replaces_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.put_down(range(1))
    monkeypatch.setattr(node.tier._region, "contains", lambda key: False)
    node.client.put_if_absent(KEYS[0], block(9), 0)
    assert node.tier.promote(KEYS[:1], 20) == [Outcome.IN_MEMORY]
    assert node.value(KEYS[0]) == bytes(block(9))


def test_what_is_late_goes_on(node: Node) -> None:
    node.put_down(range(16))
    assert set(node.tier.promote(KEYS[:16], 0)) <= {Outcome.FAILED, Outcome.IN_MEMORY}
    wait_until(lambda: all(node.value(KEYS[i]) is not None for i in range(16)))


def test_what_nobody_waits_for_any_more_is_not_brought_up(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.put_down(range(tiers.READ_THREADS + 3))
    busy, late, extended, patient = (
        KEYS[: tiers.READ_THREADS],
        *KEYS[tiers.READ_THREADS : tiers.READ_THREADS + 3],
    )
    answers, waiting = hold_reads(node, monkeypatch)
    node.tier.promote(busy, 0)
    for _ in busy:
        assert waiting.acquire(timeout=20)
    node.tier.promote([late, extended], 0, wanted_s=0)
    node.tier.promote([extended, patient], 0, wanted_s=600)
    answers.set()
    wait_until(lambda: not node.tier._under_way)
    there = [node.value(key) is not None for key in (*busy, late, extended, patient)]
    assert there == [*[True] * len(busy), False, True, True]
    assert node.tier.stats()["ssd_expired"] == 1
    assert not node.tier._wanted_until


def test_a_device_that_fails_makes_misses_and_is_tried_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(tiers, "_RETRY_FIRST_S", 0.05)
    node.put_down(range(2))
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", fail)
        assert node.tier.promote(KEYS[:1], 20) == [Outcome.FAILED]
        patch.setattr(os, "pwritev", fail)
        node.client.put_if_absent(KEYS[5], block(5), 0)
        wait_until(lambda: node.tier.stats()["ssd_errors"] >= 2)
        wait_until(lambda: node.tier.stats()["ssd_waiting"] == 1)
    wait_until(lambda: node.tier.lookup([KEYS[5]]) == [True])
    # What could not be read is forgotten, so that it is written anew when it comes again.
    assert node.tier.promote(KEYS[:1], 20) == [Outcome.ABSENT]
    node.client.put_if_absent(KEYS[0], block(0), 0)
    wait_until(lambda: node.tier.lookup(KEYS[:1]) == [True])
    assert node.events.getvalue().count("the SSD failed") == 2


def test_a_node_without_room_says_so(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OutOfMemory("the node is full")

    node.put_down(range(1))
    with monkeypatch.context() as patch:
        patch.setattr(node.tier._region, "put_if_absent", full)
        assert node.tier.promote(KEYS[:1], 20) == [Outcome.FAILED]
    assert node.tier.stats()["ssd_failed"] == 1
    assert node.tier.promote(KEYS[:1], 20) == [Outcome.IN_MEMORY]


def test_after_the_end_nothing_comes_up(tmp_path: Path) -> None:
    node = Node(tmp_path / "log")
    node.put_down(range(1))
    node.tier.close()
    node.tier.close()
    assert node.tier.promote(KEYS[:1], 1) == [Outcome.FAILED]
    node.close()


def test_a_walk_that_fails_is_not_the_last_one(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    walks = 0
    once = node.tier._demote_once

    def fail_first() -> int:
        nonlocal walks
        walks += 1
        if walks == 1:
            raise RuntimeError("nobody thought of this")
        return once()

    monkeypatch.setattr(node.tier, "_demote_once", fail_first)
    node.put_down(range(1))
    assert node.tier.stats()["ssd_errors"] == 1
    assert node.events.getvalue().count("nobody thought of this") == 1


def test_a_device_that_does_not_answer_holds_nobody_at_the_end(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.put_down(range(tiers.READ_THREADS + 1))
    answers, waiting = hold_reads(node, monkeypatch)
    outcomes: dict[str, list[Outcome]] = {}

    def promote(name: str, keys: list[bytes]) -> threading.Thread:
        def run() -> None:
            outcomes[name] = node.tier.promote(keys, 60)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    try:
        read_now = promote("read now", KEYS[: tiers.READ_THREADS])
        for _ in range(tiers.READ_THREADS):
            assert waiting.acquire(timeout=20)
        last = KEYS[tiers.READ_THREADS]
        in_queue = promote("in the queue", [last])
        wait_until(lambda: last in node.tier._under_way)
        node.tier.close(timeout_s=0.05)
        assert node.tier.stuck
        # Its turn never comes, and it is told so before its time is over.
        in_queue.join(20)
        assert outcomes == {"in the queue": [Outcome.FAILED]}
    finally:
        answers.set()
    read_now.join(20)
    assert outcomes["read now"] == [Outcome.IN_MEMORY] * tiers.READ_THREADS
    # A stuck tier leaves to the end of the process what its threads may still use.
    node.tier._region.close()
    node.log.close()


def test_a_forget_that_the_device_does_not_end_holds_nobody_at_the_end(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.put_down(range(1))
    answers, waits = threading.Event(), threading.Event()

    def wait_for_device(_descriptor: int) -> None:
        waits.set()
        assert answers.wait(60)

    monkeypatch.setattr(os, "fdatasync", wait_for_device)
    forgets = threading.Thread(target=lambda: node.tier.forget(KEYS[0]))
    forgets.start()
    try:
        assert waits.wait(20)
        node.tier.close(timeout_s=0.5)
        assert node.tier.stuck
        assert "does not answer" in node.events.getvalue()
    finally:
        answers.set()
    forgets.join(20)
    assert node.log.close()


def test_a_small_index_takes_a_part_and_is_not_written_over_and_over(tmp_path: Path) -> None:
    node = Node(tmp_path / "log", records_max=32)
    walks = 0
    once = node.tier._demote_once

    def count() -> int:
        nonlocal walks
        written = once()
        walks += 1
        return written

    node.tier._demote_once = count  # type: ignore[method-assign]
    for i in range(64):
        node.client.put_if_absent(KEYS[i], block(i), 0)

    def after(more: int) -> int:
        seen = walks
        wait_until(lambda: walks >= seen + more)
        return node.tier.stats()["ssd_demoted"]

    # The first walk that sees them all may write more.
    demoted = after(3)
    assert 0 < len(node.log) <= 32
    assert after(3) == demoted
    assert f"--ssd-index-bytes={2 * 64 * INDEX_BYTES_A_RECORD}" in node.events.getvalue()
    # Also where it is a part, and all, and a part again.
    for blocks in (1, 64, 1, 64):
        node.tier._set_share(blocks)
    assert node.events.getvalue().count("will hardly match") == 1
    assert node.tier.stats()["ssd_records_max"] == 32
    node.close()
