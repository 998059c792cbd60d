"""What the client's part of the verbs fabric does between a post and its completion.

It runs on this host, over a stand-in for libibverbs: what is shown is of the fabric itself, without
the provider, whose system calls are its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

BENCHES = Path(__file__).resolve().parents[2] / "build" / "editable" / "benches"
PROGRAM = BENCHES / "post_path"
KINDS = ("get", "write", "cas", "faa", "put", "get-32", "read-1MiB")


def test_a_post_allocates_nothing_and_makes_no_system_call() -> None:
    """A system call would have killed the process."""
    result = subprocess.run(
        [PROGRAM, "check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout
    assert result.stdout.splitlines() == [
        f"{kind}: no allocation, no system call" for kind in KINDS
    ]


def test_the_filter_lets_nothing_pass_but_the_report() -> None:
    result = subprocess.run([PROGRAM, "stray"], capture_output=True, timeout=60, check=False)
    assert result.returncode == -signal.SIGSYS


@pytest.mark.parametrize("kind", ["get", "get-cold", "get-32"])
def test_the_store_reads_what_it_has_put_over_the_stand_in(kind: str) -> None:
    """The program aborts at a call that fails."""
    environment = {**os.environ, "KVSTORE_VERBS_LIBRARY": str(BENCHES / "loopback_verbs.so")}
    command = [BENCHES / "store_path", kind, "64"]
    subprocess.run(command, env=environment, timeout=60, check=True)
