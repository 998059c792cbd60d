"""The blocks of a KV cache in an engine's tensors: how their bytes come to the host and go back.

A GPU does what an engine queued later than the engine's thread went on. Therefore

- a copy out is queued on the engine's own stream: it has what the engine queued before, and the
  engine may reuse the blocks at once;
- a copy in runs on a stream of its own, behind the moment at which the engine gave the blocks
  away, and is over when `Transfer.wait` returns: only then may the engine queue a use of them.

Bytes cross between page-locked host memory and one piece of device memory, in parts of bounded
size; between that piece and the tensors they move on the device.

Needs torch, and no engine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final, Protocol

import torch

from kvstore.errors import ConfigurationError

#: Of one transfer, unless a single block is larger.
PART_BYTES: Final = 32 << 20


class _Landing(threading.local):
    """Memory of one thread that loads. The kernel takes longer to give it anew than to fill it."""

    memory = torch.empty(0, dtype=torch.uint8)

    def rows(self, count: int, row_bytes: int) -> torch.Tensor:
        if self.memory.numel() < count * row_bytes:
            self.memory = torch.empty(count * row_bytes, dtype=torch.uint8)
        return self.memory[: count * row_bytes].view(count, row_bytes)


_landing: Final = _Landing()


def release_landing() -> None:
    """Give back what this thread has kept: where many threads load seldom."""
    _landing.memory = torch.empty(0, dtype=torch.uint8)


class Moment(Protocol):
    """A point in what an engine has queued; None where nothing is ever queued."""

    def query(self) -> bool:
        """Whether the device has come to it."""

    def synchronize(self) -> None:
        """Wait until the device has come to it."""


class Transfer:
    """A copy that was begun.

    Attributes:
        rows: Bytes in host memory, shape (blocks, block_bytes). They are not the engine's.
    """

    def __init__(self, rows: torch.Tensor, end: Moment | None = None) -> None:
        self.rows: Final = rows
        self._end: Final = end

    def ended(self) -> bool:
        """Whether `wait` would return at once."""
        return self._end is None or self._end.query()

    def wait(self) -> torch.Tensor:
        """Return `rows` once the copy has ended. Any thread may wait, without the GIL."""
        if self._end is not None:
            self._end.synchronize()
        return self.rows


class BlockMemory:
    """Blocks in host memory, where whatever was called has happened."""

    def __init__(self, layers: list[torch.Tensor], part_bytes: int = PART_BYTES) -> None:
        """Take an engine's tensors.

        Args:
            layers: Of each layer its blocks, shape (blocks, ...), of any strides.
            part_bytes: How much one transfer should have at most.
        """
        self._layers = layers
        self._bytes = [layer[0].numel() * layer.element_size() for layer in layers]
        self.block_bytes = sum(self._bytes)
        self._part_blocks = max(1, part_bytes // self.block_bytes)

    def parts(self, blocks: int) -> Iterator[slice]:
        """Cut so many blocks into transfers, the first ones first."""
        for begin in range(0, blocks, self._part_blocks):
            yield slice(begin, min(begin + self._part_blocks, blocks))

    def rows(self, blocks: int) -> torch.Tensor:
        """Return host memory to `scatter` from, shape (blocks, block_bytes).

        The thread's next call may return the same: what is in it has to be scattered by then.
        """
        return _landing.rows(blocks, self.block_bytes)

    def moment(self) -> Moment | None:
        """Return this point in what the engine has queued. To be called by the engine's thread."""
        return None

    def gather(self, block_ids: list[int]) -> Transfer:
        """Copy blocks to the host, a row a block. To be called by the engine's thread."""
        rows = torch.empty((len(block_ids), self.block_bytes), dtype=torch.uint8)
        self._collect(rows, torch.tensor(block_ids))
        return Transfer(rows)

    def scatter(self, block_ids: list[int], rows: torch.Tensor, after: Moment | None) -> Transfer:
        """Copy rows of the host to blocks. Any thread may call it.

        Args:
            block_ids: One a row.
            rows: From `rows`; not to be changed before the transfer has ended.
            after: The `moment` at which the engine gave the blocks away.
        """
        self._spread(rows, torch.tensor(block_ids))
        return Transfer(rows)

    def fill(self, block_ids: list[int], rows: torch.Tensor, after: Moment | None) -> None:
        """Copy as many rows as there are, of any memory of the host; done when it returns."""
        self.scatter(block_ids, rows, after)

    def _collect(self, memory: torch.Tensor, index: torch.Tensor) -> None:
        for layer, piece in self._pieces(memory):
            piece.copy_(layer.index_select(0, index))

    def _spread(self, memory: torch.Tensor, index: torch.Tensor) -> None:
        for layer, piece in self._pieces(memory):
            layer.index_copy_(0, index, piece)

    def _pieces(self, memory: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Of each layer its tensor and its part of the rows, in the shape of the layer's blocks."""
        begin = 0
        for layer, size in zip(self._layers, self._bytes, strict=True):
            piece = memory[:, begin : begin + size].view(layer.dtype)
            yield layer, piece.unflatten(1, layer.shape[1:])
            begin += size


class Crossing:
    """What the memories of one GPU share: a stream each way, and what parts pass on their way out.

    Parts alternate between two pieces of device memory, so that one crosses while the next one is
    gathered. The engine's thread alone takes pieces.
    """

    def __init__(self, device: torch.device) -> None:
        self.device: Final = device
        self.out: Final = torch.cuda.Stream(device)
        self.back: Final = torch.cuda.Stream(device)
        self._pieces = [_Piece(PART_BYTES, device) for _ in range(2)]

    def piece(self, size: int) -> _Piece:
        """Return one with room for `size` bytes, in which the part of two turns ago may still be.

        A single block can be larger than a part; from then on the piece is as large.
        """
        piece = self._pieces[0]
        if piece.memory.numel() < size:
            for user in (self.out, torch.cuda.current_stream(self.device)):
                piece.memory.record_stream(user)
            piece = self._pieces[0] = _Piece(size, self.device)
        self._pieces.reverse()
        return piece


class _Piece:
    """Device memory that a part passes, and when the last one had left it."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.memory: Final = torch.empty(size, dtype=torch.uint8, device=device)
        self.left: torch.cuda.Event | None = None


class DeviceMemory(BlockMemory):
    """Blocks in the memory of a GPU. See the module for what runs when."""

    def __init__(
        self, layers: list[torch.Tensor], crossing: Crossing, part_bytes: int = PART_BYTES
    ) -> None:
        super().__init__(layers, part_bytes)
        self._crossing = crossing
        self._device = crossing.device

    def rows(self, blocks: int) -> torch.Tensor:
        """Return page-locked memory, which torch keeps for the next caller."""
        return torch.empty((blocks, self.block_bytes), dtype=torch.uint8, pin_memory=True)

    def moment(self) -> Moment | None:
        """See BlockMemory."""
        moment: Moment = torch.cuda.current_stream(self._device).record_event()
        return moment

    def gather(self, block_ids: list[int]) -> Transfer:
        """See BlockMemory. At most a part's blocks; the engine's stream waits two parts back."""
        assert len(block_ids) <= self._part_blocks, "more blocks than a part has"
        engine = torch.cuda.current_stream(self._device)
        size = len(block_ids) * self.block_bytes
        piece = self._crossing.piece(size)
        if piece.left is not None:
            engine.wait_event(piece.left)
        memory = piece.memory[:size].view(len(block_ids), self.block_bytes)
        with torch.cuda.device(self._device):
            self._collect(memory, self._index(block_ids))
        rows = self.rows(len(block_ids))
        out = self._crossing.out
        out.wait_stream(engine)
        with torch.cuda.stream(out):
            rows.copy_(memory, non_blocking=True)
            piece.left = _end_of(out)
        return Transfer(rows, piece.left)

    def scatter(self, block_ids: list[int], rows: torch.Tensor, after: Moment | None) -> Transfer:
        """See BlockMemory."""
        back = self._crossing.back
        # Leaving a stream goes back to the thread's own device, which must not be another GPU.
        with torch.cuda.device(self._device), torch.cuda.stream(back):
            if after is not None:
                assert isinstance(after, torch.cuda.Event), "a moment of another memory"
                back.wait_event(after)
            self._spread(rows.to(self._device, non_blocking=True), self._index(block_ids))
            return Transfer(rows, _end_of(back))

    def fill(self, block_ids: list[int], rows: torch.Tensor, after: Moment | None) -> None:
        """See BlockMemory. What is page-locked and what it takes of the device is bounded."""
        transfer: Transfer | None = None
        for part in self.parts(len(block_ids)):
            crossing = self.rows(part.stop - part.start)
            crossing.copy_(rows[part])
            if transfer is not None:
                transfer.wait()
            transfer = self.scatter(block_ids[part], crossing, after)
        if transfer is not None:
            transfer.wait()

    def _index(self, block_ids: list[int]) -> torch.Tensor:
        """On the device, once the current stream is there: nobody waits for it."""
        return torch.tensor(block_ids, pin_memory=True).to(self._device, non_blocking=True)


def _end_of(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """What is queued on a stream by now; who waits for it sleeps."""
    event = torch.cuda.Event(blocking=True)
    event.record(stream)
    return event


class Memories:
    """Makes the memories of one worker, whose tensors are all on one device."""

    def __init__(self) -> None:
        self._crossing: Crossing | None = None

    def of(self, layers: list[torch.Tensor]) -> BlockMemory:
        """Return the memory that these layers' blocks are in.

        Raises:
            ConfigurationError: Not all of the worker's tensors are on one device, or it is neither
                the processor nor a GPU of CUDA or ROCm.
        """
        devices = {layer.device for layer in layers}
        if self._crossing is not None:
            devices.add(self._crossing.device)
        if len(devices) != 1:
            names = ", ".join(sorted(map(str, devices)))
            raise ConfigurationError(f"the layers of a worker are on several devices: {names}")
        if layers[0].is_cpu:
            return BlockMemory(layers)
        if not layers[0].is_cuda:
            raise ConfigurationError(f"layers on {layers[0].device} cannot be copied")
        if self._crossing is None:
            self._crossing = Crossing(layers[0].device)
        return DeviceMemory(layers, self._crossing)

    def enter_thread(self) -> None:
        """To be called first by each thread that copies: it shall touch no other GPU."""
        if self._crossing is not None:
            torch.cuda.set_device(self._crossing.device)
