"""How much memory this process can still have, from /proc and its control groups.

A region is taken whole at the start. Without this check a capacity that is too large ends in the
kernel's out-of-memory killer, which gives no reason and may choose another process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Where the kernel writes "no limit" as a number, it is near the largest page-aligned int64.
_NO_LIMIT_BYTES: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """One bound on what can still be had, and who sets it."""

    available_bytes: int
    source: str


def memory_limit(*, hugepages: bool = False, root: Path = Path("/")) -> MemoryLimit:
    """The tightest bound. `root` stands for the root of the file system."""
    info = meminfo(root)
    if hugepages:
        page_bytes = info.get("Hugepagesize", 0)
        free_bytes = info.get("HugePages_Free", 0) // 1024 * page_bytes
        bounds = [MemoryLimit(free_bytes, "free huge pages")]
    else:
        bounds = [MemoryLimit(info.get("MemAvailable", 0), "available memory")]
    bounds.extend(cgroup_limits(root))
    return min(bounds, key=lambda bound: bound.available_bytes)


def meminfo(root: Path = Path("/")) -> dict[str, int]:
    """/proc/meminfo in bytes; counts, such as `HugePages_Free`, are times 1024 as well."""
    figures = {}
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        figures[name] = int(rest.split()[0]) * 1024
    return figures


def cgroup_limits(root: Path = Path("/")) -> Iterator[MemoryLimit]:
    """The bounds of this process's control group and of each group around it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Inside a container the path may name a group that is not mounted: its parents are.
        parts = [part for part in path.split("/") if part and part != ".."]
        for length in range(len(parts), -1, -1):
            limit = _group_limit(base.joinpath(*parts[:length]), *names)
            if limit is not None:
                yield limit


def _group_limit(group: Path, limit: str, usage: str, reclaimable: str) -> MemoryLimit | None:
    try:
        text = (group / limit).read_text().strip()
        if text == "max" or int(text) >= _NO_LIMIT_BYTES:
            return None
        used = int((group / usage).read_text())
        for line in (group / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == reclaimable:
                used -= int(value)
    except (OSError, ValueError):
        return None
    return MemoryLimit(max(int(text) - used, 0), f"the limit of control group {group}")
