"""The plain data types of the public interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class ArrayLike(Protocol):
    """An array that is no plain buffer but can say where its memory is, such as a torch tensor."""

    def __array__(self, *arguments: Any, **keywords: Any) -> Any: ...


#: A key: 1 to 1,024 bytes; text stands for its UTF-8 form.
Key: TypeAlias = "ReadableBuffer | str"
#: A value to store: any contiguous buffer in this process.
Value: TypeAlias = "ReadableBuffer | ArrayLike"
#: Memory to read a value into.
Buffer: TypeAlias = "WriteableBuffer | ArrayLike"


@dataclass(frozen=True, slots=True)
class ClientStats:
    """What a store has done since it was opened, over all nodes and threads."""

    operations: int
    #: One-sided operations at memory nodes, by kind.
    reads: int
    writes: int
    cas: int
    faa: int
    #: Batches of them that a call waited for.
    round_trips: int
    #: Leases and epochs; not in the counts above.
    heartbeat_verbs: int
    bytes_read: int
    bytes_written: int
    #: Repeats because another client won.
    cas_conflicts: int
    #: Objects that failed their checks and were read again.
    verify_retries: int
    splits: int
    evictions: int
    address_hits: int
    address_stale: int
    #: Memory that was retired and may not be reused yet.
    limbo_bytes: int
    reconnects: int
    #: Of the operations, those that copies in this process served.
    cache_hits: int
    #: Copies made; and tried in vain, because somebody else was faster.
    cache_fills: int
    cache_spoiled: int
    #: Reads of keys of which a copy would not pay: they are written too often.
    cache_bypassed: int
    #: Copies that writes of other clients have taken away, and writes of this one.
    cache_invalidated: int
    cache_overwritten: int
    #: Copies that made room for others.
    cache_evictions: int
    #: How often all copies were dropped because a writer waited for this client in vain.
    cache_revoked: int
    #: What there is now.
    cache_entries: int
    cache_bytes: int
    #: Messages about copies, to and from other clients.
    invalidations_sent: int
    invalidations_received: int
    #: Writes that met copies; and of these, those that waited for the lease of a silent client.
    writes_guarded: int
    leases_waited: int
    #: Attachments that found a node started anew, which is to say empty.
    node_restarts: int


@dataclass(frozen=True, slots=True)
class MemberState:
    """How this client sees one memory node."""

    #: As in the target: `host:port`, `shm://NAME`, or `embedded`.
    address: str
    #: `local`, `shm`, `tcp` or `verbs`; empty if it was never attached.
    fabric: str
    #: `never attached`, `up`, `down` or `fenced`.
    state: str
    #: Attachments that found the node started anew.
    restarts: int
    node_id: int
    incarnation: int
    registration: int
    #: Why the last attempt to attach failed; empty if it did not.
    last_error: str
