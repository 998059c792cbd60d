"""A private Redis: Unix socket and a free loopback port, nothing persisted."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Final

from kvstore.bench.debs import DebError, find_program, provide_program
from kvstore.bench.processes import Child, ProcessError

_START_TIMEOUT_S: Final = 10.0


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def is_installed() -> bool:
    """Whether Redis can be started without fetching anything."""
    return find_program("redis-server") is not None


class RedisServer:
    """A running redis-server of this process."""

    def __init__(self) -> None:
        try:
            program = provide_program("redis-server", "redis-server")
        except DebError as error:
            raise ProcessError(str(error)) from error
        self._folder = tempfile.mkdtemp(prefix="kvstore-redis-")
        self.socket_path: Final = str(Path(self._folder) / "redis.sock")
        self.port: Final = free_port()
        command = [
            *(str(program), "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--unixsocket", self.socket_path, "--unixsocketperm", "700"),
            *("--save", "", "--appendonly", "no", "--dir", self._folder),
            *("--loglevel", "warning"),
        ]
        try:
            self.child = Child("redis-server", command)
        except ProcessError:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self.child.is_alive:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(self.socket_path)
                    return
                except OSError:
                    time.sleep(0.02)
        error = ProcessError(f"redis-server did not start: {self.child.last_words()}")
        self.close()
        raise error

    def close(self) -> None:
        """Ends it and removes its folder."""
        self.child.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
