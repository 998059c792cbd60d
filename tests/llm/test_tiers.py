"""How a prefix cache deals with the SSD tiers of nodes that fail, or do not answer for long."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import kvstore
from kvstore.cluster import rpc
from kvstore.cluster import tier as tier_clients
from kvstore.errors import NodeUnreachable
from kvstore.llm import Limits, Namespace, PrefixCache, block_hashes
from kvstore.llm import prefix_cache as prefix_caches
from kvstore.llm import tiers as tiers_module
from tests.multiprocess.conftest import stats_of, wait_until
from tests.support.nodes import NodeProcess, start_again, start_node

NAMESPACE = Namespace(model="tiny", dtype="bytes", layout="test", block_tokens=16)
HASHES = block_hashes(range(16 * 64), 16)
#: The machine may be busy; nothing here is about how long it takes.
PATIENT = Limits(match_s=20, load_s=60, store_s=60)


def options(directory: Path, name: str = "log") -> list[str]:
    return [f"--ssd={directory / name}", "--ssd-bytes=32MiB"]


@contextmanager
def cache_on(*nodes: NodeProcess) -> Iterator[PrefixCache]:
    target = "kv://" + ",".join(node.address for node in nodes)
    with kvstore.connect(target) as store, PrefixCache(store, NAMESPACE, limits=PATIENT) as cache:
        yield cache


def put_down(cache: PrefixCache, numbers: range, *nodes: NodeProcess) -> None:
    """Stores blocks and waits until SSDs have them all."""
    before = sum(stats_of(node)["ssd_records"] for node in nodes)
    put = cache.put([HASHES[i] for i in numbers], [b"%06d" % i for i in numbers])
    assert put.stored == len(numbers)
    wait_until(
        "demoted",
        lambda: sum(stats_of(node)["ssd_records"] for node in nodes) >= before + len(numbers),
        60,
    )


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    with start_node("8MiB", *options(tmp_path)) as started:
        yield started


def test_calls_that_fail_together_are_one_failure(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So long that no pause of this machine is longer.
    monkeypatch.setattr(tiers_module, "_BACK_OFF_FIRST_S", 1_000.0)
    monkeypatch.setattr(tiers_module, "_BACK_OFF_LAST_S", 3_000.0)
    monkeypatch.setattr(tiers_module, "KEYS_AT_ONCE", 4)
    keys = [b"L1b%016d" % number for number in range(32)]
    with cache_on(node) as cache:
        tiers = cache._tiers
        assert tiers.found(keys, 20) == [False] * 32
        member = tiers._members[0]
        node.kill()
        assert tiers.found(keys, 20) == [False] * 32
        assert member.back_off_s == 1_000
        # It is left alone now.
        refused_until = member.refused_until
        assert tiers.found(keys, 20) == [False] * 32
        assert member.refused_until == refused_until
        for longer_s in (2_000, 3_000, 3_000):
            member.refused_until = 0.0
            assert tiers.found(keys, 20) == [False] * 32
            assert member.back_off_s == longer_s
        with start_again(node, "8MiB", *options(tmp_path)):

            def answers() -> bool:
                member.refused_until = 0.0
                tiers.found(keys, 20)
                return member.back_off_s == 0.0

            wait_until("asked again", answers, 30)


def test_a_tier_that_is_busy_has_not_failed(
    node: NodeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: rpc.Channel, begun: object) -> bytes:
        raise rpc.CallFailed("RESOURCE_EXHAUSTED", "too many calls of the SSD tier at once")

    with cache_on(node) as cache:
        with monkeypatch.context() as patch:
            patch.setattr(rpc.Channel, "result", refused)
            assert cache._tiers.found([b"L1bkey"], 20) == [False]
        member = cache._tiers._members[0]
        assert member.back_off_s == 0
        assert 0 < member.busy_until <= time.monotonic() + tiers_module._BUSY_S
        # Nor does it hide that another call fails at the same time.
        cache._tiers._failed(member, NodeUnreachable("it does not answer"))
        assert member.back_off_s == tiers_module._BACK_OFF_FIRST_S


def test_a_tier_that_is_busy_is_asked_again_to_forget(
    node: NodeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, busy = rpc.Channel.result, [True, True]

    def refused_twice(self: rpc.Channel, begun: object) -> bytes:
        if busy:
            busy.pop()
            raise rpc.CallFailed("RESOURCE_EXHAUSTED", "too many calls of the SSD tier at once")
        return answer(self, begun)

    with cache_on(node) as cache:
        put_down(cache, range(8), node)
        monkeypatch.setattr(rpc.Channel, "result", refused_twice)
        assert cache._tiers.forget(cache._core.keys.block_prefix, 20) == 8
        assert not busy


def test_a_call_without_time_asks_nobody_and_says_nothing_of_the_tier(node: NodeProcess) -> None:
    with cache_on(node) as cache:
        node.kill()
        for short_s in (0.0, 0.001, 0.9 * tiers_module._ASK_S_MIN):
            assert cache._tiers.found([b"L1bkey"], short_s) == [False]
            assert cache._tiers.promote([b"L1bkey"], short_s) == [False]
        assert all(member.back_off_s == 0 for member in cache._tiers._members.values())
        assert cache._tiers.found([b"L1bkey"], 20) == [False]
        assert cache._tiers._members[0].back_off_s > 0


def test_what_comes_back_behind_the_walk_is_cleared_too(
    node: NodeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cache_on(node) as cache:
        put_down(cache, range(4), node)
        delete = cache._delete_from_memory
        rounds = 0

        def delete_and_meet_another(prefix: bytes) -> int:
            nonlocal rounds
            rounds += 1
            deleted = delete(prefix)
            if rounds <= 2:
                put_down(cache, range(4 + rounds, 5 + rounds), node)
            return deleted

        monkeypatch.setattr(cache, "_delete_from_memory", delete_and_meet_another)
        assert cache.clear() == 6
        assert rounds == 3
        assert not any(cache.contains(HASHES))
        assert stats_of(node)["ssd_records"] == 0


def test_clearing_ends_although_blocks_keep_coming(
    node: NodeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cache_on(node) as cache:
        delete = cache._delete_from_memory
        rounds = 0

        def delete_and_meet_another(prefix: bytes) -> int:
            nonlocal rounds
            rounds += 1
            assert rounds < 20
            deleted = delete(prefix)
            put_down(cache, range(rounds, rounds + 1), node)
            return deleted

        monkeypatch.setattr(cache, "_delete_from_memory", delete_and_meet_another)
        cache.clear()
        assert rounds == prefix_caches._CLEAR_ROUNDS


def test_what_an_ssd_has_is_not_offered_while_the_memory_is_out_of_reach(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cache_on(node) as cache:
        put_down(cache, range(8), node)
        membership = cache._store._membership
        node.kill()
        with monkeypatch.context() as patch:
            # Its control plane is there again before the store has attached to its memory.
            patch.setattr(membership, "notice", lambda: None)
            with start_again(node, "8MiB", *options(tmp_path)):

                def tier_answers() -> bool:
                    for member in cache._tiers._members.values():
                        member.refused_until = 0.0
                    return cache._tiers.found([cache.key_of(HASHES[0])], 20) == [True]

                wait_until("the tier answers", tier_answers, 30)
                assert cache.match(HASHES[:8]) == 0
                assert not any(cache.contains(HASHES[:8]))
                patch.undo()
                wait_until("attached again", lambda: cache.match(HASHES[:8]) == 8, 30)
                assert cache.get(HASHES[:8], [bytearray(6) for _ in range(8)]).all_ok


def test_misses_ask_nobody_while_the_filter_is_fresh(
    node: NodeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    # For as long as this machine takes.
    monkeypatch.setattr(tier_clients, "SUMMARY_S", 1_000.0)
    with cache_on(node) as cache:
        put_down(cache, range(8), node)
        asked = 0
        found = cache._tiers.found

        def count(keys: Sequence[bytes], timeout_s: float) -> list[bool]:
            nonlocal asked
            asked += 1
            return found(keys, timeout_s)

        monkeypatch.setattr(cache._tiers, "found", count)
        for _ in range(20):
            assert cache.match(HASHES[20:]) == 0
        assert asked == 1
        # Another prompt is as absent, and of one that goes on nothing is known to be there.
        assert [cache.match(HASHES[i:]) for i in range(21, 61)] == [0] * 40
        assert cache.match(HASHES) == 8
        # One in eighty looks as if it were there.
        assert asked < 10
        for i in range(8):
            assert cache._store.delete(cache.key_of(HASHES[i]))
        before = asked
        assert cache.match(HASHES) == 8
        assert asked == before + 1
        # What goes down now is asked for when the filter is too old.
        put_down(cache, range(8, 16), node)
        for i in range(8, 16):
            assert cache._store.delete(cache.key_of(HASHES[i]))
        cache._tiers._members[0].client._current_until = 0.0
        assert cache.match(HASHES[8:]) == 8
        # And that answer told of all that is new.
        before = asked
        assert cache.match(HASHES[12:]) == 4
        assert cache.match(HASHES[40:]) == 0
        assert before + 1 <= asked <= before + 2


def test_a_node_that_is_down_keeps_no_other_from_forgetting(tmp_path: Path) -> None:
    with (
        start_node("8MiB", *options(tmp_path, "one")) as one,
        start_node("8MiB", *options(tmp_path, "two")) as two,
        cache_on(one, two) as cache,
    ):
        put_down(cache, range(64), one, two)
        by_address = {node.address: node for node in (one, two)}
        first, second = (by_address[address] for address in cache._store._membership.members)
        assert stats_of(second)["ssd_records"] > 0
        first.kill()
        with pytest.raises(NodeUnreachable):
            cache._tiers.forget(cache._core.keys.block_prefix, 20)
        assert stats_of(second)["ssd_records"] == 0
