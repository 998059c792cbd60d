"""What the probe of stale reads drives: kvstore with copies, and Mooncake Store with its hot cache.

A client reads and writes numbers under names. It is made in the process that uses it, so nothing of
either system is imported before.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from collections.abc import Iterator
from typing import Any, Protocol

_WORD = struct.Struct("<Q")


class Conflict(Exception):
    """Somebody else was faster: nothing was written."""


class Failed(Exception):
    """The call has no result."""


class Client(Protocol):
    """Numbers under names; a write takes what the read before it has returned."""

    def read(self, name: str) -> tuple[int, Any] | None:
        """Return the number and its version; None: the name is absent."""

    def insert(self, name: str, number: int) -> None:
        """Write the number if the name is absent."""

    def replace(self, name: str, version: Any, number: int) -> None:
        """Write the number if nobody has since that version; None: whoever has."""

    def delete(self, name: str, version: Any) -> None:
        """Make the name absent if nobody has written it since that version."""

    def figures(self) -> dict[str, int]:
        """Return what the client has counted of its copies."""


class KvstoreClient:
    """A store with copies of values."""

    def __init__(self, target: str, cache_bytes: int, value_bytes: int, apart: bool) -> None:
        """Attach to the node; `apart`: as from a host of its own."""
        import kvstore
        from kvstore.errors import ConditionFailed

        self._store = kvstore.connect(target, cache_bytes=cache_bytes, host_stamps=not apart)
        self._rest = bytes(value_bytes)
        self._errors = (ConditionFailed, kvstore.KvError)

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        condition_failed, error = self._errors
        try:
            yield
        except condition_failed as refused:
            raise Conflict(str(refused)) from None
        except error as failed:
            raise Failed(str(failed)) from None

    def read(self, name: str) -> tuple[int, Any] | None:
        """See Client."""
        with self._call():
            found = self._store.get_versioned(name)
        return None if found is None else (_WORD.unpack_from(found[0])[0], found[1])

    def insert(self, name: str, number: int) -> None:
        """See Client."""
        with self._call():
            self._store.put(name, _WORD.pack(number) + self._rest, if_absent=True)

    def replace(self, name: str, version: Any, number: int) -> None:
        """See Client."""
        with self._call():
            self._store.put(name, _WORD.pack(number) + self._rest, if_version=version)

    def delete(self, name: str, version: Any) -> None:
        """See Client."""
        with self._call():
            self._store.delete(name, if_version=version)

    def figures(self) -> dict[str, int]:
        """See Client."""
        stats = self._store.stats()
        names = (
            *("cache_hits", "cache_handed", "cache_fills"),
            *("cache_invalidated", "cache_revoked", "writes_at_once", "leases_waited"),
        )
        return {name: getattr(stats, name) for name in names}

    def close(self) -> None:
        """Detach."""
        self._store.close()


class MooncakeClient:
    """Mooncake Store over TCP with its local hot cache; one writer a name.

    It knows no conditions, and an empty answer is an error or an absence: that counts as no read.
    """

    def __init__(self, target: str, cache_bytes: int, value_bytes: int) -> None:
        """Join the master that `target` names."""
        master, host, packages = target.split(" ")
        os.environ.pop("MC_STORE_LOCAL_HOT_CACHE_SIZE", None)
        if cache_bytes:
            os.environ["MC_STORE_LOCAL_HOT_CACHE_SIZE"] = str(cache_bytes)
            os.environ["MC_STORE_LOCAL_HOT_BLOCK_SIZE"] = str(64 << 10)
        sys.path.append(packages)
        from mooncake.store import MooncakeDistributedStore

        self._store = MooncakeDistributedStore()
        self._rest = bytes(value_bytes)
        local_bytes = 64 << 20
        if self._store.setup(host, "P2PHANDSHAKE", 0, local_bytes, "tcp", "", master) != 0:
            raise Failed("Mooncake could not be set up")

    def read(self, name: str) -> tuple[int, Any] | None:
        """See Client."""
        value = self._store.get(name)
        if len(value) < _WORD.size:
            raise Failed("an empty answer")
        return _WORD.unpack_from(value)[0], None

    def insert(self, name: str, number: int) -> None:
        """See Client."""
        if self._store.put(name, _WORD.pack(number) + self._rest) != 0:
            raise Failed("put")

    def replace(self, name: str, version: Any, number: int) -> None:
        """See Client."""
        if self._store.upsert(name, _WORD.pack(number) + self._rest) != 0:
            raise Failed("upsert")

    def delete(self, name: str, version: Any) -> None:
        """See Client."""
        raise Failed("a name that somebody reads is leased, and can't be removed")

    def figures(self) -> dict[str, int]:
        """See Client."""
        return {}

    def close(self) -> None:
        """Leave."""
        self._store.close()
