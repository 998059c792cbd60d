"""A bare loopback socket in C: the floor of the tcp fabric, under the same waiting policy."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from kvstore.bench.debs import default_folder
from kvstore.bench.measure import Sample
from kvstore.bench.peers.case import LARGE_KEYS, ONE_VALUE, Case, Unavailable, Work

#: Bytes of a request for one object, and of what is around the value in the reply.
REQUEST_BYTES: Final = 64
REPLY_OVERHEAD_BYTES: Final = 128
SPIN_US: Final = 50


class SocketSystem:
    """Runs the compiled `loopback` program, one pair of processes a sample."""

    name = "socket"

    def __init__(self, work: Work) -> None:
        self._program = compiled()

    def measure(self, case: Case, seconds: float) -> Sample:
        """See System."""
        if case.operation == "get":
            spin_us = 0 if case.variant == "blocking" else SPIN_US
            reply_bytes = case.value_bytes + REPLY_OVERHEAD_BYTES
            words = ["pingpong", str(REQUEST_BYTES), str(reply_bytes), str(spin_us), str(spin_us)]
        else:
            values = 1 if case.variant == ONE_VALUE else LARGE_KEYS
            words = [case.operation.partition("_")[0], str(case.value_bytes), str(values)]
        finished = subprocess.run(
            [self._program, *words, str(seconds)],
            capture_output=True,
            text=True,
            timeout=seconds + 30,
            check=True,
        )
        count, elapsed_ns, *latencies_ns = (int(word) for word in finished.stdout.split())
        p50, p99, p999 = (latency / 1e3 for latency in latencies_ns)
        return Sample(count / (elapsed_ns / 1e9), p50, p99, p999)

    def close(self) -> None:
        """See System."""


def compiled() -> str:
    """The path of the program, which is compiled first where it has to be. Raises Unavailable."""
    source = Path(__file__).resolve().parents[1] / "loopback.c"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise Unavailable("no C compiler to build the bare socket program with")
    program = default_folder().parent / "bench" / "loopback"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(parents=True, exist_ok=True)
        finished = subprocess.run(
            [compiler, "-O2", "-o", str(program), str(source)], capture_output=True, text=True
        )
        if finished.returncode != 0:
            raise Unavailable(f"loopback.c does not compile: {finished.stderr.strip()[-200:]}")
    return str(program)
