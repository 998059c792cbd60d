"""Hand-off: a prefill engine publishes a prompt's KV layer by layer, a decode engine takes it over.

    # prefill                                     # decode
    with hand_off.publish(hashes) as publication: received = hand_off.receive(
        for layer in range(layers):                   hashes, buffers, timeout_s=2.0)
            publication.put(compute(layer))       if not received.complete: compute_it_all()

A piece is one block's share of one layer: an object like every other block, so storing it publishes
it (transfer-with-insert, MemServe, arXiv 2406.17565), and other decode engines find it later. What
has to be told besides is *when*: the publisher holds the queue lock of the layer that it computes,
and takes the next layer's before it lets that one go. Who receives queues for the lock as a reader,
which costs the node nothing, and looks for the pieces once it has it, or every 50 ms: of several
publishers the fastest decides. A publisher that fails or dies lets its lock go, one way or the
other, and nothing is there: then, or at its deadline, the receiver computes for itself.

The locks have the name of the prompt's last block: both ends mean the same last block, and the
receiver may want any number of blocks before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kvstore.errors import ConfigurationError, DeadlineExceeded, KvError
from kvstore.llm.core import left_s
from kvstore.llm.held_lock import HeldLock
from kvstore.llm.single_flight import owners
from kvstore.types import Buffer, Value

if TYPE_CHECKING:
    from kvstore.client.native import Lock
    from kvstore.client.store import Store
    from kvstore.llm.prefix_cache import PrefixCache
    from kvstore.llm.results import StoreResult

#: Why a hand-off is not complete, beside errors by their names and the reasons of `LoadResult`.
LATE: Final = "late"
GONE: Final = "not published"

LAYERS_MAX: Final = 1 << 16
_NAME: Final = b"hand-off "
#: How long a publisher waits for a lock that a receiver looks at just now.
_PUBLISHER_WAIT_S: Final = 0.5
#: Nobody holds the lock of a prompt that nobody has begun: that is asked for, ever more rarely.
_PAUSE_S_MIN: Final = 0.001
_PAUSE_S_MAX: Final = 0.05
#: How long a receiver waits for a lock before it looks again.
_LOOK_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Received:
    """What came: the buffers of the first `layers` layers are filled.

    Attributes:
        layers: Layers that came whole, from the first on.
        complete: Whether that is all of them; else nothing is to be used without computing the
            rest, for which an engine needs the whole prompt.
        reason: Empty if complete; `late`, `not published`, or why a load failed.
    """

    layers: int
    complete: bool
    reason: str


class HandOff:
    """Both ends of hand-offs in one namespace. All threads of a process may share one.

    Args:
        store: The store of `cache`.
        cache: Its namespace says what the pieces are: give it a layout of its own, since a piece
            is of no use as a block.
        layers: Layers of the model, the same at both ends.
    """

    def __init__(self, store: Store, cache: PrefixCache, layers: int) -> None:
        if not 0 < layers < LAYERS_MAX:
            raise ConfigurationError(f"a model has 1 to {LAYERS_MAX - 1} layers, not {layers}")
        self.layers = layers
        self._store = store
        self._cache = cache

    def publish(self, hashes: Sequence[bytes]) -> Publication:
        """Begin to publish a prompt of at least one block, before it is computed."""
        return Publication(self, self._cache, hashes)

    def receive(
        self,
        hashes: Sequence[bytes],
        buffers: Sequence[Sequence[Buffer]],
        *,
        timeout_s: float,
        arrived: Callable[[int], None] | None = None,
    ) -> Received:
        """Fill the buffers of each layer as soon as it is published. Raises no `KvError`.

        Args:
            hashes: The prompt's blocks, all of them, as they were given to `publish`.
            buffers: For each layer one a block, as in `PrefixCache.get`.
            timeout_s: For all of it, also for the publisher to begin: less than computing takes.
            arrived: Called with each layer once its buffers are filled.
        """
        if len(buffers) != self.layers:
            raise ValueError(f"{self.layers} layers but buffers for {len(buffers)}")
        deadline = time.monotonic() + timeout_s
        for layer, wanted in enumerate(buffers):
            reason = self._await(hashes, layer, deadline)
            if reason:
                return Received(layer, False, reason)
            pieces = piece_hashes(hashes, layer)
            result = self._cache.get(pieces, wanted, timeout_s=left_s(deadline))
            if result.leading < len(pieces):
                return Received(layer, False, next(iter(result.reasons.values())))
            if arrived is not None:
                arrived(layer)
        return Received(self.layers, True, "")

    def _await(self, hashes: Sequence[bytes], layer: int, deadline: float) -> str:
        """Wait until a layer is published; return why it is not, or nothing."""
        keys = [self._cache.key_of(piece) for piece in piece_hashes(hashes, layer)]
        # A publisher between two layers still holds the last one's lock, and has this one's, or
        # has published it, when it lets that go: whoever finds that one free asks again.
        last_keys = [keys[-1]]
        if layer > 0:
            previous = self._cache.key_of(piece_hashes(hashes[-1:], layer - 1)[0])
            last_keys += [previous, keys[-1]]
        # Only the first layer may be one that nobody has begun.
        begun = layer > 0
        over = False
        pause_s = _PAUSE_S_MIN
        try:
            while self._store.match_prefix(keys, timeout_s=left_s(deadline)) < len(keys):
                if over:
                    return GONE
                if time.monotonic() >= deadline:
                    return LATE
                if any(self._is_held(last_key, deadline) for last_key in last_keys):
                    begun = True
                elif begun:
                    over = True
                else:
                    time.sleep(min(pause_s, max(0.0, deadline - time.monotonic())))
                    pause_s = min(2 * pause_s, _PAUSE_S_MAX)
        except DeadlineExceeded:
            return LATE
        except KvError as error:
            return type(error).__name__
        return ""

    def _is_held(self, last_key: bytes, deadline: float) -> bool:
        """Whether somebody holds the lock of a layer; if so, wait a little for its release.

        No longer: another publisher may be ahead of the one that holds it.
        """
        name = _NAME + last_key
        lock = self._store.lock(name, shared=True, timeout_s=left_s(deadline), owner=next(owners))
        held = not lock.try_acquire()
        if held:
            try:
                lock.acquire(timeout_s=min(_LOOK_S, left_s(deadline)))
            except DeadlineExceeded:
                return True
        with suppress(KvError):
            lock.release()
        return held

    def _hold(self, hashes: Sequence[bytes], layer: int, wait: bool) -> Lock | None:
        """Take the lock of a layer; None where it cannot be had: then nobody waits for it.

        `wait`: whether to wait a moment for a receiver that looks at it just now.
        """
        if layer == self.layers:
            return None
        name = _NAME + self._cache.key_of(piece_hashes(hashes[-1:], layer)[0])
        lock = self._store.lock(name, owner=next(owners))
        try:
            if not wait:
                return lock if lock.try_acquire() else None
            lock.acquire(timeout_s=_PUBLISHER_WAIT_S)
        except KvError:
            return None
        return lock


class Publication(HeldLock):
    """One prompt on its way out. Leave it as a context: whoever waits for more is let go.

    One thread at a time. It may be left early: the receivers compute for themselves then.
    """

    def __init__(self, hand_off: HandOff, cache: PrefixCache, hashes: Sequence[bytes]) -> None:
        if not hashes:
            raise ValueError("a prompt without a block has nothing to hand off")
        super().__init__(hand_off._hold(hashes, 0, True))
        self._hand_off = hand_off
        self._cache = cache
        self._hashes = hashes
        self._layer = 0
        # Where another one publishes the same prompt, its locks are not waited for at each layer.
        self._waits = self._lock is not None

    @property
    def layer(self) -> int:
        """The layer that is put next."""
        return self._layer

    @property
    def blocks(self) -> int:
        """Blocks of the prompt."""
        return len(self._hashes)

    def ends_with(self, block: bytes) -> bool:
        """Whether that is the prompt's last block."""
        return self._hashes[-1] == block

    def put_ahead(self, layer: int, pieces: Sequence[Value], first: int) -> StoreResult:
        """Store pieces of blocks from the `first` on, of a prompt that is computed in chunks.

        Nobody is told of them: whoever receives waits for the layer's `put`, which brings the last
        chunk.
        """
        if layer < self._layer:
            raise ValueError(f"layer {layer} is published")
        hashes = self._hashes[first : first + len(pieces)]
        return self._cache.put(piece_hashes(hashes, layer), pieces)

    def put(self, pieces: Sequence[Value], first: int = 0) -> StoreResult:
        """Publish the next layer: one piece a block. What is there already is not stored again.

        Args:
            pieces: Of the blocks from the `first` to the last one.
            first: How many blocks before them are there already.
        """
        if self._layer == self._hand_off.layers:
            raise ValueError(f"all {self._layer} layers are published")
        result = self._cache.put(piece_hashes(self._hashes[first:], self._layer), pieces)
        self._layer += 1
        # Held before the last one is let go: a free lock means that nobody computes.
        following = self._hand_off._hold(self._hashes, self._layer, self._waits)
        self._waits = following is not None
        self.end()
        self._lock = following
        return result


def piece_hashes(hashes: Sequence[bytes], layer: int) -> list[bytes]:
    """Return the hash of each block's piece of one layer."""
    suffix = layer.to_bytes(2, "little")
    return [block + suffix for block in hashes]
