"""Client processes for tests, which can be killed, stopped and interrupted.

    with start_client("tests.multiprocess.worker", "put", node.target) as client:
        client.wait_lines(100)
        client.kill()

A client speaks by lines on its stdout; a thread of the test process reads them, so a client never
waits for its reader. Each client leads a process group of its own, which is killed with it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.processes import wait_stopped

ROOT = Path(__file__).resolve().parents[2]
LINE_S = 15.0
_started: list[ClientProcess] = []


class ClientProcess:
    """One running client. Leaving it as a context kills it and its children."""

    def __init__(self, process: subprocess.Popen[bytes], errors: Path) -> None:
        self.process = process
        self._errors = errors
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def lines(self) -> list[str]:
        """The whole lines so far."""
        with self._changed:
            return list(self._lines)

    def wait_lines(self, count: int, timeout_s: float = LINE_S) -> list[str]:
        """Waits until there are so many lines; fails if the client ends or is silent instead."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while len(self._lines) < count:
                left = deadline - time.monotonic()
                if self._ended or left <= 0 or not self._changed.wait(left):
                    raise AssertionError(
                        f"{len(self._lines)} of {count} lines, the last"
                        f" {self._lines[-1:]}; stderr: {self.errors()}"
                    )
            return list(self._lines)

    def wait_line(self, start: str, timeout_s: float = LINE_S) -> str:
        """Waits for a line that starts so and returns it."""
        deadline = time.monotonic() + timeout_s
        seen = 0
        with self._changed:
            while True:
                for line in self._lines[seen:]:
                    if line.startswith(start):
                        return line
                seen = len(self._lines)
                left = deadline - time.monotonic()
                if self._ended or left <= 0 or not self._changed.wait(left):
                    raise AssertionError(
                        f"no line {start!r} among {seen}, the last {self._lines[-1:]};"
                        f" stderr: {self.errors()}"
                    )

    def errors(self) -> str:
        """What the client wrote on stderr so far."""
        return self._errors.read_text()

    def wait_quiet(self, quiet_s: float = 0.25, timeout_s: float = LINE_S) -> list[str]:
        """Waits until no line has come for so long: whatever the client does, it waits."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._changed.wait(quiet_s) and not self._ended:
                assert time.monotonic() < deadline, f"it goes on: {self._lines[-1:]}"
            assert not self._ended, f"the client has ended: {self.errors()}"
            return list(self._lines)

    def finish(self, timeout_s: float = LINE_S, code: int = 0) -> list[str]:
        """Waits for the end, a good one unless told otherwise, and returns all lines."""
        ended = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        assert ended == code, f"the client ended with {ended}: {self.errors()}"
        return self.lines()

    def kill(self) -> list[str]:
        """SIGKILL, for the client and its children; returns all lines once it is gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(LINE_S)
        self._reader.join(LINE_S)
        return self.lines()

    def kill_alone(self) -> None:
        """SIGKILL, for the client and not for its children; returns once it is gone."""
        self.process.kill()
        self.process.wait(LINE_S)

    def pause(self) -> None:
        """SIGSTOP; returns once every thread has stopped."""
        self.process.send_signal(signal.SIGSTOP)
        wait_stopped(self.pid)

    def resume(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def interrupt(self) -> None:
        """SIGINT, as from the keyboard."""
        self.process.send_signal(signal.SIGINT)

    def _read(self) -> None:
        stdout = self.process.stdout
        assert stdout is not None
        for line in stdout:
            with self._changed:
                # What a killed client had written of its last line is no line.
                if line.endswith(b"\n"):
                    self._lines.append(line[:-1].decode())
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


def start_client(module: str, *arguments: object, token_file: str | None = None) -> ClientProcess:
    """Starts `python -m module arguments...`."""
    environment = {} if token_file is None else {"KVSTORE_TOKEN_FILE": token_file}
    return start_command([sys.executable, "-m", module, *map(str, arguments)], environment)


def start_command(
    command: Sequence[str], environment: dict[str, str] | None = None
) -> ClientProcess:
    """Starts a command that may be interrupted.

    SIGINT does in it what it does in a terminal, also where this process was told to ignore it, as
    a shell tells the commands that it starts in the background.
    """
    descriptor, errors = tempfile.mkstemp(prefix="kvstore-client-", suffix=".log")
    process = subprocess.Popen(
        ["env", "--default-signal=INT", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=descriptor,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )
    os.close(descriptor)
    client = ClientProcess(process, Path(errors))
    _started.append(client)
    return client


@atexit.register
def _sweep() -> None:
    for client in _started:
        client.kill()
        client._errors.unlink(missing_ok=True)
