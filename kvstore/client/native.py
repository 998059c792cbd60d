"""The native core: the modules that hold it, and one client of it.

A thin wrapper: it turns statuses into typed errors and C structs into plain data. The data path
does not come by here but through `kvstore._fast`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from kvstore.client.buffers import export_buffer
from kvstore.errors import (
    Busy,
    ConditionFailed,
    ConfigurationError,
    CorruptObject,
    DeadlineExceeded,
    Fenced,
    FencedWrite,
    FenceMismatch,
    ForkedError,
    InternalError,
    Interrupted,
    KvError,
    NodeUnreachable,
    OutcomeUnknown,
    OutOfMemory,
    StoreClosed,
    ValueTooLarge,
    refusal,
)
from kvstore.node.description import CONSISTENCIES, VerbsEndpoint, VerbsGrant
from kvstore.node.memory_node import fill_endpoint, read_endpoint
from kvstore.types import ClientStats, CopyState

try:
    from kvstore import _native
    from kvstore._fast import DataPath, Lock, allocator, bind, take_bytes
except ImportError as error:
    if getattr(error, "name", None) not in (
        "kvstore",  # it has no such module
        "kvstore._native",
        "kvstore._fast",
        None,
    ):
        raise
    raise ImportError(
        f"the native core of kvstore is not built ({error}): run `make setup` in the checkout"
    ) from error

__all__ = [
    "DataPath",
    "Lock",
    "NativeClient",
    "allocator",
    "ffi",
    "lib",
    "plain_error",
    "status_text",
    "take_bytes",
]

#: The core as cffi shows it; the stub cannot know the fields of C structs.
ffi: Final[Any] = _native.ffi
lib: Final = _native.lib

FABRICS: Final = ("local", "shm", "tcp", "verbs")
STATE_UP: Final = 1
_STATES: Final = ("never attached", "up", "down", "fenced")
_ERROR_BYTES: Final = 1024
_SCAN_PAGE: Final = 256
_NS: Final = 1_000_000_000

#: Statuses whose error needs nothing but a sentence: class, and what it says about which key.
_COPY_STATES: Final = {
    lib.KV_COPY_OFF: "off",
    lib.KV_COPY_HELD: "held",
    lib.KV_COPY_NEXT: "next",
    lib.KV_COPY_WAITS: "waits",
    lib.KV_COPY_PAUSED: "paused",
    lib.KV_COPY_NO_LEASE: "no lease",
    lib.KV_COPY_TOO_LARGE: "too large",
    lib.KV_COPY_MORTAL: "mortal",
}
#: Rows of one look at the locks of a node.
_SIGHTINGS_MAX: Final = 4096
_SIGHTINGS: Final = {
    lib.KV_LOCK_IN_USE: "in use",
    lib.KV_LOCK_IN_RESET: "in reset",
    lib.KV_LOCK_HOLDS: "holds",
    lib.KV_LOCK_WAITS: "waits",
    lib.KV_LOCK_SILENT: "unreachable",
}
_PLAIN: Final[dict[int, tuple[type[KvError], str]]] = {
    lib.KV_OUT_OF_MEMORY: (
        OutOfMemory,
        "the node is full and evicts nothing: delete keys, or start it with more --capacity or"
        " with --eviction adaptive",
    ),
    lib.KV_DEADLINE_EXCEEDED: (
        DeadlineExceeded,
        "the time-out passed and nothing was applied: try again, or give a longer timeout_s",
    ),
    lib.KV_OUTCOME_UNKNOWN: (
        OutcomeUnknown,
        "the connection broke while the change was decided: read the key to learn whether it was"
        " applied",
    ),
    lib.KV_VALUE_TOO_LARGE: (
        ValueTooLarge,
        "the value cannot fit into the node, however empty: split it, or start the node with more"
        " --capacity",
    ),
    lib.KV_CORRUPT: (
        CorruptObject,
        "what the node returned failed its checks again and again: look at the node's memory and"
        " version (kvstore doctor)",
    ),
    lib.KV_FORKED: (
        ForkedError,
        "the store was opened in the parent process: call kvstore.connect() in this one",
    ),
    lib.KV_CLOSED: (StoreClosed, "the store is closed: call kvstore.connect() for a new one"),
    lib.KV_INTERRUPTED: (Interrupted, "the call was interrupted and nothing was applied"),
    lib.KV_BUSY: (
        Busy,
        "other threads used every lane of the client until the time-out passed: connect with more"
        " lanes, or give a longer timeout_s",
    ),
    lib.KV_FENCED_WRITE: (
        FencedWrite,
        "somebody who had the lock later has written it: this lock was lost, so take it again and"
        " decide anew",
    ),
    lib.KV_FENCE_MISMATCH: (
        FenceMismatch,
        "it is written under another lock: take that one, for a key stays with its first lock",
    ),
    lib.KV_CONDITION_FAILED: (ConditionFailed, "the condition does not hold"),
}


def plain_error(status: int) -> KvError:
    """Return the error of a status that needs no details of its call."""
    kind, text = _PLAIN.get(status, (InternalError, status_text(status)))
    return kind(text)


def status_text(status: int) -> str:
    """Return the core's own sentence for a status, with its name."""
    name = ffi.string(lib.kv_status_name(status))
    text = ffi.string(lib.kv_status_text(status))
    return f"{_text(name)}: {_text(text)}"


