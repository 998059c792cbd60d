"""The asynchronous form gives what the synchronous one gives."""

from __future__ import annotations

import asyncio

import kvstore.aio
from kvstore.llm import AsyncPrefixCache, Namespace, PrefixCache, block_hashes
from kvstore.llm.codecs.planes import ZstdPlanes
from tests.support.nodes import start_node

HASHES = block_hashes(range(16 * 8), 16)
BLOCKS = [bytes([i]) * 1024 for i in range(8)]


def test_both_forms_share_blocks(namespace: Namespace) -> None:
    async def scenario(target: str) -> None:
        async with await kvstore.aio.connect(target) as opened:
            cache = AsyncPrefixCache(opened, namespace, codec=ZstdPlanes(4))
            assert await cache.match(HASHES) == 0
            result = await cache.put(HASHES, BLOCKS)
            assert (result.stored, result.present) == (8, 0)
            assert (await cache.put(HASHES, BLOCKS)).present == 8
            buffers = [bytearray(1024) for _ in HASHES]
            loads = await asyncio.gather(
                *(cache.get([h], [b]) for h, b in zip(HASHES, buffers, strict=True))
            )
            assert all(load.all_ok for load in loads)
            assert buffers == BLOCKS
            assert (await cache.get([b"absent"], [bytearray(8)])).reasons == {0: "absent"}
            assert await cache.match([b"absent"]) == 0
            stats = cache.stats()
            assert (stats.loaded_remote, stats.failed_loads, stats.negative_hits) == (8, 1, 1)
            assert stats.stored_bytes < stats.stored_raw_bytes == 8 * 1024

    with start_node() as node:
        asyncio.run(scenario(node.target))
        with kvstore.connect(node.target) as store:
            cache = PrefixCache(store, namespace)
            assert cache.match(HASHES) == 8
            buffers = [bytearray(1024) for _ in HASHES]
            assert cache.get(HASHES, buffers).all_ok
            assert buffers == BLOCKS
