"""A key-value store on disaggregated memory.

Data lives in the memory of nodes and is read and changed by one-sided operations; the logic runs in
the client. `connect` opens a `Store`; `kvstore.aio` is the same for asyncio; `kvstore.errors` holds
the typed errors, which are also reachable from here.

    >>> import kvstore
    >>> with kvstore.connect() as store:
    ...     version = store.put("greeting", b"hello")
    ...     store.get("greeting")
    b'hello'

Importing this package is cheap: the native core is loaded when a public name first needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kvstore._version import __version__
from kvstore.errors import (
    AttachRefused,
    AuthenticationFailed,
    BufferTooSmall,
    Busy,
    CodecMismatch,
    ConditionFailed,
    ConfigurationError,
    ConsistencyMismatch,
    CorruptObject,
    DeadlineExceeded,
    DomainMismatch,
    Fenced,
    FencedWrite,
    FenceMismatch,
    ForkedError,
    InternalError,
    Interrupted,
    KeyInvalid,
    KvError,
    LayoutMismatch,
    LockLost,
    LockWornOut,
    MembershipMismatch,
    NodeUnreachable,
    NotHeld,
    OutcomeUnknown,
    OutOfMemory,
    StoreClosed,
    ValueInvalid,
    ValueTooLarge,
    WouldDeadlock,
)
from kvstore.types import ClientStats, CopyState, MemberState

if TYPE_CHECKING:
    from kvstore.client.connect import connect
    from kvstore.client.native import Lock
    from kvstore.client.store import Store
    from kvstore.cluster.tls import TlsConfig

__all__ = [
    "AttachRefused",
    "AuthenticationFailed",
    "BufferTooSmall",
    "Busy",
    "ClientStats",
    "CodecMismatch",
    "ConditionFailed",
    "ConfigurationError",
    "ConsistencyMismatch",
    "CopyState",
    "CorruptObject",
    "DeadlineExceeded",
    "DomainMismatch",
    "FenceMismatch",
    "Fenced",
    "FencedWrite",
    "ForkedError",
    "InternalError",
    "Interrupted",
    "KeyInvalid",
    "KvError",
    "LayoutMismatch",
    "Lock",
    "LockLost",
    "LockWornOut",
    "MemberState",
    "MembershipMismatch",
    "NodeUnreachable",
    "NotHeld",
    "OutOfMemory",
    "OutcomeUnknown",
    "Store",
    "StoreClosed",
    "TlsConfig",
    "ValueInvalid",
    "ValueTooLarge",
    "WouldDeadlock",
    "__version__",
    "connect",
]

#: Public names that are loaded when they are first used, and where they are.
_LAZY: Final = {
    "Lock": "kvstore.client.native",
    "Store": "kvstore.client.store",
    "TlsConfig": "kvstore.cluster.tls",
    "connect": "kvstore.client.connect",
}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'kvstore' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
