"""The asyncio client over real verbs: keys, batches, registered memory, locks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

import kvstore
import kvstore.aio
from tests.rxe.guest.conftest import TIMEOUT_S
from tests.support.nodes import NodeProcess

TASKS = 8
ROUNDS = 5


def run(node: NodeProcess, test: Callable[[kvstore.aio.AsyncStore], Awaitable[None]]) -> None:
    async def main() -> None:
        target = node.target.replace("kv://", "verbs://")
        async with await kvstore.aio.connect(target, timeout_s=TIMEOUT_S) as store:
            await asyncio.wait_for(test(store), 4 * TIMEOUT_S)

    asyncio.run(main())


def test_keys_one_by_one(node: NodeProcess, prefix: bytes) -> None:
    key = prefix + b"key"

    async def test(store: kvstore.aio.AsyncStore) -> None:
        assert [member.fabric for member in store.members()] == ["verbs"]
        assert await store.get(key) is None
        version = await store.put(key, b"value", if_absent=True)
        assert await store.get_versioned(key) == (b"value", version)
        with pytest.raises(kvstore.ConditionFailed):
            await store.put(key, b"other", if_absent=True)
        large = bytes(index % 251 for index in range(300_000))
        await store.put(key, large)
        into = bytearray(len(large))
        assert await store.get_into(key, into) == len(large)
        assert into == large
        into[:] = bytes(len(large))
        with store.register(into):
            assert await store.get_into(key, into) == len(large)
            assert into == large
            await store.put_from(key + b"-copy", into)
        assert await store.get(key + b"-copy") == large
        assert await store.delete(key) is True
        assert await store.delete(key) is False

    run(node, test)


def test_batches_and_calls_at_the_same_time(node: NodeProcess, prefix: bytes) -> None:
    keys = [prefix + b"%d" % index for index in range(40)]

    async def test(store: kvstore.aio.AsyncStore) -> None:
        await store.put_many([(key, key * 9) for key in keys])
        assert await store.get_many(keys) == [key * 9 for key in keys]
        assert await asyncio.gather(*map(store.get, keys)) == [key * 9 for key in keys]
        await asyncio.gather(*(store.put(key, key * 3) for key in keys))
        # What one client wrote, another one reads.
        with kvstore.connect(node.target, timeout_s=TIMEOUT_S) as other:
            assert other.get_many(keys) == [key * 3 for key in keys]
        assert await store.delete_many(keys) == [True] * len(keys)
        assert await store.contains_many(keys) == [False] * len(keys)

    run(node, test)


def test_tasks_take_turns_at_a_lock(node: NodeProcess, prefix: bytes) -> None:
    key = prefix + b"count"

    async def test(store: kvstore.aio.AsyncStore) -> None:
        await store.put(key, b"0")

        async def count() -> None:
            for _ in range(ROUNDS):
                async with store.lock(prefix + b"lock", timeout_s=TIMEOUT_S):
                    value = await store.get(key)
                    assert value is not None
                    await store.put(key, b"%d" % (int(value) + 1))

        await asyncio.gather(*(count() for _ in range(TASKS)))
        assert await store.get(key) == b"%d" % (TASKS * ROUNDS)

    run(node, test)
