"""What a node says about itself, as plain data.

The same types come out of a node in this process (`MemoryNode`) and of one asked over the control
plane (`ControlClient`). Nothing is loaded for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

#: `kv_eviction`, `kv_consistency`, `kv_atomic_domain`, `kv_fabric_kind`, the states of a client
#: record and `kv_port_state`, each indexed by its number in the C header.
EVICTIONS: Final = ("none", "sampled-lru", "lfu", "fifo", "gdsf", "adaptive")
CONSISTENCIES: Final = ("linearizable", "regular")
DOMAINS: Final = ("unspecified", "cpu", "verbs")
FABRICS: Final = ("local", "shm", "tcp", "verbs")
CLIENT_STATES: Final = ("unspecified", "live", "stalled", "fenced")
PORT_STATES: Final = ("unspecified", "up", "down", "lost")

#: The figures of `kv_node_stats` by their names in the C header.
NodeStats = Mapping[str, int]


def name_of(names: tuple[str, ...], number: int) -> str:
    """The name of a number that may come from newer software than this."""
    return names[number] if 0 <= number < len(names) else f"unknown-{number}"


@dataclass(frozen=True, slots=True)
class NodeDescription:
    """What a node is: constant from its start to its end, but for the membership."""

    node_id: int
    incarnation: int
    region_bytes: int
    layout_version: int
    domain: str
    eviction: str
    consistency: str
    membership_lease_ms: int
    #: Empty: no shm.
    shm_name: str
    #: Empty: the host that the control plane was reached at.
    data_host: str
    #: 0: no tcp agent.
    data_port: int
    #: Empty until the first attachment.
    cluster_id: str
    members: tuple[str, ...]
    version: str
    #: The RDMA devices of the node's host, with commas between them, and the address of each rail;
    #: empty outside the `verbs` domain.
    verbs_device: str = ""
    verbs_gids: tuple[bytes, ...] = ()
    #: Of the SSD tier; 0: there is none.
    ssd_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """One attachment, as the node sees it."""

    registration: int
    fabric: str
    #: 0 where the client is not on the node's host.
    process_id: int
    state: str
    published_epoch: int
    #: Since its heartbeat changed.
    silent_ms: int
    peer: str


@dataclass(frozen=True, slots=True)
class PortRecord:
    """A port of an RDMA device that a node serves."""

    device: str
    #: `up`, `down`, or `lost` with its device.
    state: str
    #: Times that it went down.
    failures: int
    #: Of a lost one: why it is not served again.
    reason: str


@dataclass(frozen=True, slots=True)
class Admission:
    """What opens the data path for one registration."""

    registration: int
    token: bytes


@dataclass(frozen=True, slots=True)
class VerbsEndpoint:
    """One end of a reliable connection of verbs: the fields of `kv_verbs_endpoint`."""

    gid: bytes
    lid: int
    queue_pair: int
    packet_sequence: int
    mtu_bytes: int
    reads_at_once: int
    #: Which of the node's `verbs_gids` the client wants, or got.
    rail: int = 0


@dataclass(frozen=True, slots=True)
class VerbsGrant:
    """The node's end, and the key of its region: the fields of `kv_verbs_grant`."""

    node: VerbsEndpoint
    region_address: int
    region_bytes: int
    remote_key: int
