"""Child processes of a benchmark or demo: real memory nodes and workers, none left behind.

A child dies with this process, also when that is killed (PR_SET_PDEATHSIG), and is ended by
`stop()` with SIGTERM, then SIGKILL after a deadline.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

from kvstore.cluster.membership import TIME_SCALE

START_TIMEOUT_S: Final = 60.0 * min(TIME_SCALE, 10)
_STOP_TIMEOUT_S: Final = 5.0
_PR_SET_PDEATHSIG: Final = 1


class ProcessError(Exception):
    """A child could not be started or died; the text is one clear line."""


def _parent_death_signal() -> Callable[[], None]:
    """Loaded before the fork: between fork and exec nothing may allocate or import."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def arrange() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    return arrange


class Child:
    """A child process with its standard streams; what it says on stderr is kept for errors."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        folder: str | None = None,
    ) -> None:
        self.name: Final = name
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        variables = dict(os.environ)
        variables.update(environment or {})
        try:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=variables,
                cwd=folder,
                preexec_fn=_parent_death_signal(),
                # Ctrl-C in the terminal reaches this process only, which ends its children.
                start_new_session=True,
            )
        except OSError as error:
            self._errors.close()
            raise ProcessError(f"{name} could not be started: {error}") from error
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin: IO[bytes] = self.process.stdin
        self.stdout: IO[bytes] = self.process.stdout
        self._pending = b""

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def last_words(self) -> str:
        """The last line of its stderr."""
        self._errors.seek(0)
        text = self._errors.read()[-4096:].decode(errors="replace").strip()
        return text.splitlines()[-1] if text else ""

    def send(self, message: object) -> None:
        """Writes one JSON line to its stdin; a dead child is a ProcessError."""
        try:
            self.stdin.write(json.dumps(message).encode() + b"\n")
            self.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise ProcessError(f"{self.name} is gone") from error

    def receive(self, timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
        """The next JSON line of its stdout; other lines are skipped."""
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.stdout, selectors.EVENT_READ)
            while True:
                message = self._next_buffered()
                if message is not None:
                    return message
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0 or not selector.select(remaining_s):
                    raise ProcessError(f"{self.name} said nothing within {timeout_s:g} s")
                if not self.fill():
                    raise self.death()

    def fill(self) -> bool:
        """Reads what its stdout holds now; false at its end."""
        data = os.read(self.stdout.fileno(), 1 << 20)
        self._pending += data
        return bool(data)

    def messages(self) -> Iterator[dict[str, Any]]:
        """The JSON lines that were read by `fill`."""
        while (message := self._next_buffered()) is not None:
            yield message

    def _next_buffered(self) -> dict[str, Any] | None:
        while b"\n" in self._pending:
            line, _, self._pending = self._pending.partition(b"\n")
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict):
                    return message
        return None

    def death(self) -> ProcessError:
        """The error that says how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_STOP_TIMEOUT_S)
        words = self.last_words() or "it said nothing"
        return ProcessError(f"{self.name} ended with status {self.process.returncode}: {words}")

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ends it: closes its stdin, SIGTERM, and SIGKILL if it does not go."""
        with contextlib.suppress(OSError):
            self.stdin.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.stdout.close()
        self._errors.close()

    def processor_seconds(self) -> float:
        """Processor time it has used so far."""
        with open(f"/proc/{self.pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load_once(child: Child, timeout_s: float = 60.0) -> float:
    """Has a worker of loads load everything once; the seconds that it took."""
    child.send({"operation": "load"})
    while (answer := child.receive(timeout_s)).get("event") != "loaded":
        pass
    return float(answer["seconds"])


@dataclass
class Node:
    """A running memory node and where it is reached."""

    child: Child
    listen: str
    data_port: int
    shm: str


def start_node(
    capacity_bytes: int,
    *,
    name: str = "kvstore-node",
    eviction: str = "none",
    verbs: bool = False,
    options: Sequence[str] = (),
) -> Node:
    """Starts a real `kvstore-node` on a free loopback port and waits until it is ready.

    `verbs`: on an RDMA device of this machine. `options`: more of `kvstore-node`.
    """
    command = [
        *(sys.executable, "-m", "kvstore.node.main"),
        *("--capacity", str(capacity_bytes), "--listen", "127.0.0.1:0"),
        *("--eviction", eviction, "--log-format", "json"),
        *(("--fabric", "verbs") if verbs else ()),
        *options,
    ]
    child = Child(name, command)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            message = child.receive(max(0.1, deadline - time.monotonic()))
            if message.get("event") == "ready":
                break
    except ProcessError:
        child.stop()
        raise
    return Node(child, message["listen"], int(message["data_port"]), str(message["shm"]))


def target_of(nodes: Sequence[Node], fabric: str) -> str:
    """The `kvstore.connect` target of `nodes`; fabric `auto` lets the client choose.

    Several nodes are named by their control addresses also for `shm`: whoever wants shm alone
    looks at `Store.members()` afterwards, see `require_fabric`.
    """
    if fabric == "shm" and len(nodes) == 1:
        return f"shm://{nodes[0].shm}"
    scheme = fabric if fabric in ("tcp", "verbs") else "kv"
    return f"{scheme}://{','.join(node.listen for node in nodes)}"


def require_fabric(store: Any, fabric: str) -> str:
    """The fabrics that `store` uses; ProcessError if one was asked for and it is another."""
    used = sorted({member.fabric for member in store.members()})
    if fabric != "auto" and used != [fabric]:
        raise ProcessError(f"asked for {fabric}, but the client attached over {', '.join(used)}")
    return "+".join(used)
