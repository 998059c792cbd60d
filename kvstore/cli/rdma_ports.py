"""The RDMA ports of this machine, as the kernel's files describe them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: A packet of RoCE is this much larger than what it carries.
ROCE_HEADER_BYTES: Final = 80
#: A network card with this MTU carries the largest payload, 4096 bytes.
FULL_MTU_BYTES: Final = 4200


@dataclass(frozen=True, slots=True)
class RdmaPort:
    """One port of one device."""

    device: str
    port: int
    is_active: bool
    #: `Ethernet` or `InfiniBand`.
    link_layer: str
    #: The network card under it; empty for InfiniBand.
    netdev: str
    #: The MTU of that card; 0 where there is none.
    netdev_mtu_bytes: int
    #: IP addresses that a connection can use, those of RoCE v2.
    addresses: tuple[str, ...]

    @property
    def payload_bytes(self) -> int:
        """What one packet carries over this card; 0 where no card tells."""
        room = self.netdev_mtu_bytes - ROCE_HEADER_BYTES
        return max((size for size in (256, 512, 1024, 2048, 4096) if size <= room), default=0)


def rdma_ports(root: Path = Path("/")) -> list[RdmaPort]:
    """All ports of all devices. `root` stands for the root of the file system."""
    folder = root / "sys/class/infiniband"
    ports = sorted(folder.glob("*/ports/*")) if folder.is_dir() else []
    return [_port(root, path) for path in ports]


def _port(root: Path, folder: Path) -> RdmaPort:
    device = folder.parent.parent.name
    netdev, addresses = "", []
    for entry in sorted((folder / "gids").glob("*"), key=lambda path: path.name.zfill(6)):
        address = _address(_text(entry))
        if address is None:
            continue
        attributes = folder / "gid_attrs"
        netdev = netdev or _text(attributes / "ndevs" / entry.name)
        is_routed = "v2" in _text(attributes / "types" / entry.name)
        if is_routed and not address.is_link_local:
            addresses.append(str(address))
    netdev = netdev or _text(folder.parent.parent / "parent")
    mtu = _text(root / "sys/class/net" / netdev / "mtu") if netdev else ""
    return RdmaPort(
        device=device,
        port=int(folder.name),
        is_active="ACTIVE" in _text(folder / "state"),
        link_layer=_text(folder / "link_layer"),
        netdev=netdev,
        netdev_mtu_bytes=int(mtu) if mtu.isdecimal() else 0,
        addresses=tuple(dict.fromkeys(addresses)),
    )


def _address(gid: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that a GID stands for; None for an empty entry."""
    try:
        address = ipaddress.IPv6Address(gid)
    except ValueError:
        return None
    if not int(address):
        return None
    return address.ipv4_mapped or address


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
