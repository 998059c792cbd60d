"""The gRPC services of a node: kvstore.control.v1, kvstore.tier.v1 and the health service.

Every call of the first two passes the token check first. The health service does not, so
that an orchestrator's probe needs no secret; it says only whether the node serves.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from kvstore import errors
from kvstore.cluster.proto import control_pb2, control_pb2_grpc, tier_pb2_grpc
from kvstore.cluster.rpc import MEMBERSHIP_TRAILER
from kvstore.cluster.verbs_messages import endpoint_from, grant_message
from kvstore.node.description import (
    CLIENT_STATES,
    CONSISTENCIES,
    DOMAINS,
    EVICTIONS,
    FABRICS,
    Admission,
    NodeDescription,
)
from kvstore.node.drain import Drain
from kvstore.node.log import Log
from kvstore.node.memory_node import MemoryNode
from kvstore.node.tier_service import (
    THREADS,
    TIER_SERVICE_NAME,
    TierService,
)

if TYPE_CHECKING:
    from kvstore.node.ssd.tier import SsdTier

SERVICE_NAME: Final = control_pb2.DESCRIPTOR.services_by_name["Control"].full_name
#: A control request is small; anything near this is not one.
REQUEST_BYTES_MAX: Final = 64 << 10
_CALLS_AT_ONCE: Final = 8
#: Calls that run, wait for a thread, or watch the health; more are refused at once.
_CALLS_MAX: Final = 256
_REFUSALS_LOGGED_EVERY_S: Final = 1.0
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING


class TokenCheck(grpc.ServerInterceptor):  # type: ignore[misc,type-arg,unused-ignore]
    """Lets a call of the control and the tier service through only with the node's token."""

    def __init__(self, token: str | None, log: Log) -> None:
        self._expected = f"Bearer {token}".encode() if token else None
        self._log = log
        self._lock = threading.Lock()
        self._logged_s = -math.inf
        self.refused = 0

        def refuse(_request: Any, context: grpc.ServicerContext) -> NoReturn:
            self._count(context.peer())
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong")
            raise AssertionError("abort returned")

        self._refusal: Any = grpc.unary_unary_rpc_method_handler(refuse)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Any],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """Part of gRPC's interceptor interface."""
        guarded = details.method.startswith((f"/{SERVICE_NAME}/", f"/{TIER_SERVICE_NAME}/"))
        if self._expected is None or not guarded:
            return continuation(details)
        given = [value for key, value in details.invocation_metadata if key == "authorization"]
        presented = given[0] if len(given) == 1 else ""
        if isinstance(presented, str):
            presented = presented.encode("utf-8", "replace")
        if hmac.compare_digest(presented, self._expected):
            return continuation(details)
        return self._refusal

    def _count(self, peer: str) -> None:
        """Counts each refusal, but logs few: whoever guesses tokens must not fill the disk."""
        with self._lock:
            self.refused += 1
            now = time.monotonic()
            if now - self._logged_s < _REFUSALS_LOGGED_EVERY_S:
                return
            self._logged_s = now
        self._log.warning("token refused", peer=peer, refused=self.refused)


