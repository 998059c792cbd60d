"""Checks of RDMA: why it cannot be used, one reason a row.

Without it the store works, over shared memory and tcp; so nothing here is a problem.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import kvstore
from kvstore.cli.checks import NOTE, OK, WARNING, Check
from kvstore.cli.rdma_ports import FULL_MTU_BYTES, RdmaPort, rdma_ports

#: The fabric's own library, the only thing that is linked to libibverbs.
FABRIC_LIBRARY: Final = "_verbs*.so"
_LIBIBVERBS: Final = "libibverbs.so.1"
#: IBV_ATOMIC_NONE.
_NO_ATOMICS: Final = 0
#: No address space is larger.
_UNLIMITED_BYTES: Final = 1 << 57
_INSTALL: Final = "sudo apt-get install libibverbs1 ibverbs-providers"


def check_rdma(root: Path = Path("/")) -> Iterator[Check]:
    """All of them. `root` stands for the root of the file system."""
    ports = rdma_ports(root)
    yield fabric()
    yield libibverbs(_LIBIBVERBS)
    yield rdma_devices(ports)
    if ports:
        yield addresses(ports)
        yield mtu(ports)
        yield access(root, ports)
        yield device_limits(ports)
        yield network_namespace(root, ports)
    yield soft_roce(root)
    yield locked_memory(bool(ports))


def fabric() -> Check:
    """Whether this installation has the verbs fabric, and it can be loaded."""
    name = "verbs fabric"
    folder = Path(kvstore.__file__).parent
    if not any(folder.glob(FABRIC_LIBRARY)):
        return Check(
            name,
            NOTE,
            "not built: this installation speaks shm and tcp",
            "sudo apt-get install libibverbs-dev  # and build or install kvstore again",
        )
    try:
        from kvstore.client.native import ffi, lib
    except ImportError:
        return Check(name, NOTE, "built; the native core, which loads it, is not")
    error = ffi.new("char[]", 1024)
    if lib.kv_verbs_available(error, 1024):
        return Check(name, OK, "built, and can be loaded")
    return Check(name, NOTE, ffi.string(error).decode("utf-8", "replace"), _INSTALL)


def libibverbs(name: str) -> Check:
    """Whether the system's library can be loaded."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return Check("libibverbs", NOTE, "the library is missing", _INSTALL)
    return Check("libibverbs", OK, name)


def rdma_devices(ports: list[RdmaPort]) -> Check:
    """Whether there is a device, with a port that is up."""
    name = "RDMA devices"
    if not ports:
        return Check(name, NOTE, "none", "sudo kvstore rxe up  # Soft-RoCE over a network card")
    detail = "; ".join(
        f"{port.device} port {port.port}: {'active' if port.is_active else 'down'}"
        for port in ports
    )
    if any(port.is_active for port in ports):
        return Check(name, OK, detail)
    card = ports[0].netdev
    remedy = f"sudo ip link set {card} up" if card else "rdma link show  # is the cable in?"
    return Check(name, WARNING, f"no port is active: {detail}", remedy)


def addresses(ports: list[RdmaPort]) -> Check:
    """Peers are found by IP address: without one no connection is made over Ethernet."""
    name = "RDMA addresses"
    ethernet = [port for port in ports if port.is_active and port.link_layer == "Ethernet"]
    without = [port for port in ethernet if not port.addresses]
    if without:
        card = without[0].netdev or "NETDEV"
        return Check(
            name,
            WARNING,
            f"{', '.join(port.device for port in without)}: no IP address for RoCE v2",
            f"sudo ip address add ADDRESS/PREFIX dev {card}",
        )
    found = [f"{port.device}: {', '.join(port.addresses)}" for port in ethernet]
    return Check(name, OK, "; ".join(found) or "none needed: InfiniBand")


def mtu(ports: list[RdmaPort]) -> Check:
    """Small packets cost throughput of large values."""
    name = "RDMA MTU"
    known = [port for port in ports if port.netdev_mtu_bytes]
    small = [port for port in known if port.payload_bytes < 4096]
    detail = "; ".join(
        f"{port.device}: {port.payload_bytes} bytes a packet (MTU {port.netdev_mtu_bytes} of"
        f" {port.netdev})"
        for port in known
    )
    if not small:
        return Check(name, OK, detail or "not told by a network card")
    return Check(name, NOTE, detail, f"sudo ip link set {small[0].netdev} mtu {FULL_MTU_BYTES}")


