"""Namespaces: what must be equal before two engines may share a block of KV cache.

A block hash says which tokens a block stands for and nothing else. Everything else that decides the
bytes of a block, or who may see them, is a field here; engines that differ in any field never see
each other's blocks. The digest over all fields is a part of every key.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from typing import Final

#: Changes whenever the encoding below does, so that old and new readers never meet.
_ENCODING: Final = b"kvstore.llm.namespace/1"
DIGEST_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Which part of the model's KV cache one worker holds. Data-parallel replicas are equal."""

    tensor_rank: int = 0
    tensor_size: int = 1
    pipeline_rank: int = 0
    pipeline_size: int = 1
    context_rank: int = 0
    context_size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """The identity of a set of blocks.

    Attributes:
        model: Name or path of the model.
        revision: Commit, fingerprint or version of its weights.
        dtype: Element type of the KV cache, with its quantisation where it has one.
        layout: How the bytes stand in a block: engine, version, backend, instruction set, order of
            layers, heads and tokens. Blocks of different layouts are of no use to each other.
        block_tokens: Tokens a block.
        ranks: The part of the cache that this worker holds.
        adapter: Name and revision of a LoRA adapter; empty without one.
        tokenizer: Where block hashes are made from text: which tokenizer; empty for token ids.
        salt: What keeps tenants apart; never written to the store in the clear.
        group: The KV cache group of hybrid models.
        codec: The name of a codec that loses precision; empty for lossless ones.
    """

    model: str
    dtype: str
    layout: str
    block_tokens: int
    revision: str = ""
    ranks: Ranks = Ranks()
    adapter: str = ""
    tokenizer: str = ""
    salt: str = ""
    group: int = 0
    codec: str = ""

    def canonical(self) -> bytes:
        """Return the encoding that the digest is taken of; no two namespaces share one."""
        parts = [_ENCODING]
        for name, value in _items(self):
            text = f"{name}:{type(value).__name__}:{value}".encode()
            parts.append(len(text).to_bytes(4, "little") + text)
        return b"".join(parts)

    def digest(self) -> bytes:
        """Return the 16 bytes that stand for this namespace in every key."""
        return hashlib.sha256(self.canonical()).digest()[:DIGEST_BYTES]

    def describe(self) -> dict[str, str | int]:
        """Return the fields for people to read. The salt is left out: it may be a secret."""
        return {name: value for name, value in _items(self) if name != "salt"}

    def with_ranks(self, ranks: Ranks) -> Namespace:
        """Return the namespace of another worker of the same engine."""
        return replace(self, ranks=ranks)


def _items(namespace: Namespace) -> list[tuple[str, str | int]]:
    items: list[tuple[str, str | int]] = []
    for field in fields(namespace):
        value = getattr(namespace, field.name)
        if isinstance(value, Ranks):
            items += [(f"ranks.{f.name}", getattr(value, f.name)) for f in fields(value)]
        else:
            items.append((field.name, value))
    return items
