"""Blocks between an engine's tensors and the host, byte by byte.

Runs where torch is: with `make test-engines` on the processor, with `make test-gpu` on a GPU too.
"""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.engines.conftest import engine_module

torch = engine_module("torch")
from kvstore.errors import ConfigurationError  # noqa: E402
from kvstore.llm.block_memory import (  # noqa: E402
    PART_BYTES,
    BlockMemory,
    Crossing,
    DeviceMemory,
    Memories,
)

GPU = bool(os.environ.get("KVSTORE_GPU"))
#: With KVSTORE_GPU a GPU must be there; without it these are the processor's tests.
DEVICES = ["cpu", "cuda"] if GPU else ["cpu"]
BLOCKS = 40


def made_layers(device: str, *, layers: int = 3) -> list[torch.Tensor]:
    """Layers as engines lay them out: blocks first, or inside of a (2, blocks, ...) tensor."""
    torch.manual_seed(7)
    made = []
    for number in range(layers):
        whole = torch.randn((2, BLOCKS, 16, 4, 8), device=device, dtype=torch.bfloat16)
        made.append(whole.transpose(0, 1) if number % 2 else whole[0])
    return made


def bytes_of(layers: list[torch.Tensor], block: int) -> bytes:
    parts = [layer[block].contiguous().view(torch.uint8).flatten().cpu() for layer in layers]
    return bytes(torch.cat(parts).numpy())


def memory_in_parts(layers: list[torch.Tensor], part_blocks: int) -> BlockMemory:
    part_bytes = part_blocks * BlockMemory(layers).block_bytes
    if layers[0].is_cuda:
        return DeviceMemory(layers, Crossing(layers[0].device), part_bytes)
    return BlockMemory(layers, part_bytes)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("part_blocks", [1, 3, 100])
def test_rows_are_the_bytes_of_blocks_and_come_back(device: str, part_blocks: int) -> None:
    layers = made_layers(device)
    memory = memory_in_parts(layers, part_blocks)
    wanted = [bytes_of(layers, block) for block in range(BLOCKS)]
    ids = random.Random(1).sample(range(BLOCKS), 17)
    copies = [memory.gather(ids[part]) for part in memory.parts(len(ids))]
    rows = torch.cat([copy.wait() for copy in copies])
    assert [bytes(row.numpy()) for row in rows] == [wanted[block] for block in ids]

    targets = random.Random(2).sample(range(BLOCKS), 17)
    for part in memory.parts(len(ids)):
        back = memory.rows(part.stop - part.start)
        back.copy_(rows[part])
        memory.scatter(targets[part], back, memory.moment()).wait()
    for source, target in zip(ids, targets, strict=True):
        wanted[target] = bytes(rows[ids.index(source)].numpy())
    assert [bytes_of(layers, block) for block in range(BLOCKS)] == wanted


@pytest.mark.parametrize("device", DEVICES)
def test_parts_are_bounded(device: str) -> None:
    layers = made_layers(device)
    memory = Memories().of(layers)
    count = 3 * PART_BYTES // memory.block_bytes
    parts = list(memory.parts(count))
    assert [place for part in parts for place in range(count)[part]] == list(range(count))
    assert max(part.stop - part.start for part in parts) * memory.block_bytes <= PART_BYTES
    assert list(memory.parts(0)) == []


def test_layers_of_several_devices_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="several devices: cpu, meta"):
        Memories().of([torch.zeros(2, 2), torch.zeros((2, 2), device="meta")])


def test_layers_of_other_devices_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="meta cannot be copied"):
        Memories().of([torch.zeros((2, 2), device="meta")])


@pytest.mark.parametrize("device", DEVICES)
def test_rows_of_any_memory_fill_blocks(device: str) -> None:
    layers = made_layers(device)
    memory = memory_in_parts(layers, 3)
    rows = torch.randint(0, 256, (8, memory.block_bytes), dtype=torch.uint8)
    memory.fill(list(range(20, 28)), rows, memory.moment())
    assert [bytes_of(layers, 20 + row) for row in range(8)] == [bytes(r.numpy()) for r in rows]


def test_threads_land_rows_apart_from_copies_on_their_way() -> None:
    layers = made_layers("cpu")
    memory = Memories().of(layers)
    copy = memory.gather([1])
    rows = memory.rows(1)
    rows.fill_(7)
    assert memory.rows(1).data_ptr() == rows.data_ptr()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: memory.rows(1).fill_(8)).result()
    assert bool((rows == 7).all())
    assert bytes(copy.wait()[0].numpy()) == bytes_of(layers, 1)
