"""Ends flights that lead once what they computed can be loaded.

Workers store behind the scheduler's back, and vLLM tells it of them only while it steps, which it
does not when a request was the last one. So one thread asks the store for the last blocks, ever
more seldom, and lets those who wait go when they are there, or will not come any more.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from kvstore.llm.prefix_cache import PrefixCache
from kvstore.llm.single_flight import Flight

Blocks = list[tuple[PrefixCache, bytes]]
_FIRST_PAUSE_S: Final = 0.001
_PAUSE_S_MAX: Final = 0.02


class Landings:
    """Flights whose blocks are on their way to the store. Thread-safe."""

    def __init__(self, timeout_s: float) -> None:
        """`timeout_s`: what is not there after it, was dropped or could not be stored."""
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._waiting: list[tuple[float, Flight, Blocks]] = []
        self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, flight: Flight, blocks: Blocks) -> None:
        """End `flight` when `blocks` are in the store."""
        with self._changed:
            if self._closed:
                flight.end()
                return
            self._waiting.append((time.monotonic() + self._timeout_s, flight, blocks))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kvstore-land", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                    pause_s = _FIRST_PAUSE_S
                if self._closed:
                    return
                waiting = list(self._waiting)
            now = time.monotonic()
            done = [
                entry
                for entry in waiting
                if now > entry[0] or all(cache.holds(hash_) for cache, hash_ in entry[2])
            ]
            for _, flight, _ in done:
                flight.end()
            with self._changed:
                self._waiting = [entry for entry in self._waiting if entry not in done]
                if self._waiting and not self._closed:
                    self._changed.wait(pause_s)
            pause_s = _FIRST_PAUSE_S if done else min(2 * pause_s, _PAUSE_S_MAX)

    def close(self) -> None:
        """End all flights, whatever became of their blocks."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = self._waiting, []
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        for _, flight, _ in waiting:
            flight.end()
