"""The SSD tiers of a store's nodes: what is not in memory is asked for there.

Only what missed in memory is asked, all nodes at once, within the time that the call has. A tier
that fails is left alone for a while, twice as long after each further failure: then its blocks are
misses, as they are without it. One that is busy is left alone for a moment only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from kvstore.errors import KvError, NodeUnreachable
from kvstore.llm.chains import Reuse
from kvstore.llm.core import batches, left_s, size_of

if TYPE_CHECKING:
    from kvstore.client.store import Store
    from kvstore.cluster.tier import TierAddress, TierClient

#: What a call asks for at once; a request of a node is small.
KEYS_AT_ONCE: Final = 256
_REQUEST_BYTES_MAX: Final = 48 << 10
#: Brought up by one call, so that reading and the SSD overlap.
_WINDOW_BYTES: Final = 4 << 20
#: How often what came up is asked for again, if it was evicted before it was read.
_ROUNDS: Final = 3
#: A call with less time than this would tell of its own end, not of the tier.
_ASK_S_MIN: Final = 0.01
_BACK_OFF_FIRST_S: Final = 1.0
_BACK_OFF_LAST_S: Final = 30.0
_BUSY_S: Final = 0.05
#: Length and codec of a block that was read; None: it was absent.
Outcome: TypeAlias = tuple[int, int] | KvError | None


@dataclass(slots=True)
class _Member:
    """One node's tier, while it has one."""

    client: TierClient
    refused_until: float = 0.0
    back_off_s: float = 0.0
    #: It had too much to do.
    busy_until: float = 0.0


