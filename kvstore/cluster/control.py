"""The control plane of one memory node, from the client's side.

Loads gRPC, through `kvstore.cluster.rpc`; nothing else of the client does.

Every call ends within its time-out and raises types of `kvstore.errors` only: `NodeUnreachable`
where nothing answers in time or the node drains, `AuthenticationFailed` for a missing or wrong
token, `MembershipMismatch` for another member list, `LayoutMismatch` for another layout,
`ConfigurationError` where the request or the TLS set-up makes no sense.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, TypeVar

from google.protobuf.message import DecodeError, Message

from kvstore import errors
from kvstore.cluster import rpc
from kvstore.cluster.proto import control_pb2
from kvstore.cluster.tls import TlsConfig
from kvstore.cluster.verbs_messages import endpoint_message, grant_from
from kvstore.node.description import (
    CLIENT_STATES,
    CONSISTENCIES,
    DOMAINS,
    EVICTIONS,
    FABRICS,
    ClientRecord,
    NodeDescription,
    VerbsEndpoint,
    VerbsGrant,
    name_of,
)

if TYPE_CHECKING:
    from types import TracebackType

TIMEOUT_S_DEFAULT: Final = 5.0
_TOKEN_BYTES: Final = 16
_GID_BYTES: Final = 16
_SERVICE: Final = control_pb2.DESCRIPTOR.services_by_name["Control"].full_name
_Answer = TypeVar("_Answer", bound=Message)


@dataclass(frozen=True, slots=True)
class Attachment:
    """An admission to one node, and what a client needs to know of the node to use it."""

    node_id: int
    incarnation: int
    region_bytes: int
    layout_version: int
    domain: str
    #: Empty: no shm.
    shm_name: str
    tcp_host: str
    #: 0: no tcp agent.
    tcp_port: int
    eviction: str
    consistency: str
    membership_lease_ms: int
    registration: int
    #: Opens the data path for this registration; not to be shown or logged.
    token: bytes
    cluster_id: str
    members: tuple[str, ...]
    #: The RDMA address of each rail; empty outside the `verbs` domain.
    verbs_gids: tuple[bytes, ...] = ()
    #: Of the SSD tier; 0: there is none.
    ssd_bytes: int = 0

    def __repr__(self) -> str:
        return (
            f"Attachment(node_id={self.node_id:#x}, registration={self.registration},"
            f" shm_name={self.shm_name!r}, tcp={self.tcp_host}:{self.tcp_port})"
        )


class ControlClient:
    """Talks to the control plane of the node at `address`, `host:port`. Thread-safe.

    With `tls` None the channel is in clear text, the token too.
    """

    def __init__(
        self, address: str, *, token: str | None = None, tls: TlsConfig | None = None
    ) -> None:
        """Connects to nothing yet."""
        self.address = address
        self._host = host_of(address)
        self._token = token
        self._tls = tls
        self._authorities = tls.read_ca() if tls is not None else None
        self._closed = False

    def attach(
        self,
        *,
        cluster_id: str,
        members: Sequence[str],
        peer: str,
        timeout_s: float = TIMEOUT_S_DEFAULT,
        layout_version: int = 0,
    ) -> Attachment:
        """Asks for admission as one of the clients of this cluster.

        The first client fixes `cluster_id` and `members` for the node's incarnation; an empty
        `cluster_id` takes what the node has. `peer` says for people who asks. `layout_version` 0
        leaves that check to the caller.
        """
        request = control_pb2.AttachRequest(
            cluster_id=cluster_id, members=members, peer=peer, layout_version=layout_version
        )
        answer = self._call(
            "Attach", request, control_pb2.Attachment(), timeout_s, ours=tuple(sorted(members))
        )
        if len(answer.token) != _TOKEN_BYTES:
            raise errors.NodeUnreachable(f"{self.address} sent a token of a wrong size")
        node = self._description(answer.node)
        return Attachment(
            node_id=node.node_id,
            incarnation=node.incarnation,
            region_bytes=node.region_bytes,
            layout_version=node.layout_version,
            domain=node.domain,
            shm_name=node.shm_name,
            tcp_host=node.data_host,
            tcp_port=node.data_port,
            eviction=node.eviction,
            consistency=node.consistency,
            membership_lease_ms=node.membership_lease_ms,
            registration=answer.registration,
            token=answer.token,
            cluster_id=node.cluster_id,
            members=node.members,
            verbs_gids=node.verbs_gids,
            ssd_bytes=node.ssd_bytes,
        )

    def connect_verbs(
        self,
        registration: int,
        token: bytes,
        lane: int,
        client: VerbsEndpoint,
        *,
        timeout_s: float = TIMEOUT_S_DEFAULT,
    ) -> VerbsGrant:
        """Has the node connect a queue pair of this admission. `AttachRefused` with the reason."""
        request = control_pb2.ConnectVerbsRequest(
            registration=registration, token=token, lane=lane, client=endpoint_message(client)
        )
        answer = self._call("ConnectVerbs", request, control_pb2.VerbsGrant(), timeout_s)
        if len(answer.node.gid) != _GID_BYTES:
            raise errors.ConfigurationError(f"{self.address} sent a GID of a wrong size")
        return grant_from(answer)

    def detach(
        self, registration: int, token: bytes, *, timeout_s: float = TIMEOUT_S_DEFAULT
    ) -> bool:
        """Ends an admission. False if the node knows no such one."""
        request = control_pb2.DetachRequest(registration=registration, token=token)
        return self._call("Detach", request, control_pb2.DetachResponse(), timeout_s).found

    def describe(self, *, timeout_s: float = TIMEOUT_S_DEFAULT) -> NodeDescription:
        """What the node is."""
        request, answer = control_pb2.DescribeRequest(), control_pb2.NodeDescription()
        return self._description(self._call("Describe", request, answer, timeout_s))

    def stats(self, *, timeout_s: float = TIMEOUT_S_DEFAULT) -> dict[str, int]:
        """The node's figures by their names in `kv_node_stats`, and `ssd_*` of its SSD tier."""
        request, answer = control_pb2.StatsRequest(), control_pb2.NodeStats()
        return dict(self._call("Stats", request, answer, timeout_s).figures)

    def clients(self, *, timeout_s: float = TIMEOUT_S_DEFAULT) -> list[ClientRecord]:
        """The node's attachments, in order of registration."""
        request, answer = control_pb2.ClientsRequest(), control_pb2.ClientList()
        return [
            ClientRecord(
                registration=record.registration,
                fabric=name_of(FABRICS, record.fabric),
                process_id=record.process_id,
                state=name_of(CLIENT_STATES, record.state),
                published_epoch=record.published_epoch,
                silent_ms=record.silent_ms,
                peer=record.peer,
            )
            for record in self._call("Clients", request, answer, timeout_s).clients
        ]

    def drain(self, grace_s: float | None = None, *, timeout_s: float = TIMEOUT_S_DEFAULT) -> float:
        """Makes the node refuse new attachments, and end those that it has after a grace.

        `grace_s` seconds, or the node's own `--grace`; a later call shortens it and never
        lengthens it. Returns the seconds that are left of it. `ConfigurationError` if `grace_s` is
        no number.
        """
        request = control_pb2.DrainRequest()
        if grace_s is not None:
            if math.isnan(grace_s):
                raise errors.ConfigurationError("the grace is no number of seconds")
            request.grace_ms = round(max(0.0, min(grace_s * 1000, 0xFFFFFFFF)))
        answer = self._call("Drain", request, control_pb2.DrainResponse(), timeout_s)
        return float(answer.grace_ms) / 1000

    def close(self) -> None:
        """Makes later calls fail. Ends no admission."""
        self._closed = True

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
        return f"ControlClient({self.address!r})"

    def _call(
        self,
        method: str,
        request: Message,
        answer: _Answer,
        timeout_s: float,
        ours: tuple[str, ...] = (),
    ) -> _Answer:
        """Makes one call and parses what comes into `answer`."""
        if self._closed:
            raise errors.StoreClosed(f"the control client of {self.address} is closed")
        what = rpc.Call(
            address=self.address,
            method=f"/{_SERVICE}/{method}",
            token=self._token,
            request=request.SerializeToString(),
            timeout_s=timeout_s,
            is_secure=self._tls is not None,
            authorities=self._authorities,
            server_name=self._tls.server_name if self._tls is not None else None,
        )
        try:
            answer.ParseFromString(rpc.call(what))
        except rpc.CallFailed as failure:
            raise self._translated(failure, timeout_s, ours) from None
        except DecodeError as error:
            raise errors.ConfigurationError(f"{self.address} is no kvstore-node: {error}") from None
        return answer

    def _translated(
        self, failure: rpc.CallFailed, timeout_s: float, ours: tuple[str, ...]
    ) -> errors.KvError:
        code, details = failure.code, failure.details or "no details"
        if code == "UNAUTHENTICATED":
            return errors.AuthenticationFailed(f"{self.address}: {details}")
        if code == "FAILED_PRECONDITION" and failure.conflict:
            conflict = control_pb2.MembershipConflict.FromString(failure.conflict)
            return errors.MembershipMismatch(
                f"{self.address}: {details}", ours=ours, theirs=tuple(conflict.node_members)
            )
        if code == "FAILED_PRECONDITION":
            return errors.LayoutMismatch(f"{self.address}: {details}")
        if code == "PERMISSION_DENIED":
            return errors.AttachRefused(f"{self.address}: {details}")
        if code == "INVALID_ARGUMENT":
            return errors.ConfigurationError(f"{self.address}: {details}")
        if code == "DEADLINE_EXCEEDED":
            return errors.NodeUnreachable(f"{self.address}: no answer within {timeout_s:g} s")
        if code == "UNAVAILABLE":
            return errors.NodeUnreachable(f"{self.address}: {self._why_unavailable(details)}")
        if code == "UNIMPLEMENTED":
            return errors.ConfigurationError(f"{self.address} is no kvstore-node: {details}")
        return errors.NodeUnreachable(f"{self.address}: {code}: {details}")

    def _why_unavailable(self, details: str) -> str:
        """The end of gRPC's chain of reasons, which begins with addresses that say nothing."""
        hint = ""
        if "SSL" in details or "ssl" in details or "certificate" in details.lower():
            hint = " (TLS: is the CA file right, and does the node speak TLS?)"
        elif "Socket closed" in details or "end of TCP" in details:
            hint = " (does the node ask for TLS?)"
        reason = details.rsplit("; last error: ", 1)[-1]
        return reason.strip() + hint

    def _description(self, node: control_pb2.NodeDescription) -> NodeDescription:
        return NodeDescription(
            node_id=node.node_id,
            incarnation=node.incarnation,
            region_bytes=node.region_bytes,
            layout_version=node.layout_version,
            domain=name_of(DOMAINS, node.domain),
            eviction=name_of(EVICTIONS, node.eviction),
            consistency=name_of(CONSISTENCIES, node.consistency),
            membership_lease_ms=node.membership_lease_ms,
            shm_name=node.shm_name,
            data_host=node.data_host or self._host,
            data_port=node.data_port,
            cluster_id=node.cluster_id,
            members=tuple(node.members),
            version=node.version,
            verbs_device=node.verbs_device,
            verbs_gids=_gids(node.verbs_gids),
            ssd_bytes=node.ssd_bytes,
        )


def _gids(gids: Iterable[bytes]) -> tuple[bytes, ...]:
    """What a node says of its rails; none if it says nonsense."""
    found = tuple(gids)
    return found if all(len(gid) == _GID_BYTES for gid in found) else ()


def host_of(address: str) -> str:
    """The host of `host:port`, without the brackets of IPv6. `ConfigurationError` if it is not."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise errors.ConfigurationError(f"{address!r} is not HOST:PORT")
    return host.strip("[]")
