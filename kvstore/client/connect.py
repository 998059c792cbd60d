"""`connect`: from a target to an open store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvstore.client.store import Store
from kvstore.cluster.membership import (
    Attacher,
    ControlAttacher,
    LocalAttacher,
    Membership,
    ShmAttacher,
)
from kvstore.cluster.target import EMBEDDED, Target, parse_target, read_token
from kvstore.errors import ConfigurationError
from kvstore.node.description import CONSISTENCIES

if TYPE_CHECKING:
    from kvstore.cluster.tls import TlsConfig
    from kvstore.node.memory_node import MemoryNode

#: The region of an embedded node: taken at once, so it is not large.
CAPACITY_BYTES_DEFAULT: Final = 256 << 20


def connect(
    target: str | None = None,
    *,
    token: str | None = None,
    tls: TlsConfig | None = None,
    capacity_bytes: int | None = None,
    eviction: str | None = None,
    timeout_s: float | None = None,
    lanes: int = 0,
    address_cache_entries: int = 0,
    cache_bytes: int = 0,
    consistency: str | None = None,
    host_stamps: bool = True,
) -> Store:
    """Open a store.

    Args:
        target: None starts a node inside this process, unless KVSTORE_TARGET names a target;
            "embedded" always does. "kv://HOST:PORT[,HOST:PORT]" uses those nodes, over shared
            memory where they are on this host and tcp where not; "tcp://HOST:PORT[,HOST:PORT]" uses
            tcp everywhere. "shm://NAME" uses the node of this host with that name, without its
            control plane. All clients of a set of nodes name the same set.
        token: What the nodes were started with (--token-file); by default what the file named by
            KVSTORE_TOKEN_FILE holds.
        tls: How to trust the control plane of the nodes; None speaks to it in the clear.
        capacity_bytes: Memory of the embedded node, 256 MiB by default.
        eviction: "adaptive" (the default), "sampled-lru", "lfu", "fifo" and "gdsf" make room in a
            full embedded node, "none" does not.
        timeout_s: Time-out of each operation that names none. By default it grows with the value.
        lanes: How many threads can be inside the store at once before they wait for each other;
            0: 8.
        address_cache_entries: Keys whose place is remembered, so that the next get is one round
            trip; 0: 131,072, 1: none.
        cache_bytes: Memory of this process for copies of values that are read again and again;
            0: none are made. Reads stay linearizable, or regular if the node is. Worth it for keys
            that are read several times, here, for each time that anybody writes them; see
            docs/cache.md.
        consistency: "linearizable" or "regular": refuse nodes that were started with another one.
            It is a property of the node, which a client can't change; None takes what there is.
        host_stamps: Clients of one user on one host end each other's copies through memory that
            they share (/dev/shm), which is faster than messages. False: by messages.

    Raises:
        ConfigurationError: The target or an option makes no sense.
        NodeUnreachable: None of the nodes answers. If some do, the store opens, and the keys of the
            others raise this until they are back.
        AuthenticationFailed, MembershipMismatch, LayoutMismatch, DomainMismatch: A node refused.
        ConsistencyMismatch: A node keeps another consistency than was asked for.
    """
    parsed = parse_target(target)
    if parsed.scheme != EMBEDDED and target is not None:
        for name, value in (("capacity_bytes", capacity_bytes), ("eviction", eviction)):
            if value is not None:
                raise ConfigurationError(
                    f"{name} is for the embedded node; the nodes of {target} have their own"
                )
    if timeout_s is not None and not 0 < timeout_s < float("inf"):
        raise ConfigurationError(f"timeout_s is {timeout_s}; give a positive number of seconds")
    if cache_bytes < 0:
        raise ConfigurationError(f"cache_bytes is {cache_bytes}; give 0 or a number of bytes")
    if consistency is not None and consistency not in CONSISTENCIES:
        raise ConfigurationError(
            f"consistency is {consistency!r}; it is one of {', '.join(CONSISTENCIES)}"
        )
    node: MemoryNode | None = None
    if parsed.scheme == EMBEDDED:
        from kvstore.node.memory_node import MemoryNode

        node = MemoryNode(
            capacity_bytes=CAPACITY_BYTES_DEFAULT if capacity_bytes is None else capacity_bytes,
            eviction=eviction or "adaptive",
            consistency=consistency or "linearizable",
        )
    membership = Membership(parsed.members, _attachers(parsed, token, tls, node))
    try:
        client = membership.open(
            lanes=lanes,
            address_cache_entries=address_cache_entries,
            cache_bytes=cache_bytes,
            consistency=consistency,
            host_stamps=host_stamps,
        )
        return Store(membership, client, timeout_s=timeout_s, node=node)
    except BaseException:
        membership.close()
        if node is not None:
            node.close()
        raise


def _attachers(
    target: Target, token: str | None, tls: TlsConfig | None, node: MemoryNode | None
) -> list[Attacher]:
    if node is not None:
        return [LocalAttacher(node, EMBEDDED)]
    secret = read_token(token)
    if target.scheme == "shm":
        return [ShmAttacher(target.members[0], secret)]
    return [
        ControlAttacher(
            address, token=secret, tls=tls, fabric="" if target.scheme == "kv" else target.scheme
        )
        for address in target.members
    ]
