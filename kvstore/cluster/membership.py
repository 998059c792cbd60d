"""The static membership of a store: the nodes it spreads its keys over, and their attachments.

The list never changes: keys of a dead node are not moved to others. While at least one member is
not up, and only then, a daemon thread tries to attach to it, with a pause that doubles from 0.2 s
to 5 s, or of 30 s after a refusal that no waiting mends: calls that need the member raise that
refusal meanwhile. A node that was started anew is attached like any other; it is empty, and
`restarts` counts it.
"""

from __future__ import annotations

import contextlib
import copy
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from kvstore.client.native import (
    FABRICS,
    STATE_UP,
    NativeClient,
    VerbsExchange,
    state_name,
)
from kvstore.errors import (
    AuthenticationFailed,
    ConfigurationError,
    ConsistencyMismatch,
    DomainMismatch,
    Fenced,
    KvError,
    LayoutMismatch,
    MembershipMismatch,
    NodeUnreachable,
)
from kvstore.types import MemberState

if TYPE_CHECKING:
    from kvstore.cluster.control import Attachment, ControlClient
    from kvstore.cluster.tier import TierAddress
    from kvstore.cluster.tls import TlsConfig
    from kvstore.node.description import VerbsEndpoint, VerbsGrant
    from kvstore.node.memory_node import MemoryNode

#: How much more patience than usual this machine needs; the native core reads it too.
TIME_SCALE: Final = min(max(int(os.environ.get("KVSTORE_TIME_SCALE", "1")), 1), 100)
ATTACH_TIMEOUT_S: Final = 5.0 * TIME_SCALE
#: The RDMA device to use, where it is not the one on the way to the node.
VERBS_DEVICE_VARIABLE: Final = "KVSTORE_VERBS_DEVICE"
_DETACH_TIMEOUT_S: Final = 1.0
#: Between two looks at the tier's socket of a node: whether there is one, and whose.
_LOOK_AGAIN_S: Final = 1.0
_PROBE_FIRST_S: Final = 0.2
_PROBE_LAST_S: Final = 5.0
_PROBE_REFUSED_S: Final = 30.0
#: Refusals that last until somebody starts the node, or the store, in another way.
_LASTING: Final = (
    AuthenticationFailed,
    ConsistencyMismatch,
    DomainMismatch,
    LayoutMismatch,
    MembershipMismatch,
)


class Attacher:
    """How to attach to one member. Each call of `attach` is a new attempt from the beginning."""

    #: What people call the member.
    address: str

    def cluster_id(self, members: tuple[str, ...], timeout_s: float) -> str:
        """Ask the member which cluster it belongs to; empty if it does not matter here."""
        return ""

    def attach(
        self, client: NativeClient, index: int, members: tuple[str, ...], timeout_s: float
    ) -> None:
        """Attach the client to the member, or raise a KvError."""
        raise NotImplementedError

    def tier(self, *, anew: bool = False) -> TierAddress | None:
        """Where the SSD tier of the member is asked; None: it has none, as far as is known.

        `anew`: what was known a moment ago will not do.
        """
        return None

    def close(self, *, ended: bool) -> None:
        """Give back what the attacher holds. `ended`: the attachment is not in use any more."""


class LocalAttacher(Attacher):
    """A node in this process."""

    def __init__(self, node: MemoryNode, address: str) -> None:
        self.address = address
        self._node = node

    def attach(
        self, client: NativeClient, index: int, members: tuple[str, ...], timeout_s: float
    ) -> None:
        """See Attacher."""
        client.attach_local(index, self._node.handle)


