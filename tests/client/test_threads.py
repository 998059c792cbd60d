"""Many threads on one store, and its end while they work."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import kvstore

THREADS = 12  # More than the client has lanes, so some wait for one.


def in_threads(work: Callable[[int], None], threads: int = THREADS) -> None:
    """Runs `work` in many threads at once and raises what any of them raised."""
    barrier = threading.Barrier(threads)

    def begin(index: int) -> None:
        barrier.wait()
        work(index)

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(begin, index) for index in range(threads)]:
            future.result(timeout=60)


def test_each_thread_sees_its_own_keys(store: kvstore.Store) -> None:
    def work(index: int) -> None:
        for step in range(150):
            key = f"{index}-{step % 7}"
            value = bytes([index]) * (100_000 if step % 50 == 0 else 10 + step)
            store.put(key, value)
            assert store.get(key) == value
            assert store.get_many([key, "none"]) == [value, None]

    in_threads(work)
    assert len(store) == THREADS * 7


def test_a_value_is_never_torn(store: kvstore.Store) -> None:
    def work(index: int) -> None:
        for step in range(120):
            if index % 2:
                store.put("shared", bytes([index]) * (1000 + 7919 * (step % 13)))
                continue
            value = store.get("shared")
            assert value is None or value == value[:1] * len(value)

    in_threads(work)


def test_counting_by_compare_and_put(store: kvstore.Store) -> None:
    store.put("counter", b"0")
    rounds = 40

    def work(_: int) -> None:
        for _step in range(rounds):
            while True:
                found = store.get_versioned("counter")
                assert found is not None
                value, version = found
                try:
                    store.put("counter", b"%d" % (int(value) + 1), if_version=version)
                except kvstore.ConditionFailed:
                    continue
                break

    in_threads(work)
    assert store.get("counter") == b"%d" % (THREADS * rounds)


def test_one_of_many_creates_a_key(store: kvstore.Store) -> None:
    for attempt in range(20):
        created: list[int] = []

        def work(index: int, key: str = f"k{attempt}", created: list[int] = created) -> None:
            try:
                store.put(key, b"%d" % index, if_absent=True)
            except kvstore.ConditionFailed:
                return
            created.append(index)

        in_threads(work)
        assert len(created) == 1
        assert store.get(f"k{attempt}") == b"%d" % created[0]


def test_close_while_others_work() -> None:
    store = kvstore.connect("embedded", capacity_bytes=16 << 20)
    store.put("k", b"v" * 1000)
    refused = threading.Semaphore(0)

    def work() -> None:
        try:
            while True:
                assert store.get_many(["k"] * 20) == [b"v" * 1000] * 20
                store.put("k", b"v" * 1000)
        except kvstore.StoreClosed:
            refused.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    store.close()
    for thread in threads:
        thread.join(10)
        assert refused.acquire(timeout=1), "a thread ended in another way than by StoreClosed"


def test_after_close_everything_says_so() -> None:
    with kvstore.connect("embedded", capacity_bytes=16 << 20) as store:
        store.put("k", b"v")
        assert not store.closed
    assert store.closed
    store.close()
    for call in (
        lambda: store.get("k"),
        lambda: store.put("k", b"v"),
        lambda: store.get_many(["k"]),
        lambda: "k" in store,
        lambda: len(store),
        store.clear,
        lambda: list(store),
        store.stats,
    ):
        with pytest.raises(kvstore.StoreClosed, match="closed"):
            call()
    assert "closed" in repr(store)


def test_a_dropped_store_gives_its_memory_back() -> None:
    threads = threading.active_count()
    for _ in range(10):
        kvstore.connect("embedded", capacity_bytes=16 << 20).put("k", b"v")
        gc.collect()
    assert threading.active_count() == threads


def test_two_stores_do_not_know_each_other(store: kvstore.Store) -> None:
    with kvstore.connect("embedded", capacity_bytes=16 << 20) as other:
        store.put("k", b"one")
        other.put("k", b"other")
        assert store.get("k") == b"one"
        assert other.get("k") == b"other"
        other.clear()
        assert store.get("k") == b"one"


def test_one_thread_does_not_stop_the_others(store: kvstore.Store) -> None:
    """Large values move without the GIL: a thread of Python gets on meanwhile."""
    value = bytes(16 << 20)
    store.put("large", value)
    steps = 0
    done = threading.Event()

    def count() -> None:
        nonlocal steps
        while not done.is_set():
            steps += 1

    thread = threading.Thread(target=count)
    thread.start()
    begin = time.monotonic()
    for _ in range(5):
        store.get("large")
        store.put("large", value)
    elapsed = time.monotonic() - begin
    done.set()
    thread.join()
    assert steps > 1000 * elapsed
