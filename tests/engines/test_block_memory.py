"""Blocks between an engine's tensors and the host: the bytes, and on a GPU the order of things.

Runs where torch is: with `make test-engines` on the processor, with `make test-gpu` on a GPU too.
A test of order makes the GPU late: what is queued behind it has not happened when the call is over.
"""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.engines.conftest import engine_module

torch = engine_module("torch")
from kvstore.llm.block_memory import PART_BYTES, BlockMemory, DeviceMemory, block_memory  # noqa: E402

GPU = bool(os.environ.get("KVSTORE_GPU"))
#: With KVSTORE_GPU a GPU must be there; without it these are the processor's tests.
DEVICES = ["cpu", "cuda"] if GPU else ["cpu"]
on_gpu = pytest.mark.skipif(not GPU, reason="make test-gpu")
BLOCKS = 40
#: About 0.1 s of a GPU.
LATE_CYCLES = 200_000_000


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


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("part_blocks", [1, 3, 100])
def test_rows_are_the_bytes_of_blocks_and_come_back(device: str, part_blocks: int) -> None:
    layers = made_layers(device)
    size = block_memory(layers).block_bytes
    kind = DeviceMemory if device == "cuda" else BlockMemory
    memory = kind(layers, part_blocks * size)
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
    memory = block_memory(layers)
    count = 3 * PART_BYTES // memory.block_bytes
    parts = list(memory.parts(count))
    assert [place for part in parts for place in range(count)[part]] == list(range(count))
    assert max(part.stop - part.start for part in parts) * memory.block_bytes <= PART_BYTES
    assert list(memory.parts(0)) == []


def test_layers_of_several_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="several devices: cpu, meta"):
        block_memory([torch.zeros(2, 2), torch.zeros((2, 2), device="meta")])


@on_gpu
def test_a_copy_out_has_what_the_engine_had_queued_and_nothing_later() -> None:
    layers = made_layers("cuda")
    memory = DeviceMemory(layers, 2 * block_memory(layers).block_bytes)
    ids = list(range(9))
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(LATE_CYCLES)
        for layer in layers:
            layer.fill_(1.0)
        copies = [memory.gather(ids[part]) for part in memory.parts(len(ids))]
        for layer in layers:
            layer.fill_(2.0)
    assert not copies[0].ended(), "the GPU was not late"
    for copy in copies:
        assert bool((copy.wait().view(torch.bfloat16) == 1.0).all())
    torch.cuda.synchronize()
    assert bool((layers[0] == 2.0).all())


@on_gpu
def test_a_copy_in_comes_behind_what_the_engine_had_queued() -> None:
    layers = made_layers("cuda")
    memory = block_memory(layers)
    engine = torch.cuda.Stream()
    before = [layer[5].clone() for layer in layers]
    torch.cuda.synchronize()
    with torch.cuda.stream(engine):
        torch.cuda._sleep(LATE_CYCLES)
        read = [layer[5].clone() for layer in layers]
        after = memory.moment()
    rows = memory.rows(1)
    rows.view(torch.bfloat16).fill_(3.0)
    with ThreadPoolExecutor(1) as thread:
        transfer = thread.submit(memory.scatter, [5], rows, after).result()
        thread.submit(transfer.wait).result()
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(read, before, strict=True))
    assert bool((layers[1][5] == 3.0).all())


@on_gpu
def test_what_was_waited_for_is_there_for_every_stream() -> None:
    """A race of many: no stream synchronises with another by itself."""
    layers = made_layers("cuda", layers=32)
    memory = DeviceMemory(layers, 4 * block_memory(layers).block_bytes)
    engine = torch.cuda.Stream()

    def load(part: slice, value: float) -> None:
        rows = memory.rows(4)
        rows.view(torch.bfloat16).fill_(value)
        memory.scatter(list(range(16)[part]), rows, memory.moment()).wait()

    with ThreadPoolExecutor(2) as threads:
        for first in range(0, 200, 4):
            loads = [
                threads.submit(load, part, float(first + number))
                for number, part in enumerate(memory.parts(16))
            ]
            for done in loads:
                done.result()
            with torch.cuda.stream(engine):
                seen = torch.stack([layer[:16].flatten(1).amin(1) for layer in layers]).cpu()
                copy = memory.gather([0, 4, 8, 12])
            assert seen.tolist() == [[first + block // 4 for block in range(16)]] * len(layers)
            kept = copy.wait().view(torch.bfloat16)
            assert kept[:, -1].tolist() == [first + number for number in range(4)]
