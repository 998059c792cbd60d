"""Servers and routers as processes, and a plain HTTP client."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

DEADLINE_S = 30.0


class Process:
    """A process that prints where it listens."""

    def __init__(self, words: list[str]) -> None:
        self.child = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    @cached_property
    def port(self) -> int:
        """Known once it serves."""
        assert self.child.stdout is not None
        line = self.child.stdout.readline().strip()
        assert line, self.child.communicate(timeout=DEADLINE_S)[1]
        return int(line.rpartition(":")[2])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        self.child.kill()
        self.child.communicate(timeout=DEADLINE_S)

    def stop(self) -> int:
        self.child.send_signal(signal.SIGTERM)
        self.child.communicate(timeout=DEADLINE_S)
        return self.child.returncode

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)

    def begin(self, path: str, body: Any) -> http.client.HTTPResponse:
        """Post a request and return its answer once its beginning is there."""
        connection = self.connection()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": "Bearer secret"}
        connection.request("POST", path, data, headers)
        return connection.getresponse()

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        answer = self.begin(path, body)
        text = answer.read()
        return answer.status, json.loads(text) if text else None

    def get(self, path: str) -> tuple[int, str]:
        connection = self.connection()
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def release(self, key: str) -> None:
        assert self.begin(f"/release/{key}", b"").status == 200

    def seen(self) -> dict[str, int]:
        return json.loads(self.get("/seen")[1])  # type: ignore[no-any-return]


def wait_for(holds: Callable[[], bool]) -> None:
    """Wait until something holds, which it must soon."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


Servers = tuple[Process, Process]


class Starter:
    """Starts servers and routers, and ends them all."""

    def __init__(self) -> None:
        self._started: list[Process] = []

    def server(self, port: int = 0) -> Process:
        script = Path(__file__).with_name("server.py")
        return self._start([sys.executable, str(script), str(port)])

    def servers(self) -> Servers:
        return self.server(), self.server()

    def router(
        self,
        *servers: Process,
        prefills: tuple[Process, ...] = (),
        options: tuple[str, ...] = (),
    ) -> Process:
        command = [sys.executable, "-m", "kvstore.cli", "router", "--listen", "127.0.0.1:0"]
        instances = [word for server in servers for word in ("--instance", server.url)]
        instances += [word for server in prefills for word in ("--prefill", server.url)]
        return self._start([*command, *instances, *options])

    def end(self) -> None:
        for process in self._started:
            process.kill()

    def _start(self, words: list[str]) -> Process:
        self._started.append(Process(words))
        return self._started[-1]


@pytest.fixture
def starter() -> Iterator[Starter]:
    made = Starter()
    yield made
    made.end()


@pytest.fixture(scope="module")
def module_starter() -> Iterator[Starter]:
    made = Starter()
    yield made
    made.end()


@pytest.fixture(scope="module")
def servers(module_starter: Starter) -> Servers:
    """Two servers that tests share: none may harm them."""
    return module_starter.servers()


@pytest.fixture(scope="module")
def router(module_starter: Starter, servers: Servers) -> Process:
    """The router in front of them, likewise."""
    return module_starter.router(*servers)
