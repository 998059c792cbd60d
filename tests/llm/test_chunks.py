"""Position-independent chunks."""

from __future__ import annotations

import kvstore
from kvstore.llm import ChunkCache, Namespace, PrefixCache, chunk_hash

CHUNK = chunk_hash(range(100))


def test_a_chunk_comes_back_with_its_base_position(
    store: kvstore.Store, namespace: Namespace
) -> None:
    chunks = ChunkCache(store, namespace)
    buffer = bytearray(300)
    assert chunks.get(CHUNK, buffer) is None
    assert chunks.put(CHUNK, b"abc" * 100, base_position=4096)
    # Whoever comes second keeps what is there: bytes and position belong together.
    assert chunks.put(CHUNK, b"xyz" * 100, base_position=0)
    assert chunks.get(CHUNK, buffer) == 4096
    assert buffer == b"abc" * 100


def test_a_chunk_is_no_block(store: kvstore.Store, namespace: Namespace) -> None:
    chunks, blocks = ChunkCache(store, namespace), PrefixCache(store, namespace)
    chunks.put(CHUNK, b"c" * 64, base_position=0)
    assert blocks.match([CHUNK]) == 0
    blocks.put([CHUNK], [b"b" * 64])
    buffer = bytearray(64)
    assert chunks.get(CHUNK, buffer) == 0
    assert buffer == b"c" * 64


def test_a_chunk_of_another_length_or_version_is_a_miss(
    store: kvstore.Store, namespace: Namespace
) -> None:
    chunks = ChunkCache(store, namespace)
    chunks.put(CHUNK, b"c" * 64, base_position=1)
    assert chunks.get(CHUNK, bytearray(65)) is None
    # Not offered again at once, at its right length either.
    assert chunks.get(CHUNK, bytearray(64)) is None
    other = chunk_hash(range(7))
    chunks.put(other, b"c" * 64, base_position=1)
    (key,) = [key for key in store if key.endswith(other)]
    store.put(key, b"\x02" + (store.get(key) or b"")[1:])
    assert ChunkCache(store, namespace).get(other, bytearray(64)) is None