def bind_data_path() -> None:
    """Connect the extension module to the core."""
    table = int(ffi.cast("uintptr_t", lib.kv_get_data_path()))
    bind(table, export_buffer, KvError)


class NativeClient:
    """Owns one `kv_client`. Attaching and walking may run on any thread.

    The data path uses the same `kv_client` behind its back: whoever owns both sees to it that no
    call is under way there when it calls `close`.
    """

    def __init__(
        self,
        cluster_id: str,
        members: tuple[str, ...],
        *,
        lanes: int,
        address_cache_entries: int,
        cache_bytes: int = 0,
        consistency: str | None = None,
        host_stamps: bool = True,
    ) -> None:
        self.process_id = os.getpid()
        texts = [ffi.new("char[]", cluster_id.encode()), ffi.new("char[]", _joined(members))]
        config = ffi.new("kv_client_config *")
        config.lanes = lanes
        config.address_cache_entries = address_cache_entries
        config.cache_bytes = cache_bytes
        config.host_stamps = host_stamps
        config.consistency = 0 if consistency is None else 1 + CONSISTENCIES.index(consistency)
        config.cluster_id, config.members = texts
        error = ffi.new("char[]", _ERROR_BYTES)
        handle = lib.kv_client_open(config, error, _ERROR_BYTES)
        if handle == ffi.NULL:
            raise ConfigurationError(_line(error))
        self._handle: Any = handle
        # What the core calls while the client is open: lanes that go on with an earlier attachment
        # may still call its exchange.
        self._exchanges: list[Any] = []
        self._member_count = max(1, len(members))
        self._idle = threading.Condition()
        self._users = 0
        #: Once it is closed: whether others may have copies whose end it owes.
        self.owes = False

    @contextmanager
    def use(self) -> Iterator[Any]:
        """Lend the `kv_client *`; `close` waits until it is given back."""
        with self._idle:
            if os.getpid() != self.process_id:
                raise plain_error(lib.KV_FORKED)
            if self._handle is None:
                raise plain_error(lib.KV_CLOSED)
            self._users += 1
        try:
            yield self._handle
        finally:
            with self._idle:
                self._users -= 1
                self._idle.notify_all()

    @property
    def address(self) -> int:
        """The `kv_client *` as a number, for the extension module."""
        with self.use() as handle:
            return int(ffi.cast("uintptr_t", handle))

    def attach_local(self, member: int, node: Any) -> None:
        """Attach to a node in this process (`kv_node *`)."""
        error = ffi.new("char[]", _ERROR_BYTES)
        with self.use() as client:
            status = lib.kv_client_attach_local(client, member, node, error, _ERROR_BYTES)
        self._check_attached(status, error)

    def attach_shm(
        self,
        member: int,
        name: str,
        *,
        node_id: int = 0,
        admission: tuple[int, bytes] | None = None,
        secret: str | None = None,
        reached_at: str = "",
        timeout_s: float,
    ) -> None:
        """Attach over shared memory; `admission` is a registration and its token.

        `reached_at` is the node's address as other hosts know it, for messages with their clients.
        """
        error = ffi.new("char[]", _ERROR_BYTES)
        with self.use() as client:
            status = lib.kv_client_attach_shm(
                client,
                member,
                name.encode(),
                node_id,
                _admission(admission),
                ffi.NULL if secret is None else secret.encode(),
                reached_at.encode(),
                int(timeout_s * _NS),
                error,
                _ERROR_BYTES,
            )
        self._check_attached(status, error)

    def attach_tcp(
        self,
        member: int,
        host: str,
        port: int,
        *,
        incarnation: int,
        admission: tuple[int, bytes],
        timeout_s: float,
    ) -> None:
        """Attach to the agent of a node on another host."""
        error = ffi.new("char[]", _ERROR_BYTES)
        with self.use() as client:
            status = lib.kv_client_attach_tcp(
                client,
                member,
                host.encode(),
                port,
                incarnation,
                _admission(admission),
                int(timeout_s * _NS),
                error,
                _ERROR_BYTES,
            )
        self._check_attached(status, error)

    def attach_verbs(
        self,
        member: int,
        node_gids: Sequence[bytes],
        device: str,
        exchange: VerbsExchange,
        *,
        reached_at: str,
        timeout_s: float,
    ) -> None:
        """Attach to a node over RDMA, over all of its rails to which there is a way.

        `device` empty: those on the way to the node; else one, or a list with commas.

        `reached_at` is the node's address, for messages with clients of other hosts.

        The exchange is called for every connection, on any thread, until the client is closed.
        """
        error = ffi.new("char[]", _ERROR_BYTES)
        context = ffi.new_handle(exchange)
        rails = node_gids[: lib.KV_VERBS_RAILS_MAX]
        with self.use() as client:
            status = lib.kv_client_attach_verbs(
                client,
                member,
                b"".join(rails),
                len(rails),
                device.encode(),
                reached_at.encode(),
                exchange.registration,
                lib.kvstore_verbs_exchange,
                context,
                int(timeout_s * _NS),
                error,
                _ERROR_BYTES,
            )
        if status == lib.KV_OK:
            self._exchanges.append((exchange, context))
        self._check_attached(status, error)

    def register(self, buffer: Any) -> Any:
        """Register writable memory, and return what `unregister` takes. It keeps the memory."""
        memory = ffi.from_buffer(buffer, require_writable=True)
        error = ffi.new("char[]", _ERROR_BYTES)
        if len(memory) == 0:
            raise ConfigurationError("an empty buffer cannot be registered")
        with self.use() as client:
            status = lib.kv_client_register(client, memory, len(memory), error, _ERROR_BYTES)
        if status != lib.KV_OK:
            raise ConfigurationError(_line(error) or status_text(status))
        return memory

    def unregister(self, memory: Any) -> None:
        """Undo `register`; nothing to do once the client is closed."""
        with suppress(StoreClosed, ForkedError), self.use() as client:
            lib.kv_client_unregister(client, memory)
        ffi.release(memory)

    def member_state(self, member: int) -> Any:
        """Return the `kv_member_state` of a member."""
        state = ffi.new("kv_member_state *")
        with self.use() as client:
            status = lib.kv_client_member(client, member, state)
        if status not in (lib.KV_OK, lib.KV_NO_ATTACHMENT):
            raise plain_error(status)
        return state

    def member_of(self, key: bytes) -> int:
        """Return the index of the member that holds a key."""
        with self.use() as client:
            return int(lib.kv_client_member_of(client, key, len(key)))

    def lock_order(self, name: bytes) -> int:
        """Return the place of a lock in the order in which several are taken."""
        with self.use() as client:
            return int(lib.kv_lock_order(client, name, len(name)))

    def stats(self) -> ClientStats:
        """Return the counters of the client."""
        stats = ffi.new("kv_client_stats *")
        with self.use() as client:
            lib.kv_client_read_stats(client, stats)
        figures = {name: int(getattr(stats, name)) for name, _ in ffi.typeof(stats[0]).fields}
        restarts = sum(int(self.member_state(i).restarts) for i in range(self._member_count))
        return ClientStats(**figures, node_restarts=restarts)

    def copy_of(self, key: bytes) -> CopyState:
        """Return what the client makes of a key as far as copies go."""
        state = ffi.new("kv_copy_state *")
        with self.use() as client:
            lib.kv_client_copy_of(client, key, len(key), state)
        figures = {name: int(getattr(state, name)) for name, _ in ffi.typeof(state[0]).fields}
        return CopyState(state=_COPY_STATES[figures.pop("kind")], **figures)

    def count(self, member: int, timeout_s: float) -> int:
        """Return the number of live keys on a member."""
        keys = ffi.new("uint64_t *")
        with self.use() as client, _Session(client, timeout_s) as session:
            status = lib.kv_count(session, member, keys, int(timeout_s * _NS))
        self._check_walk(status)
        return int(keys[0])

    def clear(self, member: int, timeout_s: float) -> int:
        """Delete the keys of a member and return how many there were."""
        deleted = ffi.new("uint64_t *")
        with self.use() as client, _Session(client, timeout_s) as session:
            status = lib.kv_clear(session, member, deleted, int(timeout_s * _NS))
        self._check_walk(status)
        return int(deleted[0])

    def scan(self, member: int, timeout_s: float) -> Iterator[list[bytes]]:
        """Yield pages of the keys of a member. No session is held between two pages."""
        for page in self.scan_entries(member, timeout_s):
            yield [key for key, _, _ in page]

    def scan_entries(self, member: int, timeout_s: float) -> Iterator[list[tuple[bytes, int, int]]]:
        """As `scan`, with the length and the version of each value beside its key."""
        cursor = ffi.new("uint64_t *")
        count = ffi.new("uint32_t *")
        entries = ffi.new("kv_scan_entry[]", _SCAN_PAGE)
        while cursor[0] != 0xFFFFFFFFFFFFFFFF:
            with self.session(timeout_s) as session:
                status = lib.kv_scan(
                    session, member, cursor, entries, _SCAN_PAGE, count, int(timeout_s * _NS)
                )
            self._check_walk(status)
            yield [
                (
                    bytes(ffi.buffer(entry.key, entry.key_bytes)),
                    int(entry.value_bytes),
                    int(entry.version),
                )
                for entry in entries[0 : count[0]]
            ]

    @contextmanager
    def session(self, timeout_s: float) -> Iterator[Any]:
        """Lend a session, for calls that do not come by the data path."""
        with self.use() as client, _Session(client, timeout_s) as session:
            yield session

    def survey_locks(self, member: int, timeout_s: float) -> tuple[list[dict[str, Any]], bool]:
        """Return a row for each lock in use, for each client at it and each that is silent.

        `state` is in use, in reset, holds, waits or unreachable. The second value says whether
        there are more locks than were looked at.
        """
        entries = ffi.new("kv_lock_sighting[]", _SIGHTINGS_MAX)
        count = ffi.new("uint32_t *")
        more = ffi.new("uint32_t *")
        with self.use() as client, _Session(client, timeout_s) as session:
            status = lib.kv_lock_survey(
                session, member, entries, _SIGHTINGS_MAX, count, more, int(timeout_s * _NS)
            )
        self._check_walk(status)
        return [_sighting(entries[i]) for i in range(count[0])], bool(more[0])

    def close(self, wait_s: float | None = None) -> bool:
        """Close the client once nobody uses it, and return whether it is closed.

        Without `wait_s` the wait is as long as the uses, each of which ends by its own deadline. A
        client that is still in use after `wait_s` stays open until the process ends. A forked child
        leaves its parent's client alone.
        """
        if os.getpid() != self.process_id:
            return False
        with self._idle:
            handle, self._handle = self._handle, None
            if not self._idle.wait_for(lambda: self._users == 0, wait_s):
                return False
        if handle is not None:
            self.owes = lib.kv_client_close(handle) > 0
        return True

    def _check_attached(self, status: int, error: Any) -> None:
        if status == lib.KV_OK:
            return
        line = _line(error) or status_text(status)
        if status == lib.KV_REFUSED:
            raise refusal(line)
        if status in (lib.KV_NODE_UNREACHABLE, lib.KV_DEADLINE_EXCEEDED, lib.KV_CLOSED):
            raise NodeUnreachable(line)
        if status == lib.KV_FENCED:
            raise Fenced(line)
        if status == lib.KV_OUT_OF_MEMORY:
            raise OutOfMemory(line)
        raise ConfigurationError(line)

    def _check_walk(self, status: int) -> None:
        if status == lib.KV_OK:
            return
        if status in (lib.KV_NODE_UNREACHABLE, lib.KV_NO_ATTACHMENT):
            raise NodeUnreachable("a node of the store is down: look at store.members()")
        if status == lib.KV_FENCED:
            raise Fenced("a node has cut this client off; it attaches again by itself: try again")
        raise plain_error(status)


