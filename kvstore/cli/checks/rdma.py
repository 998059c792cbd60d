"""Checks of RDMA: three reasons why it cannot be used, told apart.

Without it the store works, over shared memory and tcp; so nothing here is a problem.
"""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import kvstore
from kvstore.cli.checks import NOTE, OK, WARNING, Check

#: The fabric's own library, the only thing that is linked to libibverbs.
FABRIC_LIBRARY: Final = "_verbs*.so"
_LIBIBVERBS: Final = "libibverbs.so.1"


def check_rdma(root: Path = Path("/")) -> Iterator[Check]:
    """All of them. `root` stands for the root of the file system."""
    devices = device_names(root)
    yield fabric()
    yield libibverbs(_LIBIBVERBS)
    yield rdma_devices(root, devices)
    yield locked_memory(bool(devices))


def fabric() -> Check:
    """Whether this installation has the verbs fabric."""
    folder = Path(kvstore.__file__).parent
    if any(folder.glob(FABRIC_LIBRARY)):
        return Check("verbs fabric", OK, "built")
    return Check("verbs fabric", NOTE, "not built: this installation speaks shm and tcp")


def libibverbs(name: str) -> Check:
    """Whether the system's library can be loaded."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return Check(
            "libibverbs",
            NOTE,
            "the library is missing",
            "sudo apt-get install libibverbs1 ibverbs-providers",
        )
    return Check("libibverbs", OK, name)


def device_names(root: Path) -> list[str]:
    """The RDMA devices that the kernel has."""
    try:
        return sorted(path.name for path in (root / "sys/class/infiniband").iterdir())
    except OSError:
        return []


def rdma_devices(root: Path, devices: list[str]) -> Check:
    """Whether there is one, with a port that is up."""
    if not devices:
        return Check(
            "RDMA devices",
            NOTE,
            "none",
            "sudo rdma link add rxe0 type rxe netdev eth0  # Soft-RoCE over a network card",
        )
    states = {}
    for device in devices:
        ports = sorted((root / "sys/class/infiniband" / device / "ports").glob("*/state"))
        states[device] = [path.read_text().strip() for path in ports]
    detail = "; ".join(f"{device}: {', '.join(found)}" for device, found in states.items())
    if any("ACTIVE" in state for found in states.values() for state in found):
        return Check("RDMA devices", OK, detail)
    return Check("RDMA devices", WARNING, f"no port is active: {detail}", "rdma link show")


def locked_memory(has_devices: bool) -> Check:
    """A registered region is locked. Shared memory and tcp lock nothing."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Check("locked memory", OK, "unlimited")
    detail = f"{soft >> 10} KiB; a region of the verbs fabric is locked, of others not"
    remedy = "sudo prlimit --pid $$ --memlock=unlimited  # or LimitMEMLOCK=infinity of the service"
    return Check("locked memory", WARNING if has_devices else NOTE, detail, remedy)
