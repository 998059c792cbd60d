"""The extension module of native/python: the hot path of `kvstore.Store`."""

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, final

from kvstore.errors import KvError
from kvstore.types import Buffer, Key, Value

def bind(
    data_path_address: int,
    export_buffer: Callable[[object, bool], object],
    kv_error: type[Exception],
    /,
) -> None: ...
def allocator() -> int: ...
def take_bytes(slot_address: int, /) -> bytes | None: ...

@final
class Lock:
    @property
    def token(self) -> int: ...
    @property
    def held(self) -> bool: ...
    @property
    def lost(self) -> bool: ...
    @property
    def name(self) -> Key: ...
    @property
    def shared(self) -> bool: ...
    def acquire(self, *, timeout_s: float | None = None) -> None: ...
    def try_acquire(self) -> bool: ...
    def release(self) -> None: ...
    def cancel(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

class DataPath:
    def lock(
        self,
        name: Key,
        *,
        shared: bool = False,
        timeout_s: float | None = None,
        lease_s: float | None = None,
        owner: int = 0,
    ) -> Lock: ...
    def get(
        self, key: Key, *, timeout_s: float | None = None, cached: bool = True
    ) -> bytes | None: ...
    def get_versioned(
        self, key: Key, *, timeout_s: float | None = None, cached: bool = True
    ) -> tuple[bytes, int] | None: ...
    def get_into(
        self, key: Key, buffer: Buffer, *, timeout_s: float | None = None, cached: bool = True
    ) -> int | None: ...
    def contains(
        self, key: Key, *, timeout_s: float | None = None, cached: bool = True
    ) -> bool: ...
    def put(
        self,
        key: Key,
        value: Value,
        *,
        if_version: int | None = None,
        if_absent: bool = False,
        fence: int | None = None,
        ttl_s: float | None = None,
        timeout_s: float | None = None,
    ) -> int: ...
    def put_from(
        self,
        key: Key,
        value: Value,
        *,
        if_version: int | None = None,
        if_absent: bool = False,
        fence: int | None = None,
        ttl_s: float | None = None,
        timeout_s: float | None = None,
    ) -> int: ...
    def delete(
        self,
        key: Key,
        *,
        if_version: int | None = None,
        fence: int | None = None,
        timeout_s: float | None = None,
    ) -> bool: ...
    def get_many(
        self, keys: Iterable[Key], *, timeout_s: float | None = None
    ) -> list[bytes | KvError | None]: ...
    def get_versioned_many(
        self, keys: Iterable[Key], *, timeout_s: float | None = None
    ) -> list[tuple[bytes, int] | KvError | None]: ...
    def get_many_into(
        self, keys: Iterable[Key], buffers: Iterable[Buffer], *, timeout_s: float | None = None
    ) -> list[int | KvError | None]: ...
    def contains_many(
        self, keys: Iterable[Key], *, timeout_s: float | None = None
    ) -> list[bool | KvError]: ...
    def put_many(
        self,
        items: Mapping[Any, Value] | Iterable[tuple[Key, Value]],
        *,
        if_absent: bool = False,
        fence: int | None = None,
        ttl_s: float | None = None,
        timeout_s: float | None = None,
    ) -> list[int | KvError]: ...
    def put_from_many(
        self,
        items: Mapping[Any, Value] | Iterable[tuple[Key, Value]],
        *,
        if_absent: bool = False,
        fence: int | None = None,
        ttl_s: float | None = None,
        timeout_s: float | None = None,
    ) -> list[int | KvError]: ...
    def delete_many(
        self, keys: Iterable[Key], *, timeout_s: float | None = None
    ) -> list[bool | KvError]: ...
    def match_prefix(self, keys: Iterable[Key], *, timeout_s: float | None = None) -> int: ...
    def _put_many_coded(
        self,
        items: Mapping[Any, Value] | Iterable[tuple[Key, Value]],
        codec: int,
        *,
        if_absent: bool = False,
        ttl_s: float | None = None,
        timeout_s: float | None = None,
        reuse: Buffer | None = None,
        used_ns: int = 0,
    ) -> list[int | KvError]: ...
    def _get_many_into_coded(
        self,
        keys: Iterable[Key],
        buffers: Iterable[Buffer],
        *,
        timeout_s: float | None = None,
        reuse: Buffer | None = None,
        used_ns: int = 0,
    ) -> list[tuple[int, int] | KvError | None]: ...
    def _look_many(
        self,
        keys: Iterable[Key],
        *,
        timeout_s: float | None = None,
        reuse: Buffer | None = None,
    ) -> list[bool | KvError]: ...
    def _pin_many(
        self, keys: Iterable[Key], pin_s: int, *, timeout_s: float | None = None
    ) -> list[bool | KvError]: ...
    def __getitem__(self, key: Key, /) -> bytes: ...
    def __setitem__(self, key: Key, value: Value, /) -> None: ...
    def __delitem__(self, key: Key, /) -> None: ...
    def __contains__(self, key: Key, /) -> bool: ...
    def _get_coded(self, key: Key, timeout_s: float | None = ...) -> tuple[bytes, int] | None: ...
    def _put_coded(
        self,
        key: Key,
        value: Value,
        codec: int,
        *,
        if_version: int | None = None,
        if_absent: bool = False,
        fence: int | None = None,
        ttl_s: float | None = None,
        timeout_s: float | None = None,
    ) -> int: ...
    def _open(self, client_address: int, timeout_s: float | None, /) -> None: ...
    def _refresh(self) -> None: ...
    def _shut(self) -> int: ...
    def _inside(self) -> bool: ...