@dataclass(frozen=True, slots=True)
class VerbsExchange:
    """How the queue pairs of one admission are connected.

    `connect` takes a lane, our end and a time-out in seconds, and returns the node's grant.
    """

    registration: int
    connect: Callable[[int, VerbsEndpoint, float], VerbsGrant]


@_native.ffi.def_extern(error=lib.KV_NODE_UNREACHABLE)
def kvstore_verbs_exchange(
    context: Any,
    lane: int,
    mine: Any,
    timeout_ns: int,
    grant: Any,
    error: Any,
    error_bytes: int,
) -> int:
    """`kv_verbs_exchange` of the core."""
    exchange: VerbsExchange = ffi.from_handle(context)
    try:
        granted = exchange.connect(lane, read_endpoint(ffi, mine[0]), timeout_ns / _NS)
    except Exception as failure:  # none may cross the C ABI
        text = str(failure).encode()[: error_bytes - 1]
        ffi.memmove(error, text + b"\0", len(text) + 1)
        return int(
            lib.KV_NODE_UNREACHABLE if isinstance(failure, NodeUnreachable) else lib.KV_REFUSED
        )
    fill_endpoint(ffi, grant.node, granted.node)
    grant.region_address = granted.region_address
    grant.region_bytes = granted.region_bytes
    grant.remote_key = granted.remote_key
    return int(lib.KV_OK)


