"""The plain data types of the public interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

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
    #: Of the hits, those whose value another client of this host has handed over after a write.
    cache_handed: int
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
    #: Messages to clients of this host that were not needed: a stamp ended their copies.
    invalidations_spared: int
    #: Writes that met copies. Of these: in one round trip, as only clients of this host had any;
    #: and those that waited for the lease of a silent client.
    writes_guarded: int
    writes_at_once: int
    leases_waited: int
    #: Uses of keys that eviction was not told of: they came faster than they could be told.
    uses_dropped: int
    #: Attachments that found a node started anew, which is to say empty.
    node_restarts: int


#: Why a key is read from a copy, or is not.
_COPY_REASONS: Final = {
    "off": "the store was opened without cache_bytes",
    "held": "reads are served from a copy",
    "next": "the next read makes a copy",
    "waits": "{reads_to_wait} more reads go to the node before one makes a copy: a key is copied"
    " when it is read again, and later where copies were written away before they paid",
    "paused": "a writer waited for this client in vain, so no copies are made for a while: look at"
    " cache_revoked in stats()",
    "no lease": "no copy may be read now: the node was not heard in time, or other clients cannot"
    " reach this one",
    "too large": "the value is too large for the cache: give more cache_bytes",
    "mortal": "the value has a time to live, and such values are not copied",
}


@dataclass(frozen=True, slots=True)
class CopyState:
    """What a store makes of one key as far as copies go; see `Store.explain`.

    The counts are of this process, and begin anew when other keys have displaced the key from a
    table of some thousands.
    """

    #: `held`, `next`, `waits`, `paused`, `no lease`, `too large`, `mortal`, or `off`.
    state: str
    #: Reads that go to the node before one makes a copy, where the state is `waits`.
    reads_to_wait: int
    #: Reads from the copy that is held, counted up to 255.
    uses: int
    #: How many of them make up for what a write waits to end a copy.
    uses_that_pay: int
    #: Reads from copies, counted by samples in steps of 64.
    hits: int
    #: Copies made; and tried in vain, because somebody else was faster.
    fills: int
    spoiled: int
    #: Copies that writes of other clients have taken away, and writes of this one.
    invalidated: int
    overwritten: int
    #: Reads that could have made a copy and did not, as it would not pay.
    bypassed: int

    @property
    def reason(self) -> str:
        """The state as a sentence."""
        return _COPY_REASONS[self.state].format(reads_to_wait=self.reads_to_wait)


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
