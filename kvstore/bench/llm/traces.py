"""Traces of prompts for replays: the Mooncake format, and sessions of coding agents.

Both say which blocks a prompt consists of, by ids: equal ids mean equal prefixes. In a session's
file ids are its own, so every session's get a range of their own.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from kvstore.demo.trace import BLOCK_TOKENS, TraceError, read_trace

#: Bits of an id that say which session it is from.
_SESSION_SHIFT: Final = 40


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request: when it arrives, how long it is, and its blocks."""

    arrival_s: float
    input_tokens: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """Prompts in the order of their arrival."""

    name: str
    block_tokens: int
    prompts: list[Prompt]

    @property
    def input_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(prompt.input_tokens for prompt in self.prompts)

    def hit_tokens(self, prompt: Prompt, matched: int) -> int:
        """Tokens that `matched` leading blocks save; the last block may be partial."""
        return min(self.block_tokens * matched, prompt.input_tokens)


def load_trace(path: Path, limit: int | None = None) -> Trace:
    """Read a trace by its name: `.jsonl`, `.jsonl.gz`, or `.tar.*` with a JSON file a session.

    Sessions have no common clock: all begin at 0. Raises TraceError that says what is wrong.
    """
    if ".tar" not in path.name:
        prompts = [
            Prompt(request.timestamp_ms / 1e3, request.input_tokens, request.blocks)
            for request in read_trace(path, limit)
        ]
        return Trace(path.name, BLOCK_TOKENS, prompts)
    prompts = []
    sizes = set()
    try:
        with tarfile.open(path) as archive:
            members = sorted(m.name for m in archive if m.isfile() and m.name.endswith(".json"))
            for number, name in enumerate(members):
                file = archive.extractfile(name)
                assert file is not None
                block_tokens, session = _session(file, number)
                sizes.add(block_tokens)
                prompts += session
    except (OSError, tarfile.TarError, EOFError) as error:
        raise TraceError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise TraceError(f"{path}: a session is not as expected: {error!r}") from error
    if len(sizes) != 1:
        raise TraceError(f"{path}: sessions with blocks of {sorted(sizes)} tokens")
    prompts.sort(key=lambda prompt: prompt.arrival_s)
    return Trace(path.name, sizes.pop(), prompts[:limit])


def _session(file: IO[bytes], number: int) -> tuple[int, list[Prompt]]:
    session = json.load(file)
    base = (number + 1) << _SESSION_SHIFT
    prompts = [
        Prompt(
            float(request["t"]),
            int(request["in"]),
            tuple(base + int(block) for block in request["hash_ids"]),
        )
        for request in _requests(session["requests"])
    ]
    return int(session["block_size"]), prompts


def _requests(requests: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Requests, with those of subagents in their place."""
    for request in requests:
        if "requests" in request:
            yield from _requests(request["requests"])
        elif "hash_ids" in request:
            yield request