def _sighting(entry: Any) -> dict[str, Any]:
    of_lock = entry.kind in (lib.KV_LOCK_IN_USE, lib.KV_LOCK_IN_RESET)
    silent = entry.kind == lib.KV_LOCK_SILENT
    of_client = not of_lock and not silent
    return {
        "lock": None if silent else int(entry.lock),
        "state": _SIGHTINGS[entry.kind],
        "client": int(entry.registration),
        "mode": ("exclusive" if entry.writers else "shared") if of_client else None,
        "requests": int(entry.requests) if of_lock else None,
        "writers": int(entry.writers) if of_lock else None,
        "threads": int(entry.requests) if of_client else None,
        "index": None if silent else int(entry.index),
        "age_s": entry.age_ms / 1000 if of_client else None,
    }


class _Session:
    """A session for the length of a `with` block."""

    def __init__(self, client: Any, timeout_s: float) -> None:
        self._slot = ffi.new("kv_session **")
        status = lib.kv_session_acquire(client, int(timeout_s * _NS), self._slot)
        if status != lib.KV_OK:
            raise plain_error(status)

    def __enter__(self) -> Any:
        return self._slot[0]

    def __exit__(self, *_: object) -> None:
        lib.kv_session_release(self._slot[0])


def state_name(state: int) -> str:
    """Return the word for `kv_member_state.state`."""
    return _STATES[state] if 0 <= state < len(_STATES) else f"state {state}"


def _admission(admission: tuple[int, bytes] | None) -> Any:
    if admission is None:
        return ffi.NULL
    record = ffi.new("kv_admission *")
    record.registration, token = admission
    ffi.memmove(record.token, token, len(record.token))
    return record


def _joined(members: tuple[str, ...]) -> bytes:
    return "\n".join(members).encode()


def _line(error: Any) -> str:
    return _text(ffi.string(error))


def _text(text: Any) -> str:
    return bytes(text).decode("utf-8", "replace")


bind_data_path()
