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

import torch

from kvstore.llm.block_memory import BlockMemory, Moment, Transfer, release_landing
from kvstore.llm.core import left_s
from kvstore.llm.hand_off import HandOff, Publication
from kvstore.llm.vllm.metadata import GroupBlocks, HandOffJob

if TYPE_CHECKING:
    import numpy

_log = logging.getLogger("kvstore.llm.vllm")


@dataclass(frozen=True, slots=True)
class Room:
    """Memory for copies, which a worker has so much of.

    Attributes:
        deadline: Until when a step that begins now may wait for it.
        reserve: Take so many bytes, by a deadline; whether there were any.
        release: Give them back.
    """

    deadline: Callable[[], float]
    reserve: Callable[[int, float], bool]
    release: Callable[[int], None]


class Publisher:
    """Publishes the layers of a prefill engine. Called by the worker's thread alone."""

    def __init__(
        self,
        hand_off: HandOff,
        layers: dict[str, BlockMemory],
        room: Room,
        count: Callable[..., None],
        count_requests: Callable[..., None],
    ) -> None:
        """`layers`: by name, in the order in which the model computes them."""
        self._hand_off = hand_off
        self._layers = {
            name: (number, blocks) for number, (name, blocks) in enumerate(layers.items())
        }
        self._room = room
        self._count = count
        self._count_requests = count_requests
        #: Until when the step may wait for room.
        self._deadline = 0.0
        #: Requests whose layers are published; the rest of their bookkeeping is the thread's.
        self._open: set[str] = set()
        self._publications: dict[str, Publication] = {}
        self._thread = ThreadPoolExecutor(1, "kvstore-publish")

    def begin(self, layer_name: str, jobs: list[HandOffJob]) -> None:
        """Before a layer is computed: with the first one a hand-off begins."""
        number, _ = self._layers.get(layer_name, (-1, None))
        if number != 0:
            return
        self._deadline = self._room.deadline()
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
            for part in blocks.parts(len(job.block_ids)):
                ids = job.block_ids[part]
                if not self._room.reserve(blocks.block_bytes * len(ids), self._deadline):
                    # A hand-off with a gap is none: who waits is told so by its end.
                    self._count(dropped_blocks=len(job.block_ids) - part.start)
                    self.finish([job.request_id])
                    break
                copies = blocks.gather(ids)
                self._thread.submit(self._put, job, number, job.first + part.start, copies)

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
        # The same prompt is published once at a time: a second publication would wait for the locks
        # of the first, and brings nothing that is not on its way.
        if any(other.ends_with(job.hashes[-1]) for other in self._publications.values()):
            return
        try:
            self._publications[job.request_id] = self._hand_off.publish(job.hashes)
        except Exception:
            _log.exception("a hand-off could not begin")

    def _put(self, job: HandOffJob, layer: int, first: int, copies: Transfer) -> None:
        try:
            publication = self._publications.get(job.request_id)
            pieces = _pieces(copies.wait())
            if publication is not None and not self._publish(publication, layer, first, pieces):
                self._end(job.request_id)
        except Exception:
            _log.exception("a hand-off failed")
            self._end(job.request_id)
        finally:
            self._room.release(copies.rows.numel())

    def _publish(
        self, publication: Publication, layer: int, first: int, pieces: list[numpy.ndarray]
    ) -> bool:
        """Returns whether the hand-off goes on."""
        if first + len(pieces) < publication.blocks:
            return not publication.put_ahead(layer, pieces, first).failed
        if layer != publication.layer:
            _log.warning("layer %d came where %d was expected", layer, publication.layer)
            return False
        failed = publication.put(pieces, first).failed
        over = publication.layer == self._hand_off.layers
        if over and not failed:
            self._count_requests(hand_offs_published=1)
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
        *,
        waiting_max: int,
        enter_thread: Callable[[], None],
    ) -> None:
        """Take over for one worker.

        Args:
            hand_off: Where.
            layers: In the order in which the model computes them.
            waiting_max: Requests that wait at one time; others wait for one of these to end.
            enter_thread: What each thread begins with.
        """
        self._hand_off = hand_off
        self._layers = layers
        self._threads = ThreadPoolExecutor(waiting_max, "kvstore-receive", enter_thread)

    def submit(self, load: Callable[[], None]) -> None:
        """Run a load that may wait for a hand-off."""
        self._threads.submit(self._run, load)

    @staticmethod
    def _run(load: Callable[[], None]) -> None:
        try:
            load()
        finally:
            release_landing()

    def receive(self, blocks: GroupBlocks, deadline: float, after: Moment | None) -> bool:
        """Fill blocks, layer by layer; return whether all came. If not, they hold anything.

        `after`: the engine's last use of the blocks for something else.
        """
        rows = self._rows(len(blocks.block_ids))

        def arrived(layer: int) -> None:
            # The next layer comes into the same rows.
            self._layers[layer].fill(blocks.block_ids, rows[layer], after)

        received = self._hand_off.receive(
            blocks.hashes,
            [_pieces(row) for row in rows],
            timeout_s=left_s(deadline),
            arrived=arrived,
        )
        if not received.complete:
            _log.info("hand-off: %d layers came: %s", received.layers, received.reason)
        return received.complete

    def _rows(self, count: int) -> list[torch.Tensor]:
        """Of each layer, a row of bytes a block. All share one memory: layers come in turn."""
        memory = torch.empty(
            count * max(layer.block_bytes for layer in self._layers), dtype=torch.uint8
        )
        return [
            memory[: count * layer.block_bytes].view(count, layer.block_bytes)
            for layer in self._layers
        ]

    def shutdown(self) -> None:
        """Begin no more; those that wait end by their own deadlines."""
        self._threads.shutdown(wait=True, cancel_futures=True)


def _pieces(rows: torch.Tensor) -> list[numpy.ndarray]:
    return list(rows.numpy())
