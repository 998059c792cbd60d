"""Locks of a store, in one process."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest

import kvstore
import kvstore.aio
from kvstore.node.memory_node import MemoryNode


@pytest.fixture
def store() -> Iterator[kvstore.Store]:
    with kvstore.connect() as opened:
        yield opened


def test_a_lock_excludes_and_its_tokens_grow(store: kvstore.Store) -> None:
    counter, tokens = 0, []

    def work() -> None:
        nonlocal counter
        for _ in range(200):
            with store.lock("counter") as held:
                before = counter
                tokens.append(held.token)
                counter = before + 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter == 800
    assert tokens == sorted(set(tokens))


def test_readers_share(store: kvstore.Store) -> None:
    with store.lock("a", shared=True) as one:
        other = store.lock("a", shared=True)
        reader = threading.Thread(target=other.acquire)
        reader.start()
        reader.join(10)
        assert other.held
        assert one.held
        tried: list[bool] = []
        writer = threading.Thread(target=lambda: tried.append(store.lock("a").try_acquire()))
        writer.start()
        writer.join(10)
        assert tried == [False]
        other.release()


def test_a_wait_ends_at_its_time_out(store: kvstore.Store) -> None:
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            store.lock("a", timeout_s=0.05).acquire()
        except kvstore.KvError as error:
            failures.append(error)

    with store.lock("a"):
        waiter = threading.Thread(target=wait)
        waiter.start()
        waiter.join(10)
    assert isinstance(failures[0], kvstore.DeadlineExceeded)
    assert "'a'" in str(failures[0])


def test_who_holds_it_is_told_so(store: kvstore.Store) -> None:
    with store.lock("a"):
        for shared in (False, True):
            with pytest.raises(kvstore.WouldDeadlock), store.lock("a", shared=shared):
                pass
    with (
        store.lock("a", shared=True),
        pytest.raises(kvstore.WouldDeadlock, match="for writing"),
        store.lock("a"),
    ):
        pass


def test_a_lock_object_can_be_used_again(store: kvstore.Store) -> None:
    lock = store.lock("a")
    for _ in range(3):
        with lock as held:
            assert held is lock
            assert held.held
            assert held.token > 0
            assert not held.lost
        assert not lock.held
    with pytest.raises(kvstore.NotHeld):
        lock.release()
    with pytest.raises(kvstore.NotHeld):
        _ = lock.token
    assert lock.try_acquire()
    with pytest.raises(kvstore.WouldDeadlock):
        lock.acquire()
    lock.release()


def test_a_lock_says_what_it_is(store: kvstore.Store) -> None:
    lock = store.lock("order/17", shared=True)
    assert repr(lock) == "<Lock 'order/17', shared, not held>"
    with lock:
        assert repr(lock) == "<Lock 'order/17', shared, held>"
    assert repr(store.lock(b"a")) == "<Lock b'a', exclusive, not held>"


def test_names_are_those_of_keys(store: kvstore.Store) -> None:
    with store.lock("name"), pytest.raises(kvstore.WouldDeadlock), store.lock(b"name"):
        pass
    for name in (b"", "x" * 1025):
        with pytest.raises(kvstore.KeyInvalid), store.lock(name):
            pass
    with pytest.raises(ValueError, match="timeout_s"):
        store.lock("a", timeout_s=0)


def test_a_lock_that_is_dropped_is_released(store: kvstore.Store) -> None:
    store.lock("a").acquire()
    assert store.lock("a").try_acquire()


def test_several_locks_in_one_order(store: kvstore.Store) -> None:
    """Threads that take the same locks in every order never wait in a circle."""
    names = [f"account {i}" for i in range(6)]
    balance = dict.fromkeys(names, 100)

    def transfer(seed: int) -> None:
        for turn in range(60):
            source, target = names[(seed + turn) % 6], names[(seed * 5 + turn * 7 + 1) % 6]
            with store.locks([source, target], timeout_s=20) as held:
                assert len(held) == len({source, target})
                amount = turn % 7
                balance[source] -= amount
                balance[target] += amount

    threads = [threading.Thread(target=transfer, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(balance.values()) == 600


def test_closing_a_store_with_a_lock(store: kvstore.Store) -> None:
    other = kvstore.connect()
    lock = other.lock("a")
    lock.acquire()
    other.close()
    assert lock.lost
    with pytest.raises(kvstore.StoreClosed):
        lock.release()
    with pytest.raises(kvstore.StoreClosed):
        lock.acquire()


def test_tasks_exclude_each_other() -> None:
    async def main() -> int:
        counter = 0
        async with await kvstore.aio.connect() as store:

            async def work() -> None:
                nonlocal counter
                for _ in range(10):
                    async with store.lock("a") as held:
                        before = counter
                        assert held.token > 0
                        await asyncio.sleep(0)
                        counter = before + 1

            await asyncio.gather(*(work() for _ in range(8)))
            async with store.locks(["a", "b", "a"]) as both:
                assert [lock.held for lock in both] == [True, True]
                with pytest.raises(kvstore.WouldDeadlock):
                    async with store.lock("a"):
                        pass
        return counter

    assert asyncio.run(main()) == 80


def test_a_task_takes_a_lock_only_if_it_is_free() -> None:
    async def main() -> None:
        async with await kvstore.aio.connect() as store:
            lock = store.lock("a", shared=True)
            assert repr(lock) == "<AsyncLock 'a', shared, not held>"
            assert (lock.name, lock.shared) == ("a", True)
            assert await lock.try_acquire()
            assert repr(lock) == "<AsyncLock 'a', shared, held>"

            async def other() -> bool:
                writer = store.lock("a")
                taken = await writer.try_acquire()
                assert taken == writer.held
                return taken

            assert not await asyncio.create_task(other())
            await lock.release()
            assert await asyncio.create_task(other())

    asyncio.run(main())


def test_a_lock_that_is_cancelled_is_waited_for_no_longer(store: kvstore.Store) -> None:
    failures: list[BaseException] = []
    waiting = store.lock("a", timeout_s=600)

    def wait() -> None:
        try:
            waiting.acquire()
        except kvstore.KvError as error:
            failures.append(error)

    with store.lock("a") as held:
        held.cancel()
        assert held.held
        for _ in range(2):  # before it waits, or while: a cancellation is for good
            waiter = threading.Thread(target=wait)
            waiter.start()
            waiting.cancel()
            waiter.join(10)
            assert not waiter.is_alive()
    assert [type(failure) for failure in failures] == [kvstore.Interrupted] * 2
    assert "'a'" in str(failures[0])
    assert not waiting.held
    with store.lock("a"):
        pass


def test_an_older_holder_can_write_no_more(store: kvstore.Store) -> None:
    with store.lock("a") as held:
        old = held.token
        store.put("k", b"first", fence=old)
    with store.lock("a") as held:
        assert held.token > old
        store.put("k", b"second", fence=held.token)
    with pytest.raises(kvstore.FencedWrite, match="'k'"):
        store.put("k", b"late", fence=old)
    with pytest.raises(kvstore.FencedWrite):
        store.delete("k", fence=old)
    outcomes = store.put_many({"k": b"late", "other": b"1"}, fence=old)
    assert isinstance(outcomes[0], kvstore.FencedWrite)
    assert isinstance(outcomes[1], int)
    assert store["k"] == b"second"
    assert store.delete("k")
    with pytest.raises(kvstore.FencedWrite):
        store.put("k", b"late", fence=old)
    assert "k" not in store
    assert list(store.keys()) == [b"other"]


def test_a_key_stays_with_its_lock(store: kvstore.Store) -> None:
    with store.locks(["a", "b"]) as held:
        store.put_object("k", {"n": 1}, fence=held[0].token)
        with pytest.raises(kvstore.FenceMismatch):
            store.put("k", b"", fence=held[1].token)
        with pytest.raises(kvstore.FenceMismatch):
            store.put("k", b"", fence=17)
    assert store.get_object("k") == {"n": 1}


def test_a_fence_is_a_number(store: kvstore.Store) -> None:
    store.put("own numbers", b"", fence=2)
    with pytest.raises(kvstore.FencedWrite):
        store.put("own numbers", b"", fence=1)
    for wrong in (-1, 1 << 128):
        with pytest.raises(ValueError, match="no token"):
            store.put("k", b"", fence=wrong)
    with pytest.raises(TypeError, match="the token of a lock"):
        store.put("k", b"", fence="1")  # type: ignore[arg-type]
    assert "k" not in store


def test_an_older_holder_can_write_no_more_async() -> None:
    async def work() -> None:
        async with await kvstore.aio.connect() as store:
            async with store.lock("a") as held:
                old = held.token
            async with store.lock("a") as held:
                await store.put("k", b"new", fence=held.token)
                with pytest.raises(kvstore.FencedWrite):
                    await store.put("k", b"late", fence=old)
                with pytest.raises(kvstore.FencedWrite):
                    await store.delete("k", fence=old)
                outcomes = await store.put_many({"k": b"late"}, fence=old)
                assert isinstance(outcomes[0], kvstore.FencedWrite)
                assert await store.delete("k", fence=held.token)

    asyncio.run(work())


@pytest.fixture
def patient_store() -> Iterator[kvstore.Store]:
    """A store whose node gives clients up after so short a time that a test can wait for it."""
    name = f"kvstore-test-lease-{os.getpid()}"
    node = MemoryNode(capacity_bytes=16 << 20, shm_name=name, membership_lease_ms=200)
    try:
        with kvstore.connect(f"shm://{name}") as opened:
            yield opened
    finally:
        node.close()


def test_after_its_lease_a_lock_goes_on_to_others(patient_store: kvstore.Store) -> None:
    store = patient_store
    stuck = store.lock("a", lease_s=0.25)
    stuck.acquire()
    old = stuck.token
    assert not stuck.lost
    tokens: list[int] = []

    def work() -> None:
        with store.lock("a", timeout_s=30) as held:
            tokens.append(held.token)
            store.put("k", b"new", fence=held.token)

    other = threading.Thread(target=work)
    other.start()
    other.join(30)
    assert tokens
    assert tokens[0] > old
    assert stuck.lost
    with pytest.raises(kvstore.FencedWrite):
        store.put("k", b"late", fence=old)
    with pytest.raises(kvstore.LockLost):
        stuck.release()
    with store.lock("a", lease_s=60) as held:
        assert not held.lost


def test_a_lease_is_no_shorter_than_that_of_a_client(store: kvstore.Store) -> None:
    with (
        pytest.raises(kvstore.ConfigurationError, match="membership lease"),
        store.lock("a", lease_s=1),
    ):
        pass
    with store.lock("a", lease_s=5):
        pass
