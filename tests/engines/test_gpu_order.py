"""On a GPU things happen later than the calls that queue them: the order of blocks' copies.

Runs with `make test-gpu` alone. A test makes the GPU late, so that what is queued behind has not
happened when a call is over.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.engines.conftest import engine_module

if not os.environ.get("KVSTORE_GPU"):
    pytest.skip("needs a GPU: make test-gpu", allow_module_level=True)
torch = engine_module("torch")
from kvstore.llm.block_memory import Memories  # noqa: E402
from tests.engines.test_block_memory import made_layers, memory_in_parts  # noqa: E402

#: About 0.1 s of a GPU.
LATE_CYCLES = 200_000_000


def test_a_copy_out_has_what_the_engine_had_queued_and_nothing_later() -> None:
    layers = made_layers("cuda")
    memory = memory_in_parts(layers, 2)
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


def test_a_copy_in_comes_behind_what_the_engine_had_queued() -> None:
    layers = made_layers("cuda")
    memory = Memories().of(layers)
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


def test_what_was_waited_for_is_there_for_every_stream() -> None:
    """A race of many: no stream synchronises with another by itself."""
    layers = made_layers("cuda", layers=32)
    memory = memory_in_parts(layers, 4)
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