class ControlService(control_pb2_grpc.ControlServicer):  # type: ignore[misc,unused-ignore]
    """Answers for one `MemoryNode`."""

    def __init__(
        self,
        node: MemoryNode,
        log: Log,
        *,
        advertise: str,
        on_drain: Callable[[float | None], float],
        tier: SsdTier | None = None,
    ):
        """`advertise` is the host that clients reach the agent at; empty: where they came to."""
        self._node = node
        self._tier = tier
        self._log = log
        self._advertise = advertise
        self._on_drain = on_drain
        # Membership and admission are one step: no client is admitted to another's cluster.
        self._attach_lock = threading.Lock()

    def Describe(self, _request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, D102
        return self._guarded(context, lambda: self._description(self._node.describe()))

    def Attach(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, D102
        return self._guarded(context, lambda: self._attach(request, context))

    def ConnectVerbs(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, D102
        admission = Admission(request.registration, request.token)
        client = endpoint_from(request.client)
        try:
            return self._guarded(
                context,
                lambda: grant_message(self._node.connect_verbs(admission, request.lane, client)),
            )
        except errors.AttachRefused as error:
            self._log.warning(
                "queue pair refused", registration=request.registration, reason=str(error)
            )
            context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        raise AssertionError("abort returned")

    def Detach(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, D102
        found = self._guarded(
            context, lambda: self._node.dismiss(request.registration, request.token)
        )
        self._log.info("client detached", registration=request.registration, found=found)
        return control_pb2.DetachResponse(found=found)

    def Stats(self, _request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, D102
        return self._guarded(context, lambda: control_pb2.NodeStats(figures=self._stats()))

    def _stats(self) -> dict[str, int]:
        return self._node.stats() | (self._tier.stats() if self._tier is not None else {})

    def Clients(self, _request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, D102
        records = self._guarded(context, self._node.clients)
        return control_pb2.ClientList(
            clients=[
                control_pb2.ClientRecord(
                    registration=record.registration,
                    fabric=_number(FABRICS, record.fabric),
                    process_id=record.process_id,
                    state=_number(CLIENT_STATES, record.state),
                    published_epoch=record.published_epoch,
                    silent_ms=record.silent_ms,
                    peer=record.peer,
                )
                for record in records
            ]
        )

    def Drain(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, D102
        asked_s = request.grace_ms / 1000 if request.HasField("grace_ms") else None
        grace_s = self._guarded(context, lambda: self._on_drain(asked_s))
        self._log.info("draining", peer=context.peer(), grace_s=round(grace_s, 3))
        return control_pb2.DrainResponse(grace_ms=round(min(grace_s * 1000, 0xFFFFFFFF)))

    def _attach(self, request: Any, context: grpc.ServicerContext) -> Any:
        members = tuple(sorted(request.members))
        if not members:
            raise errors.ConfigurationError("an attachment names at least one member")
        with self._attach_lock:
            present = self._node.describe()
            if request.layout_version not in (0, present.layout_version):
                context.abort(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"the node has layout {present.layout_version},"
                    f" the client {request.layout_version}",
                )
            cluster_id = request.cluster_id or present.cluster_id or derived_cluster_id(members)
            self._fix_membership(present, cluster_id, members, context)
            admission = self._node.admit(f"{request.peer} {context.peer()}".strip())
        self._log.info(
            "client attached",
            registration=admission.registration,
            peer=request.peer,
            address=context.peer(),
        )
        return control_pb2.Attachment(
            node=self._description(self._node.describe()),
            registration=admission.registration,
            token=admission.token,
        )

    def _fix_membership(
        self,
        present: NodeDescription,
        cluster_id: str,
        members: tuple[str, ...],
        context: grpc.ServicerContext,
    ) -> None:
        try:
            self._node.set_members(cluster_id, members)
        except errors.MembershipMismatch:
            conflict = control_pb2.MembershipConflict(
                node_cluster_id=present.cluster_id,
                node_members=present.members,
                client_cluster_id=cluster_id,
                client_members=members,
            )
            context.set_trailing_metadata(((MEMBERSHIP_TRAILER, conflict.SerializeToString()),))
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the node belongs to cluster {present.cluster_id!r} of"
                f" {', '.join(present.members)}, the client asks for {cluster_id!r} of"
                f" {', '.join(members)}",
            )
        if not present.members:
            self._log.info("membership fixed", cluster_id=cluster_id, members=list(members))

    def _guarded(self, context: grpc.ServicerContext, call: Callable[[], Any]) -> Any:
        """Runs `call` and turns its errors into status codes."""
        try:
            return call()
        except (errors.NodeUnreachable, errors.StoreClosed) as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except errors.ConfigurationError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        raise AssertionError("abort returned")

    def _description(self, node: NodeDescription) -> control_pb2.NodeDescription:
        return control_pb2.NodeDescription(
            node_id=node.node_id,
            incarnation=node.incarnation,
            region_bytes=node.region_bytes,
            layout_version=node.layout_version,
            domain=_number(DOMAINS, node.domain),
            eviction=_number(EVICTIONS, node.eviction),
            consistency=_number(CONSISTENCIES, node.consistency),
            membership_lease_ms=node.membership_lease_ms,
            shm_name=node.shm_name,
            data_host=self._advertise,
            data_port=node.data_port,
            cluster_id=node.cluster_id,
            members=node.members,
            version=node.version,
            verbs_device=node.verbs_device,
            verbs_gids=node.verbs_gids,
            ssd_bytes=self._tier.capacity_bytes if self._tier is not None else 0,
        )


class ControlServer:
    """The gRPC server of one node. `start` binds; `stop` ends it after a grace."""

    def __init__(
        self,
        node: MemoryNode,
        log: Log,
        *,
        token: str | None,
        certificate: tuple[bytes, bytes] | None,
        advertise: str,
        grace_s: float,
        tier: SsdTier | None = None,
        local_address: str = "",
    ) -> None:
        """`certificate` is the chain and the key in PEM; None: clear text.

        `grace_s` is how long clients keep their access when the node drains.
        `local_address`: a Unix socket to listen on as well, in clear text; empty: none.
        """
        self._node = node
        self._drain = Drain(node, log, grace_s)
        self._certificate = certificate
        self._local_address = local_address
        self.token_check = TokenCheck(token, log)
        self.health = health.HealthServicer()
        self._server = grpc.server(
            ThreadPoolExecutor(
                _CALLS_AT_ONCE + (THREADS if tier is not None else 0),
                thread_name_prefix="control",
            ),
            interceptors=[self.token_check],
            maximum_concurrent_rpcs=_CALLS_MAX,
            options=[
                # With it a second node on the same port would start and take half of the calls.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", REQUEST_BYTES_MAX),
                ("grpc.max_concurrent_streams", _CALLS_MAX),
            ],
        )
        service = ControlService(node, log, advertise=advertise, on_drain=self.drain, tier=tier)
        control_pb2_grpc.add_ControlServicer_to_server(service, self._server)
        if tier is not None:
            tier_service = TierService(tier)
            tier_pb2_grpc.add_TierServicer_to_server(tier_service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)

    def start(self, host: str, port: int) -> int:
        """Binds and serves; returns the port. `ConfigurationError` if it cannot."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if self._certificate is None:
                bound = self._server.add_insecure_port(address)
            else:
                chain, key = self._certificate
                credentials = grpc.ssl_server_credentials([(key, chain)])
                bound = self._server.add_secure_port(address, credentials)
        except (RuntimeError, ValueError) as error:
            raise errors.ConfigurationError(f"cannot listen on {address}: {error}") from error
        if bound == 0:
            raise errors.ConfigurationError(f"cannot listen on {address}")
        if self._local_address:
            self._listen_locally(self._local_address)
        self._server.start()
        self._set_health(_SERVING)
        return bound

    def _listen_locally(self, address: str) -> None:
        try:
            bound = self._server.add_insecure_port(address)
        except RuntimeError:
            bound = 0
        if bound == 0:
            raise errors.ConfigurationError(
                f"cannot listen on {address}: choose another name with --shm, or none"
            )

    def drain(self, grace_s: float | None = None) -> float:
        """Refuses new attachments, says so to probes, and ends the clients' access after a grace.

        Returns what is left of the grace, which is the node's own unless another is given.
        """
        self._refuse_clients()
        return self._drain.begin(grace_s)

    def drain_to_end(self) -> float:
        """As `drain`, but leaves the end of the clients' access to `MemoryNode.close`."""
        self._refuse_clients()
        return self._drain.begin_last()

    def grace_is_over(self) -> bool:
        """False before a drain, too."""
        return self._drain.is_over()

    def _refuse_clients(self) -> None:
        self._node.drain()
        self._set_health(_NOT_SERVING)

    def stop(self, grace_s: float) -> None:
        """Waits for calls under way, at most `grace_s`."""
        self.health.enter_graceful_shutdown()
        self._server.stop(grace_s).wait(grace_s + 1)

    def _set_health(self, status: Any) -> None:
        for service in ("", SERVICE_NAME):
            self.health.set(service, status)


def derived_cluster_id(members: Sequence[str]) -> str:
    """A cluster id that every node derives alike from the same sorted members."""
    return hashlib.sha256("\n".join(members).encode()).hexdigest()[:16]


def _number(names: tuple[str, ...], name: str) -> Any:
    return names.index(name) if name in names else 0
