"""Single-flight: engines that miss the same chain at the same moment compute it once.

Whoever misses takes the queue lock of the first block that is not there. One *leads*: it computes,
stores, and ends its flight; the others wait for that, look again, and load. Waiting costs the node
nothing, and has a deadline. A leader that dies loses its lock, one that fails ends its flight:
either way the next one in the queue looks, finds nothing, and leads in its turn.

A flight holds one lock at most and waits for one at most, so nobody waits in a circle.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final

from kvstore.errors import DeadlineExceeded, KvError
from kvstore.llm.held_lock import HeldLock

if TYPE_CHECKING:
    from kvstore.client.native import Lock
    from kvstore.client.store import Store

#: How many leading blocks can be loaded, and the key of the first that can't; None: all can.
Look = Callable[[], tuple[int, bytes | None]]

#: Flights of one client that may wait at once; more do not wait.
WAITING_MAX: Final = 64
_NAME: Final = b"flight "
#: Each flight is an owner of its own: one thread may lead one and wait for another.
owners: Final = itertools.count(1 << 61)
_log = logging.getLogger("kvstore.llm")


class Flight(HeldLock):
    """The right to compute what is missing; `end` it once that is stored, or won't be.

    Attributes:
        matched: Leading blocks that can be loaded, as of the end of the wait.
        waited: Whether it waited for another engine.
        late: Whether the deadline ended the wait: others may compute the same just now.
    """

    def __init__(
        self, matched: int, lock: Lock | None = None, *, waited: bool = False, late: bool = False
    ) -> None:
        super().__init__(lock)
        self.matched = matched
        self.waited = waited
        self.late = late

    @property
    def leads(self) -> bool:
        """Whether others wait for the end of this flight, as far as they miss the same block."""
        return self._lock is not None


class Flights:
    """Begins flights of one client. Thread-safe."""

    def __init__(self, store: Store, *, waiting_max: int = WAITING_MAX) -> None:
        self._store = store
        self._room = threading.Semaphore(waiting_max)
        self._warned = False

    def join(self, look: Look, timeout_s: float) -> Flight:
        """Wait, at most so long, until everything is there or it is this caller's turn."""
        flight = self._fly(look, time.monotonic() + timeout_s, patient=True)
        assert flight is not None
        return flight

    def begin(self, look: Look, timeout_s: float) -> Future[Flight]:
        """Do the same without blocking for longer than looking takes.

        Where it has to wait, a thread of its own does. A flight that nobody wants any more is ended
        by `abandon`.
        """
        future: Future[Flight] = Future()
        deadline = time.monotonic() + timeout_s
        flight = self._fly(look, deadline, patient=False)
        if flight is not None:
            future.set_result(flight)
            return future

        def wait() -> None:
            try:
                waited = self._fly(look, deadline, patient=True)
                assert waited is not None
                future.set_result(waited)
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=wait, name="kvstore-flight", daemon=True).start()
        return future

    def _fly(self, look: Look, deadline: float, *, patient: bool) -> Flight | None:
        """None where it would have to wait and must not."""
        matched, missing = look()
        waited = False
        while missing is not None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return Flight(matched, waited=waited, late=waited)
            lock = self._store.lock(_NAME + missing, owner=next(owners))
            try:
                if not lock.try_acquire():
                    if not patient:
                        return None
                    waited = True
                    if not self._wait(lock, left_s):
                        return Flight(look()[0], waited=True, late=True)
            except KvError as error:
                self._warn(error)
                return Flight(matched, waited=waited)
            was_missing = missing
            matched, missing = look()
            flight = Flight(matched, lock, waited=waited)
            if missing == was_missing:
                return flight
            flight.end()
        return Flight(matched, waited=waited)

    def _wait(self, lock: Lock, timeout_s: float) -> bool:
        """Acquire; false if that does not come to it."""
        if not self._room.acquire(blocking=False):
            return False
        try:
            lock.acquire(timeout_s=timeout_s)
        except DeadlineExceeded:
            return False
        finally:
            self._room.release()
        return True

    def _warn(self, error: KvError) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("engines do not wait for one another: %s (logged once)", error)


def abandon(future: Future[Flight]) -> None:
    """End a flight that was begun, now or as soon as its wait is over."""

    def end(done: Future[Flight]) -> None:
        if done.exception() is None:
            done.result().end()

    future.add_done_callback(end)
