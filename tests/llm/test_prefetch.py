"""Blocks that were fetched ahead."""

from __future__ import annotations

import pytest

import kvstore
from kvstore.llm import Namespace, PrefixCache, block_hashes
from kvstore.llm.codecs.planes import ZstdPlanes

HASHES = block_hashes(range(16 * 8), 16)
BLOCKS = [bytes([i]) * 1024 for i in range(8)]


@pytest.mark.parametrize("codec", [None, ZstdPlanes(2)])
def test_a_fetched_block_needs_no_node(
    store: kvstore.Store, namespace: Namespace, codec: ZstdPlanes | None
) -> None:
    with PrefixCache(store, namespace, codec=codec) as cache:
        cache.put(HASHES, BLOCKS)
        assert cache.prefetch(HASHES, 1024) == 8
        assert cache.prefetch(HASHES, 1024) == 0
        buffers = [bytearray(1024) for _ in HASHES]
        assert cache.get(HASHES, buffers).all_ok
        assert buffers == BLOCKS
        assert cache.stats().loaded_prefetched == 8
        assert cache.stats().loaded_remote == 0
        # Each is handed out once.
        assert cache.get(HASHES, buffers).all_ok
        assert cache.stats().loaded_remote == 8


def test_a_fetch_that_fails_leaves_the_block_to_the_load(
    store: kvstore.Store, namespace: Namespace
) -> None:
    with PrefixCache(store, namespace) as cache:
        cache.prefetch(HASHES[:1], 1024)
        cache.prefetch(HASHES[1:2], 10)
        # Only now: the fetches above cannot have found anything of use.
        first = cache.get(HASHES[:1], [bytearray(1024)])
        assert first.reasons == {0: "absent"}
        cache.put(HASHES[:2], BLOCKS[:2])
        buffers = [bytearray(1024), bytearray(1024)]
        assert cache.get(HASHES[:2], buffers).all_ok
        assert buffers == BLOCKS[:2]
        assert cache.stats().loaded_prefetched == 0


def test_memory_is_bounded(store: kvstore.Store, namespace: Namespace) -> None:
    with PrefixCache(store, namespace, prefetch_bytes=3 * 1024) as cache:
        cache.put(HASHES, BLOCKS)
        assert cache.prefetch(HASHES, 1024) == 3
        assert cache.prefetch(HASHES, 1 << 20) == 0
        buffers = [bytearray(1024) for _ in HASHES]
        assert cache.get(HASHES, buffers).all_ok
        assert buffers == BLOCKS
        assert cache.stats().loaded_prefetched == 3
        # What was handed out made room.
        assert cache.prefetch(HASHES[5:], 1024) == 3


def test_nothing_begins_after_close(store: kvstore.Store, namespace: Namespace) -> None:
    cache = PrefixCache(store, namespace)
    cache.put(HASHES, BLOCKS)
    cache.prefetch(HASHES, 1024)
    cache.close()
    cache.close()
    assert cache.prefetch(HASHES, 1024) == 0
    assert cache.get(HASHES, [bytearray(1024) for _ in HASHES]).all_ok
