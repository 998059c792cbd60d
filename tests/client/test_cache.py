"""Copies of values in the client, through the public interface."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

import kvstore

VALUE = b"v" * 1024


@pytest.fixture
def store() -> Iterator[kvstore.Store]:
    with kvstore.connect("embedded", capacity_bytes=64 << 20, cache_bytes=8 << 20) as opened:
        opened.put("first", VALUE)
        settle(opened, "first")
        yield opened


def settle(store: kvstore.Store, key: str) -> None:
    """Read a key until a copy serves it."""
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        before = store.stats().cache_hits
        store.get(key)
        if store.stats().cache_hits > before:
            return
    pytest.fail(f"no copy was made of {key}")


def verbs(store: kvstore.Store) -> int:
    stats = store.stats()
    return stats.reads + stats.writes + stats.cas + stats.faa


def test_every_read_of_a_copy(store: kvstore.Store) -> None:
    version = store.put("first", VALUE)
    settle(store, "first")
    before = verbs(store)
    buffer = bytearray(2000)
    assert store.get("first") == VALUE
    assert store["first"] == VALUE
    assert store.get_versioned("first") == (VALUE, version)
    assert store.get_into("first", buffer) == len(VALUE)
    assert buffer[: len(VALUE)] == VALUE
    assert "first" in store
    assert store.get_many(["first"]) == [VALUE]
    with pytest.raises(kvstore.BufferTooSmall):
        store.get_into("first", bytearray(10))
    assert verbs(store) == before


def test_uncached_reads_ask_the_node(store: kvstore.Store) -> None:
    before = verbs(store)
    assert store.get("first", cached=False) == VALUE
    assert store.get_versioned("first", cached=False) is not None
    assert store.get_into("first", bytearray(2000), cached=False) == len(VALUE)
    assert store.contains("first", cached=False)
    assert verbs(store) >= before + 8


def test_what_was_written_is_read(store: kvstore.Store) -> None:
    for number in range(50):
        store.put("first", b"%d" % number)
        assert store.get("first") == b"%d" % number
        assert store.get("first") == b"%d" % number
    assert store.delete("first")
    assert store.get("first") is None
    assert "first" not in store


def test_structured_and_empty_and_large_values(store: kvstore.Store) -> None:
    store.put_object("object", {"a": [1, 2, 3]})
    store.put("empty", b"")
    large = bytes(range(256)) * 2000
    store.put("large", large)
    buffer = bytearray(len(large))
    for _ in range(5):
        assert store.get_object("object") == {"a": [1, 2, 3]}
        assert store.get("empty") == b""
        assert store.get("large") == large
        assert store.get_into("large", buffer) == len(large)
        assert buffer == large
    assert store.stats().cache_fills >= 4


def test_clear_ends_copies(store: kvstore.Store) -> None:
    assert store.clear() == 1
    assert store.get("first") is None


def test_without_cache_bytes_there_are_no_copies() -> None:
    with kvstore.connect("embedded", capacity_bytes=64 << 20) as store:
        store.put("key", VALUE)
        for _ in range(10):
            assert store.get("key") == VALUE
        assert store.stats().cache_fills == 0
        assert store.stats().cache_hits == 0


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(kvstore.ConfigurationError, match="cache_bytes"):
        kvstore.connect("embedded", cache_bytes=-1)