class ShmAttacher(Attacher):
    """A node of this host, found by its socket alone."""

    def __init__(self, name: str, secret: str | None) -> None:
        self.address = f"shm://{name}"
        self._name = name
        self._secret = secret
        self._is_attached = False
        self._has_tier = False
        self._look_again_s = 0.0

    def attach(
        self, client: NativeClient, index: int, members: tuple[str, ...], timeout_s: float
    ) -> None:
        """See Attacher."""
        # The member is down, and the name of its socket may become another's.
        self._is_attached = False
        client.attach_shm(index, self._name, secret=self._secret, timeout_s=timeout_s)
        self._is_attached, self._has_tier, self._look_again_s = True, False, 0.0

    def tier(self, *, anew: bool = False) -> TierAddress | None:
        """See Attacher. A node lets clients in a moment before its tier listens."""
        if not self._is_attached:
            return None
        now = time.monotonic()
        if anew or now >= self._look_again_s:
            from kvstore.cluster.local_tier import listens

            self._look_again_s = now + _LOOK_AGAIN_S
            found = listens(self._name)
            if found is None:
                # Who must know asks, and is told if there is none.
                found = self._has_tier or anew
            self._has_tier = found
        if not self._has_tier:
            return None
        from kvstore.cluster.local_tier import local_address
        from kvstore.cluster.tier import TierAddress

        return TierAddress(local_address(self._name), self._secret, None)


class ControlAttacher(Attacher):
    """A node reached through its control plane.

    Over verbs where the node's memory is in that domain; else over shm where it is on this host,
    and otherwise tcp. A `fabric` of `tcp` or `verbs` forces that one.
    """

    def __init__(
        self, address: str, *, token: str | None, tls: TlsConfig | None, fabric: str = ""
    ) -> None:
        self.address = address
        self._token = token
        self._tls = tls
        self._fabric = fabric
        self._control_client: ControlClient | None = None
        self._pending: Attachment | None = None
        self._has_tier = False
        # Of an attachment whose end the node does not see by itself.
        self._remote: Attachment | None = None

    def cluster_id(self, members: tuple[str, ...], timeout_s: float) -> str:
        """See Attacher. The admission is kept for the `attach` that follows."""
        self._pending = self._admit("", members, timeout_s)
        return self._pending.cluster_id

    def attach(
        self, client: NativeClient, index: int, members: tuple[str, ...], timeout_s: float
    ) -> None:
        """See Attacher."""
        deadline = time.monotonic() + timeout_s
        found, self._pending = self._pending, None
        if found is None:
            found = self._admit("", members, timeout_s)
        try:
            self._attach_admitted(client, index, found, deadline)
        except BaseException:
            # Otherwise the node takes it for a client, until its lease ends without a heartbeat.
            self._detach(found)
            raise

    def _attach_admitted(
        self, client: NativeClient, index: int, found: Attachment, deadline: float
    ) -> None:
        if found.verbs_gids:
            self._attach_verbs(client, index, found, _left(deadline))
            return
        if self._fabric == "verbs":
            raise DomainMismatch(
                f"{self.address} serves shm and tcp: start it with --fabric verbs, or use kv://"
            )
        admission = (found.registration, found.token)
        if self._fabric != "tcp" and found.shm_name:
            try:
                client.attach_shm(
                    index,
                    found.shm_name,
                    node_id=found.node_id,
                    admission=admission,
                    reached_at=found.tcp_host,
                    timeout_s=_left(deadline),
                )
            except (MembershipMismatch, LayoutMismatch, DomainMismatch, ConsistencyMismatch):
                raise
            except KvError:
                # Another host, container or user: the socket is not there, or not for this client.
                if not found.tcp_port:
                    raise
            else:
                return
        if not found.tcp_port:
            raise ConfigurationError(
                f"{self.address} serves no tcp: start it with --data-port, or use kv:// on its host"
            )
        client.attach_tcp(
            index,
            found.tcp_host,
            found.tcp_port,
            incarnation=found.incarnation,
            admission=admission,
            timeout_s=_left(deadline),
        )
        self._remote = found

    def _attach_verbs(
        self, client: NativeClient, index: int, found: Attachment, timeout_s: float
    ) -> None:
        if self._fabric == "tcp":
            raise DomainMismatch(
                f"{self.address} is in the atomic domain of its RDMA device, which tcp is not:"
                " use kv:// or verbs://"
            )
        control = self._control_client
        assert control is not None

        def connect(lane: int, mine: VerbsEndpoint, left_s: float) -> VerbsGrant:
            return control.connect_verbs(
                found.registration, found.token, lane, mine, timeout_s=left_s
            )

        client.attach_verbs(
            index,
            found.verbs_gids,
            os.environ.get(VERBS_DEVICE_VARIABLE, ""),
            VerbsExchange(found.registration, connect),
            reached_at=found.tcp_host,
            timeout_s=timeout_s,
        )
        self._remote = found

    def close(self, *, ended: bool) -> None:
        """See Attacher. Tells the node, which would notice some ends by the lease only."""
        if self._control_client is None:
            return
        pending, self._pending = self._pending, None
        for one in (pending, self._remote if ended else None):
            if one is not None:
                self._detach(one)
        self._control_client.close()
        self._control_client = None

    def _detach(self, admission: Attachment) -> None:
        control = self._control_client
        assert control is not None
        with contextlib.suppress(KvError):
            control.detach(admission.registration, admission.token, timeout_s=_DETACH_TIMEOUT_S)

    def _admit(self, cluster_id: str, members: tuple[str, ...], timeout_s: float) -> Attachment:
        if self._control_client is None:
            from kvstore.cluster.control import ControlClient

            self._control_client = ControlClient(self.address, token=self._token, tls=self._tls)
        admitted = self._control_client.attach(
            cluster_id=cluster_id,
            members=members,
            peer=f"{socket.gethostname()}/{os.getpid()}",
            timeout_s=timeout_s,
        )
        self._has_tier = admitted.ssd_bytes > 0
        return admitted

    def tier(self, *, anew: bool = False) -> TierAddress | None:
        """See Attacher. The node says it when it admits a client."""
        if not self._has_tier:
            return None
        from kvstore.cluster.tier import TierAddress

        return TierAddress(self.address, self._token, self._tls)


