"""What the kernel says of the processes that tests stop, kill and count."""

from __future__ import annotations

import time
from pathlib import Path

WAIT_S = 15.0


def wait_stopped(pid: int, timeout_s: float = WAIT_S) -> None:
    """Waits until each thread of a process that got SIGSTOP has stopped: it takes its time."""
    deadline = time.monotonic() + timeout_s
    # "X": a thread that ended meanwhile.
    while not all(_state(task) in "TX" for task in Path(f"/proc/{pid}/task").iterdir()):
        assert time.monotonic() < deadline, f"{pid} did not stop within {timeout_s} s"
        time.sleep(0.005)


def is_running(pid: int) -> bool:
    """Whether there is such a process and it has not ended."""
    return _state(Path(f"/proc/{pid}")) not in "ZX"


def _state(entry: Path) -> str:
    """The letter of a process or thread; that of a dead one if it is gone."""
    try:
        return entry.joinpath("stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def descendants(pid: int) -> set[int]:
    """The processes that it and its children have started, and that live."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.parent.name)] = int(fields[1])
    found = {pid}
    while True:
        more = {child for child, parent in parents.items() if parent in found} - found
        if not more:
            return found - {pid}
        found |= more
