"""Hand-off between two users of one store: what comes, in which order, and what does not."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

import kvstore
from kvstore.errors import ConfigurationError
from kvstore.llm import HandOff, Namespace, PrefixCache, Received, block_hashes

LAYERS, BLOCKS, PIECE_BYTES = 3, 4, 1024
HASHES = block_hashes(range(16 * BLOCKS), 16)
WAIT_S = 30.0


def pieces(layer: int) -> list[bytes]:
    return [bytes([16 * layer + block + 1]) * PIECE_BYTES for block in range(BLOCKS)]


def buffers() -> list[list[bytearray]]:
    return [[bytearray(PIECE_BYTES) for _ in range(BLOCKS)] for _ in range(LAYERS)]


@pytest.fixture
def hand_off(store: kvstore.Store, namespace: Namespace) -> HandOff:
    return HandOff(store, PrefixCache(store, namespace), LAYERS)


class Receiver:
    """Receives in a thread of its own."""

    def __init__(self, hand_off: HandOff, timeout_s: float = WAIT_S) -> None:
        self.buffers = buffers()
        self.arrived = [threading.Event() for _ in range(LAYERS)]
        self._received: list[Received] = []

        def receive() -> None:
            self._received.append(
                hand_off.receive(
                    HASHES,
                    self.buffers,
                    timeout_s=timeout_s,
                    arrived=lambda layer: self.arrived[layer].set(),
                )
            )

        self._thread = threading.Thread(target=receive)
        self._thread.start()

    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Received:
        self._thread.join(WAIT_S)
        (received,) = self._received
        return received


class Watched:
    """A store that tells for which locks it was asked, and for how long."""

    def __init__(self, store: kvstore.Store) -> None:
        self._store = store
        self._asked = threading.Condition()
        self._names: list[bytes] = []
        self.timeouts_s: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def lock(self, name: bytes, **options: Any) -> Any:
        with self._asked:
            self._names.append(name)
            self.timeouts_s.append(options.get("timeout_s", WAIT_S))
            self._asked.notify_all()
        return self._store.lock(name, **options)

    def wait(self, count: int, receiver: Receiver) -> None:
        """Wait until it was asked for so many locks, or the receiver gave up."""
        with self._asked:
            while len(self._names) < count and not receiver.is_over():
                self._asked.wait(0.01)


@pytest.fixture
def watched(store: kvstore.Store) -> Watched:
    return Watched(store)


@pytest.fixture
def receiving(watched: Watched, store: kvstore.Store, namespace: Namespace) -> HandOff:
    """The other end, on the same store."""
    return HandOff(watched, PrefixCache(store, namespace), LAYERS)  # type: ignore[arg-type]


def test_layers_arrive_as_they_are_published(hand_off: HandOff) -> None:
    receivers = [Receiver(hand_off), Receiver(hand_off)]
    with hand_off.publish(HASHES) as publication:
        for layer in range(LAYERS):
            assert publication.layer == layer
            assert not any(receiver.arrived[layer].is_set() for receiver in receivers)
            assert publication.put(pieces(layer)).stored == BLOCKS
            for receiver in receivers:
                assert receiver.arrived[layer].wait(WAIT_S)
                assert receiver.buffers[layer] == pieces(layer)
    assert [receiver.result() for receiver in receivers] == [Received(LAYERS, True, "")] * 2


def test_what_is_published_stays_for_those_who_come_later(hand_off: HandOff) -> None:
    for expected in (BLOCKS, 0):
        with hand_off.publish(HASHES) as publication:
            assert [publication.put(pieces(i)).stored for i in range(LAYERS)] == [expected] * LAYERS
    filled = buffers()
    assert hand_off.receive(HASHES, filled, timeout_s=WAIT_S).complete
    assert filled == [pieces(layer) for layer in range(LAYERS)]


def test_another_prompt_is_not_received(hand_off: HandOff) -> None:
    with hand_off.publish(HASHES) as publication:
        for layer in range(LAYERS):
            publication.put(pieces(layer))
    other = block_hashes(range(1, 16 * BLOCKS + 1), 16)
    assert hand_off.receive(other, buffers(), timeout_s=0.05) == Received(0, False, "late")


@pytest.mark.parametrize("published", [1, 2])
def test_a_publisher_that_gives_up_lets_its_receivers_go(hand_off: HandOff, published: int) -> None:
    receiver = Receiver(hand_off)
    with hand_off.publish(HASHES) as publication:
        for layer in range(published):
            publication.put(pieces(layer))
            assert receiver.arrived[layer].wait(WAIT_S)
    assert receiver.result() == Received(published, False, "not published")


def test_a_receiver_that_catches_up_between_two_layers_goes_on(
    hand_off: HandOff, receiving: HandOff, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = hand_off._hold
    receivers: list[Receiver] = []

    def hold_later(hashes: Sequence[bytes], layer: int, wait: bool) -> Any:
        if layer == 1:
            # Layer 0 is there, and nobody holds the lock of layer 1 yet, which is asked for first.
            receivers.append(Receiver(receiving))
            watched.wait(2, receivers[0])
        return hold(hashes, layer, wait)

    monkeypatch.setattr(hand_off, "_hold", hold_later)
    with hand_off.publish(HASHES) as publication:
        for layer in range(LAYERS):
            publication.put(pieces(layer))
    assert receivers[0].result() == Received(LAYERS, True, "")


def test_a_stalled_publisher_is_not_waited_for_where_another_one_is_done(
    hand_off: HandOff, receiving: HandOff, watched: Watched
) -> None:
    with hand_off.publish(HASHES):
        receiver = Receiver(receiving, timeout_s=5.0)
        watched.wait(1, receiver)
        with hand_off.publish(HASHES) as publication:
            for layer in range(LAYERS):
                publication.put(pieces(layer))
        assert receiver.result() == Received(LAYERS, True, "")
    assert max(watched.timeouts_s) <= 5.0


def test_a_prompt_that_nobody_finishes_a_layer_of(hand_off: HandOff) -> None:
    with hand_off.publish(HASHES):
        assert hand_off.receive(HASHES, buffers(), timeout_s=0.1) == Received(0, False, "late")
    assert hand_off.receive(HASHES, buffers(), timeout_s=0.1) == Received(0, False, "late")


def test_a_publisher_that_is_slow_is_not_waited_for(hand_off: HandOff) -> None:
    with hand_off.publish(HASHES) as publication:
        publication.put(pieces(0))
        # Enough for the layer that is there, and no more.
        received = hand_off.receive(HASHES, buffers(), timeout_s=2.0)
        assert received == Received(1, False, "late")
        # It goes on as if nobody had waited.
        for layer in range(1, LAYERS):
            publication.put(pieces(layer))
    assert hand_off.receive(HASHES, buffers(), timeout_s=WAIT_S).complete


def test_a_piece_that_is_lost_ends_the_hand_off(hand_off: HandOff, store: kvstore.Store) -> None:
    with hand_off.publish(HASHES) as publication:
        publication.put(pieces(0))
        publication.put([*pieces(1)[:-1], b"of another length"])
        received = hand_off.receive(HASHES, buffers(), timeout_s=5.0)
    assert (received.layers, received.complete) == (1, False)
    assert received.reason


def test_mistakes(hand_off: HandOff, store: kvstore.Store, namespace: Namespace) -> None:
    with pytest.raises(ConfigurationError, match="not 0"):
        HandOff(store, PrefixCache(store, namespace), 0)
    with pytest.raises(ValueError, match="3 layers but buffers for 1"):
        hand_off.receive(HASHES, buffers()[:1], timeout_s=1)
    with pytest.raises(ValueError, match="without a block"):
        hand_off.publish([])
    with hand_off.publish(HASHES) as publication:
        for layer in range(LAYERS):
            publication.put(pieces(layer))
        with pytest.raises(ValueError, match="all 3 layers"):
            publication.put(pieces(0))


def test_a_prompt_that_is_computed_in_chunks(hand_off: HandOff) -> None:
    receiver = Receiver(hand_off)
    with hand_off.publish(HASHES) as publication:
        for layer in range(LAYERS):
            publication.put_ahead(layer, pieces(layer)[:1], 0)
        for layer in range(LAYERS):
            publication.put_ahead(layer, pieces(layer)[1:3], 1)
        for layer in range(LAYERS):
            assert not receiver.arrived[layer].is_set()
            assert publication.put(pieces(layer)[3:], first=3).stored == BLOCKS - 3
            assert receiver.arrived[layer].wait(WAIT_S)
        with pytest.raises(ValueError, match="layer 0 is published"):
            publication.put_ahead(0, pieces(0)[:1], 0)
    assert receiver.result() == Received(LAYERS, True, "")
    assert receiver.buffers == [pieces(layer) for layer in range(LAYERS)]


def test_a_receiver_that_has_the_first_blocks_wants_the_rest(hand_off: HandOff) -> None:
    with hand_off.publish(HASHES) as publication:
        for layer in range(LAYERS):
            publication.put(pieces(layer))
    filled = [some[2:] for some in buffers()]
    assert hand_off.receive(HASHES[2:], filled, timeout_s=WAIT_S).complete
    assert filled == [pieces(layer)[2:] for layer in range(LAYERS)]
