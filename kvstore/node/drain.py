"""The second half of a drain: what becomes of clients that do not leave by themselves."""

from __future__ import annotations

import threading
import time
from typing import Final

from kvstore import errors
from kvstore.node.log import Log
from kvstore.node.memory_node import MemoryNode

_STEP_S: Final = 0.1


def clients_of_others(node: MemoryNode) -> int:
    """How many clients of other processes are attached."""
    return sum(record.state != "fenced" and record.fabric != "local" for record in node.clients())


class Drain:
    """Takes their access from a node's clients, a grace after it was told to."""

    def __init__(self, node: MemoryNode, log: Log, grace_s: float) -> None:
        """`grace_s` is the grace where `begin` is given none."""
        self._node = node
        self._log = log
        self._grace_s = grace_s
        self._lock = threading.Lock()
        self._ends_s: float | None = None
        self._abandoned = threading.Event()

    def begin(self, grace_s: float | None = None) -> float:
        """Starts the grace, or shortens it. Returns the seconds that are left of it."""
        now_s = time.monotonic()
        wanted_s = now_s + (self._grace_s if grace_s is None else grace_s)
        with self._lock:
            is_first = self._ends_s is None
            self._ends_s = wanted_s if self._ends_s is None else min(self._ends_s, wanted_s)
            ends_s = self._ends_s
        if is_first and not self._abandoned.is_set():
            threading.Thread(target=self._run, name="revoke", daemon=True).start()
        return max(0.0, ends_s - now_s)

    def begin_last(self) -> float:
        """As `begin`, for a node that is closed at the end of the grace: that ends all access."""
        self._abandoned.set()
        return self.begin()

    def _run(self) -> None:
        try:
            while (left := clients_of_others(self._node)) and not self.is_over():
                if self._abandoned.wait(_STEP_S):
                    return
            self._node.revoke()
        except errors.StoreClosed:
            return
        if not self._abandoned.is_set():
            self._log.info("access revoked", clients=left)

    def is_over(self) -> bool:
        """Whether the grace was begun and has ended."""
        with self._lock:
            return self._ends_s is not None and time.monotonic() >= self._ends_s
