"""Mooncake Store over loopback TCP: a master, a storage process, a client that lends nothing.

It lives in an environment of its own, so that its pins never meet ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from kvstore.bench.debs import DebError, default_folder, unpack
from kvstore.bench.measure import Sample, sample_of_latencies
from kvstore.bench.peers.case import LARGE_BYTES, LARGE_KEYS, Case, Unavailable, Work
from kvstore.bench.processes import Child, ProcessError, load_once
from kvstore.bench.redis_server import free_port

#: As in scripts/engine.py, for its processes talk to the engines there.
PACKAGE: Final = "mooncake-transfer-engine-non-cuda==0.3.13.post1"
#: What its transfer engine is linked to, although TCP uses none of it.
_LIBRARIES: Final = ("libibverbs1", "librdmacm1", "libnl-3-200", "libnl-route-3-200")
_SEGMENT_BYTES: Final = 1 << 30
_INSTALL_TIMEOUT_S: Final = 600
_IMPORT_TIMEOUT_S: Final = 60
_WORKER: Final = str(Path(__file__).with_name("mooncake_worker.py"))


class Processes:
    """A master and its workers, each ready when `worker` returns. Raises ProcessError.

    `master` is its address; who imports Mooncake itself needs `variables` before it starts, and
    `packages` in its path.
    """

    def __init__(self) -> None:
        self._python: Final = _environment_python()
        self._children: list[Child] = []
        self.variables: Final = _library_path()
        self.packages: Final = next(self._python.parents[1].glob("lib/python*/site-packages"))
        self.master: Final = f"127.0.0.1:{free_port()}"
        program = str(self._python.with_name("mooncake_master"))
        port = self.master.rpartition(":")[2]
        self._start([program, f"--rpc_port={port}", f"--metrics_port={free_port()}"])

    def worker(self, role: str, *rest: int) -> Child:
        """Start one, see `mooncake_worker.py`; return it when it is ready."""
        host = f"127.0.0.1:{free_port()}"
        # Isolated: the script's own folder must not be where it imports from.
        command = [str(self._python), "-I", _WORKER, role, self.master, host, *map(str, rest)]
        child = self._start(command)
        while child.receive().get("event") != "ready":
            pass
        return child

    def _start(self, command: list[str]) -> Child:
        child = Child("mooncake", command, environment=self.variables)
        self._children.append(child)
        return child

    def close(self) -> None:
        """End all of them."""
        for child in reversed(self._children):
            child.stop()


class MooncakeSystem:
    """The three processes; samples are taken in the client process."""

    name = "mooncake"

    def __init__(self, work: Work) -> None:
        self._processes = Processes()
        try:
            self._processes.worker("storage", _SEGMENT_BYTES)
            self._client = self._processes.worker("client", LARGE_BYTES, LARGE_KEYS)
        except ProcessError as error:
            self.close()
            raise Unavailable(str(error)) from error

    def measure(self, case: Case, seconds: float) -> Sample:
        """See System."""
        self._client.send({"operation": case.operation, "seconds": seconds})
        while (answer := self._client.receive(seconds + 60)).get("event") != "sample":
            pass
        return sample_of_latencies(answer["latencies_ns"], answer["elapsed_ns"], 1)

    def close(self) -> None:
        """See System."""
        self._processes.close()


class MooncakeLoads:
    """Loads of blocks in one batch: over `tcp` from a storage process, else from its own memory.

    Processes do not share memory over Mooncake's TCP, so `shm` is a client that lends the memory
    itself and copies within it.
    """

    name = "mooncake"

    def __init__(self, fabric: str, block_bytes: int, blocks: int) -> None:
        self._processes = Processes()
        try:
            if fabric == "tcp":
                self._processes.worker("storage", _SEGMENT_BYTES)
            lent_bytes = 0 if fabric == "tcp" else _SEGMENT_BYTES
            self._client = self._processes.worker("loader", lent_bytes, block_bytes, blocks)
        except ProcessError as error:
            self.close()
            raise Unavailable(str(error)) from error

    def load(self) -> float:
        """Load all blocks once; return the seconds it took. ProcessError if it fails."""
        return load_once(self._client)

    def close(self) -> None:
        """End what was started."""
        self._processes.close()


def _environment_python() -> Path:
    """The interpreter of Mooncake's environment, made at first use. Raises Unavailable."""
    folder = default_folder().parent / "venvs" / "mooncake"
    python = folder / "bin" / "python"
    if not (folder / "bin" / "mooncake_master").exists():
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", PACKAGE, "numpy"])
    libraries_for(python)
    return python


def libraries_for(python: Path) -> dict[str, str]:
    """Return the variable that lets this interpreter import Mooncake. Raises Unavailable.

    What Mooncake is linked to is unpacked at first use where the system does not have it.
    """
    check = [str(python), "-c", "import mooncake.store"]
    if not _succeeds(check):
        try:
            unpack(list(_LIBRARIES))
        except DebError as error:
            raise Unavailable(str(error)) from error
        _run(check)
    return _library_path()


def _variables() -> dict[str, str]:
    return {**os.environ, **_library_path()}


def _library_path() -> dict[str, str]:
    root = default_folder() / "root"
    folders = [
        str(folder)
        for pattern in ("usr/lib/*-linux-gnu", "lib/*-linux-gnu")
        for folder in sorted(root.glob(pattern))
    ]
    inherited = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": ":".join([*folders, *([inherited] if inherited else [])])}


def _succeeds(command: list[str]) -> bool:
    try:
        finished = subprocess.run(
            command, capture_output=True, env=_variables(), timeout=_IMPORT_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]}: {error}") from error
    return finished.returncode == 0


def _run(command: list[str]) -> None:
    try:
        finished = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_INSTALL_TIMEOUT_S,
            env=_variables(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]}: {error}") from error
    if finished.returncode != 0:
        lines = finished.stderr.strip().splitlines()
        raise Unavailable(f"{PACKAGE} can't be installed: {lines[-1] if lines else '?'}")
