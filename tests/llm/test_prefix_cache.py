"""`PrefixCache` on a real store: what is stored is found, and what fails is a miss."""

from __future__ import annotations

import dataclasses
import logging
import random
import time
from collections.abc import Callable

import numpy
import pytest

import kvstore
from kvstore.llm import Limits, Namespace, PrefixCache, block_hashes
from kvstore.llm.core import BATCH_BLOCKS_MAX, BATCH_BYTES_MAX, batches
from tests.llm.conftest import BLOCK_BYTES
from tests.support.nodes import start_node

HASHES = block_hashes(range(16 * 12), 16)


def blocks_of(count: int, seed: int = 1) -> list[bytes]:
    source = random.Random(seed)
    return [source.randbytes(BLOCK_BYTES) for _ in range(count)]


def buffers_for(count: int) -> list[bytearray]:
    return [bytearray(BLOCK_BYTES) for _ in range(count)]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def cache(store: kvstore.Store, namespace: Namespace) -> PrefixCache:
    return PrefixCache(store, namespace)


def test_the_longest_prefix_is_found_and_loaded(cache: PrefixCache) -> None:
    blocks = blocks_of(12)
    assert cache.match(HASHES) == 0
    result = cache.put(HASHES[:5] + HASHES[7:], blocks[:5] + blocks[7:])
    assert (result.stored, result.present, result.failed) == (10, 0, {})
    assert cache.match(HASHES) == 5
    buffers = buffers_for(5)
    assert cache.get(HASHES[:5], buffers).all_ok
    assert buffers == blocks[:5]
    stats = cache.stats()
    assert (stats.matches, stats.match_blocks, stats.matched_blocks) == (2, 24, 5)
    assert (stats.loaded_remote, stats.loaded_bytes) == (5, 5 * BLOCK_BYTES)
    assert (stats.stored, stats.stored_bytes) == (10, 10 * BLOCK_BYTES)


def test_a_block_is_stored_once(cache: PrefixCache, store: kvstore.Store) -> None:
    blocks = blocks_of(4)
    cache.put(HASHES[:4], blocks)
    written = store.stats().bytes_written
    again = cache.put(HASHES[:4], blocks)
    assert (again.stored, again.present) == (0, 4)
    # A probe tells before any byte moves.
    assert store.stats().bytes_written - written < BLOCK_BYTES


def test_all_kinds_of_buffers(cache: PrefixCache) -> None:
    array = numpy.random.default_rng(1).standard_normal((4, 2, 512)).astype(numpy.float32)
    assert cache.put(HASHES[:4], list(array)).stored == 4
    loaded = numpy.zeros_like(array)
    assert cache.get(HASHES[:4], list(loaded)).all_ok
    assert (loaded == array).all()
    assert cache.get(HASHES[:1], [memoryview(bytearray(BLOCK_BYTES))]).all_ok


def test_each_block_is_told_behind_a_gap_too(cache: PrefixCache) -> None:
    cache.put([HASHES[0], HASHES[2], HASHES[3]], blocks_of(3))
    assert cache.contains(HASHES[:5]) == [True, False, True, True, False]
    assert not cache.get([HASHES[2]], [bytearray(8)]).all_ok
    assert cache.contains(HASHES[:5]) == [True, False, False, True, False]


def test_a_missing_block_is_told_and_ends_the_load(cache: PrefixCache) -> None:
    blocks = blocks_of(4)
    cache.put([HASHES[0], HASHES[2], HASHES[3]], [blocks[0], blocks[2], blocks[3]])
    result = cache.get(HASHES[:4], buffers_for(4))
    assert result.leading == 1
    assert result.reasons == {1: "absent"}
    assert result.ok == (True, False, True, True)


def test_a_block_of_another_size_is_a_miss_and_not_offered_again(cache: PrefixCache) -> None:
    cache.put(HASHES[:2], [b"x" * BLOCK_BYTES, b"y" * 100])
    assert cache.match(HASHES[:2]) == 2
    result = cache.get(HASHES[:2], buffers_for(2))
    assert result.reasons == {1: "wrong length"}
    assert cache.match(HASHES[:2]) == 1
    assert cache.stats().negative_hits == 1
    # Whoever computes it stores it anew.
    assert cache.put(HASHES[:2], [b"x" * BLOCK_BYTES, b"z" * BLOCK_BYTES]).stored == 1
    assert cache.match(HASHES[:2]) == 2
    buffers = buffers_for(2)
    assert cache.get(HASHES[:2], buffers).all_ok
    assert buffers == [b"x" * BLOCK_BYTES, b"z" * BLOCK_BYTES]
    larger = cache.get(HASHES[:1], [bytearray(8)])
    assert larger.reasons == {0: "BufferTooSmall"}
    assert cache.match(HASHES[:2]) == 0


def test_what_another_process_could_not_load_is_refused(cache: PrefixCache) -> None:
    cache.put(HASHES[:4], blocks_of(4))
    cache.refuse(HASHES[2:3])
    assert cache.match(HASHES[:4]) == 2


