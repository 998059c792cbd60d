"""`Store`: the store as a Python object."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from kvstore.client import values
from kvstore.client.native import DataPath, Lock, lib, plain_error
from kvstore.client.registration import Registration
from kvstore.errors import (
    BufferTooSmall,
    ConditionFailed,
    ConfigurationError,
    DeadlineExceeded,
    Fenced,
    InternalError,
    Interrupted,
    KeyInvalid,
    KvError,
    LockLost,
    LockWornOut,
    NodeUnreachable,
    NotHeld,
    WouldDeadlock,
)
from kvstore.types import ClientStats, CopyState, Key, MemberState

if TYPE_CHECKING:
    from kvstore.client.native import NativeClient
    from kvstore.cluster.membership import Membership
    from kvstore.node.memory_node import MemoryNode

#: Walks over the whole store may take this long for each node unless told otherwise.
WALK_TIMEOUT_S: Final = 60.0
#: How long the end of the process waits for the calls of other threads.
EXIT_WAIT_S: Final = 1.0


class Store(DataPath):
    """A key-value store on one or more memory nodes. Made by `kvstore.connect`.

    All threads of a process may share one. It works like a dict of bytes as well: `store[key]`,
    `store[key] = value`, `del store[key]`, `key in store`, `len(store)`, `for key in store`. As a
    context manager it closes itself. A forked child gets ForkedError and connects anew.

    Keys are bytes-like or text (its UTF-8 form), 1 to 1,024 bytes. Values are contiguous buffers:
    bytes, bytearray, memoryview, numpy arrays, torch tensors on the CPU; they are read and filled
    in place. Each key is linearizable. Every call ends by its deadline: `timeout_s`, or the
    store's, or a default that grows with the size of the value.
    """

    def __init__(
        self,
        membership: Membership,
        client: NativeClient,
        *,
        timeout_s: float | None = None,
        node: MemoryNode | None = None,
    ) -> None:
        self._membership = membership
        self._client = client
        self._node = node
        self._default_timeout_s = timeout_s
        self._process_id = os.getpid()
        self._close_lock = threading.RLock()
        self._closed = False
        self._open(client.address, timeout_s)
        this = weakref.ref(self)

        def attached() -> None:
            store = this()
            if store is not None:
                store._refresh()

        membership.on_attached(attached)
        _open_stores.add(self)

    # ---- structured values ----

    def put_object(
        self,
        key: Key,
        value: object,
        *,
        if_version: int | None = None,
        if_absent: bool = False,
        fence: int | None = None,
        ttl_s: float | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Store a structured value under `key` and return its version; see `put`.

        Takes None, bool, int, float, str, bytes, and lists and dicts of them. They are stored as
        msgpack; pickle is never used.
        """
        return self._put_coded(
            key,
            values.pack(value),
            values.CODEC_MSGPACK,
            if_version=if_version,
            if_absent=if_absent,
            fence=fence,
            ttl_s=ttl_s,
            timeout_s=timeout_s,
        )

    def get_object(self, key: Key, default: Any = None, *, timeout_s: float | None = None) -> Any:
        """Return the value that `put_object` stored, or `default` if there is no such key.

        Tuples come back as lists. CodecMismatch if the value was stored by `put`.
        """
        found = self._get_coded(key, timeout_s=timeout_s)
        return default if found is None else values.unpack(*found)

    # ---- locks ----

    @contextmanager
    def locks(
        self,
        names: Iterable[Key],
        *,
        shared: bool = False,
        timeout_s: float | None = None,
        lease_s: float | None = None,
    ) -> Iterator[list[Lock]]:
        """Hold the locks of several names: `with store.locks(["a", "b"]) as held`.

        Everybody who takes several locks at once by this takes them in one order, so that nobody
        waits for the other for ever. `timeout_s` bounds the wait for each, and each goes on to
        others after `lease_s` although it has not been released. A name that comes twice
        is taken once; the list has one lock a name, in the order in which they were taken.
        """
        with ExitStack() as stack:
            yield [
                stack.enter_context(
                    self.lock(name, shared=shared, timeout_s=timeout_s, lease_s=lease_s)
                )
                for name in self._in_lock_order(names)
            ]

    def _in_lock_order(self, names: Iterable[Key]) -> list[bytes]:
        wanted = {name.encode() if isinstance(name, str) else bytes(name) for name in names}
        return sorted(wanted, key=self._client.lock_order)

    # ---- the whole store ----

    def size(self, *, timeout_s: float = WALK_TIMEOUT_S) -> int:
        """Count the keys of all nodes. What changes meanwhile may be counted or not."""
        count = 0
        for index in range(len(self._membership.members)):
            with self._walking(index):
                count += self._client.count(index, timeout_s)
        return count

    def __len__(self) -> int:
        return self.size()

    def __bool__(self) -> bool:
        return True

    def clear(self, *, timeout_s: float = WALK_TIMEOUT_S) -> int:
        """Delete every key of all nodes and return how many there were.

        Keys that others put meanwhile may stay.
        """
        deleted = 0
        for index in range(len(self._membership.members)):
            with self._walking(index):
                deleted += self._client.clear(index, timeout_s)
        return deleted

    def keys(self, *, timeout_s: float = WALK_TIMEOUT_S) -> Iterator[bytes]:
        """Walk over the keys of all nodes, in no order.

        A key that is there from beginning to end is seen exactly once; what changes meanwhile may
        be seen or not. The walk keeps the keys of one node in mind to see none of them twice.
        """
        for index in range(len(self._membership.members)):
            seen: set[bytes] = set()
            pages = self._client.scan(index, timeout_s)
            while True:
                with self._walking(index):
                    page = next(pages, None)
                if page is None:
                    break
                for key in page:
                    if key not in seen:
                        seen.add(key)
                        yield key

    def __iter__(self) -> Iterator[bytes]:
        return self.keys()

    # ---- the store itself ----

    def register(self, buffer: Any) -> Registration:
        """Register a writable buffer, so that values of 4 KiB and more go there without a copy.

        Matters over verbs; elsewhere nothing is to be done, and nothing is. Memory that is not
        registered works as well: its bytes go through memory that is. Registering locks the
        memory and takes milliseconds, so register what is used again and again.

        Returns a Registration: close it, or leave its `with` block, when no call uses the buffer.

        Raises:
            ConfigurationError: A limit of the system or the device is in the way; the message
                names it and what raises it.
            ValueInvalid: The buffer is read-only or not contiguous.
        """
        return Registration(self._client, buffer)

    def stats(self) -> ClientStats:
        """Return what this store has done since it was opened."""
        return self._client.stats()

    def explain(self, key: Key) -> CopyState:
        """Return what this store makes of a key as far as copies go, without reading it.

        `print(store.explain(key).reason)` says why the key is read from a copy, or is not.

        Raises:
            KeyInvalid: The key is no key.
        """
        try:
            name = key.encode() if isinstance(key, str) else bytes(memoryview(key))
        except (TypeError, UnicodeEncodeError):
            raise KeyInvalid(_why_key_is_invalid(key)) from None
        if not 0 < len(name) <= lib.KV_KEY_BYTES_MAX:
            raise KeyInvalid(_why_key_is_invalid(key))
        return self._client.copy_of(name)

    def members(self) -> list[MemberState]:
        """Return how each memory node looks from here."""
        return self._membership.states()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Refuse calls from now on, wait for those under way, and leave the nodes.

        An embedded node ends with its store. May be called again, by any thread.
        """
        self._close(None)

    def _close(self, wait_s: float | None) -> None:
        """Close; give up and leave the rest to the end of the process after `wait_s`."""
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
            self._shut()
            if os.getpid() != self._process_id:
                return
            if self._inside():
                # A signal handler that interrupted a call of this thread: to wait for the end of
                # that call here would be to wait for ever.
                threading.Thread(target=self._finish, args=(wait_s,), name="kvstore-close").start()
            else:
                self._finish(wait_s)

    def _finish(self, wait_s: float | None) -> None:
        """Wait for the calls under way, each of which ends by its own deadline; then let go."""
        give_up = None if wait_s is None else time.monotonic() + wait_s
        while self._shut() > 0:
            if give_up is not None and time.monotonic() >= give_up:
                return
            time.sleep(0.0005)
        if self._membership.close(wait_s) and self._node is not None:
            self._node.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True) is False:
            self._close(EXIT_WAIT_S)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<{type(self).__name__} {', '.join(self._membership.members)}: {state}>"

    # ---- errors ----

    def _error(self, status: int, key: object, needed: int, version: int) -> KvError:
        """Return the typed error of a status. The extension module calls this."""
        if status == lib.KV_KEY_INVALID:
            return KeyInvalid(_why_key_is_invalid(key))
        name = _shown(key)
        if status == lib.KV_BUFFER_TOO_SMALL:
            return BufferTooSmall(
                f"the value of key {name} has {needed} bytes, more than the buffer: give one of"
                f" {needed} bytes",
                needed=needed,
            )
        if status == lib.KV_CONDITION_FAILED:
            has = f"has version {version}" if version else "is absent or has another version"
            return ConditionFailed(
                f"key {name} {has}: read it again (get_versioned) and decide anew", version=version
            )
        if status in (lib.KV_NODE_UNREACHABLE, lib.KV_NO_ATTACHMENT, lib.KV_FENCED):
            self._membership.notice()
            where = self._where(key)
            if status != lib.KV_FENCED and (refused := self._refusal(key)) is not None:
                refused.args = (f"the node {where} of key {name} refuses this client",)
                return refused
            if status == lib.KV_FENCED:
                return Fenced(
                    f"the node {where} of key {name} has cut this client off, which attaches again"
                    " by itself: try again"
                )
            return NodeUnreachable(
                f"the node {where} of key {name} is down; its keys are not moved to others, and the"
                " store attaches again by itself once the node is back"
            )
        error = plain_error(status)
        if key is None or isinstance(error, InternalError):
            return error
        return type(error)(f"key {name}: {error}")

    def _lock_error(self, status: int, name: object) -> KvError:
        """Return the typed error of a lock. The extension module calls this."""
        shown = _shown(name)
        if status == lib.KV_WOULD_DEADLOCK:
            return WouldDeadlock(
                f"lock {shown} is held by this caller already, and is not re-entrant: release it"
                " first; where a reader wants to write, take it for writing at once"
            )
        if status == lib.KV_LOCK_LOST:
            self._membership.notice()
            return LockLost(
                f"lock {shown} was lost: its lease has ended, or its node is gone or has cut this"
                " client off, so others may have held it meanwhile"
            )
        if status == lib.KV_DEADLINE_EXCEEDED:
            return DeadlineExceeded(
                f"lock {shown} was not to be had before the time-out passed: try again, or give a"
                " longer timeout_s"
            )
        if status == lib.KV_INTERRUPTED:
            return Interrupted(f"lock {shown} was waited for no longer: the wish was cancelled")
        if status == lib.KV_REFUSED:
            return ConfigurationError(
                f"lock {shown}: this process has no socket left for messages with other clients"
                " (ulimit -n)"
            )
        if status == lib.KV_LEASE_TOO_SHORT:
            return ConfigurationError(
                f"lock {shown}: lease_s is below the membership lease of its node (5 s unless the"
                " node was started with another one): a client that stands still is given up only"
                " after that"
            )
        if status == lib.KV_LOCK_WORN_OUT:
            return LockWornOut(
                f"lock {shown} has been granted as often as it can be (2^41 times): use another"
                " name, or restart its node"
            )
        if status == lib.KV_INVALID:
            return NotHeld(f"lock {shown} is not held through this object")
        return self._error(status, name, 0, 0)

    @contextmanager
    def _walking(self, index: int) -> Iterator[None]:
        """Raise the refusal of a member that refuses this client, not that it is down."""
        try:
            yield
        except NodeUnreachable as error:
            self._membership.notice()
            if (refused := self._membership.refusal(index)) is None:
                raise
            where = self._membership.describe(index)
            refused.args = (f"the node {where} refuses this client",)
            raise refused from error

    def _where(self, key: object) -> str:
        try:
            return self._membership.describe(self._member_of(key))
        except (KvError, TypeError, IndexError):
            return "?"

    def _refusal(self, key: object) -> KvError | None:
        try:
            return self._membership.refusal(self._member_of(key))
        except (KvError, TypeError, IndexError):
            return None

    def _member_of(self, key: object) -> int:
        raw = key.encode() if isinstance(key, str) else bytes(key)  # type: ignore
        return self._client.member_of(raw)


def _why_key_is_invalid(key: object) -> str:
    if isinstance(key, str):
        try:
            size = len(key.encode())
        except UnicodeEncodeError:
            return f"the key {key!r} has no UTF-8 form: give bytes"
    elif isinstance(key, bytes | bytearray | memoryview):
        size = memoryview(key).nbytes
    else:
        return f"a key is bytes or str, not {type(key).__name__}"
    if size == 0:
        return "a key is empty: give 1 to 1,024 bytes"
    if size > lib.KV_KEY_BYTES_MAX:
        return f"a key of {size} bytes is too long: give 1 to 1,024, such as a hash of it"
    return "the memory of the key is not contiguous: give bytes(key)"


def _shown(key: object) -> str:
    text = repr(bytes(key) if isinstance(key, memoryview) else key)
    return text if len(text) <= 80 else text[:77] + "..."


_open_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _close_at_exit() -> None:
    for store in list(_open_stores):
        store._close(EXIT_WAIT_S)


# The nodes hear of the end from the closing sockets at the latest; this tells them in order.
atexit.register(_close_at_exit)
