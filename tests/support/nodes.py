"""Real `kvstore-node` processes for tests.

    with start_node("64MiB") as node:
        store = kvstore.connect(node.target)
        node.kill()

Every node listens on ports that the kernel chose, so tests can run side by side. A node that is
still there when the test process ends is killed then.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.processes import wait_stopped

ROOT = Path(__file__).resolve().parents[2]
READY_S = 30.0
STOP_S = 15.0
_started: list[NodeProcess] = []


@dataclass
class NodeProcess:
    """One running node. Leaving it as a context kills it."""

    process: subprocess.Popen[str]
    log_path: Path
    ready: dict[str, Any] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def address(self) -> str:
        """`host:port` of the control plane."""
        return str(self.ready["listen"])

    @property
    def target(self) -> str:
        """What `kvstore.connect` takes; the fabric is chosen."""
        return f"kv://{self.address}"

    @property
    def data_port(self) -> int:
        return int(self.ready["data_port"])

    @property
    def shm(self) -> str:
        """The name of the shm socket; empty without one."""
        return str(self.ready["shm"])

    @property
    def metrics_port(self) -> int:
        return int(self.ready["metrics_port"])

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def log(self) -> str:
        """What the node wrote on stderr so far."""
        return self.log_path.read_text()

    def events(self) -> list[dict[str, Any]]:
        """The log as the objects that it consists of."""
        return [json.loads(line) for line in self.log().splitlines()]

    def kill(self) -> None:
        """SIGKILL; returns once the process is gone."""
        self._signal(signal.SIGKILL)
        self.process.wait(STOP_S)

    def stop(self, timeout_s: float = STOP_S) -> int:
        """SIGTERM; returns the exit code."""
        self._signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def pause(self) -> None:
        """SIGSTOP; returns once every thread has stopped."""
        self._signal(signal.SIGSTOP)
        wait_stopped(self.pid)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def cpu_s(self) -> float:
        """Processor time so far, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _signal(self, number: signal.Signals) -> None:
        if self.alive:
            self.process.send_signal(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


def start_node(
    capacity: str = "64MiB",
    *options: str,
    listen: str = "127.0.0.1:0",
    env: dict[str, str] | None = None,
    ready_s: float = READY_S,
) -> NodeProcess:
    """Starts a node and waits until it serves. `options` go to the command line as they are."""
    # Read through its name by `log`; deleted by `_sweep`.
    descriptor, log_name = tempfile.mkstemp(prefix="kvstore-node-", suffix=".log")
    process = subprocess.Popen(
        [
            *node_command(),
            f"--capacity={capacity}",
            f"--listen={listen}",
            "--log-format=json",
            *options,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=descriptor,
        text=True,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
    )
    os.close(descriptor)
    node = NodeProcess(process, Path(log_name))
    _started.append(node)
    try:
        node.ready = json.loads(_first_line(node, ready_s))
    except BaseException:
        node.kill()
        raise
    return node


def start_again(node: NodeProcess, capacity: str = "64MiB", *options: str) -> NodeProcess:
    """Starts a node in the place of one that is gone: same ports, same shm name."""
    return start_node(
        capacity,
        f"--data-port={node.data_port}",
        f"--shm={node.shm or 'none'}",
        *options,
        listen=node.address,
    )


def start_nodes(count: int, capacity: str = "64MiB", *options: str) -> list[NodeProcess]:
    """Several nodes with the same options."""
    return [start_node(capacity, *options) for _ in range(count)]


def target_of(nodes: Sequence[NodeProcess], scheme: str = "kv") -> str:
    """The target that has these nodes for members."""
    return f"{scheme}://" + ",".join(node.address for node in nodes)


def node_command() -> list[str]:
    """What starts a node with this interpreter."""
    return [sys.executable, "-m", "kvstore.node"]


def run_node(*options: str, timeout_s: float = 20.0) -> subprocess.CompletedProcess[str]:
    """Runs a node that is expected to end by itself."""
    return subprocess.run(
        [*node_command(), *options],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=ROOT,
        check=False,
    )


def _first_line(node: NodeProcess, timeout_s: float) -> str:
    stdout = node.process.stdout
    assert stdout is not None
    deadline = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        if not selector.select(max(deadline - time.monotonic(), 0)):
            raise AssertionError(f"the node was not ready within {timeout_s} s: {node.log()}")
    line = stdout.readline()
    if not line:
        code = node.process.wait(STOP_S)
        raise AssertionError(f"the node ended with code {code}: {node.log()}")
    return line


@atexit.register
def _sweep() -> None:
    for node in _started:
        node.kill()
        node.log_path.unlink(missing_ok=True)
