"""Checks of the machine: memory, limits, kernel, ports."""

from __future__ import annotations

import errno
import os
import platform
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kvstore.cli.checks import NOTE, OK, PROBLEM, WARNING, Check
from kvstore.node.memory_limits import cgroup_limits, meminfo, memory_limit
from kvstore.node.units import format_bytes

_MEMORY_BYTES_WISHED: Final = 1 << 30
_MEMORY_BYTES_LEAST: Final = 64 << 20
_FILES_WISHED: Final = 4096
#: Reading these takes microseconds, and they do not stall.
_FAST_CLOCKS: Final = ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter")


def check_machine(root: Path = Path("/")) -> Iterator[Check]:
    """All of them. `root` stands for the root of the file system."""
    yield kernel()
    yield clock_source(root)
    yield memory(root)
    yield control_groups(root)
    yield overcommit(root)
    yield hugepages(root)
    yield shm_size(root)
    yield open_files()
    yield memfd()
    yield process_handles()
    yield abstract_sockets()


def kernel() -> Check:
    """Kernel, processor and how many of them."""
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    detail = f"Linux {platform.release()} on {platform.machine()}, {usable} of {present} CPUs"
    status = OK if usable > 1 else NOTE
    if usable == 1:
        detail += "; waiting does not spin on one CPU, so round trips are slower"
    return Check("kernel", status, detail)


def clock_source(root: Path) -> Check:
    """A slow clock is paid on each operation."""
    folder = root / "sys/devices/system/clocksource/clocksource0"
    current = _text(folder / "current_clocksource")
    available = _text(folder / "available_clocksource").split()
    if not current:
        return Check("clock source", NOTE, "the kernel does not say")
    if current in _FAST_CLOCKS:
        return Check("clock source", OK, current)
    faster = [name for name in available if name in _FAST_CLOCKS]
    remedy = f"echo {faster[0]} | sudo tee {folder}/current_clocksource" if faster else ""
    return Check("clock source", WARNING, f"{current} is slow to read", remedy)


def memory(root: Path) -> Check:
    """What a node on this machine could take."""
    info, limit = meminfo(root), memory_limit(root=root)
    available = format_bytes(limit.available_bytes)
    detail = f"{available} can be had of {format_bytes(info.get('MemTotal', 0))} ({limit.source})"
    remedy = "ps -eo rss,pid,args --sort=-rss | head"
    if limit.available_bytes < _MEMORY_BYTES_LEAST:
        return Check("memory", PROBLEM, detail, remedy)
    if limit.available_bytes < _MEMORY_BYTES_WISHED:
        return Check("memory", WARNING, detail, remedy)
    return Check("memory", OK, detail)


def control_groups(root: Path) -> Check:
    """The limit of a container or service, which the machine's memory does not show."""
    limits = list(cgroup_limits(root))
    if not limits:
        return Check("control group limit", OK, "none")
    least = min(limits, key=lambda limit: limit.available_bytes)
    detail = f"{format_bytes(least.available_bytes)} left under {least.source}"
    return Check("control group limit", NOTE, detail)


def overcommit(root: Path) -> Check:
    """Under strict accounting a region also counts against the commit limit."""
    mode = _text(root / "proc/sys/vm/overcommit_memory")
    if mode != "2":
        return Check("overcommit", OK, f"vm.overcommit_memory = {mode or 'unknown'}")
    info = meminfo(root)
    left = info.get("CommitLimit", 0) - info.get("Committed_AS", 0)
    return Check(
        "overcommit",
        WARNING,
        f"strict accounting leaves {format_bytes(max(left, 0))}",
        "sudo sysctl vm.overcommit_memory=0",
    )


def hugepages(root: Path) -> Check:
    """Wanted by `--hugepages` only."""
    info = meminfo(root)
    page_bytes = info.get("Hugepagesize", 0)
    total, free = (info.get(f"HugePages_{name}", 0) // 1024 for name in ("Total", "Free"))
    if not page_bytes:
        return Check("huge pages", NOTE, "this kernel has none; --hugepages cannot be used")
    detail = f"{free} of {total} free, {format_bytes(page_bytes)} each"
    if total:
        return Check("huge pages", OK, detail)
    pages = (4 << 30) // page_bytes
    return Check(
        "huge pages",
        NOTE,
        detail + "; --hugepages needs them, nothing else does",
        f"sudo sysctl vm.nr_hugepages={pages}  # for 4 GiB",
    )


def shm_size(root: Path) -> Check:
    """Regions are anonymous memory; only tables of the host's clients are files in it."""
    try:
        space = os.statvfs(root / "dev/shm")
    except OSError as error:
        without = "clients with copies send messages instead"
        return Check("/dev/shm", OK, f"not there ({error.strerror}): {without}")
    size = format_bytes(space.f_blocks * space.f_frsize)
    use = "7 MiB a node of clients with copies; a region is a memfd"
    return Check("/dev/shm", OK, f"{size}, for {use}")


def open_files() -> Check:
    """Each tcp client of a node takes several."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{_limit(soft)} (at most {_limit(hard)})"
    if soft == resource.RLIM_INFINITY or soft >= _FILES_WISHED:
        return Check("open files", OK, detail)
    remedy = "ulimit -n 65536"
    if hard != resource.RLIM_INFINITY and hard < _FILES_WISHED:
        remedy = "sudo prlimit --pid $$ --nofile=65536:65536  # or LimitNOFILE= of the service"
    return Check("open files", WARNING, f"{detail}; a busy node needs {_FILES_WISHED}", remedy)


def memfd() -> Check:
    """A region is a sealed memfd."""
    try:
        descriptor = os.memfd_create("kvstore-doctor", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    except (AttributeError, OSError) as error:
        return Check(
            "memfd",
            PROBLEM,
            f"cannot be made: {error}",
            "docker run --security-opt seccomp=unconfined …  # or allow memfd_create",
        )
    os.close(descriptor)
    return Check("memfd", OK, "can be made and sealed")


def process_handles() -> Check:
    """How a node knows that a client on its host is dead, which fencing rests on."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        return Check(
            "pidfd",
            PROBLEM,
            f"cannot be opened: {error}; shm clients could not be fenced",
            "docker run --security-opt seccomp=unconfined …  # or allow pidfd_open",
        )
    return Check("pidfd", OK, "can be opened")


def abstract_sockets() -> Check:
    """How clients on a node's host get its region."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.bind(f"\0kvstore-doctor-{os.getpid()}")
    except OSError as error:
        return Check(
            "unix sockets",
            PROBLEM,
            f"an abstract one cannot be bound: {error.strerror}",
            "kvstore-node --shm /run/kvstore/node.sock …",
        )
    return Check("unix sockets", OK, "abstract ones can be bound")


def port(number: int, use: str) -> Check:
    """Whether a node could listen there."""
    name = f"port {number}"
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", number))
            probe.listen(1)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return Check(name, WARNING, f"{use}: {error.strerror}")
        return Check(
            name,
            NOTE,
            f"{use}: taken; a kvstore-node, or something else",
            f"ss -ltnp 'sport = :{number}'  # or kvstore-node --listen 127.0.0.1:0",
        )
    return Check(name, OK, f"{use}: free")


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
