"""Says in the log what becomes of the RDMA ports that a node serves."""

from __future__ import annotations

import threading
from typing import Final

from kvstore import errors
from kvstore.node.description import PortRecord
from kvstore.node.log import Log
from kvstore.node.memory_node import MemoryNode

_PERIOD_S: Final = 1.0


class PortWatch:
    """Looks at the ports once a second, from `start` to `end`. The node itself acts at once."""

    def __init__(self, node: MemoryNode, log: Log) -> None:
        """The ports are taken to be up at first: a node does not start on others."""
        self._node = node
        self._log = log
        self._seen = [("up", 0, "")] * len(node.ports())
        self._ending = threading.Event()

    def start(self) -> None:
        """From a thread of its own; of a node without RDMA there is nothing to watch."""
        if self._seen:
            threading.Thread(target=self._run, name="ports", daemon=True).start()

    def end(self) -> None:
        """Nothing is said from here on."""
        self._ending.set()

    def _run(self) -> None:
        while not self._ending.wait(_PERIOD_S):
            try:
                self.look()
            except errors.StoreClosed:
                return

    def look(self) -> None:
        """Says what has changed since the last time."""
        for index, port in enumerate(self._node.ports()):
            now = (port.state, port.failures, port.reason)
            if now != self._seen[index]:
                self._say(port)
                self._seen[index] = now

    def _say(self, port: PortRecord) -> None:
        if port.state == "up":
            self._log.info("RDMA port up again", device=port.device, failures=port.failures)
        elif port.state == "down":
            self._log.warning("RDMA port down", device=port.device, failures=port.failures)
        else:
            self._log.warning(
                "RDMA device lost", device=port.device, failures=port.failures, reason=port.reason
            )
