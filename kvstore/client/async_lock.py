"""The asyncio form of a lock."""

from __future__ import annotations

import asyncio
import itertools
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from kvstore.errors import KvError, NotHeld

if TYPE_CHECKING:
    from kvstore.client.native import Lock
    from kvstore.client.store import Store
    from kvstore.types import Key

#: Tasks as owners of locks, apart from the threads that the extension module numbers from 1.
_FIRST_OWNER: Final = 1 << 62
_owner_numbers = itertools.count(_FIRST_OWNER)
_owners: weakref.WeakKeyDictionary[asyncio.Task[Any], int] = weakref.WeakKeyDictionary()


class AsyncLock:
    """A lock for a task: `async with store.lock(name) as held`. Made by `AsyncStore.lock`.

    A task that waits has a thread of its own wait, so however many tasks wait, none of them keeps
    another from its lock.
    """

    def __init__(
        self,
        store: Store,
        name: Key,
        *,
        shared: bool,
        timeout_s: float | None,
        lease_s: float | None,
    ) -> None:
        self._store = store
        self._name = name
        self._shared = shared
        self._timeout_s = timeout_s
        self._lease_s = lease_s
        self._lock: Lock | None = None

    @property
    def token(self) -> int:
        """The token of this possession: larger than those of all earlier writers."""
        return self._held().token

    def __repr__(self) -> str:
        mode = "shared" if self._shared else "exclusive"
        return f"<AsyncLock {self._name!r}, {mode}, {'held' if self.held else 'not held'}>"

    @property
    def name(self) -> Key:
        """The name of the lock."""
        return self._name

    @property
    def shared(self) -> bool:
        """Whether other readers may hold it too."""
        return self._shared

    @property
    def held(self) -> bool:
        """Whether it is held through this object."""
        return self._lock is not None

    @property
    def lost(self) -> bool:
        """Whether it is held, but its node is known to be gone or to have cut this client off."""
        return self._lock is not None and self._lock.lost

    async def acquire(self) -> None:
        """Wait for the lock; DeadlineExceeded if the time-out passes.

        If the task is cancelled meanwhile, the wish leaves the queue, and a lock that is granted
        before that is let go, before the cancellation goes on.
        """
        await self._take(_acquire)

    async def try_acquire(self) -> bool:
        """Acquire the lock if it is free; return whether."""
        return await self._take(_try_acquire)

    async def _take(self, take: Callable[[Lock], bool]) -> bool:
        lock = self._store.lock(
            self._name,
            shared=self._shared,
            timeout_s=self._timeout_s,
            lease_s=self._lease_s,
            owner=_owner(),
        )
        if not await _in_thread(lock, take):
            return False
        self._lock = lock
        return True

    async def release(self) -> None:
        """Release the lock; LockLost if it had been lost before."""
        lock = self._held()
        self._lock = None
        await asyncio.shield(asyncio.to_thread(lock.release))

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.release()

    def _held(self) -> Lock:
        if self._lock is None:
            raise NotHeld(f"lock {self._name!r} is not held through this object")
        return self._lock


def _owner() -> int:
    task = asyncio.current_task()
    if task is None:
        return 0
    if task not in _owners:
        _owners[task] = next(_owner_numbers)
    return _owners[task]


def _acquire(lock: Lock) -> bool:
    lock.acquire()
    return True


def _try_acquire(lock: Lock) -> bool:
    return lock.try_acquire()


async def _in_thread(lock: Lock, take: Callable[[Lock], bool]) -> bool:
    """Acquire on a thread of its own; return what `take` does.

    If the task is cancelled, the wish leaves the queue, and nothing is held when this raises.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[bool] = loop.create_future()

    def acquire() -> None:
        taken = False
        failure: BaseException | None = None
        try:
            taken = take(lock)
        except BaseException as error:
            failure = error
        # Without its loop nobody wants the lock: it is released with its last reference.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, ended, taken, failure)

    threading.Thread(target=acquire, name="kvstore-lock", daemon=True).start()
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError:
        lock.cancel()
        await asyncio.shield(asyncio.ensure_future(_let_go(lock, ended)))
        raise


def _settle(ended: asyncio.Future[bool], taken: bool, failure: BaseException | None) -> None:
    if ended.done():
        return
    if failure is None:
        ended.set_result(taken)
    else:
        ended.set_exception(failure)


async def _let_go(lock: Lock, ended: asyncio.Future[bool]) -> None:
    """See a cancelled wish out of the queue; a lock that was granted just before is released."""
    with suppress(KvError):
        if await ended:
            await asyncio.to_thread(lock.release)
