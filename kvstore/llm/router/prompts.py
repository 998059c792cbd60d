"""What a request's prompt begins with, for OpenAI-compatible requests: hashes of its bytes.

A router has neither tokenizer nor template, and needs none: prompts that begin with the same bytes,
in the same order, for the same model, begin with the same tokens. A token counts as four bytes,
which is exact for prompts given as token ids and about right for text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

#: Bytes that one hash stands for, and their tokens.
_BLOCK_BYTES: Final = 512
_TOKEN_BYTES: Final = 4
BLOCK_TOKENS: Final = _BLOCK_BYTES // _TOKEN_BYTES
#: Blocks that are hashed at most: 2 MiB of a prompt, as it is compared, tell it apart.
_BLOCKS_MAX: Final = 4096
_HASH_BYTES: Final = 16
#: Larger bodies are not looked into: JSON is parsed in one go, while everybody else waits.
_BODY_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class PromptShape:
    """A prompt as a router sees it; without hashes, there is none.

    Attributes:
        hashes: Of its blocks.
        input_tokens: An estimate.
        is_kept: Whether the request asks the instance to remember it: it is not sent twice.
    """

    hashes: tuple[bytes, ...] = ()
    input_tokens: int = 0
    is_kept: bool = False


def shape_of(body: bytes | bytearray) -> PromptShape:
    """Return the shape of a request's prompt; one without hashes for whatever has no prompt.

    So has a body above 1 MiB. What is wrong with a request is the engine's to say: nothing fails.
    """
    if len(body) > _BODY_BYTES_MAX:
        return PromptShape(input_tokens=len(body) // _TOKEN_BYTES)
    try:
        return _shape_of(json.loads(body))
    except (ValueError, RecursionError):
        return PromptShape()


def _shape_of(request: Any) -> PromptShape:
    if not isinstance(request, dict):
        return PromptShape()
    pieces = list(_pieces(request))
    if not pieces:
        return PromptShape()
    data = b"".join(pieces)
    # Engines keep these apart, so that equal prompts share nothing across them.
    root = _canonical([request.get("model"), request.get("cache_salt")])
    is_kept = bool(request.get("store") or request.get("background"))
    return PromptShape(_hashes(root, data), max(1, len(data) // _TOKEN_BYTES), is_kept)


def _hashes(root: bytes, data: bytes) -> tuple[bytes, ...]:
    last = hashlib.blake2b(root, digest_size=_HASH_BYTES).digest()
    hashes = []
    # A last block that is not whole has no hash, unless it is all there is.
    end = max(_BLOCK_BYTES, len(data) - len(data) % _BLOCK_BYTES)
    for begin in range(0, min(end, _BLOCKS_MAX * _BLOCK_BYTES), _BLOCK_BYTES):
        block = data[begin : begin + _BLOCK_BYTES]
        last = hashlib.blake2b(last + block, digest_size=_HASH_BYTES).digest()
        hashes.append(last)
    return tuple(hashes)


def _pieces(request: dict[str, Any]) -> Iterator[bytes]:
    """Yield the prompt in the order in which templates put it: tools, then turns."""
    prompt = request.get("prompt")
    turns = request.get("messages", request.get("input"))
    if prompt:
        yield _prompt_bytes(prompt)
    elif isinstance(turns, str) and turns:
        yield turns.encode(errors="replace")
    elif isinstance(turns, list) and turns:
        if request.get("tools"):
            yield _canonical(request["tools"])
        if request.get("instructions"):
            yield _canonical(request["instructions"])
        for turn in turns:
            yield _canonical(turn)


def _prompt_bytes(prompt: Any) -> bytes:
    # Of several prompts in one request, the first one decides.
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt.encode(errors="replace")
    if isinstance(prompt, list) and all(isinstance(token, int) for token in prompt):
        return b"".join((token & 0xFFFFFFFF).to_bytes(_TOKEN_BYTES, "little") for token in prompt)
    return _canonical(prompt)


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
