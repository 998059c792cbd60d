"""Requests of a prefix-cache workload, and reading them from the Mooncake trace format.

One request a line: `timestamp` in milliseconds, `input_length` and `output_length` in tokens, and
`hash_ids`, the chained ids of the prompt's blocks. An id stands for a block and everything before
it, so equal ids mean equal prefixes. A block holds 512 tokens; the last one may be partial.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

BLOCK_TOKENS: Final = 512
BLOCK_ID_MAX: Final = 2**63 - 1


class TraceError(Exception):
    """A trace can't be read; the text is one line that says where and why."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt: its arrival, its length, and the ids of its blocks in order."""

    timestamp_ms: int
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]

    def hit_tokens(self, matched_blocks: int) -> int:
        """Tokens that `matched_blocks` leading blocks save; the last block may be partial."""
        return min(BLOCK_TOKENS * matched_blocks, self.input_tokens)


@dataclass(frozen=True, slots=True)
class WorkloadFacts:
    """What a workload is, computed from it alone: the figures that a replay is checked against."""

    requests: int
    distinct_blocks: int
    block_references: int
    input_tokens: int
    ideal_hit_tokens: int

    @property
    def ideal_token_hit_ratio(self) -> float:
        """The hit ratio of an unlimited cache in which each request sees all earlier ones."""
        return self.ideal_hit_tokens / self.input_tokens if self.input_tokens else 0.0


def workload_facts(requests: Sequence[Request]) -> WorkloadFacts:
    """Counts blocks and tokens of `requests`, and the hits of an unlimited cache in file order."""
    seen: set[int] = set()
    references = input_tokens = hit_tokens = 0
    for request in requests:
        hit_tokens += request.hit_tokens(leading_members(request.blocks, seen))
        seen.update(request.blocks)
        references += len(request.blocks)
        input_tokens += request.input_tokens
    return WorkloadFacts(len(requests), len(seen), references, input_tokens, hit_tokens)


def leading_members(blocks: Sequence[int], known: set[int]) -> int:
    """How many leading blocks of `blocks` are in `known`."""
    for count, block in enumerate(blocks):
        if block not in known:
            return count
    return len(blocks)


def read_trace(path: Path, limit: int | None = None) -> list[Request]:
    """The first `limit` requests of a trace file (`.jsonl`, or `.gz` of it).

    Raises TraceError with the file and line if it can't be read.
    """
    try:
        with _open(path) as lines:
            requests = list(_requests(lines, str(path), limit))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: {_reason(error)}") from error
    if not requests:
        raise TraceError(f"{path}: no request in it")
    return requests


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _requests(lines: Iterable[str], name: str, limit: int | None) -> Iterator[Request]:
    count = 0
    for number, line in enumerate(lines, 1):
        if limit is not None and count >= limit:
            return
        if not line.strip():
            continue
        count += 1
        try:
            yield parse_request(line)
        except TraceError as error:
            raise TraceError(f"{name}:{number}: {error}") from error


def parse_request(line: str) -> Request:
    """One line of a trace. Raises TraceError that says what is wrong with it."""
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise TraceError(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise TraceError("not a JSON object")
    timestamp_ms = _whole_number(fields, "timestamp")
    input_tokens = _whole_number(fields, "input_length")
    output_tokens = _whole_number(fields, "output_length")
    blocks = fields.get("hash_ids")
    if not isinstance(blocks, list) or not all(_is_block_id(block) for block in blocks):
        raise TraceError(f"hash_ids must be a list of integers from 0 to {BLOCK_ID_MAX}")
    expected = -(-input_tokens // BLOCK_TOKENS)
    if len(blocks) != expected:
        raise TraceError(
            f"{len(blocks)} hash_ids for {input_tokens} tokens; {expected} blocks of "
            f"{BLOCK_TOKENS} tokens hold them"
        )
    if len(set(blocks)) != len(blocks):
        raise TraceError("a block id comes twice in one request")
    return Request(timestamp_ms, input_tokens, output_tokens, tuple(blocks))


def _whole_number(fields: dict[str, object], name: str) -> int:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TraceError(f"{name} must be an integer of at least 0")
    return value


def _is_block_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= BLOCK_ID_MAX
