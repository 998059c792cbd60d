"""LMCache as a holder of blocks: its server over shared memory, its remote store over TCP.

Both are processes of their own, and so is the client (`lmcache_worker.py`): they live in LMCache's
environment, which `scripts/engine.py` makes at first use.
"""

from __future__ import annotations

import contextlib
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kvstore.bench.peers import environment
from kvstore.bench.peers.case import Unavailable
from kvstore.bench.processes import Child, ProcessError, load_once
from kvstore.bench.redis_server import free_port

_WORKER: Final = str(Path(__file__).with_name("lmcache_worker.py"))
_CHUNK_TOKENS: Final = 16
#: Its processes import torch before they say anything.
_START_S: Final = 180.0
#: Of its server and of whoever uses it.
VARIABLES: Final = {
    "LMCACHE_TRACK_USAGE": "false",
    "LMCACHE_DISABLE_BANNER": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
}


class Server:
    """LMCache's server, which shares 1 GiB with the processes of this host. Raises ProcessError."""

    def __init__(
        self, python: Path, chunk_tokens: int, variables: Mapping[str, str] = VARIABLES
    ) -> None:
        self.port: Final = free_port()
        self._child: Final = Child(
            "LMCache's server",
            [
                *(str(python.with_name("lmcache")), "server"),
                *("--host", "127.0.0.1", "--port", str(self.port)),
                *("--http-port", str(free_port()), "--chunk-size", str(chunk_tokens)),
                *("--shm-name", f"kvstore-bench-{uuid.uuid4().hex[:12]}"),
                *("--l1-size-gb", "1", "--no-l1-use-lazy", "--eviction-policy", "LRU"),
                *("--disable-observability", "--supported-transfer-mode", "auto"),
            ],
            environment=variables,
        )

    def wait(self) -> None:
        """Return when it answers. Clients that wait for it themselves need not call this."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._child.is_alive:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)
        raise ProcessError(f"LMCache's server did not start: {self._child.last_words()}")

    def close(self) -> None:
        """End it."""
        self._child.stop()


class LMCacheLoads:
    """A holder and a client that loads `blocks` blocks from it, again and again."""

    name = "lmcache"

    def __init__(self, fabric: str, block_bytes: int, blocks: int) -> None:
        python = environment.python_of("lmcache")
        self._started = contextlib.ExitStack()
        try:
            start = self._start_server if fabric == "shm" else self._start_remote_store
            # Isolated: the script's own folder must not be where it imports from.
            worker = [str(python), "-I", _WORKER, fabric, f"127.0.0.1:{start(python)}"]
            self._client = self._start("LMCache's client", [*worker, str(block_bytes), str(blocks)])
            while self._client.receive(_START_S).get("event") != "ready":
                pass
        except ProcessError as error:
            self.close()
            raise Unavailable(str(error)) from error

    def _start_server(self, python: Path) -> int:
        server = Server(python, _CHUNK_TOKENS)
        self._started.callback(server.close)
        return server.port

    def _start_remote_store(self, python: Path) -> int:
        port = free_port()
        command = [str(python), "-m", "lmcache.v1.server", "127.0.0.1", str(port), "cpu"]
        self._start("LMCache's remote store", command)
        return port

    def _start(self, name: str, command: list[str]) -> Child:
        child = Child(name, command, environment=VARIABLES)
        self._started.callback(child.stop)
        return child

    def load(self) -> float:
        """Load all blocks once; return the seconds it took. ProcessError if it fails."""
        return load_once(self._client)

    def close(self) -> None:
        """End what was started."""
        self._started.close()