class Membership:
    """The members of one store and the thread that brings them back."""

    def __init__(self, members: tuple[str, ...], attachers: Sequence[Attacher]) -> None:
        self.members = members
        self._attachers = tuple(attachers)
        self._client: NativeClient | None = None
        self._on_attached: Callable[[], None] = lambda: None
        self._failures: list[KvError | None] = [None] * len(members)
        self._attach_lock = threading.Lock()
        self._prober_lock = threading.Lock()
        self._prober: threading.Thread | None = None
        self._closing = threading.Event()
        self._process_id = os.getpid()

    def open(
        self,
        *,
        lanes: int,
        address_cache_entries: int,
        cache_bytes: int = 0,
        consistency: str | None = None,
        host_stamps: bool = True,
        timeout_s: float = ATTACH_TIMEOUT_S,
    ) -> NativeClient:
        """Open the native client and attach it to every member that is there.

        Raises what the first member said if none could be attached, and at once what no waiting
        mends: a wrong token, another member list, another layout.
        """
        client: NativeClient | None = None
        try:
            cluster_id = self._cluster_id(timeout_s)
            client = NativeClient(
                cluster_id,
                self.members,
                lanes=lanes,
                address_cache_entries=address_cache_entries,
                cache_bytes=cache_bytes,
                consistency=consistency,
                host_stamps=host_stamps,
            )
            self._attach_first(client, timeout_s)
        except BaseException:
            if client is not None:
                client.close()
            for attacher in self._attachers:
                attacher.close(ended=True)
            raise
        self._client = client
        if any(self._failures):
            self.notice()
        return client

    def _cluster_id(self, timeout_s: float) -> str:
        cluster_id = ""
        for index, attacher in enumerate(self._attachers):
            try:
                cluster_id = attacher.cluster_id(self.members, timeout_s) or cluster_id
            except NodeUnreachable as error:
                self._failures[index] = error
        self._check_any()
        return cluster_id

    def _attach_first(self, client: NativeClient, timeout_s: float) -> None:
        for index, attacher in enumerate(self._attachers):
            if self._failures[index] is not None:
                continue
            try:
                attacher.attach(client, index, self.members, timeout_s)
            except MembershipMismatch as error:
                error.ours = error.ours or self.members
                raise
            except NodeUnreachable as error:
                self._failures[index] = error
        self._check_any()

    def _check_any(self) -> None:
        failures = [failure for failure in self._failures if failure is not None]
        if failures and len(failures) == len(self._failures):
            raise failures[0]

    def on_attached(self, callback: Callable[[], None]) -> None:
        """Have this called, on the thread that probes, after each later attachment."""
        self._on_attached = callback

    def describe(self, index: int) -> str:
        """Return the address of a member and, if it is known, why it cannot be attached."""
        failure = self._failures[index]
        return self._attachers[index].address + (f" ({failure})" if failure else "")

    def refusal(self, index: int) -> KvError | None:
        """Return what a member said that refused this client for good, or None; to be raised."""
        failure = self._failures[index]
        return copy.copy(failure) if isinstance(failure, _LASTING) else None

    def tiers(self, *, anew: bool = False) -> list[TierAddress | None]:
        """Return where the SSD tier of each member is asked; see `Attacher.tier`."""
        return [attacher.tier(anew=anew) for attacher in self._attachers]

    def states(self) -> list[MemberState]:
        """Return how each member looks from here."""
        client = self._client
        if client is None:
            return []
        states = []
        for index, attacher in enumerate(self._attachers):
            state = client.member_state(index)
            attached = state.state != 0
            known = attached and state.fabric < len(FABRICS)
            states.append(
                MemberState(
                    address=attacher.address,
                    fabric=FABRICS[state.fabric] if known else "",
                    state=state_name(state.state),
                    restarts=int(state.restarts),
                    node_id=int(state.node_id),
                    incarnation=int(state.incarnation),
                    registration=int(state.registration),
                    last_error=str(self._failures[index] or ""),
                )
            )
        return states

    def notice(self) -> None:
        """Start probing unless it is under way. Called by whoever met a member that is down."""
        if self._closing.is_set() or os.getpid() != self._process_id:
            return
        with self._prober_lock:
            if self._prober is not None:
                return
            self._prober = threading.Thread(
                target=self._probe, name="kvstore-membership", daemon=True
            )
            self._prober.start()

    def close(self, wait_s: float | None = None) -> bool:
        """Stop probing and close the client; the caller has ended all calls on the data path.

        Returns whether the client is closed; see `NativeClient.close`.
        """
        self._closing.set()
        if os.getpid() != self._process_id:
            return False
        with self._attach_lock:
            ended = self._client is None or self._client.close(wait_s)
            # Of a client that owes something the nodes must not hear that all is well: by its lease
            # it is found dead, and others drop what it may have left.
            says_farewell = ended and not (self._client is not None and self._client.owes)
            for attacher in self._attachers:
                attacher.close(ended=says_farewell)
            return ended

    def _probe(self) -> None:
        pauses = [_PROBE_FIRST_S] * len(self._attachers)
        due = [0.0] * len(self._attachers)
        while not self._closing.is_set():
            down = self._down()
            if not down:
                with self._prober_lock:
                    # Decided under the lock: a `notice` after this starts another thread.
                    down = self._down()
                    if not down:
                        self._prober = None
                        return
            for index in down:
                if time.monotonic() >= due[index] and not self._try_attach(index):
                    due[index] = time.monotonic() + pauses[index]
                    if self.refusal(index) is not None:
                        due[index] = time.monotonic() + _PROBE_REFUSED_S
                    pauses[index] = min(2 * pauses[index], _PROBE_LAST_S)
            down = self._down()
            wake = min((due[index] for index in down), default=0.0)
            self._closing.wait(max(0.0, wake - time.monotonic()))

    def _down(self) -> list[int]:
        client = self._client
        if client is None or self._closing.is_set():
            return []
        try:
            count = len(self._attachers)
            return [i for i in range(count) if client.member_state(i).state != STATE_UP]
        except KvError:
            return []

    def _try_attach(self, index: int) -> bool:
        with self._attach_lock:
            if self._client is None or self._closing.is_set():
                return True
            try:
                self._attachers[index].attach(self._client, index, self.members, ATTACH_TIMEOUT_S)
            except Fenced:
                # The old attachment; the next attempt asks for another.
                return False
            except KvError as error:
                self._failures[index] = error
                return False
        self._failures[index] = None
        self._on_attached()
        return True


def _left(deadline: float) -> float:
    return max(0.05, deadline - time.monotonic())
