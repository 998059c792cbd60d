"""A memory node in this process: the region, its index and its agent, all of them native.

Used by the `kvstore-node` daemon and by the embedded node of `kvstore.connect()`. Loads the native
module and nothing else. Every method may be called from any thread; after `close` each raises
`StoreClosed`, and in a forked child `ForkedError`: a fork inherits neither the region nor the
threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

from kvstore import errors
from kvstore.node.description import (
    CLIENT_STATES,
    CONSISTENCIES,
    DOMAINS,
    EVICTIONS,
    FABRICS,
    PORT_STATES,
    Admission,
    ClientRecord,
    NodeDescription,
    PortRecord,
    VerbsEndpoint,
    VerbsGrant,
    name_of,
)

#: The smallest region that the layout allows.
CAPACITY_BYTES_MIN: Final = 8 << 20
_ERROR_BYTES: Final = 1024
#: `kv_node_description` holds the joined member list in this much, with its NUL.
_MEMBERS_BYTES: Final = 4096
_NAME_BYTES: Final = 256
_GID_BYTES: Final = 16


class MemoryNode:
    """Owns one region. Memory is taken at once, and given back by `close` or with the process.

    Raises `ConfigurationError` if an argument makes no sense or the region cannot be had.
    """

    def __init__(
        self,
        *,
        capacity_bytes: int,
        shm_name: str | None = None,
        tcp_host: str | None = None,
        tcp_port: int = 0,
        tcp_threads: int = 0,
        eviction: str = "adaptive",
        consistency: str = "linearizable",
        hugepages: bool = False,
        prefault: bool = False,
        membership_lease_ms: int = 0,
        fence_after_ms: int = 0,
        secret: str | None = None,
        cluster_id: str = "",
        members: Sequence[str] = (),
        verbs_device: str | None = None,
        verbs_address: str = "",
    ) -> None:
        """Opens the node; see `kv_node_config` in the C header for each argument.

        `shm_name` None: no shm. `tcp_host` None: no tcp agent. `tcp_port` 0: any free port.
        `membership_lease_ms` 0: the default. `fence_after_ms` 0: a stopped client on this host is
        never killed. `secret`: what a client must show that attaches over shm without an admission.
        `verbs_device` None: the `cpu` domain; empty: the device with the IP `verbs_address`; else
        one, or a list with commas.
        """
        from kvstore._native import ffi, lib

        self._ffi: Any = ffi
        self._lib: Any = lib
        self._lock = threading.RLock()
        self._handle: Any = None
        self._process_id = os.getpid()
        # The C struct points into these; they stay alive for as long as the node.
        self._texts: list[Any] = []
        config = ffi.new("kv_node_config *")
        config.capacity_bytes = _in_range("capacity_bytes", capacity_bytes, CAPACITY_BYTES_MIN)
        config.shm_name = self._text(shm_name)
        config.tcp_host = self._text(tcp_host)
        config.tcp_port = _in_range("tcp_port", tcp_port, 0, 65535)
        config.tcp_threads = _in_range("tcp_threads", tcp_threads, 0, 1024)
        config.eviction = _number_of("eviction", EVICTIONS, eviction)
        config.consistency = _number_of("consistency", CONSISTENCIES, consistency)
        config.hugepages = int(hugepages)
        config.prefault = int(prefault)
        config.membership_lease_ms = _in_range("membership_lease_ms", membership_lease_ms, 0)
        config.fence_after_ms = _in_range("fence_after_ms", fence_after_ms, 0)
        config.secret = self._text(secret)
        config.cluster_id = self._text(_checked_name("cluster_id", cluster_id))
        config.members = self._text(_joined(members))
        config.verbs_device = ffi.NULL if verbs_device is None else self._kept(verbs_device)
        config.verbs_address = self._text(verbs_address)
        error = ffi.new("char[]", _ERROR_BYTES)
        handle = lib.kv_node_open(config, error, _ERROR_BYTES)
        if handle == ffi.NULL:
            raise errors.ConfigurationError(self._line(error))
        self._handle = handle

    @property
    def handle(self) -> Any:
        """The `kv_node *` of a node that is open, for `kv_client_attach_local`."""
        self._check_process()
        if self._handle is None:
            raise errors.StoreClosed("the memory node is closed")
        return self._handle

    def describe(self) -> NodeDescription:
        """What the node is, with the ports that it was given."""
        description = self._ffi.new("kv_node_description *")
        self._check_process()
        with self._lock:
            self._lib.kv_node_describe(self.handle, description)
        members = self._line(description.members)
        return NodeDescription(
            node_id=description.node_id,
            incarnation=description.incarnation,
            region_bytes=description.region_bytes,
            layout_version=description.layout_version,
            domain=name_of(DOMAINS, description.domain),
            eviction=name_of(EVICTIONS, description.eviction),
            consistency=name_of(CONSISTENCIES, description.consistency),
            membership_lease_ms=description.membership_lease_ms,
            shm_name=self._line(description.shm_name),
            data_host="",
            data_port=description.tcp_port,
            cluster_id=self._line(description.cluster_id),
            members=tuple(members.split("\n")) if members else (),
            version=self._ffi.string(self._lib.kv_version()).decode(),
            verbs_device=self._line(description.verbs_device),
            verbs_gids=tuple(
                bytes(self._ffi.buffer(gid))
                for gid in description.verbs_gids[0 : description.verbs_rails]
            ),
        )

    def stats(self) -> dict[str, int]:
        """The figures of `kv_node_stats`, by their names there. Counts the live keys."""
        stats = self._ffi.new("kv_node_stats *")
        self._check_process()
        with self._lock:
            self._lib.kv_node_read_stats(self.handle, stats)
        names = [name for name, _ in self._ffi.typeof("kv_node_stats").fields]
        return {name: int(getattr(stats, name)) for name in names}

    def clients(self) -> list[ClientRecord]:
        """The attachments that are not yet swept, in order of registration."""
        # The registry may grow between two calls; a full array means that there may be more.
        capacity = 64
        while True:
            records = self._ffi.new("kv_client_record[]", capacity)
            self._check_process()
            with self._lock:
                count = self._lib.kv_node_clients(self.handle, records, capacity)
            if count < capacity or capacity >= 1 << 16:
                break
            capacity *= 4
        clients = [self._client(records[index]) for index in range(min(count, capacity))]
        return sorted(clients, key=lambda record: record.registration)

    def admit(self, peer: str) -> Admission:
        """Registers one client. `peer` says for people who it is.

        `NodeUnreachable` in a drain, and as long as all RDMA ports of the node are down.
        """
        admission = self._ffi.new("kv_admission *")
        error = self._ffi.new("char[]", _ERROR_BYTES)
        text = peer.encode("utf-8", "replace")[: _NAME_BYTES - 1]
        self._check_process()
        with self._lock:
            status = self._lib.kv_node_admit(self.handle, text, admission, error, _ERROR_BYTES)
        if status != self._lib.KV_OK:
            raise errors.NodeUnreachable(self._line(error))
        return Admission(admission.registration, bytes(self._ffi.buffer(admission.token)))

    def connect_verbs(self, admission: Admission, lane: int, client: VerbsEndpoint) -> VerbsGrant:
        """Connects a queue pair of an admitted client. `AttachRefused` with the reason."""
        asked = self._ffi.new("kv_admission *", {"registration": admission.registration})
        if len(admission.token) != len(asked.token) or len(client.gid) != _GID_BYTES:
            raise errors.ConfigurationError("a token and a GID have 16 bytes each")
        self._ffi.memmove(asked.token, admission.token, len(asked.token))
        endpoint = self._ffi.new("kv_verbs_endpoint *")
        fill_endpoint(self._ffi, endpoint, client)
        grant = self._ffi.new("kv_verbs_grant *")
        error = self._ffi.new("char[]", _ERROR_BYTES)
        self._check_process()
        with self._lock:
            status = self._lib.kv_node_connect_verbs(
                self.handle, asked, lane, endpoint, grant, error, _ERROR_BYTES
            )
        if status != self._lib.KV_OK:
            raise errors.AttachRefused(self._line(error))
        return VerbsGrant(
            node=read_endpoint(self._ffi, grant.node),
            region_address=grant.region_address,
            region_bytes=grant.region_bytes,
            remote_key=grant.remote_key,
        )

    def dismiss(self, registration: int, token: bytes) -> bool:
        """Fences an admission and has what it held swept; False if there is no such one."""
        if not 0 <= registration <= 0xFFFFFFFF or len(token) != self._lib.KV_TOKEN_BYTES:
            return False
        self._check_process()
        admission = self._ffi.new("kv_admission *")
        admission.registration = registration
        admission.token = token
        with self._lock:
            status = self._lib.kv_node_dismiss(self.handle, admission)
        return bool(status == self._lib.KV_OK)

    def set_members(self, cluster_id: str, members: Sequence[str]) -> None:
        """Fixes the cluster for this incarnation. `MembershipMismatch` if it has another one."""
        _checked_name("cluster_id", cluster_id)
        joined = _joined(members)
        error = self._ffi.new("char[]", _ERROR_BYTES)
        self._check_process()
        with self._lock:
            status = self._lib.kv_node_set_members(
                self.handle, cluster_id.encode(), joined.encode(), error, _ERROR_BYTES
            )
            if status == self._lib.KV_OK:
                return
            present = self.describe()
        if status == self._lib.KV_REFUSED:
            raise errors.MembershipMismatch(
                self._line(error),
                ours=tuple(sorted(members)),
                theirs=present.members,
            )
        raise errors.ConfigurationError(self._line(error) or f"status {status}")

    def drain(self) -> None:
        """Refuses new attachments from here on; those that exist go on."""
        self._check_process()
        with self._lock:
            self._lib.kv_node_drain(self.handle)

    def revoke(self) -> None:
        """Drains, and takes their access from the clients of other processes.

        Over verbs and tcp it is gone on return. A client that maps the region over shm is told,
        and its next operation fails; what a process has mapped cannot be taken from it.
        """
        self._check_process()
        with self._lock:
            self._lib.kv_node_revoke(self.handle)

    def ports(self) -> list[PortRecord]:
        """The ports of RDMA devices that are served, in the order of the node's rails."""
        records = self._ffi.new("kv_port_record[]", self._lib.KV_VERBS_RAILS_MAX)
        self._check_process()
        with self._lock:
            count = self._lib.kv_node_ports(self.handle, records, len(records))
        return [
            PortRecord(
                device=self._line(record.device),
                state=name_of(PORT_STATES, record.state),
                failures=record.failures,
                reason=self._line(record.reason),
            )
            for record in records[0:count]
        ]

    def close(self) -> None:
        """Ends the node; clients still attached find the region dead. May be called again.

        In a forked child it does nothing: the node is the parent's.
        """
        if os.getpid() != self._process_id:
            return
        with self._lock:
            handle, self._handle = self._handle, None
            if handle is not None:
                self._lib.kv_node_close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._handle is None else "open"
        return f"<{type(self).__name__} {state}>"

    def _check_process(self) -> None:
        """Before the lock, which a thread of the parent may have held when the child was forked."""
        if os.getpid() != self._process_id:
            raise errors.ForkedError("the memory node runs in the parent process")

    def _client(self, record: Any) -> ClientRecord:
        return ClientRecord(
            registration=record.registration,
            fabric=name_of(FABRICS, record.fabric),
            process_id=record.process_id,
            state=name_of(CLIENT_STATES, record.state),
            published_epoch=record.published_epoch,
            silent_ms=record.silent_ms,
            peer=self._line(record.peer),
        )

    def _text(self, text: str | None) -> Any:
        return self._kept(text) if text else self._ffi.NULL

    def _kept(self, text: str) -> Any:
        if "\0" in text:
            raise errors.ConfigurationError(f"a NUL character in {text!r}")
        self._texts.append(self._ffi.new("char[]", text.encode()))
        return self._texts[-1]

    def _line(self, text: Any) -> str:
        return str(self._ffi.string(text).decode("utf-8", "replace"))


