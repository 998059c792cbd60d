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
from kvstore.bench.processes import Child, ProcessError
from kvstore.bench.redis_server import free_port

PACKAGE: Final = "mooncake-transfer-engine-non-cuda"
#: What its transfer engine is linked to, although TCP uses none of it.
_LIBRARIES: Final = ("libibverbs1", "librdmacm1", "libnl-3-200", "libnl-route-3-200")
_SEGMENT_BYTES: Final = 1 << 30
_INSTALL_TIMEOUT_S: Final = 600
_WORKER: Final = str(Path(__file__).with_name("mooncake_worker.py"))


class MooncakeSystem:
    """The three processes; samples are taken in the client process."""

    name = "mooncake"

    def __init__(self, work: Work) -> None:
        python = _environment_python()
        variables = _library_path()
        master = f"127.0.0.1:{free_port()}"
        self._children: list[Child] = []
        try:
            program = str(python.with_name("mooncake_master"))
            port = master.rpartition(":")[2]
            self._start([program, f"--rpc_port={port}", f"--metrics_port={free_port()}"], variables)
            # Isolated: the script's own folder must not be where it imports from.
            worker = [str(python), "-I", _WORKER]
            for role, rest in (
                ("storage", [str(_SEGMENT_BYTES)]),
                ("client", [str(LARGE_BYTES), str(LARGE_KEYS)]),
            ):
                host = f"127.0.0.1:{free_port()}"
                child = self._start([*worker, role, master, host, *rest], variables)
                self._wait_ready(child)
            self._client = child
        except ProcessError as error:
            self.close()
            raise Unavailable(str(error)) from error

    def _start(self, command: list[str], variables: dict[str, str]) -> Child:
        child = Child("mooncake", command, environment=variables)
        self._children.append(child)
        return child

    @staticmethod
    def _wait_ready(child: Child) -> None:
        while child.receive().get("event") != "ready":
            pass

    def measure(self, case: Case, seconds: float) -> Sample:
        """See System."""
        self._client.send({"operation": case.operation, "seconds": seconds})
        while (answer := self._client.receive(seconds + 60)).get("event") != "sample":
            pass
        return sample_of_latencies(answer["latencies_ns"], answer["elapsed_ns"], 1)

    def close(self) -> None:
        """See System."""
        for child in reversed(self._children):
            child.stop()


def _environment_python() -> Path:
    """The interpreter of Mooncake's environment, made at first use. Raises Unavailable."""
    folder = default_folder().parent / "venvs" / "mooncake"
    python = folder / "bin" / "python"
    if not (folder / "bin" / "mooncake_master").exists():
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", PACKAGE, "numpy"])
    check = [str(python), "-c", "import mooncake.store"]
    if subprocess.run(check, capture_output=True, env=_variables()).returncode != 0:
        try:
            unpack(list(_LIBRARIES))
        except DebError as error:
            raise Unavailable(str(error)) from error
        _run(check)
    return python


def _variables() -> dict[str, str]:
    return {**os.environ, **_library_path()}


def _library_path() -> dict[str, str]:
    """The variable that lets Mooncake find unpacked libraries."""
    root = default_folder() / "root"
    folders = [
        str(folder)
        for pattern in ("usr/lib/*-linux-gnu", "lib/*-linux-gnu")
        for folder in sorted(root.glob(pattern))
    ]
    inherited = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": ":".join([*folders, *([inherited] if inherited else [])])}


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
