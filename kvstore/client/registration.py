"""Registered memory: buffers that an RDMA device reads and writes without a copy in between."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from kvstore.client.buffers import export_buffer

if TYPE_CHECKING:
    from kvstore.client.native import NativeClient


class Registration:
    """A buffer that is registered with a store, until `close` or the end of a `with` block.

    Keeps the buffer in memory. Closing is for when no call of the store uses the buffer any more.
    """

    def __init__(self, client: NativeClient, buffer: Any) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._memory: Any = client.register(writable_view(buffer))

    def close(self) -> None:
        """Give the memory back to the system's paging. May be called again."""
        with self._lock:
            memory, self._memory = self._memory, None
        if memory is not None:
            self._client.unregister(memory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def writable_view(buffer: Any) -> Any:
    """Return a writable buffer over the memory, or raise ValueInvalid."""
    try:
        view = memoryview(buffer)
    except TypeError:
        return export_buffer(buffer, True)
    if view.readonly or not view.c_contiguous:
        return export_buffer(buffer, True)
    return view
