"""The asyncio form does what the other one does, many at a time."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Awaitable, Callable

import pytest

import kvstore
import kvstore.aio


def run(test: Callable[[kvstore.aio.AsyncStore], Awaitable[None]]) -> None:
    async def main() -> None:
        options = {"capacity_bytes": 64 << 20}
        async with await kvstore.aio.connect("embedded", **options) as store:
            await asyncio.wait_for(test(store), 60)

    asyncio.run(main())


def test_it_has_every_method_of_the_store() -> None:
    names = {name for name in dir(kvstore.Store) if not name.startswith("_")}
    assert names - set(dir(kvstore.aio.AsyncStore)) == set()
    # Locks are for `async with`.
    for name in names - {
        "stats",
        "members",
        "closed",
        "keys",
        "register",
        "lock",
        "locks",
        "explain",
    }:
        assert inspect.iscoroutinefunction(getattr(kvstore.aio.AsyncStore, name)), name


def test_single_keys() -> None:
    async def test(store: kvstore.aio.AsyncStore) -> None:
        assert await store.get("k") is None
        version = await store.put("k", b"v", if_absent=True)
        assert await store.get("k") == b"v"
        assert await store.get_versioned("k") == (b"v", version)
        assert await store.contains("k") is True
        buffer = bytearray(4)
        assert await store.get_into("k", buffer) == 1
        assert buffer == b"v\0\0\0"
        with pytest.raises(kvstore.ConditionFailed, match="'k'"):
            await store.put("k", b"w", if_absent=True)
        with pytest.raises(kvstore.ConditionFailed):
            await store.put_from("k", b"w", if_version=version + 1)
        assert await store.delete("k", if_version=version) is True
        assert await store.delete("k") is False
        await store.put("brief", b"v", ttl_s=0.05)
        await asyncio.sleep(0.2)  # Expiry is rounded up to ticks.
        assert await store.get("brief") is None
        await store.put_object("o", {"a": [1]})
        assert await store.get_object("o") == {"a": [1]}
        assert await store.get_object("none", 5) == 5
        with pytest.raises(kvstore.KeyInvalid, match="empty"):
            await store.get("")
        with pytest.raises(kvstore.ValueInvalid, match="not text"):
            await store.put("k", "text")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="timeout_s"):
            await store.get("k", timeout_s=0)

    run(test)


def test_batches_and_walks() -> None:
    async def test(store: kvstore.aio.AsyncStore) -> None:
        items = {f"k{i}": bytes([i]) * size for i, size in enumerate([0, 1, 65_537, 300_000])}
        versions = await store.put_many(items)
        assert await store.get_many([*items, "none"]) == [*items.values(), None]
        first, invalid = await store.get_versioned_many(["k1", ""])
        assert first == (items["k1"], versions[1])
        assert isinstance(invalid, kvstore.KeyInvalid)
        small, fits = await store.get_many_into(["k2", "k1"], [bytearray(9), bytearray(9)])
        assert isinstance(small, kvstore.BufferTooSmall)
        assert small.needed == 65_537
        assert fits == 1
        assert await store.match_prefix(["k0", "k1", "none", "k2"]) == 2
        assert await store.contains_many(["k0", "none"]) == [True, False]
        assert await store.get_many([]) == []
        assert sorted([key async for key in store]) == sorted(k.encode() for k in items)
        assert await store.size() == 4
        assert await store.delete_many(["k0", "none"]) == [True, False]
        assert await store.clear() == 3
        assert store.stats().operations > 0
        assert [member.state for member in store.members()] == ["up"]

    run(test)


def test_many_at_a_time() -> None:
    async def test(store: kvstore.aio.AsyncStore) -> None:
        async def one(index: int) -> None:
            value = bytes([index % 256]) * (index * 37 % 3000)
            await store.put(f"k{index}", value)
            assert await store.get(f"k{index}") == value

        await asyncio.gather(*(one(index) for index in range(1500)))
        assert await store.size() == 1500

    run(test)


def test_a_cancelled_get_leaves_no_harm() -> None:
    async def test(store: kvstore.aio.AsyncStore) -> None:
        await store.put("k", b"v" * 200_000)
        tasks = [asyncio.create_task(store.get("k")) for _ in range(50)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await store.get("k") == b"v" * 200_000

    run(test)


def test_after_close() -> None:
    async def main() -> None:
        store = await kvstore.aio.connect("embedded", capacity_bytes=16 << 20)
        await store.put("k", b"v")
        await store.close()
        await store.close()
        assert store.closed
        with pytest.raises(kvstore.StoreClosed):
            await store.get("k")

    asyncio.run(main())


def test_a_dropped_store_does_no_harm() -> None:
    async def main() -> None:
        store = await kvstore.aio.connect("embedded", capacity_bytes=16 << 20)
        await store.put("k", b"v")

    for _ in range(5):
        asyncio.run(main())
        gc.collect()


def test_another_loop_is_refused() -> None:
    async def first() -> kvstore.aio.AsyncStore:
        store = await kvstore.aio.connect("embedded", capacity_bytes=16 << 20)
        await store.put("k", b"v")
        return store

    async def second(store: kvstore.aio.AsyncStore) -> None:
        with pytest.raises(RuntimeError, match="loop"):
            await store.get("k")

    loop = asyncio.new_event_loop()
    store = loop.run_until_complete(first())
    asyncio.run(second(store))
    loop.run_until_complete(store.close())
    loop.close()