def access(root: Path, ports: list[RdmaPort]) -> Check:
    """A container sees the devices of its host but may not open them."""
    name = "RDMA access"
    files = sorted((root / "dev/infiniband").glob("uverbs*"))
    if not files:
        return Check(
            name,
            WARNING,
            f"the kernel has {ports[0].device}, but /dev/infiniband is not here",
            "docker run --device /dev/infiniband --network host --ulimit memlock=-1 …"
            "  # on a host: sudo modprobe ib_uverbs",
        )
    if any(os.access(path, os.R_OK | os.W_OK) for path in files):
        return Check(name, OK, ", ".join(path.name for path in files))
    return Check(
        name, WARNING, f"{files[0]} cannot be opened", "sudo chmod 666 /dev/infiniband/uverbs*"
    )


def device_limits(ports: list[RdmaPort]) -> Check:
    """What the devices say of themselves when they are opened, for which pyverbs is needed."""
    name = "RDMA limits"
    try:
        verbs: Any = importlib.import_module("pyverbs.device")
    except ImportError:
        remedy = "pip install 'kvstore-dm[verbs]'  # or Debian's python3-pyverbs"
        return Check(name, NOTE, "not asked: pyverbs is not installed", remedy)
    found = []
    for device in dict.fromkeys(port.device for port in ports):
        try:
            with verbs.Context(name=device) as context:
                limits = context.query_device()
        except Exception as error:
            detail = f"{device} cannot be opened: {error}"
            return Check(name, WARNING, detail, "ibv_devinfo  # says more")
        if limits.atomic_caps == _NO_ATOMICS:
            detail = f"{device} has no atomics, so no node can use it"
            return Check(name, WARNING, detail, "kvstore-node --device OTHER  # see rdma link show")
        size = limits.max_mr_size
        room = "of any size" if size >= _UNLIMITED_BYTES else f"of up to {size >> 30} GiB"
        found.append(
            f"{device}: a region {room}, {limits.max_qp} queue pairs,"
            f" {limits.max_qp_rd_atom} READs at once on each"
        )
    return Check(name, OK, "; ".join(found))


def network_namespace(root: Path, ports: list[RdmaPort]) -> Check:
    """Soft-RoCE sends and receives in the host's network namespace only."""
    name = "RDMA namespace"
    try:
        ours, first = (os.readlink(root / f"proc/{who}/ns/net") for who in ("self", "1"))
    except OSError:
        return Check(name, OK, "cannot be told")
    if ours == first:
        return Check(name, OK, "that of the first process")
    return Check(
        name,
        WARNING,
        f"not that of the host: {ports[0].device} may look active and never answer",
        "docker run --network host …  # or run outside of the namespace",
    )


def soft_roce(root: Path) -> Check:
    """Whether a machine without RDMA hardware can have it in software."""
    name = "Soft-RoCE"
    if (root / "sys/module/rdma_rxe").exists():
        return Check(name, OK, "rdma_rxe is loaded")
    release = os.uname().release
    modules = root / "lib/modules" / release
    if any(modules.glob("kernel/drivers/infiniband/sw/rxe/rdma_rxe.ko*")):
        return Check(name, OK, "rdma_rxe can be loaded: sudo kvstore rxe up")
    return Check(
        name,
        NOTE,
        f"the kernel {release} has no module rdma_rxe",
        "sudo apt-get install linux-image-amd64  # not a `cloud` kernel; or try it in a virtual"
        " machine: make rxe",
    )


def locked_memory(has_devices: bool) -> Check:
    """A registered region is locked. Shared memory and tcp lock nothing."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Check("locked memory", OK, "unlimited")
    detail = f"{soft >> 10} KiB; a region of the verbs fabric is locked, of others not"
    remedy = (
        "sudo prlimit --pid $$ --memlock=unlimited  # LimitMEMLOCK=infinity of the service,"
        " --ulimit memlock=-1 of a container"
    )
    return Check("locked memory", WARNING if has_devices else NOTE, detail, remedy)
