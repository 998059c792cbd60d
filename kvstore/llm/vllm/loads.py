"""Loads of a worker: which are under way, and how the others ended, until vLLM asks for it.

Begun and asked for by the worker's thread, ended by the threads that load.
"""

from __future__ import annotations

import threading
from collections.abc import Set
from typing import Final

#: How long a step that computes nothing waits for a load: what a thread may be made to wait for the
#: interpreter anyway, and no delay to speak of for a request that comes meanwhile.
IDLE_STEP_S: Final = 0.005


class Loads:
    """See the module. With several groups a request whose load failed fails as a whole."""

    def __init__(self, *, several_groups: bool) -> None:
        self._several_groups = several_groups
        self._changed = threading.Condition()
        self._under_way = 0
        self._ended: set[str] = set()
        self._failed_requests: set[str] = set()
        self._failed_blocks: set[int] = set()

    def begin(self, count: int) -> None:
        """So many loads begin."""
        with self._changed:
            self._under_way += count

    def end(self, request_id: str, failed_blocks: Set[int]) -> None:
        """The load of a request has ended."""
        with self._changed:
            self._under_way -= 1
            self._ended.add(request_id)
            if failed_blocks and self._several_groups:
                self._failed_requests.add(request_id)
            elif failed_blocks:
                self._failed_blocks |= failed_blocks
            self._changed.notify_all()

    def wait(self, timeout_s: float = IDLE_STEP_S) -> None:
        """Wait a moment for the end of a load, if one is under way.

        vLLM's thread has nothing to do then but to ask again, and while it asks the threads that
        load come to the interpreter late.
        """
        with self._changed:
            if self._under_way > 0:
                self._changed.wait_for(lambda: bool(self._ended), timeout_s)

    def take_ended(self) -> tuple[set[str], set[str]]:
        """Return the requests whose loads have ended, and those of them that failed as a whole."""
        with self._changed:
            ended, self._ended = self._ended, set()
            failed, self._failed_requests = self._failed_requests, set()
            return ended, failed

    def take_failed_blocks(self) -> set[int]:
        """Return the blocks that could not be loaded; with several groups requests fail instead."""
        with self._changed:
            failed, self._failed_blocks = self._failed_blocks, set()
            return failed