def fill_endpoint(ffi: Any, target: Any, endpoint: VerbsEndpoint) -> None:
    """Writes an endpoint into a `kv_verbs_endpoint`; the GID has 16 bytes."""
    ffi.memmove(target.gid, endpoint.gid, _GID_BYTES)
    for name in ("lid", "queue_pair", "packet_sequence", "mtu_bytes", "reads_at_once", "rail"):
        setattr(target, name, getattr(endpoint, name))


def read_endpoint(ffi: Any, source: Any) -> VerbsEndpoint:
    """Reads a `kv_verbs_endpoint`."""
    return VerbsEndpoint(
        gid=bytes(ffi.buffer(source.gid)),
        lid=source.lid,
        queue_pair=source.queue_pair,
        packet_sequence=source.packet_sequence,
        mtu_bytes=source.mtu_bytes,
        reads_at_once=source.reads_at_once,
        rail=source.rail,
    )


def _in_range(name: str, value: int, low: int, high: int = (1 << 63) - 1) -> int:
    if not low <= value <= high:
        raise errors.ConfigurationError(f"{name} is {value}, outside of {low} to {high}")
    return value


def _number_of(name: str, names: tuple[str, ...], value: str) -> int:
    if value not in names:
        raise errors.ConfigurationError(f"{name} is {value!r}, not one of {', '.join(names)}")
    return names.index(value)


def _checked_name(name: str, value: str) -> str:
    if len(value.encode()) >= _NAME_BYTES or "\0" in value:
        raise errors.ConfigurationError(f"{name} is longer than {_NAME_BYTES - 1} bytes")
    return value


def _joined(members: Sequence[str]) -> str:
    """The form in which the core holds a member list: sorted, joined by line feeds."""
    for member in members:
        if not member or "\n" in member or "\0" in member:
            raise errors.ConfigurationError(f"{member!r} is no member")
    if len(set(members)) != len(members):
        raise errors.ConfigurationError("a member is named twice")
    joined = "\n".join(sorted(members))
    if len(joined.encode()) >= _MEMBERS_BYTES:
        raise errors.ConfigurationError(f"the member list is over {_MEMBERS_BYTES - 1} bytes")
    return joined
