"""The workers' halves of hand-offs: a prefill engine publishes layers, a decode engine takes them.

`Publisher` copies each layer of a step's blocks as soon as the layer is computed, and a thread
publishes the copies. `Receiver` waits on threads of its own, one a request, and writes each layer
to the engine's blocks when it comes. What does not come in time is computed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvstore.llm.block_memory import BlockMemory, Moment, Transfer
from kvstore.llm.core import left_s
from kvstore.llm.hand_off import HandOff, Publication
from kvstore.llm.vllm.metadata import GroupBlocks, HandOffJob

if TYPE_CHECKING:
    import numpy

_log = logging.getLogger("kvstore.llm.vllm")


@dataclass(frozen=True, slots=True)
class Room:
    """Memory for copies, which a worker has so much of."""

    reserve: Callable[[int], bool]
    release: Callable[[int], None]


class Publisher:
    """Publishes the layers of a prefill engine. Called by the worker's thread alone."""

    def __init__(
        self,
        hand_off: HandOff,
        layers: dict[str, BlockMemory],
        room: Room,
        count: Callable[..., None],
    ) -> None:
        """`layers`: by name, in the order in which the model computes them."""
        self._hand_off = hand_off
        self._layers = {
            name: (number, blocks) for number, (name, blocks) in enumerate(layers.items())
        }
        self._room = room
        self._count = count
        #: Requests whose layers are published; the rest of their bookkeeping is the thread's.
        self._open: set[str] = set()
        self._publications: dict[str, Publication] = {}
        self._thread = ThreadPoolExecutor(1, "kvstore-publish")

    def begin(self, layer_name: str, jobs: list[HandOffJob]) -> None:
        """Before a layer is computed: with the first one a hand-off begins."""
        number, _ = self._layers.get(layer_name, (-1, None))
        if number != 0:
            return
        for job in jobs:
            if job.hashes:
                self._open.add(job.request_id)
                self._thread.submit(self._begin, job)

    def save(self, layer_name: str, jobs: list[HandOffJob]) -> None:
        """Copy what the step computed of a layer and have it published."""
        if layer_name not in self._layers:
            return
        number, blocks = self._layers[layer_name]
        for job in jobs:
            if job.request_id not in self._open:
                continue
            size = blocks.block_bytes * len(job.block_ids)
            if self._room.reserve(size):
                parts = blocks.parts(len(job.block_ids))
                copies = [blocks.gather(job.block_ids[part]) for part in parts]
                self._thread.submit(self._put, job, number, copies, size)
            else:
                # A hand-off with a gap is none: who waits is told so by its end.
                self._count(dropped_blocks=len(job.block_ids))
                self.finish([job.request_id])

    def finish(self, request_ids: Iterable[str]) -> None:
        """End what is left of the hand-offs of these requests."""
        for request_id in self._open.intersection(request_ids):
            self._open.discard(request_id)
            self._thread.submit(self._end, request_id)

    def shutdown(self) -> None:
        """End all hand-offs once what is being published is, by its own deadline."""
        self.finish(list(self._open))
        self._thread.shutdown(wait=True)

    # ---- on the publishing thread ----

    def _begin(self, job: HandOffJob) -> None:
        try:
            self._publications[job.request_id] = self._hand_off.publish(job.hashes)
        except Exception:
            _log.exception("a hand-off could not begin")

    def _put(self, job: HandOffJob, layer: int, copies: list[Transfer], size: int) -> None:
        try:
            publication = self._publications.get(job.request_id)
            # Waited for in any case: until then their memory is in use.
            pieces = [row for copy in copies for row in copy.wait().numpy()]
            if publication is not None and not self._publish(publication, job, layer, pieces):
                self._end(job.request_id)
        except Exception:
            _log.exception("a hand-off failed")
            self._end(job.request_id)
        finally:
            self._room.release(size)

    def _publish(
        self, publication: Publication, job: HandOffJob, layer: int, pieces: list[numpy.ndarray]
    ) -> bool:
        """Returns whether the hand-off goes on."""
        if job.first + len(pieces) < publication.blocks:
            return not publication.put_ahead(layer, pieces, job.first).failed
        if layer != publication.layer:
            _log.warning("layer %d came where %d was expected", layer, publication.layer)
            return False
        failed = publication.put(pieces, job.first).failed
        over = publication.layer == self._hand_off.layers
        if over and not failed:
            self._count(hand_offs_published=1)
        return not (failed or over)

    def _end(self, request_id: str) -> None:
        publication = self._publications.pop(request_id, None)
        if publication is not None:
            publication.end()


class Receiver:
    """Takes over what a prefill engine publishes."""

    def __init__(
        self,
        hand_off: HandOff,
        layers: list[BlockMemory],
        count: Callable[..., None],
        *,
        waiting_max: int,
    ) -> None:
        """`waiting_max`: requests that wait at one time; others wait for one of these to end."""
        self._hand_off = hand_off
        self._layers = layers
        self._count = count
        self._threads = ThreadPoolExecutor(waiting_max, "kvstore-receive")

    def submit(self, load: Callable[[], None]) -> None:
        """Run a load that may wait for a hand-off."""
        self._threads.submit(load)

    def receive(self, blocks: GroupBlocks, deadline: float, after: Moment | None) -> set[int]:
        """Fill blocks, layer by layer; return those that did not come: all or none.

        `after`: when the engine gave the blocks away.
        """
        ids = blocks.block_ids
        # Layers come in turn, so that those of one size share one memory.
        rows = {memory.block_bytes: memory.rows(len(ids)) for memory in self._layers}
        pieces = {size: list(memory.numpy()) for size, memory in rows.items()}

        def arrived(layer: int) -> None:
            memory = self._layers[layer]
            source = rows[memory.block_bytes]
            parts = memory.parts(len(ids))
            for copy in [memory.scatter(ids[part], source[part], after) for part in parts]:
                copy.wait()

        received = self._hand_off.receive(
            blocks.hashes,
            [pieces[memory.block_bytes] for memory in self._layers],
            timeout_s=left_s(deadline),
            arrived=arrived,
        )
        if received.complete:
            self._count(hand_offs_received=1)
            return set()
        self._count(hand_offs_failed=1)
        _log.info("hand-off: %d layers came: %s", received.layers, received.reason)
        return set(ids)

    def shutdown(self) -> None:
        """Begin no more; those that wait end by their own deadlines."""
        self._threads.shutdown(wait=True, cancel_futures=True)
