"""A forked child cannot use its parent's store, is told so, and may connect anew."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable

import pytest

import kvstore


def in_child(work: Callable[[], None]) -> None:
    """Runs `work` in a forked child and fails if it does not end well there."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc(file=sys.stderr)
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def test_the_child_is_told(store: kvstore.Store) -> None:
    store.put("k", b"parent")

    def child() -> None:
        for call in (
            lambda: store.get("k"),
            lambda: store.put("k", b"child"),
            lambda: store.get_many(["k"]),
            lambda: store.size(),
            lambda: list(store),
        ):
            with pytest.raises(kvstore.ForkedError, match=r"kvstore\.connect"):
                call()

    in_child(child)
    assert store.get("k") == b"parent"


def test_the_child_connects_anew(store: kvstore.Store) -> None:
    store.put("k", b"parent")

    def child() -> None:
        with kvstore.connect("embedded", capacity_bytes=16 << 20) as own:
            own.put("k", b"child")
            assert own.get("k") == b"child"
            assert own.get_many(["k", "none"]) == [b"child", None]

    in_child(child)
    assert store.get("k") == b"parent"


def test_the_child_closes_its_copy(store: kvstore.Store) -> None:
    own = kvstore.connect("embedded", capacity_bytes=16 << 20)
    own.put("k", b"v")

    def child() -> None:
        own.close()
        own.close()
        with pytest.raises(kvstore.StoreClosed):
            own.get("k")

    in_child(child)
    assert own.get("k") == b"v"
    own.close()


def test_a_fork_amid_calls_of_other_threads(store: kvstore.Store) -> None:
    store.put("k", b"v" * 100)
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            store.put("k", b"v" * 100)
            assert store.get("k") == b"v" * 100

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()

    def child() -> None:
        with pytest.raises(kvstore.ForkedError):
            store.get("k")
        with kvstore.connect("embedded", capacity_bytes=16 << 20) as own:
            own.put("k", b"w")
            assert own.get("k") == b"w"

    try:
        for _ in range(5):
            in_child(child)
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_multiprocessing_by_fork(store: kvstore.Store) -> None:
    """What a pool of workers does: the child ends like any Python, at-exit functions and all."""
    import multiprocessing

    context = multiprocessing.get_context("fork")
    worker = context.Process(target=_expect_forked, args=(store,))
    worker.start()
    worker.join(20)
    assert worker.exitcode == 0


def _expect_forked(store: kvstore.Store) -> None:
    try:
        store.get("k")
    except kvstore.ForkedError:
        return
    raise SystemExit(3)
