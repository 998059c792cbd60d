"""kvstore for asyncio: the same store, with coroutines for methods.

    import kvstore.aio

    async with await kvstore.aio.connect("kv://127.0.0.1:7400") as store:
        await store.put("greeting", b"hello")
        print(await store.get("greeting"))

One native thread and one session serve all operations of an `AsyncStore` at once; they complete
through an eventfd that the running loop watches, so no thread of Python waits for anything. A store
belongs to the loop that first uses it. Where the latency of a shared-memory get (below a
microsecond) matters more than overlap, use `kvstore.Store`, in a coroutine too.

A cancelled coroutine gives up the result, not the operation: a put may still happen, and the buffer
of a `get_into` stays in use until the operation's deadline at the latest.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast

from kvstore.client import values
from kvstore.client.async_lock import AsyncLock
from kvstore.client.buffers import export_buffer
from kvstore.client.connect import connect as connect_store
from kvstore.client.native import allocator, ffi, lib, plain_error, take_bytes
from kvstore.client.registration import Registration
from kvstore.client.store import WALK_TIMEOUT_S, Store
from kvstore.errors import ConfigurationError, InternalError, KvError, StoreClosed
from kvstore.types import Buffer, ClientStats, CopyState, Key, MemberState, Value

__all__ = ["AsyncStore", "connect"]

_ERROR_BYTES: Final = 1024
_REAP_AT_ONCE: Final = 256
#: What a get whose value's size is not known is given time for, as in the extension module.
_UNKNOWN_VALUE_BYTES: Final = 256 << 20
_Result = TypeVar("_Result")
#: Makes a finished call's outcome; the number is the call's place in the batch.
_Shape = Callable[["_Batch", int], Any]


async def connect(target: str | None = None, **options: Any) -> AsyncStore:
    """Open a store for the running loop; takes what `kvstore.connect` takes."""
    store = await asyncio.to_thread(connect_store, target, **options)
    return AsyncStore(store)


class AsyncStore:
    """The coroutine form of `kvstore.Store`; each method does what the one of that name does."""

    def __init__(self, store: Store) -> None:
        """Take over an open store: it is closed with this one."""
        self._store = store
        self._engine: _Engine | None = None

    # ---- one key ----

    async def get(self, key: Key, *, timeout_s: float | None = None) -> bytes | None:
        """Return the value of `key`, or None."""
        return cast("bytes | None", await self._one(lib.KV_GET, key, _value, timeout_s))

    async def get_versioned(
        self, key: Key, *, timeout_s: float | None = None
    ) -> tuple[bytes, int] | None:
        """Return (value, version) of `key`, or None."""
        return cast(
            "tuple[bytes, int] | None", await self._one(lib.KV_GET, key, _versioned, timeout_s)
        )

    async def get_into(
        self, key: Key, buffer: Buffer, *, timeout_s: float | None = None
    ) -> int | None:
        """Read the value of `key` into `buffer` and return its length, or None."""
        batch = _Batch(self._store, lib.KV_GET, [key], buffers=[buffer])
        return cast("int | None", _raised((await self._run(batch, _count, timeout_s))[0]))

    async def contains(self, key: Key, *, timeout_s: float | None = None) -> bool:
        """Return whether `key` is there."""
        return cast("bool", await self._one(lib.KV_CONTAINS, key, _found, timeout_s))

    async def put(
        self,
        key: Key,
        value: Value,
        *,
        if_version: int | None = None,
        if_absent: bool = False,
        fence: int | None = None,
        ttl_s: float | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Store `value` under `key` and return its version. The value must not change meanwhile."""
        return await self._put(
            key, value, values.CODEC_BYTES, if_version, if_absent, fence, ttl_s, timeout_s
        )

    put_from = put

    async def delete(
        self,
        key: Key,
        *,
        if_version: int | None = None,
        fence: int | None = None,
        timeout_s: float | None = None,
    ) -> bool:
        """Delete `key` and return whether it was there."""
        batch = _Batch(self._store, lib.KV_DELETE, [key])
        batch.set_conditions(if_version=if_version, fence=fence)
        return cast("bool", _raised((await self._run(batch, _found, timeout_s))[0]))

    async def put_object(
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
        """Store a structured value under `key` and return its version."""
        packed = values.pack(value)
        return await self._put(
            key, packed, values.CODEC_MSGPACK, if_version, if_absent, fence, ttl_s, timeout_s
        )

    async def get_object(
        self, key: Key, default: Any = None, *, timeout_s: float | None = None
    ) -> Any:
        """Return the value that `put_object` stored, or `default`."""
        found = await self._one(lib.KV_GET, key, _coded, timeout_s)
        return default if found is None else values.unpack(*found)

    # ---- locks ----

    def lock(
        self,
        name: Key,
        *,
        shared: bool = False,
        timeout_s: float | None = None,
        lease_s: float | None = None,
    ) -> AsyncLock:
        """Return the lock of a name, for `async with`; see `Store.lock`."""
        return AsyncLock(self._store, name, shared=shared, timeout_s=timeout_s, lease_s=lease_s)

    @asynccontextmanager
    async def locks(
        self,
        names: Iterable[Key],
        *,
        shared: bool = False,
        timeout_s: float | None = None,
        lease_s: float | None = None,
    ) -> AsyncIterator[list[AsyncLock]]:
        """Hold the locks of several names, for `async with`; see `Store.locks`."""
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(
                    self.lock(name, shared=shared, timeout_s=timeout_s, lease_s=lease_s)
                )
                for name in self._store._in_lock_order(names)
            ]

    # ---- many keys ----

    async def get_many(
        self, keys: Iterable[Key], *, timeout_s: float | None = None
    ) -> list[bytes | KvError | None]:
        """Read many keys at once: the value, None or a typed error of each."""
        return await self._run(_Batch(self._store, lib.KV_GET, keys), _value, timeout_s)

    async def get_versioned_many(
        self, keys: Iterable[Key], *, timeout_s: float | None = None
    ) -> list[tuple[bytes, int] | KvError | None]:
        """Read many keys at once: (value, version), None or a typed error of each."""
        return await self._run(_Batch(self._store, lib.KV_GET, keys), _versioned, timeout_s)

    async def get_many_into(
        self, keys: Iterable[Key], buffers: Iterable[Buffer], *, timeout_s: float | None = None
    ) -> list[int | KvError | None]:
        """Read each key into its buffer: the length, None or a typed error of each."""
        batch = _Batch(self._store, lib.KV_GET, keys, buffers=buffers)
        return await self._run(batch, _count, timeout_s)

    async def contains_many(
        self, keys: Iterable[Key], *, timeout_s: float | None = None
    ) -> list[bool | KvError]:
        """Say of each key whether it is there, or its typed error."""
        return await self._run(_Batch(self._store, lib.KV_CONTAINS, keys), _found, timeout_s)

    async def put_many(
        self,
        items: Mapping[Any, Value] | Iterable[tuple[Key, Value]],
        *,
        if_absent: bool = False,
        fence: int | None = None,
        ttl_s: float | None = None,
        timeout_s: float | None = None,
    ) -> list[int | KvError]:
        """Store many values at once: the version or a typed error of each."""
        pairs = list(items.items() if isinstance(items, Mapping) else items)
        batch = _Batch(
            self._store, lib.KV_PUT, [key for key, _ in pairs], stored=[value for _, value in pairs]
        )
        batch.set_conditions(if_absent=if_absent, fence=fence, ttl_s=ttl_s)
        return await self._run(batch, _version, timeout_s)

    put_from_many = put_many

    async def delete_many(
        self, keys: Iterable[Key], *, timeout_s: float | None = None
    ) -> list[bool | KvError]:
        """Delete many keys at once: whether each was there, or its typed error."""
        return await self._run(_Batch(self._store, lib.KV_DELETE, keys), _found, timeout_s)

    async def _get_many_into_coded(
        self,
        keys: Iterable[Key],
        buffers: Iterable[Buffer],
        *,
        timeout_s: float | None = None,
        reuse: Sequence[int] | None = None,
        used_ns: int = 0,
    ) -> list[tuple[int, int] | KvError | None]:
        """As `get_many_into`, with (length, codec) in place of the length."""
        batch = _Batch(self._store, lib.KV_GET, keys, buffers=buffers, reuse=reuse, used_ns=used_ns)
        return await self._run(batch, _count_coded, timeout_s)

    async def _put_many_coded(
        self,
        items: Iterable[tuple[Key, Value]],
        codec: int,
        *,
        if_absent: bool = False,
        timeout_s: float | None = None,
        reuse: Sequence[int] | None = None,
        used_ns: int = 0,
    ) -> list[int | KvError]:
        """As `put_many`, with the number of the values' codec."""
        pairs = list(items)
        stored = [value for _, value in pairs]
        keys = [key for key, _ in pairs]
        batch = _Batch(
            self._store,
            lib.KV_PUT,
            keys,
            stored=stored,
            codec=codec,
            reuse=reuse,
            used_ns=used_ns,
        )
        batch.set_conditions(if_absent=if_absent)
        return await self._run(batch, _version, timeout_s)

    async def _look_many(
        self,
        keys: Iterable[Key],
        *,
        timeout_s: float | None = None,
        reuse: Sequence[int] | None = None,
    ) -> list[bool | KvError]:
        """As `contains_many`; without `reuse` it keeps nothing from eviction."""
        flags = lib.KV_PROBE if reuse is None else 0
        batch = _Batch(self._store, lib.KV_CONTAINS, keys, flags=flags, reuse=reuse)
        return await self._run(batch, _found, timeout_s)

    async def match_prefix(self, keys: Iterable[Key], *, timeout_s: float | None = None) -> int:
        """Return how many keys from the first on are there without a gap."""
        batch = _Batch(self._store, lib.KV_CONTAINS, keys, flags=lib.KV_PROBE)
        outcomes = await self._run(batch, _found, timeout_s)
        return next((i for i, found in enumerate(outcomes) if found is not True), len(outcomes))

    # ---- the whole store ----

    async def size(self, *, timeout_s: float = WALK_TIMEOUT_S) -> int:
        """Count the keys of all nodes."""
        return await asyncio.to_thread(self._store.size, timeout_s=timeout_s)

    async def clear(self, *, timeout_s: float = WALK_TIMEOUT_S) -> int:
        """Delete every key of all nodes and return how many there were."""
        return await asyncio.to_thread(self._store.clear, timeout_s=timeout_s)

    async def keys(self, *, timeout_s: float = WALK_TIMEOUT_S) -> AsyncIterator[bytes]:
        """Walk over the keys of all nodes, in no order."""
        walk = self._store.keys(timeout_s=timeout_s)
        while (key := await asyncio.to_thread(next, walk, None)) is not None:
            yield key

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.keys()

    def register(self, buffer: Any) -> Registration:
        """Register a writable buffer. See `Store.register`."""
        return self._store.register(buffer)

    def stats(self) -> ClientStats:
        """Return what this store has done since it was opened."""
        return self._store.stats()

    def explain(self, key: Key) -> CopyState:
        """Return what this store makes of a key as far as copies go. See `Store.explain`."""
        return self._store.explain(key)

    def members(self) -> list[MemberState]:
        """Return how each memory node looks from here."""
        return self._store.members()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._store.closed

    async def close(self) -> None:
        """Wait for what is under way, then leave the nodes. May be called again."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()
        await asyncio.to_thread(self._store.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.abandon()

    def __repr__(self) -> str:
        return f"<AsyncStore of {self._store!r}>"

    # ---- inside ----

    async def _one(self, kind: int, key: Key, shape: _Shape, timeout_s: float | None) -> Any:
        outcomes = await self._run(_Batch(self._store, kind, [key]), shape, timeout_s)
        return _raised(outcomes[0])

    async def _put(
        self,
        key: Key,
        value: Value,
        codec: int,
        if_version: int | None,
        if_absent: bool,
        fence: int | None,
        ttl_s: float | None,
        timeout_s: float | None,
    ) -> int:
        batch = _Batch(self._store, lib.KV_PUT, [key], stored=[value], codec=codec)
        batch.set_conditions(if_version=if_version, if_absent=if_absent, fence=fence, ttl_s=ttl_s)
        return cast("int", _raised((await self._run(batch, _version, timeout_s))[0]))

    async def _run(self, batch: _Batch, shape: _Shape, timeout_s: float | None) -> list[Any]:
        if self._store.closed:
            raise StoreClosed("the store is closed: call kvstore.aio.connect() for a new one")
        if batch.count:
            if self._engine is None:
                self._engine = _Engine(self._store)
            await self._engine.run(batch, batch.timeout_ns(timeout_s))
        return batch.outcomes(shape)


class _Batch:
    """The calls of one submission, and what they point into."""

    def __init__(
        self,
        store: Store,
        kind: int,
        keys: Iterable[Key],
        *,
        stored: Sequence[Value] | None = None,
        buffers: Iterable[Buffer] | None = None,
        flags: int = 0,
        codec: int = 0,
        reuse: Sequence[int] | None = None,
        used_ns: int = 0,
    ) -> None:
        if isinstance(keys, str | bytes):
            raise TypeError("an iterable of keys is wanted, not one key")
        self.store = store
        self.keys = list(keys)
        self.outcome: dict[int, KvError] = {}
        self._default_s = store._default_timeout_s
        self._bytes = _UNKNOWN_VALUE_BYTES if kind == lib.KV_GET and buffers is None else 0
        self._held: list[Any] = []
        targets = None if buffers is None else list(buffers)
        if targets is not None and len(targets) != len(self.keys):
            raise ValueError(
                f"{len(self.keys)} keys but {len(targets)} buffers: give one buffer a key"
            )
        self.calls = ffi.new("kv_call[]", max(1, len(self.keys)))
        self._slots = ffi.new("uint64_t[]", max(1, len(self.keys)))
        self.places: list[int] = []
        for place in range(len(self.keys)):
            call = self.calls[len(self.places)]
            try:
                self._fill_key(call, place)
                if stored is not None:
                    self._fill_value(call, stored[place])
                elif targets is not None:
                    self._fill_buffer(call, targets[place])
            except KvError as error:
                self.outcome[place] = error
                continue
            call.kind, call.flags, call.codec, call.used_ns = kind, flags, codec, used_ns
            if reuse is not None:
                call.reuse = reuse[place]
            if kind == lib.KV_GET and targets is None:
                call.allocate = _ALLOCATE
                call.context = self._slots + len(self.places)
            self.places.append(place)

    @property
    def count(self) -> int:
        """How many calls there are to submit."""
        return len(self.places)

    def set_conditions(
        self,
        *,
        if_version: int | None = None,
        if_absent: bool = False,
        fence: int | None = None,
        ttl_s: float | None = None,
    ) -> None:
        """Set the same conditions on every call."""
        if if_version is not None and if_absent:
            raise ValueError("if_version and if_absent exclude each other: give one")
        if fence is not None and not 0 <= fence < 1 << 128:
            raise ValueError(f"fence is {fence}, which is no token of a lock")
        ttl_ms = math.ceil(_positive("ttl_s", ttl_s) * 1000) if ttl_s is not None else 0
        for index in range(self.count):
            call = self.calls[index]
            if if_version is not None:
                call.flags |= lib.KV_IF_VERSION
                call.if_version = if_version
            if if_absent:
                call.flags |= lib.KV_IF_ABSENT
            if fence is not None:
                call.flags |= lib.KV_WITH_FENCE
                call.fence.lock, call.fence.token = fence >> 64, fence & 0xFFFFFFFFFFFFFFFF
            call.ttl_ms = ttl_ms

    def timeout_ns(self, timeout_s: float | None) -> int:
        """Return how long the batch may take."""
        seconds = self._default_s if timeout_s is None else timeout_s
        if seconds is None:
            return int(lib.kv_default_timeout_ns(self._bytes))
        return math.ceil(_positive("timeout_s", seconds) * 1e9)

    def outcomes(self, shape: _Shape) -> list[Any]:
        """Return one outcome a key, in the order of the keys."""
        outcomes: list[Any] = [self.outcome.get(place) for place in range(len(self.keys))]
        for index, place in enumerate(self.places):
            call = self.calls[index]
            if call.status in (lib.KV_OK, lib.KV_ABSENT):
                outcomes[place] = shape(self, index)
            else:
                self.release(index)
                outcomes[place] = self.store._error(
                    call.status, self.keys[place], call.data_bytes, call.version
                )
        return outcomes

    def value(self, index: int) -> bytes:
        """Return the value that a get has read."""
        data = self.release(index)
        size = self.calls[index].data_bytes
        if data is None:
            if size == 0:
                return b""
            raise InternalError("the core read a value but asked for no memory")
        return data if len(data) == size else data[:size]

    def release(self, index: int) -> bytes | None:
        """Take the memory that a get has allocated."""
        return take_bytes(int(ffi.cast("uintptr_t", self._slots + index)))

    def __del__(self) -> None:
        # What nobody took because the coroutine was cancelled.
        for index in range(len(getattr(self, "places", ()))):
            self.release(index)

    def _fill_key(self, call: Any, place: int) -> None:
        key = self.keys[place]
        try:
            view = ffi.from_buffer(key.encode() if isinstance(key, str) else key)
        except (TypeError, ValueError, BufferError):
            raise self.store._error(lib.KV_KEY_INVALID, key, 0, 0) from None
        if not 1 <= len(view) <= lib.KV_KEY_BYTES_MAX:
            raise self.store._error(lib.KV_KEY_INVALID, key, 0, 0)
        self._held.append(view)
        call.key, call.key_bytes = view, len(view)

    def _fill_value(self, call: Any, value: Value) -> None:
        view = _view(value, writable=False)
        self._held.append(view)
        self._bytes += len(view)
        call.value, call.value_bytes = view, len(view)

    def _fill_buffer(self, call: Any, buffer: Buffer) -> None:
        view = _view(buffer, writable=True)
        self._held.append(view)
        self._bytes += len(view)
        call.buffer, call.buffer_bytes = (view if len(view) else self._slots), len(view)


class _Engine:
    """One `kv_async` on one loop: what was submitted, and who waits for it."""

    def __init__(self, store: Store) -> None:
        self._loop = asyncio.get_running_loop()
        error = ffi.new("char[]", _ERROR_BYTES)
        self._lend = store._client.use()
        client = self._lend.__enter__()
        handle = lib.kv_async_open(client, error, _ERROR_BYTES)
        if handle == ffi.NULL:
            self._lend.__exit__(None, None, None)
            raise ConfigurationError(cast("bytes", ffi.string(error)).decode("utf-8", "replace"))
        self._handle: Any = handle
        self._tags = ffi.new("uint64_t[]", _REAP_AT_ONCE)
        self._next_tag = 1
        self._waiting: dict[int, tuple[asyncio.Future[None], _Batch]] = {}
        self._loop.add_reader(lib.kv_async_descriptor(handle), self._reap)

    async def run(self, batch: _Batch, timeout_ns: int) -> None:
        """Submit a batch and wait until each of its calls has its outcome."""
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("an AsyncStore belongs to the loop that first used it: connect anew")
        if self._handle is None:
            raise StoreClosed("the store is closed: call kvstore.aio.connect() for a new one")
        tag = self._next_tag
        self._next_tag += 1
        future: asyncio.Future[None] = self._loop.create_future()
        # The batch stays here, with all it points to, until it is reaped, whoever still waits.
        self._waiting[tag] = (future, batch)
        status = lib.kv_async_submit(self._handle, batch.calls, batch.count, timeout_ns, tag)
        if status != lib.KV_OK:
            del self._waiting[tag]
            raise plain_error(status)
        await future

    def _reap(self) -> None:
        while self._handle is not None:
            count = lib.kv_async_reap(self._handle, self._tags, _REAP_AT_ONCE)
            for index in range(count):
                future, _ = self._waiting.pop(self._tags[index])
                if not future.done():
                    future.set_result(None)
            if count < _REAP_AT_ONCE:
                return

    async def close(self) -> None:
        """Wait for what is under way, each by its own deadline, and end the native thread."""
        while self._waiting:
            await asyncio.wait([future for future, _ in self._waiting.values()], timeout=0.1)
        handle = self._take_handle()
        if handle is not None:
            try:
                await asyncio.to_thread(lib.kv_async_close, handle)
            finally:
                self._lend.__exit__(None, None, None)

    def abandon(self) -> None:
        """Do what `close` does, for a store that was dropped: on this thread, nobody waits."""
        handle = self._take_handle()
        if handle is not None:
            lib.kv_async_close(handle)
            self._lend.__exit__(None, None, None)

    def _take_handle(self) -> Any:
        handle, self._handle = self._handle, None
        if handle is not None and not self._loop.is_closed():
            self._loop.remove_reader(lib.kv_async_descriptor(handle))
        return handle


def _value(batch: _Batch, index: int) -> bytes | None:
    return batch.value(index) if batch.calls[index].status == lib.KV_OK else None


def _versioned(batch: _Batch, index: int) -> tuple[bytes, int] | None:
    if batch.calls[index].status != lib.KV_OK:
        return None
    return batch.value(index), batch.calls[index].version


def _coded(batch: _Batch, index: int) -> tuple[bytes, int] | None:
    if batch.calls[index].status != lib.KV_OK:
        return None
    return batch.value(index), batch.calls[index].codec


def _count(batch: _Batch, index: int) -> int | None:
    call = batch.calls[index]
    return int(call.data_bytes) if call.status == lib.KV_OK else None


def _count_coded(batch: _Batch, index: int) -> tuple[int, int] | None:
    call = batch.calls[index]
    return (int(call.data_bytes), int(call.codec)) if call.status == lib.KV_OK else None


def _found(batch: _Batch, index: int) -> bool:
    return bool(batch.calls[index].status == lib.KV_OK)


def _version(batch: _Batch, index: int) -> int:
    return int(batch.calls[index].version)


def _raised(outcome: _Result) -> _Result:
    if isinstance(outcome, KvError):
        raise outcome
    return outcome


def _view(value: object, *, writable: bool) -> Any:
    try:
        return ffi.from_buffer(value, require_writable=writable)
    except (TypeError, ValueError, BufferError):
        return ffi.from_buffer(export_buffer(value, writable), require_writable=writable)


def _positive(name: str, seconds: float) -> float:
    if not 0 < seconds < 9e9:
        raise ValueError(f"{name} is {seconds}; it must be a positive number of seconds")
    return seconds


_ALLOCATE: Final = ffi.cast("void *(*)(void *, kv_call *, uint64_t)", cast("Any", allocator()))
