"""The stores that a replay can run against, behind the few calls that a prefix cache needs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

from kvstore.bench.processes import require_fabric

BATCH_BYTES_MAX: Final = 32 << 20
BATCH_KEYS_MAX: Final = 512
Value = bytes | memoryview | None


class Backend(Protocol):
    """What a replay asks of a store. Thread-safe; nothing here raises because a node is down."""

    def match(self, keys: Sequence[bytes]) -> int:
        """How many leading keys are there, in one batch."""

    def read(self, keys: Sequence[bytes]) -> Sequence[Value]:
        """The values, None for each that is not there or can't be reached.

        Valid until the calling thread's next `read`. At most one batch.
        """

    def write(self, keys: Sequence[bytes], values: Sequence[bytes]) -> list[str]:
        """Stores one batch; for each key "" or the name of the error."""

    def present(self, keys: Sequence[bytes]) -> list[str]:
        """For each key `present`, `absent` or the name of the error."""

    def counters(self) -> dict[str, int]:
        """Counts of `verbs` and `round_trips` so far; empty where there are none."""

    @property
    def fabric(self) -> str:
        """What carries the bytes."""

    def close(self) -> None:
        """Gives up the connection."""


def batches(count: int, value_bytes: int) -> Iterator[slice]:
    """Cuts `count` values into batches that bound memory and time."""
    step = max(1, min(BATCH_KEYS_MAX, BATCH_BYTES_MAX // max(1, value_bytes)))
    for begin in range(0, count, step):
        yield slice(begin, min(count, begin + step))


def open_backend(target: str, block_bytes: int, fabric: str) -> Backend:
    """A backend for a kvstore target, or for `redis:///path/to/socket`."""
    if target.startswith("redis://"):
        return RedisBackend(target.removeprefix("redis://"))
    return KvstoreBackend(target, block_bytes, fabric)


class KvstoreBackend:
    """The store itself; values are read into one buffer a thread."""

    def __init__(self, target: str, block_bytes: int, fabric: str) -> None:
        import kvstore

        self._error = kvstore.KvError
        self._store = kvstore.connect(target, timeout_s=10.0)
        self.fabric: Final = require_fabric(self._store, fabric)
        self._block_bytes = block_bytes
        self._buffers = threading.local()

    def match(self, keys: Sequence[bytes]) -> int:
        """See Backend."""
        try:
            return self._store.match_prefix(keys)
        except self._error:
            return 0

    def read(self, keys: Sequence[bytes]) -> Sequence[Value]:
        """See Backend."""
        buffers = self._views(len(keys))
        values: list[Value] = []
        for buffer, outcome in zip(buffers, self._store.get_many_into(keys, buffers), strict=True):
            values.append(buffer[:outcome] if isinstance(outcome, int) else None)
        return values

    def _views(self, count: int) -> list[memoryview]:
        views: list[memoryview] = getattr(self._buffers, "views", [])
        if len(views) < count:
            memory = memoryview(bytearray(count * self._block_bytes))
            size = self._block_bytes
            views = [memory[begin : begin + size] for begin in range(0, len(memory), size)]
            self._buffers.views = views
        return views[:count]

    def write(self, keys: Sequence[bytes], values: Sequence[bytes]) -> list[str]:
        """See Backend."""
        outcomes = self._store.put_many(list(zip(keys, values, strict=True)))
        return [_error_name(outcome) for outcome in outcomes]

    def present(self, keys: Sequence[bytes]) -> list[str]:
        """See Backend."""
        found: list[str] = []
        for outcome in self._store.contains_many(keys):
            found.append(_error_name(outcome) or ("present" if outcome else "absent"))
        return found

    def counters(self) -> dict[str, int]:
        """See Backend."""
        return verb_counters(self._store)

    def close(self) -> None:
        """See Backend."""
        self._store.close()


def _error_name(outcome: object) -> str:
    return type(outcome).__name__ if isinstance(outcome, Exception) else ""


def verb_counters(store: Any) -> dict[str, int]:
    """Verbs at memory nodes and round trips that `store` has paid so far."""
    stats = store.stats()
    verbs = stats.reads + stats.writes + stats.cas + stats.faa
    return {"verbs": verbs, "round_trips": stats.round_trips, "operations": stats.operations}


class RedisBackend:
    """The same replay through Redis over its Unix socket: EXISTS, MGET, MSET."""

    fabric = "unix"

    def __init__(self, socket_path: str) -> None:
        import redis

        self._client: Any = redis.Redis(unix_socket_path=socket_path)

    def match(self, keys: Sequence[bytes]) -> int:
        """See Backend."""
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            pipeline.exists(key)
        for count, found in enumerate(pipeline.execute()):
            if not found:
                return count
        return len(keys)

    def read(self, keys: Sequence[bytes]) -> Sequence[Value]:
        """See Backend."""
        values: list[Value] = self._client.mget(list(keys))
        return values

    def write(self, keys: Sequence[bytes], values: Sequence[bytes]) -> list[str]:
        """See Backend."""
        self._client.mset(dict(zip(keys, values, strict=True)))
        return [""] * len(keys)

    def present(self, keys: Sequence[bytes]) -> list[str]:
        """See Backend."""
        return ["present" if self._client.exists(key) else "absent" for key in keys]

    def counters(self) -> dict[str, int]:
        """Redis has no verbs."""
        return {}

    def close(self) -> None:
        """See Backend."""
        self._client.close()
