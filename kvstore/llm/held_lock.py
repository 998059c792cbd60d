"""A right whose end others wait for: a queue lock, let go once and whatever happens."""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kvstore.errors import KvError

if TYPE_CHECKING:
    from kvstore.client.native import Lock


class HeldLock:
    """Holds a lock, or none where none could be had; a context that ends it."""

    def __init__(self, lock: Lock | None) -> None:
        self._lock = lock

    def end(self) -> None:
        """Let go who waits. May be called more often than once, and on any thread."""
        lock, self._lock = self._lock, None
        if lock is not None:
            # A lock that was lost on the way has let them go already.
            with suppress(KvError):
                lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()
