"""memcached through pymemcache, over a Unix socket and over loopback TCP."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from kvstore.bench.debs import DebError, provide_program
from kvstore.bench.measure import Sample, time_calls
from kvstore.bench.peers.case import Case, Unavailable, Work
from kvstore.bench.processes import Child, ProcessError
from kvstore.bench.redis_server import free_port


class MemcachedSystem:
    """Two private memcached servers (one listens on one kind of socket only) and their clients."""

    name = "memcached"

    def __init__(self, work: Work) -> None:
        try:
            from pymemcache.client.base import Client
        except ImportError as error:
            raise Unavailable(f"Python package missing: {error.name}") from error
        self._work = work
        self._folder = tempfile.mkdtemp(prefix="kvstore-memcached-")
        self._children: list[Child] = []
        self._clients: dict[str, Any] = {}
        path, port = str(Path(self._folder) / "socket"), free_port()
        try:
            self._start("-s", path)
            self._start("-l", "127.0.0.1", "-p", str(port), "-U", "0")
            for fabric, address in (("unix", path), ("tcp", ("127.0.0.1", port))):
                _wait_for(address)
                client = Client(address, no_delay=True)
                for key in work.keys:
                    client.set(key, work.value, noreply=True)
                # A reply comes after all that went before it.
                client.version()
                self._clients[fabric] = client
        except (DebError, ProcessError, OSError) as error:
            self.close()
            raise Unavailable(str(error)) from error

    def _start(self, *where: str) -> None:
        program = str(provide_program("memcached", "memcached"))
        user = ("-u", "root") if os.getuid() == 0 else ()
        command = [program, *user, "-m", "256", "-t", "1", *where]
        self._children.append(Child("memcached", command))

    def measure(self, case: Case, seconds: float) -> Sample:
        """See System."""
        client = self._clients[case.fabric]
        order, batches = self._work.order, self._work.batches
        if case.operation == "get_many":
            assert len(client.get_many(batches[0])) == case.batch
            return time_calls(
                lambda i: client.get_many(batches[i % len(batches)]),
                seconds,
                operations_per_call=case.batch,
            )
        assert client.get(order[0]) == self._work.value
        return time_calls(lambda i: client.get(order[i % len(order)]), seconds)

    def close(self) -> None:
        """See System."""
        for client in self._clients.values():
            client.close()
        for child in self._children:
            child.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def _wait_for(address: str | tuple[str, int]) -> None:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    deadline = time.monotonic() + 10
    while True:
        with socket.socket(family) as probe:
            try:
                probe.connect(address)
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
