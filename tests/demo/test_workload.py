"""The generated workload has the statistics that it claims."""

from __future__ import annotations

import statistics

import pytest

from kvstore.demo.trace import BLOCK_TOKENS, Request, parse_request, workload_facts
from kvstore.demo.workload import MOONCAKE_CONVERSATION, generate


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return generate(6_000)


def test_the_same_seed_gives_the_same_workload() -> None:
    assert generate(200, seed=5) == generate(200, seed=5)
    assert generate(200, seed=5) != generate(200, seed=6)


def test_lengths(requests: list[Request]) -> None:
    shape = MOONCAKE_CONVERSATION
    inputs = [request.input_tokens for request in requests]
    assert statistics.mean(inputs) == pytest.approx(shape.input_tokens_mean, rel=0.1)
    assert statistics.median(inputs) == pytest.approx(shape.input_tokens_median, rel=0.15)
    assert max(inputs) <= shape.input_tokens_max
    outputs = [request.output_tokens for request in requests]
    assert statistics.mean(outputs) == pytest.approx(shape.output_tokens_mean, rel=0.1)


def test_turns_and_hits(requests: list[Request]) -> None:
    seen: set[int] = {0}
    later_turns = 0
    for request in requests:
        later_turns += len(request.blocks) > 1 and request.blocks[1] in seen
        seen.update(request.blocks)
    expected = MOONCAKE_CONVERSATION.later_turn_ratio
    assert later_turns / len(requests) == pytest.approx(expected, rel=0.15)
    assert 0.33 < workload_facts(requests).ideal_token_hit_ratio < 0.44


def test_an_id_means_a_whole_prefix(requests: list[Request]) -> None:
    before: dict[int, int | None] = {}
    for request in requests:
        assert len(request.blocks) == -(-request.input_tokens // BLOCK_TOKENS)
        previous: int | None = None
        for block in request.blocks:
            assert before.setdefault(block, previous) == previous
            previous = block


def test_it_is_a_trace_that_the_reader_accepts(requests: list[Request]) -> None:
    import json

    request = requests[100]
    text = json.dumps(
        {
            "timestamp": request.timestamp_ms,
            "input_length": request.input_tokens,
            "output_length": request.output_tokens,
            "hash_ids": list(request.blocks),
        }
    )
    assert parse_request(text) == request
