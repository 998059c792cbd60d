"""Reading traces: what is accepted, what is refused in one line, what the figures are."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from kvstore.demo.trace import (
    Request,
    TraceError,
    parse_request,
    read_trace,
    workload_facts,
)
from kvstore.demo.workload import generate


def line(**changes: object) -> str:
    fields: dict[str, object] = {
        "timestamp": 27,
        "input_length": 1025,
        "output_length": 3,
        "hash_ids": [0, 7, 9],
    }
    fields.update(changes)
    return json.dumps({name: value for name, value in fields.items() if value is not ...})


def hit_tokens_by_prefix(requests: list[Request]) -> int:
    """Tokens hit, computed from whole prefixes: nothing here relies on what an id means."""
    prefixes: set[tuple[int, ...]] = set()
    total = 0
    for request in requests:
        matched = 0
        for length in range(1, len(request.blocks) + 1):
            if request.blocks[:length] in prefixes:
                matched = length
        total += min(512 * matched, request.input_tokens)
        prefixes.update(request.blocks[:n] for n in range(1, len(request.blocks) + 1))
    return total


def test_a_request() -> None:
    assert parse_request(line()) == Request(27, 1025, 3, (0, 7, 9))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        (line(timestamp=-1), "timestamp"),
        (line(timestamp=1.5), "timestamp"),
        (line(input_length="12"), "input_length"),
        (line(input_length=True), "input_length"),
        (line(output_length=...), "output_length"),
        (line(hash_ids=...), "hash_ids"),
        (line(hash_ids="0,7,9"), "hash_ids"),
        (line(hash_ids=[0, 7, -9]), "hash_ids"),
        (line(hash_ids=[0, 7, 1 << 63]), "hash_ids"),
        (line(hash_ids=[0, 7]), "2 hash_ids for 1025 tokens"),
        (line(hash_ids=[0, 7, 7]), "twice"),
    ],
)
def test_a_malformed_line_is_one_clear_line(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{line()}\n{text}\n")
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:2: ")
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize("kind", ["absent", "empty", "broken gzip", "not text"])
def test_a_file_that_is_no_trace(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("trace.gz" if "gzip" in kind else "trace.jsonl")
    if kind != "absent":
        path.write_bytes({"empty": b"", "broken gzip": b"\x1f\x8b\x08 no"}.get(kind, b"\xff\xfe"))
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_compressed_and_plain_files_and_the_limit(tmp_path: Path) -> None:
    text = "".join(f"{line(timestamp=number)}\n" for number in range(5))
    plain, packed = tmp_path / "trace.jsonl", tmp_path / "trace.jsonl.gz"
    plain.write_text(text + "\n")
    packed.write_bytes(gzip.compress(text.encode()))
    assert read_trace(plain) == read_trace(packed)
    assert [request.timestamp_ms for request in read_trace(packed, limit=2)] == [0, 1]


def test_a_partial_last_block_saves_no_more_than_the_prompt() -> None:
    request = Request(0, 1025, 1, (0, 7, 9))
    assert [request.hit_tokens(matched) for matched in range(4)] == [0, 512, 1024, 1025]


def test_facts_of_a_trace_written_by_hand() -> None:
    requests = [
        Request(0, 1024, 1, (0, 1)),  # nothing is there yet
        Request(1, 1500, 1, (0, 1, 2)),  # two blocks hit
        Request(2, 600, 1, (0, 3)),  # one block hit
        Request(3, 1500, 1, (0, 1, 2)),  # all three hit, the last one partial
    ]
    facts = workload_facts(requests)
    assert (facts.requests, facts.distinct_blocks, facts.block_references) == (4, 4, 10)
    assert facts.ideal_hit_tokens == 1024 + 512 + 1500
    assert facts.input_tokens == 4624


def test_facts_of_the_conversation_trace(traces: Path | None) -> None:
    if traces is None:
        # The miniature: its expected figure comes from whole prefixes.
        requests = generate(400)
        assert workload_facts(requests).ideal_hit_tokens == hit_tokens_by_prefix(requests)
        return
    requests = read_trace(traces / "conversation_trace.jsonl.gz")
    facts = workload_facts(requests)
    assert facts.requests == 12_031
    assert facts.distinct_blocks == 182_790
    assert facts.block_references == 288_500
    assert f"{facts.ideal_token_hit_ratio:.4f}" == "0.3736"