class Tiers:
    """The tiers of one store. Thread-safe."""

    def __init__(self, store: Store, warn: Callable[[KvError], None]) -> None:
        """`warn` is told of failures."""
        self._store = store
        self._warn = warn
        self._lock = threading.Lock()
        self._members: dict[int, _Member] = {}
        self._closed = False

    @property
    def present(self) -> bool:
        """Whether any node has a tier."""
        return any(tier is not None for tier in self._store._membership.tiers())

    def found(self, keys: Sequence[bytes], timeout_s: float) -> list[bool]:
        """Say of each key whether its node has it on the SSD."""

        def begin(client: TierClient, part: list[bytes]) -> Any:
            return client.begin_lookup(part, timeout_s)

        return self._asked(
            keys, timeout_s, begin, lambda client, begun, count: client.lookup(begun, count)
        )

    def may_have(self, key: bytes) -> bool:
        """False: the SSD of the key's node had nothing of it within the last second."""
        tiers = self._store._membership.tiers()
        try:
            index = self._store._client.member_of(key) if len(tiers) > 1 else 0
        except KvError:
            return False
        member = self._members.get(index)
        return member is None or member.client.may_have(key)

    def promote(
        self, keys: Sequence[bytes], timeout_s: float, later: Sequence[bytes] = ()
    ) -> list[bool]:
        """Have blocks brought into memory; say of each whether it is there.

        The nodes begin with the first of `later` then, and that is not waited for.
        """

        def begin(client: TierClient, part: list[bytes]) -> Any:
            return client.begin_promote(part, timeout_s, waits=True)

        return self._asked(
            keys,
            timeout_s,
            begin,
            lambda client, begun, count: client.promote(begun, count),
            lambda: self._begin(later, timeout_s),
        )

    def _begin(self, keys: Sequence[bytes], timeout_s: float) -> None:
        for member, places in self._parts(keys[:KEYS_AT_ONCE]):
            try:
                member.client.begin_promote([keys[i] for i in places], timeout_s, waits=False)
            except NodeUnreachable as error:
                self._failed(member, error)

    def forget(self, prefix: bytes, timeout_s: float) -> int:
        """Drop the records of all nodes whose keys begin with `prefix`; return how many.

        Raises NodeUnreachable if a node that has a tier does not say that it did.
        """
        tiers = self._store._membership.tiers(anew=True)
        members = [
            self._member(index, where) for index, where in enumerate(tiers) if where is not None
        ]
        forgotten = 0
        failed: NodeUnreachable | None = None
        for member in members:
            try:
                forgotten += _forget(member.client, prefix, timeout_s)
            except NodeUnreachable as error:
                failed = error
        if failed is not None:
            raise failed
        return forgotten

    def close(self) -> None:
        """End the calls under way; later ones find nothing."""
        with self._lock:
            self._closed = True
            members, self._members = list(self._members.values()), {}
        for member in members:
            member.client.close()

    def _asked(
        self,
        keys: Sequence[bytes],
        timeout_s: float,
        begin: Callable[[TierClient, list[bytes]], Any],
        end: Callable[[TierClient, Any, int], list[bool]],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[bool]:
        """Ask all members at once, some keys a call; what fails is false."""
        outcomes = [False] * len(keys)
        if timeout_s < _ASK_S_MIN:
            return outcomes
        begun: list[tuple[_Member, list[int], Any]] = []
        for member, places in self._parts(keys):
            try:
                begun.append((member, places, begin(member.client, [keys[i] for i in places])))
            except NodeUnreachable as error:
                self._failed(member, error)
        meanwhile()
        for member, places, call in begun:
            try:
                answers = end(member.client, call, len(places))
            except NodeUnreachable as error:
                self._failed(member, error)
                continue
            member.back_off_s = 0.0
            for place, answer in zip(places, answers, strict=True):
                outcomes[place] = answer
        return outcomes

    def _parts(self, keys: Sequence[bytes]) -> Iterator[tuple[_Member, list[int]]]:
        """The places of the keys of each member that may be asked, some at a time."""
        tiers = self._store._membership.tiers()
        client = self._store._client
        by_member: dict[int, list[int]] = {}
        try:
            for place, key in enumerate(keys):
                index = client.member_of(key) if len(tiers) > 1 else 0
                by_member.setdefault(index, []).append(place)
        except KvError as error:
            # The store is closed.
            self._warn(error)
            return
        now = time.monotonic()
        for index, places in by_member.items():
            where = tiers[index]
            if where is None or self._closed:
                continue
            try:
                member = self._member(index, where)
            except KvError as error:
                # The file of the authorities cannot be read any more.
                self._warn(error)
                continue
            if now < max(member.refused_until, member.busy_until):
                continue
            longest = max(len(keys[place]) for place in places)
            step = max(1, min(KEYS_AT_ONCE, _REQUEST_BYTES_MAX // (longest + 8)))
            for begin in range(0, len(places), step):
                yield member, places[begin : begin + step]

    def _member(self, index: int, where: TierAddress) -> _Member:
        with self._lock:
            member = self._members.get(index)
            if member is None:
                from kvstore.cluster.tier import TierClient

                member = self._members[index] = _Member(TierClient(where))
            return member

    def _failed(self, member: _Member, error: KvError) -> None:
        from kvstore.cluster.tier import TierBusy

        self._warn(error)
        now = time.monotonic()
        with self._lock:
            if isinstance(error, TierBusy):
                member.busy_until = now + _BUSY_S
                return
            # Calls that were under way together fail together: that is one failure.
            if now < member.refused_until:
                return
            member.back_off_s = min(max(2 * member.back_off_s, _BACK_OFF_FIRST_S), _BACK_OFF_LAST_S)
            member.refused_until = now + member.back_off_s


def _forget(client: TierClient, prefix: bytes, timeout_s: float) -> int:
    """Have a tier forget, also one that is busy with what others have it forget."""
    from kvstore.cluster.tier import TierBusy

    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return client.forget(prefix, max(left_s(deadline), _ASK_S_MIN))
        except TierBusy:
            if left_s(deadline) <= _BUSY_S:
                raise
        time.sleep(_BUSY_S)


def extend(
    store: Store, tiers: Tiers, keys: Sequence[bytes], matched: int, deadline: float
) -> tuple[int, int]:
    """Go on with a prefix of which `matched` blocks are in memory, and the next one is not.

    Returns how many leading blocks can be loaded, and how many of those from an SSD only.
    """
    on_ssd = 0
    while matched < len(keys):
        if not on_ssd and not tiers.may_have(keys[matched]):
            break
        part = keys[matched : matched + KEYS_AT_ONCE]
        there = tiers.found(part, left_s(deadline))
        if not there[0] and not on_ssd:
            break
        try:
            here = store._look_many(part, timeout_s=left_s(deadline))
        except KvError:
            break
        for place, is_there in enumerate(there):
            # What is on the SSD comes by way of the memory, so that must be in reach too.
            if here[place] is not True and not (here[place] is False and is_there):
                return matched + place, on_ssd
            on_ssd += int(here[place] is not True)
        matched += len(part)
    return matched, on_ssd


def read(
    store: Store,
    tiers: Tiers,
    keys: Sequence[bytes],
    buffers: Sequence[Any],
    deadline: float,
    reuse: Reuse,
    later: Sequence[bytes] = (),
) -> tuple[list[Outcome], set[int]]:
    """Read blocks from memory, those that are not there by way of the SSD.

    Returns the outcome of each, and the places of those that an SSD had. `later`: see
    `read_promoted`.
    """
    outcomes = _read_memory(store, keys, buffers, range(len(keys)), deadline, reuse)
    absent = [place for place, outcome in enumerate(outcomes) if outcome is None]
    if not absent or not tiers.present:
        return outcomes, set()
    promoted = read_promoted(
        store,
        tiers,
        [keys[place] for place in absent],
        [buffers[place] for place in absent],
        deadline,
        reuse.at(absent),
        later,
    )
    for place, outcome in zip(absent, promoted, strict=True):
        outcomes[place] = outcome
    return outcomes, {place for place in absent if isinstance(outcomes[place], tuple)}


def read_promoted(
    store: Store,
    tiers: Tiers,
    keys: Sequence[bytes],
    buffers: Sequence[Any],
    deadline: float,
    reuse: Reuse,
    later: Sequence[bytes],
) -> list[Outcome]:
    """Read blocks that missed in memory; return the outcome of each.

    Some at a time: while they are read the next ones are on their way up, and after the last of
    `keys` the first of `later`, which the caller reads next.
    """
    outcomes: list[Outcome] = [None] * len(keys)
    sizes = [size_of(buffer) for buffer in buffers]
    windows = list(batches(sizes, blocks_max=KEYS_AT_ONCE, bytes_max=_WINDOW_BYTES))
    for number, window in enumerate(windows):
        following = windows[number + 1] if number + 1 < len(windows) else range(0)
        ahead = [keys[place] for place in following] or later
        missing = list(window)
        for _ in range(_ROUNDS):
            came = tiers.promote([keys[place] for place in missing], left_s(deadline), ahead)
            there = [place for place, is_there in zip(missing, came, strict=True) if is_there]
            read = _read_memory(store, keys, buffers, there, deadline, reuse)
            for place, outcome in zip(there, read, strict=True):
                outcomes[place] = outcome
            # A node that is small for what is read has evicted some of it again.
            missing = [place for place in there if outcomes[place] is None]
            if not missing:
                break
            ahead = ()
    return outcomes


def _read_memory(
    store: Store,
    keys: Sequence[bytes],
    buffers: Sequence[Any],
    places: Sequence[int],
    deadline: float,
    reuse: Reuse,
) -> list[Outcome]:
    """Read the blocks at some places; return the outcome of each of those."""
    try:
        return list(
            store._get_many_into_coded(
                [keys[place] for place in places],
                [buffers[place] for place in places],
                timeout_s=left_s(deadline),
                reuse=reuse.at(places).numbers,
                used_ns=reuse.used_ns,
            )
        )
    except KvError as error:
        return [error] * len(places)