def test_what_failed_is_offered_again_after_its_back_off(
    store: kvstore.Store, namespace: Namespace
) -> None:
    cache = PrefixCache(store, namespace, limits=Limits(back_off_s=0.001, back_off_s_max=0.001))
    cache.put(HASHES[:1], blocks_of(1))
    assert not cache.get(HASHES[:1], [bytearray(8)]).all_ok
    for _ in range(1000):
        if cache.match(HASHES[:1]) == 1:
            break
    assert cache.match(HASHES[:1]) == 1


def test_a_store_by_this_process_forgives_at_once(cache: PrefixCache) -> None:
    assert cache.get(HASHES[:1], buffers_for(1)).reasons == {0: "absent"}
    cache.put(HASHES[:1], blocks_of(1))
    assert cache.match(HASHES[:1]) == 1


def test_many_blocks_go_in_batches(cache: PrefixCache) -> None:
    hashes = block_hashes(range(1500), 1)
    blocks = [i.to_bytes(8, "little") for i in range(1500)]
    assert cache.put(hashes, blocks).stored == 1500
    buffers = [bytearray(8) for _ in range(1500)]
    assert cache.get(hashes, buffers).all_ok
    assert buffers == blocks
    # A gap in the first batch: the rest is not tried.
    result = cache.get([b"absent", *hashes], [bytearray(8), *buffers])
    assert result.reasons[0] == "absent"
    tried = [place for place, why in result.reasons.items() if why != "not tried"]
    assert tried == [0]
    assert len(result.reasons) == 1 + 1501 - BATCH_BLOCKS_MAX


def test_batches_are_bounded() -> None:
    assert list(batches([])) == []
    assert list(batches([BATCH_BYTES_MAX + 1] * 3)) == [range(i, i + 1) for i in range(3)]
    assert list(batches([1] * (BATCH_BLOCKS_MAX + 1)))[-1] == range(
        BATCH_BLOCKS_MAX, BATCH_BLOCKS_MAX + 1
    )
    half = BATCH_BYTES_MAX // 2
    assert list(batches([half, half, 1])) == [range(2), range(2, 3)]


def test_a_load_gets_no_more_time_than_computing_takes(
    store: kvstore.Store, namespace: Namespace
) -> None:
    cache = PrefixCache(store, namespace, limits=Limits(load_s=5, prefill_tokens_per_s=1600))
    core = cache._core
    assert core.load_timeout_s(10, None) == pytest.approx(0.1)
    assert core.load_timeout_s(10_000, None) == 5
    assert core.load_timeout_s(10, 7.0) == 7


def test_clear_takes_the_blocks_of_its_namespace_alone(
    store: kvstore.Store, namespace: Namespace
) -> None:
    ours = PrefixCache(store, namespace)
    theirs = PrefixCache(store, dataclasses.replace(namespace, adapter="lora"))
    hashes = block_hashes(range(600), 1)
    ours.put(hashes, [b"x"] * 600)
    theirs.put(HASHES[:2], [b"y"] * 2)
    store.put("user key", b"z")
    assert ours.clear() == 600
    assert ours.clear() == 0
    assert (ours.match(hashes), theirs.match(HASHES[:2])) == (0, 2)
    assert store.get("user key") == b"z"


def test_mistakes_of_the_caller_are_errors(cache: PrefixCache) -> None:
    with pytest.raises(ValueError, match="1 hashes but 0 buffers"):
        cache.get(HASHES[:1], [])
    with pytest.raises(ValueError, match="1 hashes but 0 blocks"):
        cache.put(HASHES[:1], [])


def test_pins_outlive_what_a_full_node_takes(namespace: Namespace) -> None:
    with kvstore.connect("embedded", capacity_bytes=12 << 20) as small:
        cache = PrefixCache(small, namespace)
        pinned, other = block_hashes(range(300), 1), block_hashes(range(300, 600), 1)
        cache.put(pinned, [b"p" * BLOCK_BYTES] * 300)
        cache.put(other, [b"o" * BLOCK_BYTES] * 300)
        assert cache.pin([*pinned, b"absent"], 60.0) == [True] * 300 + [False]
        verbs = small.stats().heartbeat_verbs
        wait_until(lambda: small.stats().heartbeat_verbs > verbs + 300)
        for number in range(40):
            more = block_hashes(range(1000 * (number + 1), 1000 * (number + 1) + 300), 1)
            assert cache.put(more, [b"m" * BLOCK_BYTES] * 300).stored == 300
        assert sum(cache.contains(pinned)) > 280
        assert sum(cache.contains(other)) < 100
        assert cache.stats().pinned == 300
        for wrong in (0.0, -1.0, 4001.0):
            with pytest.raises(ValueError, match="4000"):
                cache.pin(pinned, wrong)


def test_pins_on_a_dead_node_are_no_error(namespace: Namespace) -> None:
    with start_node() as node, kvstore.connect(node.target) as store:
        cache = PrefixCache(store, namespace)
        cache.put(HASHES[:2], blocks_of(2))
        node.kill()
        assert cache.pin(HASHES[:2], 1.0) == [False, False]


