"""The filter by which clients know what an SSD tier does not have: it may be wrong one way only."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.cluster.summary import Filter, filter_bytes, hash_of
from kvstore.node.ssd import summary as summaries
from kvstore.node.ssd.summary import Change, TierSummary


def keys(begin: int, end: int) -> list[bytes]:
    return [b"L1b%016d" % number for number in range(begin, end)]


def begun(there: Sequence[bytes]) -> TierSummary:
    summary = TierSummary()
    assert summary.is_full
    assert summary.since(0, 0) is None
    summary.begin(there)
    return summary


class Client:
    """What a client has of a filter."""

    def __init__(self) -> None:
        self.filter = Filter(bytes(1 << 10))
        self.epoch = self.version = 0

    def take(self, change: Change | None) -> None:
        assert change is not None
        if change.content:
            self.filter = Filter(change.content)
        else:
            assert change.epoch == self.epoch
            self.filter.add(change.added)
        self.epoch, self.version = change.epoch, change.version

    def has(self, key: bytes) -> bool:
        return self.filter.may_have(hash_of(key))


@settings(max_examples=100, deadline=None)
@given(
    first=st.sets(st.binary(min_size=1, max_size=40), max_size=50),
    rounds=st.lists(st.sets(st.binary(min_size=1, max_size=40), max_size=20), max_size=8),
    restarts=st.sets(st.integers(0, 7)),
    skipped=st.sets(st.integers(0, 7)),
)
def test_what_the_log_has_is_never_denied(
    first: set[bytes], rounds: list[set[bytes]], restarts: set[int], skipped: set[int]
) -> None:
    summary, client, there = begun(sorted(first)), Client(), set(first)
    for number, added in enumerate(rounds):
        for key in sorted(added):
            summary.add(key)
        there |= added
        if number in restarts:
            summary.begin(sorted(there))
        if number not in skipped:
            client.take(summary.since(client.epoch, client.version))
            assert all(client.has(key) for key in there)
    client.take(summary.since(client.epoch, client.version))
    assert all(client.has(key) for key in there)


def test_few_that_are_absent_look_present() -> None:
    client = Client()
    summary = begun(keys(0, 1000))
    for key in keys(1000, 2000):
        summary.add(key)
    client.take(summary.since(0, 0))
    # 4 probes, 10 bits a key at the most: 1.2 in a hundred.
    assert sum(client.has(key) for key in keys(2000, 12_000)) < 300


def test_a_client_is_told_what_is_new_or_all() -> None:
    summary, client = begun(keys(0, 10)), Client()
    whole = summary.since(0, 0)
    client.take(whole)
    assert whole is not None
    assert whole.content
    summary.add(b"new")
    change = summary.since(client.epoch, client.version)
    assert change == Change(client.epoch, 1, added=(hash_of(b"new"),))
    client.take(change)
    assert summary.since(client.epoch, client.version) == Change(client.epoch, 1)
    for key in keys(10, 10 + summaries._JOURNAL_MAX + 1):
        summary.add(key)
    # It missed more than is remembered.
    missed = summary.since(client.epoch, client.version)
    assert missed is not None
    assert missed.content
    # A version that never was is of another life of the node.
    future = summary.since(client.epoch, 1 << 40)
    assert future is not None
    assert future.content


def test_another_filter_is_begun_when_one_is_full_and_none_that_is_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    summary, client = begun([]), Client()
    client.take(summary.since(0, 0))
    for key in keys(0, 2 * summaries._KEYS_MIN):
        assert not summary.is_full
        summary.add(key)
    assert summary.is_full
    summary.begin(keys(5, 10))
    assert not summary.is_full
    client.take(summary.since(client.epoch, client.version))
    assert all(client.has(key) for key in keys(5, 10))
    assert not all(client.has(key) for key in keys(0, 1000))
    monkeypatch.setattr(summaries, "BYTES_MAX", 1 << 9)
    summary.begin(keys(0, 10))
    assert summary.since(client.epoch, client.version) is None
    summary.add(b"k")


def test_sizes_are_powers_of_two() -> None:
    for count in (0, 1, 819, 820, 5000, 1 << 20):
        size = filter_bytes(count)
        assert size & (size - 1) == 0
        assert 8 * size >= 10 * count
