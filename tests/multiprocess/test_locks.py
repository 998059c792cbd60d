"""Locks between processes, some of which are killed while they hold, wait, or mend."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time

import pytest

import kvstore
import kvstore.aio
from tests.multiprocess.conftest import LEASE_S, StartWorker, target_on, wait_until
from tests.support.clients import ClientProcess
from tests.support.nodes import start_node

LEASE = f"--membership-lease={LEASE_S}"


def tokens(client: ClientProcess) -> list[int]:
    return [int(line[1:].split()[0]) for line in client.lines() if line.startswith("+")]


def possessions(client: ClientProcess) -> list[tuple[float, float, int]]:
    """Begin, end and token of each; the end is infinite where it did not come to it."""
    found: list[tuple[float, float, int]] = []
    for line in client.lines():
        if line[0] == "+":
            token, when = line[1:].split()
            found.append((float(when), float("inf"), int(token)))
        elif line[0] == "-":
            found[-1] = (found[-1][0], float(line.split()[1]), found[-1][2])
    return found


def names_of_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_every_increment_under_a_lock_counts(fabric: str, start_worker: StartWorker) -> None:
    with start_node("32MiB", LEASE) as node:
        target = target_on(node, fabric)
        workers = [start_worker("count_locked", target, "n", 100) for _ in range(3)]
        for worker in workers:
            wait_until("all rounds", lambda worker=worker: "done" in worker.lines(), 60)
        with kvstore.connect(target) as store:
            assert store.get("number") == b"300"
        everyone = [token for worker in workers for token in tokens(worker)]
        assert len(set(everyone)) == 300


@pytest.mark.parametrize("victim", ["holder", "waiter"])
def test_a_killed_process_is_no_obstacle(
    fabric: str, victim: str, start_worker: StartWorker
) -> None:
    """The next waiter has the lock soon after the node knows that the process is dead."""
    with start_node("32MiB", LEASE) as node, kvstore.connect(target_on(node, fabric)) as store:
        target = target_on(node, fabric)
        if victim == "holder":
            doomed = start_worker("lock", target, "a", "exclusive", 60)
            doomed.wait_lines(2)
            last = tokens(doomed)[-1]
            doomed.kill()
        else:
            own = store.lock("a")
            own.acquire()
            last = own.token
            doomed = start_worker("lock", target, "a", "exclusive", 60)
            doomed.wait_lines(1)
            time.sleep(0.2)  # it waits by now, or the test shows less than it could
            doomed.kill()
            own.release()
        began = time.monotonic()
        with store.lock("a", timeout_s=20) as held:
            took = time.monotonic() - began
            assert held.token > last
        assert took < LEASE_S + 5.0
        with store.lock("a", timeout_s=20):
            pass


def test_whoever_is_killed_nobody_else_enters_early(fabric: str, start_worker: StartWorker) -> None:
    """Processes that share a lock are killed one after the other, some of them while they reset."""
    with start_node("32MiB", LEASE) as node:
        target = target_on(node, fabric)
        dead: list[ClientProcess] = []
        live = [start_worker("lock", target, "a", "exclusive", 0.01) for _ in range(4)]
        for worker in live:
            worker.wait_lines(3, 30)
        for turn in range(6):
            victim = live.pop(0)
            victim.kill()
            dead.append(victim)
            if turn % 2:  # the next one soon after: it may be at mending
                time.sleep(LEASE_S / 2 if fabric == "tcp" else 0.005)
            else:
                progress = max(max(tokens(worker), default=0) for worker in live)
                wait_until(
                    "the others go on",
                    lambda p=progress: max(max(tokens(w), default=0) for w in live) > p,
                    20,
                )
            live.append(start_worker("lock", target, "a", "exclusive", 0.01))
        progress = max(max(tokens(worker), default=0) for worker in live)
        wait_until("all go on", lambda: all(max(tokens(w), default=0) > progress for w in live), 30)
        for worker in live:
            worker.kill()
        everything = sorted(
            (begin, end, token) for w in dead + live for begin, end, token in possessions(w)
        )
        for (_, end, token), (begin, _, following) in itertools.pairwise(everything):
            assert following > token
            # Who was killed inside says no end; its lock may go on only once it was dead.
            assert begin >= end or end == float("inf")


def test_a_cancelled_task_leaves_the_queue(fabric: str) -> None:
    """Before its cancellation goes on, so that nothing is in the way of its next wish."""

    async def give_up_after(store: kvstore.aio.AsyncStore, patience_s: float) -> None:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(patience_s), store.lock("a", timeout_s=600):
                pass
        assert time.monotonic() - began < patience_s + 5.0
        wait_until("nobody waits", lambda: "kvstore-lock" not in names_of_threads(), 1.0)

    async def main(holder: kvstore.Store, target: str) -> None:
        async with await kvstore.aio.connect(target) as store:
            held = holder.lock("a")
            held.acquire()
            for patience_s in (0.2, 0, 0.0002, 0.0005, 0.001, 0.005):
                await give_up_after(store, patience_s)
            held.release()
            async with store.lock("a", timeout_s=20) as own:
                token = own.token
            with holder.lock("a", timeout_s=20) as again:
                assert again.token > token

    with start_node("32MiB", LEASE) as node, kvstore.connect(target_on(node, fabric)) as store:
        asyncio.run(main(store, target_on(node, fabric)))


def test_a_stopped_process_keeps_its_lock_or_loses_it_for_good(
    fabric: str, start_worker: StartWorker
) -> None:
    with start_node("32MiB", LEASE) as node, kvstore.connect(target_on(node, fabric)) as store:
        worker = start_worker("lock", target_on(node, fabric), "a", "exclusive", 0.3)
        worker.wait_lines(2)
        worker.pause()
        lock = store.lock("a", timeout_s=3 * LEASE_S)
        try:
            lock.acquire()
            # Over tcp the node has cut it off; when it goes on it is told so.
            assert fabric == "tcp"
            worker.resume()
            wait_until("it is told", lambda: any("LockLost" in x for x in worker.lines()))
            lock.release()
        except kvstore.DeadlineExceeded:
            assert fabric == "shm"
            worker.resume()
        with store.lock("a", timeout_s=20):
            pass