def test_a_full_node_fails_stores_and_nothing_else(namespace: Namespace) -> None:
    with kvstore.connect("embedded", capacity_bytes=8 << 20, eviction="none") as small:
        cache = PrefixCache(small, namespace)
        hashes = block_hashes(range(3000), 1)
        result = cache.put(hashes, [b"x" * BLOCK_BYTES] * 3000)
        assert result.stored > 100
        assert set(result.failed.values()) <= {"OutOfMemory", "DeadlineExceeded"}
        assert result.failed
        assert result.stored + len(result.failed) == 3000
        assert cache.stats().failed_stores == len(result.failed)
        matched = cache.match(hashes)
        assert cache.get(hashes[:matched], buffers_for(matched)).all_ok


def test_a_dead_node_is_a_miss_within_the_deadline(
    namespace: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    with start_node() as node, kvstore.connect(node.target) as store:
        cache = PrefixCache(store, namespace)
        blocks = blocks_of(8)
        cache.put(HASHES[:8], blocks)
        assert cache.match(HASHES[:8]) == 8
        node.kill()
        with caplog.at_level(logging.WARNING, "kvstore.llm"):
            result = cache.get(HASHES[:8], buffers_for(8), timeout_s=2.0)
            assert result.leading == 0
            assert cache.match(HASHES[:8], timeout_s=2.0) == 0
            assert cache.put(HASHES[8:9], blocks[:1], timeout_s=2.0).failed
        assert set(result.reasons.values()) <= {"NodeUnreachable", "DeadlineExceeded", "not tried"}
        explained = cache.explain(HASHES[:8])
        assert explained.matched == 0
        assert "cannot be reached" in str(explained)
        assert len([r for r in caplog.records if "NodeUnreachable" in r.message]) <= 1


def test_a_closed_store_is_a_miss_too(namespace: Namespace) -> None:
    store = kvstore.connect("embedded", capacity_bytes=16 << 20)
    cache = PrefixCache(store, namespace)
    cache.put(HASHES[:1], blocks_of(1))
    store.close()
    assert cache.match(HASHES[:1]) == 0
    assert not cache.get(HASHES[:1], buffers_for(1)).all_ok
    assert cache.put(HASHES[1:2], blocks_of(1)).failed == {0: "StoreClosed"}


@pytest.mark.parametrize(
    ("how", "stays"),
    [
        (lambda cache, hashes, blocks: cache.match(hashes), False),
        (lambda cache, hashes, blocks: cache.contains(hashes), False),
        (lambda cache, hashes, blocks: cache.explain(hashes), False),
        (lambda cache, hashes, blocks: cache.put(hashes, blocks), True),
        (lambda cache, hashes, blocks: cache.get(hashes, [bytearray(16_000)] * 32), True),
    ],
    ids=["match", "contains", "explain", "put", "get"],
)
def test_only_a_use_keeps_blocks_from_eviction(
    how: Callable[[PrefixCache, list[bytes], list[bytes]], object], stays: bool
) -> None:
    namespace = Namespace(model="tiny", dtype="bytes", layout="test", block_tokens=16)
    limits = Limits(match_s=20, load_s=60, store_s=60)
    with (
        kvstore.connect("embedded", capacity_bytes=8 << 20, eviction="sampled-lru") as store,
        PrefixCache(store, namespace, limits=limits) as cache,
    ):
        hashes = block_hashes(range(16 * 32), 16)
        blocks = [bytes(16_000)] * 32
        cache.put(hashes, blocks)
        stored_again = 0
        # Four times what the node holds.
        for number in range(64):
            others = block_hashes(range(16 * 32 * (number + 1), 16 * 32 * (number + 2)), 16)
            assert not cache.put(others, blocks).failed
            stored_again += getattr(how(cache, hashes, blocks), "stored", 0)
        assert store.size() < 600
        there = sum(cache.contains(hashes))
        # What is sampled is a matter of chance.
        assert there - stored_again >= 28 if stays else there <= 2


def test_blocks_count_as_used_when_their_prompt_was_matched() -> None:
    namespace = Namespace(model="tiny", dtype="bytes", layout="test", block_tokens=1)
    limits = Limits(match_s=20, load_s=60, store_s=60)
    with (
        kvstore.connect("embedded", capacity_bytes=8 << 20, eviction="sampled-lru") as store,
        PrefixCache(store, namespace, limits=limits) as cache,
    ):
        blocks = [bytes(2000)] * 256
        slow, quick, *others = (
            block_hashes(range(256 * number, 256 * (number + 1)), 1) for number in range(40)
        )
        assert cache.match(slow) == 0
        time.sleep(2)
        assert cache.match(quick) == 0
        assert not cache.put(quick, blocks).failed
        # The other one is stored later, in chunks, as it is computed.
        for first in range(0, 256, 64):
            assert not cache.put(slow[first : first + 64], blocks[:64]).failed
        for prompt in others:
            assert not cache.put(prompt, blocks).failed
            if sum(cache.contains(slow)) < 64:
                break
        assert sum(cache.contains(slow)) < 64
        assert sum(cache.contains(quick)) > 128
